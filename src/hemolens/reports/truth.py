"""Found against true: what a report shows where the lesions of a scan are known, as those of the demo are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.labels import subtype_at
from hemolens.measurements.lesions import Lesion, number_lesions
from hemolens.volume import LabelMap


class TrueLesion(Protocol):
    """A lesion that is known to be there."""

    @property
    def subtype(self) -> str:
        """One of `hemolens.labels.SUBTYPE_NAMES`."""

    @property
    def volume_ml(self) -> float:
        """Its true volume."""

    @property
    def centroid_mm(self) -> tuple[float, float, float]:
        """LPS."""


class Truth(Protocol):
    """Every lesion of a scan, and where it is."""

    @property
    def lesions(self) -> Sequence[TrueLesion]:
        """All of them."""

    def labels(self) -> NDArray[np.uint8]:
        """Return the true label map, on the grid of the scan."""


@dataclass(frozen=True)
class Pair:
    """A true lesion and the found one that covers most of it, or one of the two alone."""

    true: TrueLesion | None
    found: Lesion | None
    distance_mm: float | None = None
    """Between the two centroids."""
    covered: float | None = None
    """Share of the true lesion's voxels that are outlined, by whichever lesion."""


@dataclass(frozen=True)
class Comparison:
    """How a result compares with the truth."""

    pairs: tuple[Pair, ...]
    """Every true lesion in its order, then found ones that touch none."""
    true_ml: float
    dice: float | None
    """Of all blood; None where there is none, neither found nor true."""


def compare(label_map: LabelMap, lesions: Sequence[Lesion], truth: Truth) -> Comparison:
    """Set the lesions that were found beside the true ones.

    Raises
    ------
    InputError
        If the true label map is not on the grid of the scan.
    """
    true_map = LabelMap(truth.labels(), label_map.volume)
    if label_map.volume.stack is None:
        raise InputError(
            label_map.volume.source.path_or_uid, "has no geometry to compare with the truth", "Leave the truth out."
        )
    found_numbers, regions = number_lesions(label_map), _regions(true_map, truth)
    pairs = []
    for number, true in enumerate(truth.lesions, start=1):
        region = regions == number
        hits = np.bincount(found_numbers[region], minlength=len(lesions) + 1)
        size = int(hits.sum())
        best = int(hits[1:].argmax()) if hits[1:].any() else None
        found = None if best is None else lesions[best]
        distance = None
        if found is not None and found.centroid_mm is not None:
            distance = float(np.linalg.norm(np.subtract(true.centroid_mm, found.centroid_mm)))
        pairs.append(Pair(true, found, distance, float(hits[1:].sum() / size) if size else None))
    touching = set(np.unique(found_numbers[true_map.labels > 0]))
    pairs += [Pair(None, lesion) for lesion in lesions if lesion.id not in touching]
    return Comparison(tuple(pairs), sum(t.volume_ml for t in truth.lesions), _dice(label_map, true_map))


def _regions(true_map: LabelMap, truth: Truth) -> NDArray[np.int64]:
    """Return the number (from 1) of the true lesion that each voxel of the true label map belongs to."""
    numbers = number_lesions(true_map)
    stack = true_map.volume.require_stack()
    owner = np.zeros(int(numbers.max()) + 1, dtype=np.int64)
    for number in range(1, len(owner)):
        where = np.argwhere(numbers == number)
        subtype = subtype_at(int(true_map.labels[tuple(where[0])])).name
        center = stack.index_to_mm(where).mean(axis=0)
        distances = [
            float(np.linalg.norm(center - lesion.centroid_mm)) if lesion.subtype == subtype else np.inf
            for lesion in truth.lesions
        ]
        if np.isfinite(distances).any():
            owner[number] = 1 + int(np.argmin(distances))
    return np.asarray(owner[numbers])


def _dice(found: LabelMap, true: LabelMap) -> float | None:
    a, b = found.labels > 0, true.labels > 0
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2.0 * np.count_nonzero(a & b) / total if total else None
