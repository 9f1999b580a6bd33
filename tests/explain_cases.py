"""Small heads and runs with known content, for everything that explains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hemolens.config import to_mapping
from hemolens.models.registry import build_network
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.preprocessing.window import to_gray
from hemolens.volume import SourceInfo, Volume

BRAIN, BLOOD, SKULL, AIR = 35, 72, 600, -1000
SMALL = PreprocessConfig(size=64, crop="none", gate=False, mirror=False)


def little_head(slices: int, side: int, seed: int = 0) -> Volume:
    """A disk of noisy brain in a ring of bone; as pictures, without geometry."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:side, :side]
    radius = np.hypot(rows - (side - 1) / 2, columns - (side - 1) / 2)
    hu = np.where(radius < 0.46 * side, SKULL, AIR) * np.ones((slices, 1, 1))
    hu = np.where(radius < 0.40 * side, BRAIN + rng.normal(0, 3, hu.shape), hu).astype(np.float32)
    names = tuple(f"{k + 1}.png" for k in range(slices))
    return Volume(hu, None, SourceInfo("images", "little", names))


def save_run(folder: Path, config: Any, preprocess: PreprocessConfig = SMALL) -> Path:
    from hemolens.training.checkpoint import save_state
    from hemolens.training.config import TrainConfig, save_config

    folder.mkdir()
    train = TrainConfig(network=config, preprocess=preprocess, steps=1)
    save_config(train, folder / "config.toml")
    network = build_network(config, pretrained=False)
    save_state(
        folder / "best.pt",
        {"network": to_mapping(network.config), "weights": network.state_dict(), "config": to_mapping(train)},
    )
    return folder


def save_pictures(folder: Path, volume: Volume) -> Path:
    folder.mkdir()
    for name, gray in zip(volume.source.slice_names, to_gray(volume.hu), strict=True):
        Image.fromarray(gray).save(folder / name)
    return folder
