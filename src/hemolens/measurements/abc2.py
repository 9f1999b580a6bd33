"""The bedside estimate of a bleed's volume, ABC/2, read off a mask as a reader would read it off the slices.

Kothari RU, Brott T, Broderick JP, et al. The ABCs of measuring intracerebral hemorrhage volumes. Stroke 1996;27:1304-5.
A is the largest diameter of the hemorrhage on the slice where it is largest, B the largest diameter at a right angle to
A on that slice, C the number of slices with hemorrhage times their thickness: a slice counts whole where its hemorrhage
has more than 75 % of the largest slice's area, half from about 25 % to 75 %, and not at all below 25 %.

It takes the bleed for an ellipsoid. That was shown for intraparenchymal bleeds; it is rough for epidural and subdural
ones, and means nothing for blood in furrows or ventricles. Of a smooth ellipsoid in thin slices the rule for C leaves
68 % of its height, so that ABC/2 gives 65 % of its volume: a bedside number to compare with, not a better one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from hemolens.geometry import Stack
from hemolens.measurements.lesions import number_lesions
from hemolens.volume import LabelMap

WHOLE_SHARE, HALF_SHARE = 0.75, 0.25
"""Of the largest slice's area: above the first a slice counts whole, from the second on half."""
MEANT_FOR = frozenset({"intraparenchymal"})
"""Subtypes that the method was published for."""
ROUGH_FOR = frozenset({"epidural", "subdural"})
"""Subtypes that it is used for, with larger errors."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Abc2:
    """One bleed as ABC/2 sees it."""

    a_mm: float
    b_mm: float
    c_mm: float
    slice: int
    """Where A and B were taken: the slice with the largest area."""

    @property
    def volume_ml(self) -> float:
        """A · B · C / 2."""
        return self.a_mm * self.b_mm * self.c_mm / 2000.0


def abc2(mask: NDArray[np.bool_], stack: Stack) -> Abc2 | None:
    """Estimate one bleed.

    Parameters
    ----------
    mask
        Where it is, shape ``(slices, rows, columns)``.
    stack
        The pose of every slice; a slice is as thick as the length of normal that it stands for.

    Returns
    -------
    Abc2 or None
        None where `mask` is empty or the thickness of its slices is not known.
    """
    areas = np.count_nonzero(mask, axis=(1, 2)) * stack.spacings_mm.prod(axis=1)
    largest = int(areas.argmax())
    if not areas[largest]:
        return None
    shares = areas / areas[largest]
    counts = np.where(shares > WHOLE_SHARE, 1.0, np.where(shares >= HALF_SHARE, 0.5, 0.0))
    depth = float(counts[counts > 0] @ stack.extents_mm[counts > 0])
    if not np.isfinite(depth):
        return None
    row_mm, column_mm = (float(v) for v in stack.spacings_mm[largest])
    a, b = _diameters(mask[largest], row_mm, column_mm)
    return Abc2(a, b, depth, largest)


def abc2_by_lesion(label_map: LabelMap) -> dict[int, Abc2]:
    """Estimate every lesion of a label map: `Lesion.id` → estimate; empty where millimeters are not known."""
    volume = label_map.volume
    if volume.stack is None:
        return {}
    numbers = number_lesions(label_map)
    found = {int(number): abc2(numbers == number, volume.stack) for number in range(1, int(numbers.max()) + 1)}
    return {number: estimate for number, estimate in found.items() if estimate is not None}


def _diameters(mask: NDArray[np.bool_], row_mm: float, column_mm: float) -> tuple[float, float]:
    """Return the largest diameter of a mask and its largest diameter at a right angle to that, pixels counted whole."""
    corners = _corners(mask, row_mm, column_mm)
    hull = corners[ConvexHull(corners).vertices]
    apart = hull[:, None] - hull[None]
    lengths = np.hypot(apart[..., 0], apart[..., 1])
    i, j = np.unravel_index(int(lengths.argmax()), lengths.shape)
    a = float(lengths[i, j])
    along = (hull[j] - hull[i]) / a
    return a, _across(mask, along, row_mm, column_mm)


def _corners(mask: NDArray[np.bool_], row_mm: float, column_mm: float) -> Points:
    """Return the corners of the outermost pixels of each row, in millimeters."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    ends = [np.stack([rows + down, side], axis=1) for down in (0, 1) for side in (first, last)]
    return np.concatenate(ends).astype(np.float64) * (row_mm, column_mm)


def _across(mask: NDArray[np.bool_], along: Points, row_mm: float, column_mm: float) -> float:
    """Return the longest line across the bleed at a right angle to `along`, from edge to edge."""
    pixel = min(row_mm, column_mm)
    shifts = np.array([(r, c) for r in (0.25, 0.75) for c in (0.25, 0.75)])
    points = (np.argwhere(mask)[:, None] + shifts[None]).reshape(-1, 2) * (row_mm, column_mm)
    lines = np.floor(points @ along / pixel).astype(np.int64)
    lines -= lines.min()
    place = points @ np.array([-along[1], along[0]])
    low, high = np.full(lines.max() + 1, np.inf), np.full(lines.max() + 1, -np.inf)
    np.minimum.at(low, lines, place)
    np.maximum.at(high, lines, place)
    # Quarter points lie a quarter of a pixel inside its edge, on either side.
    inset = (abs(along[1]) * row_mm + abs(along[0]) * column_mm) / 2
    return float((high - low).max() + inset)
