"""The phantom head that ships with hemolens: a CT series with bleeds whose volume is known.

It is computed, not a patient: tissue from the MNI152 atlas, bleeds from formulas, images from a simulated scanner
(``tools/make_demo.py``; see ``README.md`` in this folder for its sources and their terms).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DemoTruth", "TrueLesion", "demo_source", "demo_truth"]


@dataclass(frozen=True)
class TrueLesion:
    """One bleed of the phantom, as it truly is."""

    subtype: str
    volume_ml: float
    """Integrated on a 0.5 mm grid that knows nothing of slices."""
    centroid_mm: tuple[float, float, float]
    """LPS, in the frame of reference of the series."""
    label_map_ml: float
    """Volume of the true label map: the best that any mask on the grid of the slices can do."""


@dataclass(frozen=True)
class DemoTruth:
    """What is known about the phantom."""

    series_uid: str
    lesions: tuple[TrueLesion, ...]
    provenance: dict[str, Any]
    """Generator, its version and seed, atlas and checksums."""

    @property
    def total_ml(self) -> float:
        """Volume of all blood."""
        return sum(lesion.volume_ml for lesion in self.lesions)

    def labels(self) -> NDArray[np.uint8]:
        """Return the true label map: ``(slices, rows, columns)``, lowest slice first.

        A voxel carries the index of a `hemolens.labels.Subtype` where that bleed fills at least half of it, else 0.
        """
        with np.load(_folder() / "labels.npz") as archive:
            labels: NDArray[np.uint8] = archive["labels"]
        return labels


def demo_source() -> Path:
    """Return the folder of the phantom's DICOM series, for `hemolens.sources.study.read_volume`."""
    return _folder() / "series"


@cache
def demo_truth() -> DemoTruth:
    """Return what is known about the phantom that `demo_source` shows."""
    told = json.loads((_folder() / "truth.json").read_text(encoding="utf-8"))
    lesions = tuple(
        TrueLesion(
            subtype=lesion["subtype"],
            volume_ml=lesion["volume_ml"],
            centroid_mm=tuple(lesion["centroid_mm"]),
            label_map_ml=lesion["label_map_ml"],
        )
        for lesion in told["lesions"]
    )
    return DemoTruth(told["series_uid"], lesions, told["provenance"])


def _folder() -> Path:
    # hemolens is installed as plain files (wheels are never run from inside a zip), so this is a real folder.
    return Path(str(resources.files("hemolens.demo")))
