"""A tiny data set of drawn heads in the plain `folder` layout, and settings to train on it in seconds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.datasets.opening import open_datasets

PATIENTS = 10
SLICES = 4
SIDE = 72


def write_heads(root: Path, patients: int = PATIENTS, slices: int = SLICES) -> Path:
    """Write heads of skull and brain; every second patient bleeds, and one bleed has no mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    rows = []
    for patient in range(patients):
        for folder in ("images", "masks"):
            (root / folder / f"p{patient:02d}").mkdir(parents=True)
        for k in range(slices):
            radius = np.hypot((y - 36) / 32, (x - 36) / 28)
            image = np.where(radius < 1, 255.0, 0.0)
            image[radius < 0.88] = 110
            mask = np.zeros((SIDE, SIDE), np.uint8)
            bleeds = patient % 2 == 0 and k > 0
            if bleeds:
                at = (36 + rng.integers(-10, 10), 36 + rng.integers(-8, 8))
                mask[np.hypot(y - at[0], x - at[1]) < 6 + k] = 255
            image[mask > 0] = 185
            image = np.clip(image + rng.normal(0, 5, image.shape) * (radius < 1), 0, 255).astype(np.uint8)
            name = f"p{patient:02d}/{k:02d}.png"
            Image.fromarray(image).save(root / "images" / name)
            if not (patient == 0 and k == 1):
                Image.fromarray(mask).save(root / "masks" / name)
            rows.append([name, int(bleeds), "", "", "", int(bleeds), ""])
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "any", "epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular"])
        writer.writerows(rows)
    return root


def heads(root: Path) -> tuple[DataSet, ...]:
    """Write and open the data set."""
    return open_datasets(write_heads(root))


def tiny(**settings: Any) -> Any:
    """Return settings of a small U-Net at 32 px for a few steps."""
    from hemolens.models.unet2d import UNet2dConfig
    from hemolens.preprocessing.pipeline import PreprocessConfig
    from hemolens.training.config import TrainConfig
    from hemolens.training.data import DataConfig
    from hemolens.training.schedule import ScheduleConfig

    base = TrainConfig(
        network=UNet2dConfig(width=4, depth=2, norm="group", dropout=0.2, findings_head=True),
        preprocess=PreprocessConfig(size=32),
        data=DataConfig(sampling="balanced", workers=0),
        schedule=ScheduleConfig(warmup_steps=2),
        steps=6,
        batch=4,
        validate_every=3,
        checkpoint_every=2,
        log_every=2,
        tensorboard=False,
    )
    return replace(base, **settings)


def weights(network: Any) -> Any:
    """Return all weights and running statistics as one vector."""
    import torch

    return torch.cat([v.double().flatten() for v in network.state_dict().values()])
