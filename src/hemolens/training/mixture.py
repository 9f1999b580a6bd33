"""The former loader, kept until the loop has moved to `hemolens.training.store` and `hemolens.training.data`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from hemolens.errors import InputError
from hemolens.labels import FINDING_NAMES
from hemolens.preprocessing.head import CLOSING_SHARES, GATE_SHARE, find_crop, skull_inside
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.preprocessing.window import to_gray
from hemolens.sources.datasets import ct_ich, phe_sich
from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.training.synthesis import SMALLEST_INSIDE, paint

if TYPE_CHECKING:
    from hemolens.training.config import TrainConfig

KINDS = ("synthetic", "synthetic_phe", "clean", "weak", "pseudo")
TYPICAL_BRAIN_GRAY = 113.0
"""Median gray value of brain in CT-ICH; PHE-SICH's free windows are scaled to it, scan by scan."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice with its neighbors and what is known of it."""

    images: NDArray[np.uint8]
    """Shape ``(3, size, size)``."""
    inside: NDArray[np.bool_]
    """Inside of the skull."""
    findings: NDArray[np.float32]
    """1, 0, or NaN for unknown, in `FINDING_NAMES` order."""
    labels: NDArray[np.uint8] | None
    """0, subtype or `UNKNOWN_SUBTYPE` per pixel; None where the mask is unknown."""
    patient: str


def load_ct_ich(root: Path, patients: set[str], config: PreprocessConfig) -> list[Sample]:
    """Return every slice of the named CT-ICH patients; masks are empty or unknown (drawn ones are for measuring)."""
    truth: dict[str, dict[int, NDArray[np.float32]]] = {}
    for row in ct_ich.read_labels(root):
        truth.setdefault(row.patient, {})[row.slice_number] = np.array(row.findings, dtype=np.float32)
    samples = []
    for patient in sorted(patients):
        volume = read_volume(root, ReadOptions(patient=patient))
        gray = to_gray(volume.hu)
        crops, insides = _crops(gray, config.size)
        for k, number in enumerate(volume.source.slice_numbers):
            findings = truth[patient].get(number)
            if findings is None:
                raise InputError(root, f"no label for patient {patient}, slice {number}", "Use the table as published.")
            labels = np.zeros(crops.shape[1:], np.uint8) if findings[0] == 0 else None
            samples.append(Sample(_triple(crops, k), insides[k], findings, labels, f"ct_ich/{patient}"))
    return samples


def load_phe_sich(root: Path, patients: set[str], config: PreprocessConfig) -> list[Sample]:
    """Return the slices of the named PHE-SICH patients whose truth is usable; ``unsure`` ones are left out.

    The pixels of a pseudo-mask have no known subtype: such bleeds often break into the ventricles. Taken as
    intraparenchymal, they taught the network that all real blood is, and only synthetic blood is anything else.
    """
    by_patient: dict[str, list[phe_sich.PheSlice]] = {}
    for row in phe_sich.read_slices(root):
        by_patient.setdefault(row.patient, []).append(row)
    samples = []
    for patient in sorted(patients):
        rows = sorted(by_patient[patient], key=lambda r: r.number)
        gray = _standardize(np.stack([phe_sich.read_image(root, r) for r in rows]))
        crop = find_crop(gray, 1.0, config.size)
        crops, insides = _crops(gray, config.size)
        numbers = [r.number for r in rows]
        for k, row in enumerate(rows):
            if row.blood == "unsure":
                continue
            findings = np.full(len(FINDING_NAMES), np.nan, dtype=np.float32)
            labels = np.zeros(crops.shape[1:], np.uint8)
            if row.blood == "pseudo":
                findings[[0, 4]] = 1.0
                findings[[1, 2]] = 0.0  # spontaneous: the data set leaves out bleeds after trauma
                mask = crop.extract(phe_sich.read_pseudo_mask(root, row)) > 0.5
                labels[mask] = UNKNOWN_SUBTYPE
            else:
                findings[:] = 0.0
            images = _triple(crops, k, numbers)
            samples.append(Sample(images, insides[k], findings, labels, f"phe_sich/{patient}"))
    return samples


def _crops(gray: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    crop = find_crop(gray, 1.0, size)
    crops = np.stack([np.clip(np.rint(crop.extract(g)), 0, 255).astype(np.uint8) for g in gray])
    return crops, [skull_inside(image, CLOSING_SHARES[:1]) for image in crops]


def _triple(crops: NDArray[np.uint8], k: int, numbers: list[int] | None = None) -> NDArray[np.uint8]:
    """Return the slice between its neighbors; where a neighbor is missing, the slice itself stands in."""
    index = [k, k, k]
    for channel, step in ((0, -1), (2, 1)):
        j = k + step
        if 0 <= j < len(crops) and (numbers is None or numbers[j] == numbers[k] + step):
            index[channel] = j
    return crops[index]


def _standardize(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    inner = gray[:, gray.shape[1] // 4 : -gray.shape[1] // 4, gray.shape[2] // 4 : -gray.shape[2] // 4]
    tissue = inner[(inner > 40) & (inner < 200)]
    if not tissue.size:
        return gray
    scaled = gray.astype(np.float32) * (TYPICAL_BRAIN_GRAY / float(np.median(tissue)))
    return np.where(gray == 255, 255, np.clip(np.rint(scaled), 0, 255)).astype(np.uint8)


class Mixture(IterableDataset[dict[str, Tensor]]):
    """An endless stream of samples, mixed by kind; sample ``i`` depends on the seed and ``i`` alone."""

    def __init__(self, samples: list[Sample], config: TrainConfig, start: int = 0) -> None:
        self.config = config
        self.start = start
        self.pools = {kind: [s for s in samples if _fits(s, kind)] for kind in KINDS}
        shares = np.array([w if self.pools[k] else 0.0 for k, w in zip(KINDS, config.mix.shares, strict=True)])
        self.shares = shares / shares.sum()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield dictionaries of tensors (see `hemolens.training.losses.total_loss`)."""
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        number = self.start + first
        while True:
            yield self.sample(number)
            number += step

    def sample(self, number: int) -> dict[str, Tensor]:
        """Return sample `number`."""
        rng = np.random.default_rng([self.config.seed, number])
        kind = KINDS[int(rng.choice(len(KINDS), p=self.shares))]
        pool = self.pools[kind]
        chosen = pool[int(rng.integers(len(pool)))]
        images, findings, labels = chosen.images, chosen.findings, chosen.labels
        if rng.random() < self.config.repeat_center:
            images = images[[1, 1, 1]]
        if kind.startswith("synthetic"):
            painted = paint(images, chosen.inside, self.config.synthesis, rng)
            if painted is not None:
                images, labels = painted.images, painted.labels
                findings = np.concatenate([[1.0], painted.subtypes]).astype(np.float32)
        return {
            "images": torch.from_numpy(images.astype(np.float32)),
            "labels": torch.from_numpy(labels if labels is not None else np.zeros(images.shape[1:], np.uint8)).long(),
            "mask_known": torch.tensor(labels is not None),
            "inside": torch.from_numpy(_allowed(chosen.inside).astype(np.float32)),
            "findings": torch.from_numpy(findings),
        }


def _allowed(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where blood may be: inside the skull, or everywhere where the skull is not closed."""
    return inside if inside.mean() >= GATE_SHARE else np.ones_like(inside)


def _fits(sample: Sample, kind: str) -> bool:
    phe, bleeding = sample.patient.startswith("phe_sich"), bool(sample.findings[0] == 1)
    if kind in ("synthetic", "synthetic_phe"):
        usable = SMALLEST_INSIDE <= sample.inside.mean()
        return usable and not bleeding and phe == (kind == "synthetic_phe")
    if kind == "clean":
        return not phe and not bleeding
    if kind == "weak":
        return not phe and bleeding and sample.labels is None
    return phe and bleeding
