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
MOST_POINTS = 14_000_000
"""A larger grid is made coarser: graphics memory is small, and this is a look, not a measurement."""
CACHE = "viewer-grid"
SLAB = 8
HEAD_HU = -300.0
"""Above this is no air: what the grid must hold."""

Grid = tuple[NDArray[np.float64], tuple[int, int, int], float]
"""Corner (LPS mm), points along x, y and z, and their distance."""


def head_nifti(study: Study) -> bytes:
    """Return the scan on the grid as gzipped NIfTI, int16.

    Raises
    ------
    InputError
        If the scan has no geometry.
    """
    volume = study.volume
    grid = grid_of(study)
    return as_nifti(sample(volume.require_stack(), volume.hu, grid, AIR_HU, 1).astype(np.int16), grid)


def lesions_nifti(study: Study, labels: NDArray[np.uint8]) -> bytes:
    """Return a label map on the grid as gzipped NIfTI, uint8."""
    grid = grid_of(study)
    return as_nifti(sample(study.volume.require_stack(), labels, grid, 0, 0).astype(np.uint8), grid)


def grid_of(study: Study) -> Grid:
    """Return the grid for a scan; found once.

    Raises
    ------
    InputError
        If the scan has no geometry.
    """
    if CACHE not in study.extras:
        study.extras[CACHE] = make_grid(study.volume)
    found: Grid = study.extras[CACHE]
    return found


def make_grid(volume: Volume) -> Grid:
    """Return the grid that just holds everything that is no air."""
    stack = space(volume)
    step = max(1, min(volume.shape[1:]) // 64)
    inside = np.argwhere(ndimage.binary_opening(volume.hu[:, ::step, ::step] > HEAD_HU, np.ones((1, 3, 3))))
    if not len(inside):
        inside = np.argwhere(np.ones_like(volume.hu[:, ::step, ::step], dtype=bool))
    points = stack.index_to_mm(inside * [1, step, step])
    margin = step * float(stack.spacings_mm.max()) + float(np.nanmax(stack.extents_mm)) / 2
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    spacing = max(SPACING_MM, float((np.prod(high - low) / MOST_POINTS) ** (1 / 3)))
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
    source = values if values.dtype == np.uint8 else values.astype(np.float32, copy=False)
    for start in range(0, nz, SLAB):
        z = low[2] + spacing * np.arange(start, min(nz, start + SLAB))
        points = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1)
        index = stack.mm_to_index(points)
        # The outermost slices stand for half a step more on their far side.
        beyond = np.clip(index[..., 0], 0, len(stack) - 1)
        index[..., 0] = np.where(np.abs(index[..., 0] - beyond) <= 0.5, beyond, index[..., 0])
        result[:, :, start : start + SLAB] = ndimage.map_coordinates(
            source, np.moveaxis(index, -1, 0), order=order, mode="constant", cval=outside, prefilter=False
        )
    return result


def as_nifti(values: NDArray[np.generic], grid: Grid) -> bytes:
    """Return values on the grid as gzipped NIfTI, whose axes are RAS where ours are LPS."""
    low, _, spacing = grid
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = -low[0], -low[1], low[2]
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def center_mm(study: Study) -> list[float] | None:
    """Return where the cross hair begins, RAS mm: in the middle of the largest lesion; None where there is none."""
    for lesion in study.findings.lesions:
        if lesion.centroid_mm is not None:
            x, y, z = lesion.centroid_mm
            return [-x, -y, z]
    return None
