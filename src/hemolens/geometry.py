"""Where every slice lies: pure maths on positions and directions, in LPS millimeters.

Indices are ``(slice, row, column)``; millimeters are ``(x, y, z)`` in the DICOM patient coordinate system (LPS:
x to the patient's left, y to the back, z to the head; PS3.3 C.7.6.2.1.1). Index 0 is the *center* of the first
voxel. Slices of one stack are parallel, but each has a position, in-plane directions and a spacing of its own, so that
gantry tilt and uneven spacing are told exactly; a single affine cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hemolens.errors import GeometryError

Array = NDArray[np.float64]

PARALLEL_TOLERANCE_DEG = 0.05
"""Slices whose normals differ by more than this are not one stack."""
REGULAR_TOLERANCE_MM = 0.05
"""Largest deviation of a slice's position from an even stack that still counts as regular."""


def unit(vector: ArrayLike) -> Array:
    """Return `vector` scaled to length 1.

    Raises
    ------
    ValueError
        If it has no length or is not finite.
    """
    v = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(v))
    if not np.isfinite(length) or length < 1e-9:
        raise ValueError("a direction has no length")
    return v / length


def normal_of(row_direction: ArrayLike, column_direction: ArrayLike) -> Array:
    """Return the slice normal: row direction × column direction (PS3.3 C.7.6.2.1.1)."""
    return unit(np.cross(np.asarray(row_direction, float), np.asarray(column_direction, float)))


def angle_deg(a: ArrayLike, b: ArrayLike) -> float:
    """Return the angle between two directions, 0 to 180 degrees."""
    return float(np.degrees(np.arccos(np.clip(np.dot(unit(a), unit(b)), -1.0, 1.0))))


def extents_along(offsets_mm: ArrayLike, single_mm: float = np.nan) -> Array:
    """Return how much of the normal each slice stands for: half-way to both neighbors.

    Parameters
    ----------
    offsets_mm
        Positions along the normal, strictly rising, shape ``(slices,)``.
    single_mm
        The extent of a stack of one slice (its thickness); NaN when unknown.

    Returns
    -------
    Array
        Shape ``(slices,)``. An end slice reaches as far outward as it does inward.
    """
    offsets = np.asarray(offsets_mm, dtype=np.float64)
    if offsets.size == 1:
        return np.array([single_mm], dtype=np.float64)
    gaps = np.diff(offsets)
    below = np.concatenate([gaps[:1], gaps])
    above = np.concatenate([gaps, gaps[-1:]])
    return np.asarray((below + above) / 2.0)


@dataclass(frozen=True, eq=False)
class Stack:
    """The pose of every slice of a volume.

    Parameters
    ----------
    positions_mm
        Center of each slice's first pixel, LPS, shape ``(slices, 3)`` (Image Position (Patient), 0020,0032).
    row_directions
        Unit vector along a row, toward growing *column* index, shape ``(slices, 3)``.
    column_directions
        Unit vector along a column, toward growing *row* index, shape ``(slices, 3)``.
    spacings_mm
        ``(between rows, between columns)`` of each slice, shape ``(slices, 2)`` (Pixel Spacing, 0028,0030).
    thickness_mm
        Nominal slice thickness, or NaN. Only used for the extent of a stack of one slice.

    Raises
    ------
    GeometryError
        If shapes differ, values are not finite, a spacing is not positive, directions are not orthonormal, slices are
        not parallel, or positions do not rise along the normal.
    """

    positions_mm: Array
    row_directions: Array
    column_directions: Array
    spacings_mm: Array
    thickness_mm: float = float("nan")

    def __post_init__(self) -> None:
        for name, width in (("positions_mm", 3), ("row_directions", 3), ("column_directions", 3), ("spacings_mm", 2)):
            value = np.array(getattr(self, name), dtype=np.float64)
            value.setflags(write=False)
            object.__setattr__(self, name, value)
            if value.ndim != 2 or value.shape[1] != width or len(value) != len(self.positions_mm) or not len(value):
                raise _bad(f"{name} has shape {value.shape}, expected (slices, {width})")
            if not np.isfinite(value).all():
                raise _bad(f"{name} has values that are not finite")
        self._check_directions()
        if (self.spacings_mm <= 0).any():
            raise _bad("pixel spacing is not positive")
        if len(self) > 1 and (np.diff(self.offsets_mm) <= 0).any():
            raise _bad("slices do not rise along their normal")

    def _check_directions(self) -> None:
        r, c = self.row_directions, self.column_directions
        lengths = np.concatenate([np.linalg.norm(r, axis=1), np.linalg.norm(c, axis=1)])
        if np.abs(lengths - 1).max() > 1e-3 or np.abs((r * c).sum(axis=1)).max() > 1e-3:
            raise _bad("row and column directions are not unit vectors at right angles")
        # Direction cosines come rounded to as few as four digits: compare directions, not lengths.
        normals = np.cross(r, c)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        cosines = normals @ normals[0]
        if cosines.min() < np.cos(np.radians(PARALLEL_TOLERANCE_DEG)):
            raise _bad("slices are not parallel")

    def __len__(self) -> int:
        return len(self.positions_mm)

    @classmethod
    def regular(
        cls,
        slices: int,
        origin_mm: ArrayLike = (0.0, 0.0, 0.0),
        row_direction: ArrayLike = (1.0, 0.0, 0.0),
        column_direction: ArrayLike = (0.0, 1.0, 0.0),
        spacing_mm: tuple[float, float] = (1.0, 1.0),
        step_mm: ArrayLike | None = None,
        thickness_mm: float = float("nan"),
    ) -> Stack:
        """Build an even stack; `step_mm` is the vector from slice to slice (default: 1 mm along the normal)."""
        n = normal_of(row_direction, column_direction)
        step = n if step_mm is None else np.asarray(step_mm, float)
        positions = np.asarray(origin_mm, float) + np.arange(slices)[:, None] * step
        return cls(
            positions,
            np.tile(unit(row_direction), (slices, 1)),
            np.tile(unit(column_direction), (slices, 1)),
            np.tile(np.asarray(spacing_mm, float), (slices, 1)),
            thickness_mm,
        )

    @property
    def normal(self) -> Array:
        """Unit normal of the slices; slices rise along it."""
        return normal_of(self.row_directions[0], self.column_directions[0])

    @cached_property
    def offsets_mm(self) -> Array:
        """Position of each slice along the normal, first slice at its own absolute offset, shape ``(slices,)``."""
        return np.asarray(self.positions_mm @ self.normal)

    @cached_property
    def extents_mm(self) -> Array:
        """Length of normal that each slice stands for, shape ``(slices,)``; NaN for one slice of unknown thickness."""
        return extents_along(self.offsets_mm, self.thickness_mm)

    @cached_property
    def voxel_volumes_ml(self) -> Array:
        """Volume of one voxel of each slice: its own pixel area times its extent along the normal, ``(slices,)``."""
        return np.asarray(self.spacings_mm.prod(axis=1) * self.extents_mm / 1000.0)

    @property
    def tilt_deg(self) -> float:
        """Angle between the normal and the stacking direction; 0 for one slice.

        Positive whichever way the gantry leans. A volume resampled obliquely has no shear and a tilt of 0.
        """
        if len(self) == 1:
            return 0.0
        return angle_deg(self.normal, self.positions_mm[-1] - self.positions_mm[0])

    @cached_property
    def irregularity(self) -> str | None:
        """Why no single affine describes the stack, or None when one does."""
        if np.ptp(self.spacings_mm, axis=0).max() > 1e-4:
            return "pixel spacing differs between slices"
        if max(np.ptp(self.row_directions, axis=0).max(), np.ptp(self.column_directions, axis=0).max()) > 1e-4:
            return "in-plane directions differ between slices"
        if len(self) > 1:
            even = np.linspace(self.positions_mm[0], self.positions_mm[-1], len(self))
            if np.linalg.norm(self.positions_mm - even, axis=1).max() > REGULAR_TOLERANCE_MM:
                steps = np.diff(self.offsets_mm)
                return f"the distance between slices runs from {steps.min():.2f} to {steps.max():.2f} mm"
        elif not np.isfinite(self.thickness_mm):
            return "a single slice of unknown thickness has no third axis"
        return None

    @property
    def is_regular(self) -> bool:
        """Whether one affine (shear allowed) describes every slice."""
        return self.irregularity is None

    @property
    def affine(self) -> Array:
        """The 4 x 4 matrix from ``(slice, row, column, 1)`` to LPS millimeters; shear allowed.

        Raises
        ------
        GeometryError
            If the stack is irregular; the message says why.
        """
        if self.irregularity is not None:
            raise _bad(f"no single affine exists: {self.irregularity}")
        step = (
            (self.positions_mm[-1] - self.positions_mm[0]) / (len(self) - 1)
            if len(self) > 1
            else self.normal * self.thickness_mm
        )
        affine = np.eye(4)
        affine[:3, 0] = step
        affine[:3, 1] = self.column_directions[0] * self.spacings_mm[0, 0]
        affine[:3, 2] = self.row_directions[0] * self.spacings_mm[0, 1]
        affine[:3, 3] = self.positions_mm[0]
        return affine

    def index_to_mm(self, index: ArrayLike) -> Array:
        """Map ``(…, 3)`` fractional indices to LPS millimeters; between slices the pose is interpolated linearly."""
        i = np.asarray(index, dtype=np.float64)
        position, along_rows, along_columns = self._pose_at(i[..., 0])
        return np.asarray(position + i[..., 1:2] * along_rows + i[..., 2:3] * along_columns)

    def mm_to_index(self, point_mm: ArrayLike) -> Array:
        """Map ``(…, 3)`` LPS millimeters to fractional ``(slice, row, column)``; the inverse of `index_to_mm`.

        Outside the stack the outermost step is carried on.
        """
        p = np.asarray(point_mm, dtype=np.float64)
        k = self._slice_at(p @ self.normal)
        position, along_rows, along_columns = self._pose_at(k)
        rest = p - position
        rr, cc, rc = (
            (a * b).sum(-1) for a, b in ((along_rows,) * 2, (along_columns,) * 2, (along_rows, along_columns))
        )
        pr, pc = (rest * along_rows).sum(-1), (rest * along_columns).sum(-1)
        determinant = rr * cc - rc**2
        return np.stack([k, (pr * cc - pc * rc) / determinant, (pc * rr - pr * rc) / determinant], axis=-1)

    def _pose_at(self, k: Array) -> tuple[Array, Array, Array]:
        along_rows = self.column_directions * self.spacings_mm[:, :1]
        along_columns = self.row_directions * self.spacings_mm[:, 1:]
        if len(self) == 1:
            step = self.normal * (self.thickness_mm if np.isfinite(self.thickness_mm) else 1.0)
            shape = (*np.shape(k), 3)
            position = self.positions_mm[0] + np.asarray(k)[..., None] * step
            return position, np.broadcast_to(along_rows[0], shape), np.broadcast_to(along_columns[0], shape)
        low = np.clip(np.floor(k).astype(int), 0, len(self) - 2)
        t = (np.asarray(k) - low)[..., None]
        inside = np.clip(t, 0.0, 1.0)
        position = self.positions_mm[low] * (1 - t) + self.positions_mm[low + 1] * t
        rows = along_rows[low] * (1 - inside) + along_rows[low + 1] * inside
        columns = along_columns[low] * (1 - inside) + along_columns[low + 1] * inside
        return position, rows, columns

    def _slice_at(self, offset_mm: Array) -> Array:
        offsets = self.offsets_mm
        if len(self) == 1:
            scale = self.thickness_mm if np.isfinite(self.thickness_mm) else 1.0
            return np.asarray((offset_mm - offsets[0]) / scale)
        low = np.clip(np.searchsorted(offsets, offset_mm, side="right") - 1, 0, len(self) - 2)
        return np.asarray(low + (offset_mm - offsets[low]) / (offsets[low + 1] - offsets[low]))


def _bad(problem: str) -> GeometryError:
    return GeometryError("geometry", problem, "Check the positions, directions and spacings of the source.")
