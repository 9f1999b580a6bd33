"""An analytic phantom: ellipsoid bleeds in millimeters, sampled onto any stack of slices, and Hypothesis strategies.

The truth (volume, centroid) is a formula and knows nothing of voxels, so it can judge everything that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from hemolens.geometry import Stack
from hemolens.volume import LabelMap, SourceInfo, Volume

Array = NDArray[np.float64]

BRAIN_HU = 35
BLOOD_HU = 65
AXES: tuple[tuple[float, float, float], ...] = tuple(
    tuple(float(sign * (axis == i)) for i in range(3)) for axis in range(3) for sign in (1, -1)
)
"""The six signed axes of LPS."""
ORIENTATIONS: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = tuple(
    (row, column) for row, column in permutations(AXES, 2) if np.dot(row, column) == 0
)
"""All 24 pairs of row and column direction along the axes; the normal follows from them."""


@dataclass(frozen=True)
class Ellipsoid:
    """A lesion whose volume and centroid are exact."""

    center_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    rotation: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    """Rows are the directions of the three axes."""
    subtype: int = 4

    @property
    def volume_ml(self) -> float:
        """4/3 π abc."""
        return float(4.0 / 3.0 * np.pi * np.prod(self.semi_axes_mm) / 1000.0)

    def contains(self, points_mm: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of ``(…, 3)`` LPS points lies inside."""
        local = (np.asarray(points_mm) - np.asarray(self.center_mm)) @ np.asarray(self.rotation).T
        return np.asarray(((local / np.asarray(self.semi_axes_mm)) ** 2).sum(axis=-1) <= 1.0)

    def half_width_along(self, direction: ArrayLike) -> float:
        """Half the length of the ellipsoid's shadow on `direction` (a unit vector)."""
        local = np.asarray(self.rotation) @ np.asarray(direction)
        return float(np.linalg.norm(local * np.asarray(self.semi_axes_mm)))


def voxel_centers_mm(stack: Stack, rows: int, columns: int) -> Array:
    """Return the center of every voxel, ``(slices, rows, columns, 3)``, from the DICOM equation (PS3.3 C.7.6.2.1.1).

    Written out slice by slice rather than with `Stack.index_to_mm`, which it is there to judge.
    """
    centers = np.empty((len(stack), rows, columns, 3))
    for k in range(len(stack)):
        down = stack.column_directions[k] * stack.spacings_mm[k, 0]
        across = stack.row_directions[k] * stack.spacings_mm[k, 1]
        centers[k] = (
            stack.positions_mm[k] + np.arange(rows)[:, None, None] * down + np.arange(columns)[:, None] * across
        )
    return centers


def sample(stack: Stack, rows: int, columns: int, *lesions: Ellipsoid) -> LabelMap:
    """Return brain with bleeds on the grid of `stack`: a voxel is blood where its center is."""
    centers = voxel_centers_mm(stack, rows, columns)
    labels = np.zeros(centers.shape[:3], dtype=np.uint8)
    for lesion in lesions:
        labels[lesion.contains(centers)] = lesion.subtype
    hu = np.where(labels > 0, BLOOD_HU, BRAIN_HU).astype(np.int16)
    return LabelMap(labels, Volume(hu, stack, SourceInfo("dicom", "phantom")))


def centroid_mm(mask: LabelMap, index: int) -> Array:
    """Return the centroid of one label, weighted with each voxel's own volume, by `Stack.index_to_mm`."""
    stack = mask.volume.require_stack()
    where = np.argwhere(mask.labels == index)
    weights = stack.voxel_volumes_ml[where[:, 0]]
    return np.asarray(np.average(stack.index_to_mm(where), axis=0, weights=weights))


def rotation_about(axis: ArrayLike, degrees: float) -> Array:
    """Return the rotation matrix about `axis` (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def build_stack(
    frame: ArrayLike,
    gaps_mm: ArrayLike,
    spacings_mm: ArrayLike,
    lean: tuple[float, float] = (0.0, 0.0),
    origin_mm: ArrayLike = (0.0, 0.0, 0.0),
    turns_deg: ArrayLike | None = None,
) -> Stack:
    """Build a stack from the steps that a scanner makes.

    Parameters
    ----------
    frame
        Rows are the row direction, the column direction and the normal.
    gaps_mm
        Distance along the normal from each slice to the next, ``(slices - 1,)``.
    spacings_mm
        ``(slices, 2)``, or one pair for all.
    lean
        In-plane drift per millimeter of normal, along rows and columns: the tangent of the gantry tilt.
    turns_deg
        Rotation of each slice in its own plane.
    """
    row, column, normal = np.asarray(frame, float)
    offsets = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    n = len(offsets)
    turns = np.radians(np.zeros(n) if turns_deg is None else np.asarray(turns_deg))[:, None]
    return Stack(
        np.asarray(origin_mm, float) + offsets[:, None] * (normal + lean[0] * row + lean[1] * column),
        np.cos(turns) * row + np.sin(turns) * column,
        np.cos(turns) * column - np.sin(turns) * row,
        np.broadcast_to(np.asarray(spacings_mm, float), (n, 2)),
    )


def _tenths(low: float, high: float) -> st.SearchStrategy[float]:
    return st.integers(round(low * 10), round(high * 10)).map(lambda i: i / 10)


@st.composite
def frames(draw: st.DrawFn, *, oblique: bool = True) -> Array:
    """Any of the 24 axis orientations, and (for `oblique`) turned by any angle about any axis."""
    row, column = draw(st.sampled_from(ORIENTATIONS))
    frame = np.array([row, column, np.cross(row, column)])
    if oblique and draw(st.booleans()):
        axis = draw(st.sampled_from([a for a in product((-1, 0, 1, 2), repeat=3) if any(a)]))
        frame = frame @ rotation_about(axis, draw(_tenths(-180, 180))).T
    return frame


@st.composite
def stacks(
    draw: st.DrawFn, *, even: bool = False, gaps: tuple[float, float] = (0.5, 10.0), slices: tuple[int, int] = (2, 40)
) -> Stack:
    """Any stack that a scanner could make; `even` leaves out uneven gaps, mixed spacing and in-plane turns."""
    n = draw(st.integers(*slices))
    pixel = _tenths(0.2, 1.5)
    gap = _tenths(*gaps)
    kind = "even" if even else draw(st.sampled_from(["even", "two", "any"]))
    if kind == "even":
        steps = [draw(gap)] * (n - 1)
    elif kind == "two":
        first, cut = draw(gap), draw(st.integers(0, n - 1))
        steps = [first] * cut + [draw(gap)] * (n - 1 - cut)
    else:
        steps = draw(st.lists(gap, min_size=n - 1, max_size=n - 1))
    spacing = np.tile([draw(pixel), draw(pixel)], (n, 1))
    if not even and draw(st.booleans()):
        spacing[draw(st.integers(0, n - 1)) :] = draw(pixel), draw(pixel)
    turns = np.zeros(n)
    if not even and draw(st.booleans()):
        turns[draw(st.integers(0, n - 1)) :] = draw(_tenths(-90, 90))
    lean = draw(st.tuples(_tenths(-0.7, 0.7), _tenths(-0.7, 0.7)))
    origin = draw(st.tuples(*[_tenths(-300, 300)] * 3))
    return build_stack(draw(frames()), steps, spacing, lean, origin, turns)


@st.composite
def lesions_on_stacks(draw: st.DrawFn) -> tuple[Ellipsoid, Stack, tuple[int, int]]:
    """Draw a lesion turned any way, and a stack with the size of its slices that holds it whole.

    The lesion spans at least 14 slices: counting slices of thickness h is the trapezoid rule, whose relative error on
    an ellipsoid of half-width c is at most (h / 2c)² (Euler-Maclaurin on a parabola), here 0.5 %.
    """
    axes = draw(st.tuples(*[_tenths(12, 40)] * 3))
    turn = rotation_about(draw(st.sampled_from([(1, 0, 0), (0, 1, 1), (1, 2, -1)])), draw(_tenths(0, 180)))
    center = np.array(draw(st.tuples(*[_tenths(-150, 150)] * 3)))
    lesion = Ellipsoid(tuple(center), axes, tuple(map(tuple, turn)), draw(st.integers(1, 5)))

    frame = draw(frames())
    half = np.array([lesion.half_width_along(direction) for direction in frame])
    thick = half[2] / 7
    gaps = [thick * 0.7]
    while sum(gaps) < 2 * half[2] + 3 * thick:
        gaps.append(thick * draw(st.sampled_from([0.3, 0.65, 1.0])) if len(gaps) % 3 else gaps[-1])
    n = len(gaps) + 1
    lean = draw(st.tuples(_tenths(-0.6, 0.6), _tenths(-0.6, 0.6)))
    pixel = np.array(draw(st.tuples(_tenths(0.7, 1.0), _tenths(0.7, 1.0))))
    spacings = np.tile(pixel, (n, 1))
    if draw(st.booleans()):
        spacings[draw(st.integers(0, n - 1)) :] = pixel * draw(st.sampled_from([0.8, 1.15]))
    # Room for the lesion, for the slices' drift against it, and for the smallest pixel.
    reach = half[:2] + np.abs(lean) * (half[2] + 4 * thick) + 4.0
    columns, rows = (int(v) for v in np.ceil(2 * reach / (pixel[::-1] * 0.8)))
    below = half[2] + thick * draw(_tenths(1.1, 1.9))
    corner = np.array([-reach[0] + lean[0] * -below, -reach[1] + lean[1] * -below, -below]) @ frame
    return lesion, build_stack(frame, gaps, spacings, lean, center + corner), (rows, columns)
