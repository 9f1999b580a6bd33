"""What the three planes and the 3D view show: the head and its lesions on an even grid along the patient's axes.

A scan with gantry tilt or uneven slices has no single affine, and NIfTI knows nothing else; so both are sampled onto a
grid of `SPACING_MM` first, through each slice's own pose.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.errors import InputError
from hemolens.geometry import Stack
from hemolens.volume import AIR_HU, Volume

if TYPE_CHECKING:
    from hemolens.web.session import Study

SPACING_MM = 1.0
COARSE_MM = 1.6
"""For the planes where there is no graphics card and every voxel costs the processor: 4 times fewer of them."""
SOLID_MM = 2.0
"""For the 3D view: a ray crosses the whole head, and not every machine has a graphics card."""
MOST_POINTS = 14_000_000
"""A larger grid is made coarser: graphics memory is small, and this is a look, not a measurement."""
CACHE = "viewer-grid"
SLAB = 8
HEAD_HU = -300.0
"""Above this is no air: what the grid must hold."""

Grid = tuple[NDArray[np.float64], tuple[int, int, int], float]
"""Corner (LPS mm), points along x, y and z, and their distance."""


def head_nifti(study: Study, spacing_mm: float = SPACING_MM) -> bytes:
    """Return the scan on the grid as gzipped NIfTI, int16.

    Raises
    ------
    InputError
        If the scan has no geometry.
    """
    volume = study.volume
    grid = grid_of(study, spacing_mm)
    return as_nifti(sample(volume.require_stack(), volume.hu, grid, AIR_HU, 1).astype(np.int16), grid)


def lesions_nifti(study: Study, labels: NDArray[np.uint8], spacing_mm: float = SPACING_MM) -> bytes:
    """Return a label map on the grid as gzipped NIfTI, uint8."""
    grid = grid_of(study, spacing_mm)
    values = np.zeros(grid[1], dtype=np.uint8)
    where = np.argwhere(labels)
    if len(where):
        # Sampled within the box of the lesions only: the rest is nothing.
        stack, (low, size, spacing) = study.volume.require_stack(), grid
        points = stack.index_to_mm(where)
        margin = float(stack.spacings_mm.max() + np.nanmax(stack.extents_mm))
        first = np.clip(np.floor((points.min(axis=0) - margin - low) / spacing).astype(int), 0, np.array(size) - 1)
        last = np.clip(np.ceil((points.max(axis=0) + margin - low) / spacing).astype(int), 0, np.array(size) - 1) + 1
        shape = tuple(int(n) for n in last - first)
        box = (low + first * spacing, (shape[0], shape[1], shape[2]), spacing)
        values[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = sample(stack, labels, box, 0, 0)
    return as_nifti(values, grid)


def grid_of(study: Study, spacing_mm: float = SPACING_MM) -> Grid:
    """Return the grid for a scan; found once.

    Raises
    ------
    InputError
        If the scan has no geometry.
    """
    kept = f"{CACHE}-{spacing_mm}"
    if kept not in study.extras:
        study.extras[kept] = make_grid(study.volume, spacing_mm)
    found: Grid = study.extras[kept]
    return found


def make_grid(volume: Volume, spacing_mm: float = SPACING_MM) -> Grid:
    """Return the grid that just holds everything that is no air."""
    stack = space(volume)
    step = max(1, min(volume.shape[1:]) // 64)
    inside = np.argwhere(ndimage.binary_opening(volume.hu[:, ::step, ::step] > HEAD_HU, np.ones((1, 3, 3))))
    if not len(inside):
        inside = np.argwhere(np.ones_like(volume.hu[:, ::step, ::step], dtype=bool))
    points = stack.index_to_mm(inside * [1, step, step])
    margin = step * float(stack.spacings_mm.max()) + float(np.nanmax(stack.extents_mm)) / 2
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    spacing = max(spacing_mm, float((np.prod(high - low) / MOST_POINTS) ** (1 / 3)))
    size = np.ceil((high - low) / spacing).astype(int) + 1
    return low, (int(size[0]), int(size[1]), int(size[2])), spacing


def space(volume: Volume) -> Stack:
    """Return the geometry of a scan that fills space.

    Raises
    ------
    InputError
        If it does not.
    """
    if not volume.has_volumes or len(volume) < 2:
        name = volume.source.path_or_uid if volume.source.kind != "dicom" else "this scan"
        raise InputError(
            name,
            "three planes need to know where the slices lie",
            "Open DICOM or NIfTI with several slices, or name the pixel and slice distance when you drop pictures.",
        )
    return volume.require_stack()


def sample(stack: Stack, values: NDArray[np.generic], grid: Grid, outside: float, order: int) -> NDArray[np.float32]:
    """Return values on the grid, shape ``(x, y, z)``.

    Parameters
    ----------
    stack
        Of the values.
    values
        Shape ``(slices, rows, columns)``.
    grid
        As `make_grid`.
    outside
        Value beyond the scan.
    order
        0 for labels, 1 for a linear mean of the neighbors.
    """
    low, (nx, ny, nz), spacing = grid
    result = np.empty((nx, ny, nz), dtype=np.float32)
    x, y = low[0] + spacing * np.arange(nx), low[1] + spacing * np.arange(ny)
    find = _even_index if _is_even(stack) else _any_index
    for start in range(0, nz, SLAB):
        z = low[2] + spacing * np.arange(start, min(nz, start + SLAB))
        k, row, column = find(stack, x, y, z)
        # The outermost slices stand for half a step more on their far side.
        beyond = np.clip(k, 0, len(stack) - 1)
        k = np.where(np.abs(k - beyond) <= 0.5, beyond, k)
        first, last = max(0, int(np.floor(k.min()))), min(len(stack), int(np.ceil(k.max())) + 1)
        if first >= last:
            result[:, :, start : start + SLAB] = outside
            continue
        near = values[first:last] if values.dtype == np.uint8 else values[first:last].astype(np.float32, copy=False)
        result[:, :, start : start + SLAB] = ndimage.map_coordinates(
            near, [k - first, row, column], order=order, mode="constant", cval=outside, prefilter=False
        )
    return result


def _is_even(stack: Stack) -> bool:
    """Whether slices differ in nothing but their position."""
    same = max(np.ptp(v, axis=0).max() for v in (stack.row_directions, stack.column_directions, stack.spacings_mm))
    return bool(same < 1e-9)


Axes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _even_index(stack: Stack, x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> Axes:
    """Do as `_any_index`, faster: everything but the slice's position is the same for all points."""

    def along(direction: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = (x * direction[0])[:, None, None] + (y * direction[1])[:, None]
        return np.asarray(flat + z * direction[2])

    down, across = stack.column_directions[0], stack.row_directions[0]
    offset = along(stack.normal)
    steps = np.concatenate([[stack.offsets_mm[0] - 1e3], stack.offsets_mm, [stack.offsets_mm[-1] + 1e3]])
    gaps = np.diff(stack.offsets_mm)
    numbers = np.concatenate([[-1e3 / gaps[0]], np.arange(len(stack)), [len(stack) - 1 + 1e3 / gaps[-1]]])
    k = np.interp(offset, steps, numbers)

    def inside(direction: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
        starts = stack.positions_mm @ direction
        slope = np.diff(starts) / gaps
        starts = np.concatenate([[starts[0] - 1e3 * slope[0]], starts, [starts[-1] + 1e3 * slope[-1]]])
        begin = starts[0] if np.ptp(starts) < 1e-9 else np.interp(offset, steps, starts)
        return np.asarray((along(direction) - begin) / spacing)

    return k, inside(down, float(stack.spacings_mm[0, 0])), inside(across, float(stack.spacings_mm[0, 1]))


def _any_index(stack: Stack, x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> Axes:
    """Return slice, row and column of every point of a box, each of shape ``(x, y, z)``."""
    index = stack.mm_to_index(np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1))
    return index[..., 0], index[..., 1], index[..., 2]


def as_nifti(values: NDArray[np.generic], grid: Grid) -> bytes:
    """Return values on the grid as gzipped NIfTI, whose axes are RAS where ours are LPS."""
    low, _, spacing = grid
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = -low[0], -low[1], low[2]
    image = nibabel.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def center_mm(study: Study) -> list[float] | None:
    """Return where the cross hair begins, RAS mm: in the middle of the largest lesion; None where there is none."""
    for lesion in study.findings.lesions:
        if lesion.centroid_mm is not None:
            x, y, z = lesion.centroid_mm
            return [-x, -y, z]
    return None
