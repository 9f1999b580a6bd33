"""Lesions: connected blood in three dimensions, each with its subtype, size, place and confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.geometry import Stack
from hemolens.inference.prediction import Prediction
from hemolens.labels import FINDING_NAMES, SUBTYPES, subtype_at
from hemolens.measurements.regions import SPLIT_ML, Patches, Scale, find_patches, settle_subtypes
from hemolens.volume import LabelMap, Volume

MIN_LESION_ML = 0.1
"""Smaller connected regions are not counted as lesions: one patch of 5 mm across on one 5 mm slice. In BHSD's drawn
masks all patches below that size together hold 0.8 % of the blood; in what a network outlines most of them are
noise."""
MIN_LESION_MM2 = 20.0
"""The same on a single slice of unknown thickness."""
MIN_LESION_SHARE = 3e-4
"""The same without any geometry, as a share of one slice's pixels: 20 mm² of a 250 mm field of view."""
CONFIDENCE_SHARE = 0.1
"""A lesion's confidence is the mean of this share of its voxels, those with the highest probability ..."""
CONFIDENCE_VOXELS = 20
"""... but of at least this many, so that one bright voxel cannot speak for a small lesion."""

NO_VOTE = len(SUBTYPES) + 1

Indices = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Lesion:
    """One connected bleed of one subtype.

    `volume_ml` is None where milliliters are unknown, and `area_px` is then the number of its pixels over all slices;
    otherwise it is the other way around.
    """

    id: int
    """From 1, largest first."""
    subtype: str
    probability: float
    """Mean probability of its surest tenth of voxels, no higher than the calibrated probability of any hemorrhage in
    the slice (of those that it is in) that is most likely to have one."""
    volume_ml: float | None
    area_px: int | None
    centroid_mm: tuple[float, float, float] | None
    """LPS, each voxel weighted with its own volume; None without geometry."""
    extent_mm: tuple[float, float, float | None] | None
    """Length along rows, along columns and along the slice normal, voxels counted whole; None without geometry. The
    third is None for a slice of unknown thickness."""
    slices: tuple[int, ...]
    mean_hu: float

    @property
    def size(self) -> float:
        """Volume in milliliters or area in pixels, whichever is known."""
        return self.volume_ml if self.volume_ml is not None else float(self.area_px or 0)


def find_lesions(volume: Volume, prediction: Prediction) -> tuple[LabelMap, tuple[Lesion, ...]]:
    """Outline and measure every lesion.

    Blood is `Prediction.outlined`. Connected regions smaller than `MIN_LESION_ML`
    are left out (`Findings` says how much that was); the others are of one subtype each or split, see
    `regions.settle_subtypes`.

    Returns
    -------
    tuple
        The label map, and the lesions with the largest first.
    """
    scale = Scale.of(volume)
    voted = np.where(prediction.subtype > 0, prediction.subtype, NO_VOTE).astype(np.uint8)
    patches = find_patches(np.where(prediction.outlined, voted, 0).astype(np.uint8), volume.stack, scale)
    subtypes = _subtypes(volume, prediction, patches, scale)
    label_map = LabelMap(patches.paint(subtypes).astype(np.uint8), volume)
    return label_map, measure_lesions(label_map, prediction)


def measure_lesions(label_map: LabelMap, prediction: Prediction) -> tuple[Lesion, ...]:
    """Measure every lesion of a label map, whoever outlined it; confidence is what the network says of its voxels."""
    scale = Scale.of(label_map.volume)
    numbers = number_lesions(label_map)
    boxes = ndimage.find_objects(numbers)
    return tuple(
        _measure(i, _voxels(numbers, i, box), label_map, prediction, scale) for i, box in enumerate(boxes, start=1)
    )


def number_lesions(label_map: LabelMap) -> NDArray[np.uint16]:
    """Return the lesion that each voxel belongs to, numbered as in `Lesion.id`; 0 is background.

    Read off the label map alone, so that whatever shows or exports single lesions agrees with their table.
    """
    volume = label_map.volume
    patches = find_patches(label_map.labels, volume.stack, Scale.of(volume))
    if not len(patches):
        return np.zeros(volume.shape, dtype=np.uint16)
    parts = patches.connected(same_subtype=True)
    sizes = np.bincount(parts, weights=patches.sizes)
    # Equal sizes: the one whose first patch comes first in the stack.
    first = np.full(len(sizes), len(patches))
    np.minimum.at(first, parts, np.arange(len(patches)))
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes.round(9)))] = np.arange(1, len(sizes) + 1)
    return patches.paint(rank[parts])


def smallest_size(volume: Volume) -> float:
    """Return the size below which a region is no lesion: milliliters where `volume` has them, else pixels."""
    if volume.has_volumes:
        return MIN_LESION_ML
    if volume.stack is not None:
        return float(MIN_LESION_MM2 / volume.stack.spacings_mm.prod(axis=1).mean())
    return MIN_LESION_SHARE * volume.shape[1] * volume.shape[2]


def _subtypes(volume: Volume, prediction: Prediction, patches: Patches, scale: Scale) -> NDArray[np.int64]:
    """Return the final label of every patch; 0 where its region is too small."""
    if not len(patches):
        return np.zeros(0, dtype=np.int64)
    smallest = smallest_size(volume)
    settled = settle_subtypes(patches, SPLIT_ML if scale.in_ml else smallest * SPLIT_ML / MIN_LESION_ML)
    regions = patches.connected()
    sizes = np.bincount(regions, weights=patches.sizes)
    for region in np.unique(regions[settled == 0]):
        # The network saw blood but named no kind: the kind that the slice head holds most likely there.
        inside = regions == region
        scores = patches.sizes[inside] @ prediction.slice_probability[patches.slices[inside], 1:]
        settled[inside] = 1 + int(np.argmax(scores))
    return np.where(sizes[regions] < smallest, 0, settled)


def _voxels(numbers: NDArray[np.uint16], number: int, box: tuple[slice, ...]) -> Indices:
    k, r, c = np.nonzero(numbers[box] == number)
    return k + box[0].start, r + box[1].start, c + box[2].start


def _measure(number: int, where: Indices, label_map: LabelMap, prediction: Prediction, scale: Scale) -> Lesion:
    volume = label_map.volume
    weights = scale.weights[where[0]]
    slices = np.unique(where[0])
    subtype = subtype_at(int(label_map.labels[where[0][0], where[1][0], where[2][0]]))
    size = float(weights.sum())
    return Lesion(
        id=number,
        subtype=subtype.name,
        probability=_confidence(prediction, where, slices),
        volume_ml=size if scale.in_ml else None,
        area_px=None if scale.in_ml else len(where[0]),
        centroid_mm=None if volume.stack is None else _centroid(volume.stack, where, weights),
        extent_mm=None if volume.stack is None else _extent(volume.stack, where),
        slices=tuple(int(k) for k in slices),
        mean_hu=float(np.average(volume.hu[where].astype(np.float64), weights=weights)),
    )


def _confidence(prediction: Prediction, where: Indices, slices: NDArray[np.int64]) -> float:
    values = prediction.blood[where].astype(np.float64)
    count = min(len(values), max(CONFIDENCE_VOXELS, round(CONFIDENCE_SHARE * len(values))))
    surest = float(np.partition(values, len(values) - count)[-count:].mean())
    # A slice cannot hold this lesion without holding any hemorrhage.
    bound = float(prediction.slice_probability[slices, FINDING_NAMES.index("any")].max())
    return min(max(min(surest, bound), 0.0), 1.0)


def _centroid(stack: Stack, where: Indices, weights: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = np.average(stack.index_to_mm(np.stack(where, axis=-1)), axis=0, weights=weights)
    return float(x), float(y), float(z)


def _extent(stack: Stack, where: Indices) -> tuple[float, float, float | None]:
    points = stack.index_to_mm(np.stack(where, axis=-1))
    half = stack.spacings_mm[where[0]] / 2
    lengths = []
    for direction, reach in ((stack.row_directions[0], half[:, 1]), (stack.column_directions[0], half[:, 0])):
        along = points @ direction
        lengths.append(float((along + reach).max() - (along - reach).min()))
    depth = float(stack.extents_mm[where[0].min() : where[0].max() + 1].sum())
    return lengths[0], lengths[1], depth if np.isfinite(depth) else None
