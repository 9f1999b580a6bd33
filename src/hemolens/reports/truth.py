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
    """A true lesion and what was found of it, or one of the two alone."""

    true: TrueLesion | None
    found: tuple[Lesion, ...]
    """Every found lesion that lies mostly in this true one, largest first; where there is none, the one that covers
    most of it though it lies mostly in another."""
    shared: bool = False
    """Whether `found` lies mostly in another true lesion: the two were found as one."""
    distance_mm: float | None = None
    """Between the true centroid and that of `found`."""
    covered: float | None = None
    """Share of the true lesion's voxels that are outlined, by whichever lesion."""

    @property
    def found_ml(self) -> float:
        """Volume of `found` together."""
        return sum(lesion.size for lesion in self.found)


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
    # overlaps[t, f]: voxels of true lesion t (0: none) in found lesion f (0: not outlined).
    overlaps = np.zeros((len(truth.lesions) + 1, len(lesions) + 1), dtype=np.int64)
    np.add.at(overlaps, (regions.ravel(), found_numbers.ravel()), 1)
    owners = overlaps[1:, 1:].argmax(axis=0) if truth.lesions else np.zeros(len(lesions), dtype=np.int64)
    touching = np.asarray(overlaps[1:, 1:].any(axis=0))
    pairs = [
        _pair(true, overlaps[t + 1], [f for f in range(len(lesions)) if touching[f] and owners[f] == t], lesions)
        for t, true in enumerate(truth.lesions)
    ]
    pairs += [Pair(None, (lesion,)) for f, lesion in enumerate(lesions) if not touching[f]]
    return Comparison(tuple(pairs), sum(t.volume_ml for t in truth.lesions), _dice(label_map, true_map))


def _pair(true: TrueLesion, overlap: NDArray[np.int64], own: list[int], lesions: Sequence[Lesion]) -> Pair:
    size, hits = int(overlap.sum()), overlap[1:]
    shared = not own and bool(hits.any())
    found = tuple(lesions[f] for f in ([int(hits.argmax())] if shared else own))
    distance = None
    centers = [(lesion.centroid_mm, lesion.size) for lesion in found if lesion.centroid_mm is not None]
    if centers:
        center = np.average([c for c, _ in centers], axis=0, weights=[w for _, w in centers])
        distance = float(np.linalg.norm(center - true.centroid_mm))
    return Pair(true, found, shared, distance, float(hits.sum() / size) if size else None)


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
