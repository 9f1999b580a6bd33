"""NIfTI-1 and NIfTI-2 single files, plain or gzipped, of any orientation.

The header is read by nibabel without its own repairs and remarks, and checked here: nibabel invents an orientation
where a file has none, and prints what it mends.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hemolens.errors import DecodeError, GeometryError, InputError
from hemolens.geometry import Stack
from hemolens.notes import QualityNote, Severity
from hemolens.sources.files import MAX_VOXELS, Entry
from hemolens.volume import AIR_HU, SourceInfo, Volume

HEADER_MAGIC = {348: 344, 540: 4}
"""Length of the header, which is its first number, and where its magic string stands: NIfTI-1 and NIfTI-2."""
MAX_OFFSET = 2**24
"""Largest distance of the data from the start of the file: room for any header extension in use."""
CHUNK_BYTES = 2**24
MAX_TRAILING = 2**20
"""Most bytes behind the last voxel of a gzipped file."""
SMALLEST_MM, LARGEST_MM = 1e-3, 1e3
"""Bounds of a voxel's edge."""
AIR_BELOW_HU = -500.0
"""A CT shows air around the head; a scan without any value below this is something else."""
HIGHEST_HU = 2.0**20
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
REMEDY_GEOMETRY = "Write the file again with the scanner's affine; hemolens does not guess where a voxel lies."
REMEDY_DAMAGED = "Copy or convert the file again."


def nifti_kind(head: bytes) -> str:
    """Return what the first 544 bytes (unpacked) are: ``"single"``, ``"pair"`` (header apart) or an empty string."""
    lengths = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    for length, magic_at in HEADER_MAGIC.items():
        if length in lengths and len(head) >= length:
            magic = head[magic_at : magic_at + 4]
            # Else "ni1", "ni2", or Analyze 7.5, which has no magic.
            return "single" if magic in (b"n+1\0", b"n+2\0") else "pair"
    return ""


def unpacked_head(entry: Entry, count: int = 544) -> bytes:
    """Return the first bytes of a file, unpacked if it is gzipped; empty if it cannot be read."""
    try:
        with entry.open() as raw, _unpacked(raw) as stream:
            return stream.read(count)
    except (OSError, EOFError, zlib.error, DecodeError):
        return b""


def _unpacked(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(2)
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if magic == b"\x1f\x8b" else raw  # type: ignore[return-value]


@dataclass(frozen=True)
class _Grid:
    """What the header says, checked."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    affine_lps: NDArray[np.float64]


def read_nifti(entry: Entry, source: str, progress: Callable[[float], None]) -> Volume:
    """Read a three-dimensional NIfTI in Hounsfield units.

    Parameters
    ----------
    entry
        The file.
    source
        Its name, for messages and the report.
    progress
        Called with a fraction from 0 to 1.

    Returns
    -------
    Volume
        Slices toward the head, rows toward the back, columns toward the left, as nearly as the file's axes allow;
        `SourceInfo.ndarray_axes` and `ndarray_flips` say how to go back.

    Raises
    ------
    DecodeError
        If the file is cut short or damaged.
    GeometryError
        If it has no orientation, or an affine that is singular or not finite.
    InputError
        If it is 4D, holds colors or complex numbers, or is larger than `MAX_VOXELS`.
    """
    try:
        with entry.open() as raw, _unpacked(raw) as stream:
            grid = _read_grid(stream, source)
            stored = _read_stored(stream, grid, source, progress)
            # A gzip's checksum stands at its end: without reading that far, flipped bits would pass for anatomy.
            if stream is not raw and len(stream.read(MAX_TRAILING + 1)) > MAX_TRAILING:
                raise DecodeError(source, "goes on long after its last voxel", REMEDY_DAMAGED)
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three on damage
        raise DecodeError(source, "is cut short or damaged", REMEDY_DAMAGED) from error
    hu, notes = _to_hounsfield(stored, grid, source)
    volume = _oriented(hu, grid, source)
    progress(1.0)
    return volume.with_notes(*notes)


@dataclass(frozen=True, eq=False)
class NiftiLayout:
    """What a file's header says of the volume in it, without reading a voxel."""

    shape: tuple[int, int, int]
    """Slices, rows, columns, as `read_nifti` returns them."""
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    """As `SourceInfo.ndarray_axes` and `ndarray_flips`."""
    affine_lps: NDArray[np.float64]
    """Of the file's own axes."""


def read_nifti_layout(entry: Entry, source: str) -> NiftiLayout:
    """Read the header only; raises as `read_nifti` does."""
    try:
        with entry.open() as raw, _unpacked(raw) as stream:
            grid = _read_grid(stream, source)
    except (OSError, EOFError, zlib.error) as error:
        raise DecodeError(source, "is cut short or damaged", REMEDY_DAMAGED) from error
    axes, flips = _axes_and_flips(grid.affine_lps)
    slices, rows, columns = (grid.shape[axis] for axis in axes)
    return NiftiLayout((slices, rows, columns), axes, flips, grid.affine_lps)


def _read_grid(stream: BinaryIO, source: str) -> _Grid:
    head = stream.read(348)
    if head[4:8] == b"n+2\0":
        head += stream.read(540 - 348)
    kind = nifti_kind(head)
    if kind == "pair":
        problem = "is the header of a two-file NIfTI or Analyze image"
        raise InputError(source, problem, "Convert the pair to a single .nii or .nii.gz file.")
    if not kind:
        raise DecodeError(source, "is no NIfTI file", "Give a .nii or .nii.gz file.")
    header_class: Any = nib.Nifti2Header if head[4:8] == b"n+2\0" else nib.Nifti1Header
    try:
        header = header_class(head, check=False)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        offset = int(header["vox_offset"])
        affine = _affine(header, source)
        slope, intercept = header.get_slope_inter()
    except InputError:
        raise
    except Exception as error:  # nibabel raises a dozen kinds on headers that contradict themselves
        raise DecodeError(source, "has a damaged NIfTI header", REMEDY_DAMAGED) from error
    _check_layout(shape, dtype, source)
    if not len(head) <= offset <= MAX_OFFSET:
        raise DecodeError(source, f"puts its voxels at byte {offset}", REMEDY_DAMAGED)
    if len(stream.read(offset - len(head))) < offset - len(head):
        raise DecodeError(source, "is cut short", REMEDY_DAMAGED)
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not abs(slope) <= HIGHEST_HU or not abs(intercept) <= HIGHEST_HU:
        raise DecodeError(source, "its scaling leads beyond any Hounsfield unit", REMEDY_DAMAGED)
    three = (int(shape[0]), int(shape[1]), int(shape[2]))
    return _Grid(three, dtype, slope, intercept, affine)


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], source: str) -> None:
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(source, f"has shape {tuple(int(n) for n in shape)}", "Give a three-dimensional head CT.")
    if any(n != 1 for n in shape[3:]):
        problem = f"has {len(shape)} dimensions, {' x '.join(str(int(n)) for n in shape)}"
        raise InputError(source, problem, "Give one three-dimensional scan; split a series over time first.")
    if math.prod(int(n) for n in shape) > MAX_VOXELS:
        raise InputError(source, f"has more than {MAX_VOXELS:,} voxels", "Give the head alone, at a usual resolution.")
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else "colors"
        raise InputError(source, f"holds {kind}, not Hounsfield units", "Give the scan in Hounsfield units.")


def _affine(header: Any, source: str) -> NDArray[np.float64]:
    """Return the affine in LPS: the sform if it is set, else the qform (nifti1.h, methods 3 and 2).

    Raises
    ------
    GeometryError
        If neither is set (method 1 has no orientation), or the matrix is no map of space.
    """
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise GeometryError(source, "has no orientation (sform and qform codes are 0)", REMEDY_GEOMETRY)
    with np.errstate(all="ignore"):  # hostile headers hold any number; what comes out is checked below
        try:
            ras = header.get_sform() if int(header["sform_code"]) > 0 else header.get_qform()
        except Exception as error:  # a quaternion that is none raises several kinds
            raise GeometryError(source, "has a qform that is no rotation", REMEDY_GEOMETRY) from error
        affine = RAS_TO_LPS @ np.asarray(ras, dtype=np.float64)
        edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise GeometryError(source, "has an affine that is not finite", REMEDY_GEOMETRY)
    if edges.min() < SMALLEST_MM or edges.max() > LARGEST_MM or np.abs(affine[:3, 3]).max() > 1e6:
        raise GeometryError(source, "has a zero or absurd affine", REMEDY_GEOMETRY)
    if abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-2:
        raise GeometryError(source, "has a singular affine", REMEDY_GEOMETRY)
    return np.asarray(affine)


def _read_stored(stream: BinaryIO, grid: _Grid, source: str, progress: Callable[[float], None]) -> NDArray[Any]:
    """Read the voxels in chunks, as stored, shape of the file; never more than the header asks for."""
    total = math.prod(grid.shape) * grid.dtype.itemsize
    buffer = bytearray()
    while len(buffer) < total:
        chunk = stream.read(min(CHUNK_BYTES, total - len(buffer)))
        if not chunk:
            raise DecodeError(source, f"is cut short: {len(buffer):,} of {total:,} bytes", REMEDY_DAMAGED)
        buffer += chunk
        progress(0.8 * len(buffer) / total)
    return np.frombuffer(buffer, dtype=grid.dtype).reshape(grid.shape, order="F")


def _to_hounsfield(
    stored: NDArray[Any], grid: _Grid, source: str
) -> tuple[NDArray[np.int16] | NDArray[np.float32], list[QualityNote]]:
    notes: list[QualityNote] = []
    finite = _finite(stored, source)
    if finite is not None:
        text = f"{finite.size - int(finite.sum()):,} NaN or infinite voxels were set to air"
        notes.append(QualityNote("non_finite", Severity.WARNING, text))
        stored = np.where(finite, stored, stored.dtype.type(0))
    ends = sorted(float(end) * grid.slope + grid.intercept for end in (stored.min(), stored.max()))
    if not max(abs(end) for end in ends) <= HIGHEST_HU:
        raise DecodeError(source, f"holds values up to {max(ends, key=abs):.3g}", "Give the scan in Hounsfield units.")
    if ends[0] > AIR_BELOW_HU:
        text = f"the lowest value is {ends[0]:.0f}; a CT in Hounsfield units shows air near -1000"
        notes.append(QualityNote("modality", Severity.WARNING, text))
    hu = _narrowed(stored, grid, ends)
    if finite is not None:
        hu[~finite] = AIR_HU
    return hu, notes


def _finite(stored: NDArray[Any], source: str) -> NDArray[np.bool_] | None:
    """Return which voxels are finite, or None if all are.

    Raises
    ------
    InputError
        If more than half are not.
    """
    if stored.dtype.kind != "f":
        return None
    finite = np.isfinite(stored)
    bad = 1 - float(finite.mean())
    if bad > 0.5:
        raise InputError(source, f"{bad:.0%} of its voxels are NaN or infinite", "Convert the scan again.")
    return None if finite.all() else finite


def _narrowed(stored: NDArray[Any], grid: _Grid, ends: list[float]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Apply the scaling; int16 if every value is a whole number that fits, else float32."""
    fits = max(abs(end) for end in ends) <= np.iinfo(np.int16).max
    whole = fits and grid.slope.is_integer() and grid.intercept.is_integer()
    if whole and stored.dtype.kind == "f":
        whole = all(np.array_equal(plane, np.rint(plane)) for plane in np.moveaxis(stored, 2, 0))
    out: NDArray[Any] = np.empty(stored.shape, dtype=np.int16 if whole else np.float32, order="F")
    for k in range(stored.shape[2]):  # plane by plane, so that no wide copy of the whole scan is made
        out[..., k] = stored[..., k].astype(np.float64) * grid.slope + grid.intercept
    return out


def _oriented(hu: NDArray[Any], grid: _Grid, source: str) -> Volume:
    """Permute and flip the file's axes to slices (toward S), rows (toward P), columns (toward L)."""
    axes, flips = _axes_and_flips(grid.affine_lps)
    turned = np.transpose(hu, axes)
    turned = np.ascontiguousarray(np.flip(turned, tuple(i for i, flip in enumerate(flips) if flip)))
    vectors = grid.affine_lps[:3, list(axes)].T
    signs = np.where(flips, -1.0, 1.0)
    last = np.array([grid.shape[axis] - 1 for axis in axes])
    origin = grid.affine_lps[:3, 3] + (np.where(flips, last, 0)[:, None] * vectors).sum(axis=0)
    step, down, right = vectors * signs[:, None]
    spacing = (float(np.linalg.norm(down)), float(np.linalg.norm(right)))
    normal = np.cross(right, down) / np.linalg.norm(np.cross(right, down))
    try:
        stack = Stack.regular(turned.shape[0], origin, right, down, spacing, step, float(step @ normal))
    except GeometryError as error:
        raise GeometryError(source, error.problem, "Resample the scan to a grid with square corners.") from error
    info = SourceInfo("nifti", source, ndarray_axes=axes, ndarray_flips=flips)
    return Volume(turned, stack, info, _tilt_note(stack))


def _axes_and_flips(affine_lps: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which axis of the file becomes slice, row and column, and which of those must be turned round."""
    orientations: Any = nib.orientations
    orientation = orientations.io_orientation(affine_lps)
    order = [int(np.flatnonzero(orientation[:, 0] == direction)[0]) for direction in (2, 1, 0)]
    flips = [bool(orientation[axis, 1] < 0) for axis in order]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def _tilt_note(stack: Stack) -> tuple[QualityNote, ...]:
    if stack.tilt_deg < 0.5:
        return ()
    text = f"slices are sheared against the stack by {stack.tilt_deg:.1f} degrees"
    return (QualityNote("gantry_tilt", Severity.INFO, text),)
