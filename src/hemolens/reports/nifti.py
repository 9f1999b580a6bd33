"""Masks and probabilities on the very grid that they were found on: NIfTI, or one PNG per slice image.

*NIfTI in, NIfTI out*: the file's own axis order, flips, affine and codes, voxel for voxel.

*DICOM in*: one NIfTI layer per image, in order along the normal; a sheared affine where the gantry was tilted. A
stack that no single affine describes (uneven spacing, a change of direction) keeps its layers, voxel for voxel, but
gets no affine: both form codes are 0, NIfTI's own way to say that positions are not known, so that no viewer overlays
it at a place that is off by millimeters (22 mm with even steps in a series of 4 and 7 mm slices).
``mask_geometry.json`` beside it has the exact pose of every layer, and a quality note says so. Resampling to an even
grid would have put the mask in place but no longer matched the images one by one, which is what editing, training and
scoring need.

*Slice images in*: ``masks/<name>.png``, 0 or 255, in the size of the source, for empty slices too.

Where the network tells perihematomal edema, ``edema.nii.gz`` or ``edema/<name>.png`` stands beside the mask.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemolens.geometry import Stack
from hemolens.inference.prediction import Prediction
from hemolens.volume import LabelMap, Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORM_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT."""
UNKNOWN = 0
"""NIFTI_XFORM_UNKNOWN."""
SAME_MM = 1e-2
"""A header whose affine differs by more than this from the volume's is not the one that was read."""
UNSAFE = '<>:"/\\|?*'
"""What file systems forbid in names."""


def mask_files(label_map: LabelMap) -> dict[str, bytes]:
    """Return the files that hold a label map: relative path → content.

    NIfTI masks hold 1 to 5 for the subtypes (`hemolens.labels`), PNG masks 255 for any blood. Edema has a mask of its
    own, so that nothing that reads "above 0" as blood counts it.
    """
    volume = label_map.volume
    if volume.source.kind == "images":
        return _mask_pictures(volume, label_map.labels > 0, "masks") | (
            {} if label_map.edema is None else _mask_pictures(volume, label_map.edema, "edema")
        )
    files = {"mask.nii.gz": _nifti(label_map.labels, volume)} | geometry_files(volume)
    if label_map.edema is not None:
        files["edema.nii.gz"] = _nifti(label_map.edema.astype(np.uint8), volume)
    return files


def _mask_pictures(volume: Volume, mask: NDArray[np.bool_], folder: str) -> dict[str, bytes]:
    return {
        f"{folder}/{name}.png": _png(np.where(plane, 255, 0).astype(np.uint8))
        for name, plane in zip(picture_names(volume), mask, strict=True)
    }


def geometry_files(volume: Volume) -> dict[str, bytes]:
    """Return ``mask_geometry.json``, which must go with the NIfTI files of a stack that has no affine, or nothing."""
    if volume.source.kind == "dicom" and not volume.require_stack().is_regular:
        return {"mask_geometry.json": _geometry(volume)}
    return {}


def probability_files(volume: Volume, prediction: Prediction) -> dict[str, bytes]:
    """Return the files that hold the probability of blood: NIfTI, 0 to 1, or one PNG per slice, 0 to 255."""
    return map_files(volume, prediction.blood.astype(np.float32), "probability")


def map_files(volume: Volume, values: NDArray[np.float32], name: str) -> dict[str, bytes]:
    """Return the files that hold any map from 0 to 1 on the grid of a scan, as `probability_files` does.

    Parameters
    ----------
    values
        Shape of the volume.
    name
        Name of the NIfTI file, or of the folder of PNG files.
    """
    if volume.source.kind == "images":
        return {
            f"{name}/{stem}.png": _png(np.rint(plane * 255).clip(0, 255).astype(np.uint8))
            for stem, plane in zip(picture_names(volume), values, strict=True)
        }
    return {f"{name}.nii.gz": _nifti(values, volume)}


def scan_file(volume: Volume) -> bytes:
    """Return a scan itself as gzipped NIfTI in whole Hounsfield units, on the grid of `mask_files`.

    Raises
    ------
    GeometryError
        If no single affine describes it.
    InputError
        If it has no geometry.
    """
    _ = volume.affine
    limits = np.iinfo(np.int16)
    return _nifti(np.rint(volume.hu).clip(limits.min, limits.max).astype(np.int16), volume)


def picture_names(volume: Volume) -> list[str]:
    """Return for each slice the name of its PNG, without ending: that of its source, made unique where needed."""
    stems = [_safe(Path(volume.slice_label(k)).stem) or f"{k:03d}" for k in range(len(volume))]
    if len({stem.casefold() for stem in stems}) < len(stems):
        # Such as 1.png beside 1.jpg.
        stems = [_safe(Path(volume.slice_label(k)).name) or f"{k:03d}" for k in range(len(volume))]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = [f"{k:03d}_{stem}" for k, stem in enumerate(stems)]
    return stems


def file_order(array: NDArray[Any], volume: Volume) -> NDArray[Any]:
    """Turn ``(slices, rows, columns)`` into the axis order of the NIfTI file that it came from or goes to; a view."""
    if volume.source.kind != "nifti":
        return array.transpose(2, 1, 0)
    flips = tuple(axis for axis, flip in enumerate(volume.source.ndarray_flips) if flip)
    return np.flip(array, flips).transpose(np.argsort(volume.source.ndarray_axes))


def file_affine(volume: Volume) -> NDArray[np.float64]:
    """Return the RAS affine of `file_order`.

    Raises
    ------
    GeometryError
        If no single affine exists.
    """
    source, affine = volume.source, volume.affine
    if source.kind != "nifti":
        order, flips = (2, 1, 0), (False, False, False)
    else:
        a, b, c = (int(i) for i in np.argsort(source.ndarray_axes))
        order, flips = (a, b, c), source.ndarray_flips
    moved = affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            moved[:3, 3] += affine[:3, axis] * (volume.shape[axis] - 1)
            moved[:3, axis] *= -1
    return np.asarray(LPS_TO_RAS @ moved[:, [*order, 3]])


def _nifti(array: NDArray[Any], volume: Volume) -> bytes:
    """Return a gzipped NIfTI; floats are stored as scaled int16, int16 as it is."""
    data = file_order(array, volume)
    image_class: Any = nib.Nifti1Image
    image = image_class(np.ascontiguousarray(data), None)
    header = image.header
    header.set_data_dtype(np.uint8 if array.dtype.kind == "u" else np.int16)
    header.set_xyzt_units("mm")
    if volume.require_stack().is_regular:
        _set_forms(header, file_affine(volume), volume)
    else:
        rows, columns = np.median(volume.require_stack().spacings_mm, axis=0)
        header.set_zooms((columns, rows, _mean_step(volume.require_stack())))
        header["qform_code"] = header["sform_code"] = UNKNOWN
        header["descrip"] = b"positions: see mask_geometry.json"
    # No time of writing: the same findings make the same file.
    return gzip.compress(image.to_bytes(), compresslevel=5, mtime=0)


def _set_forms(header: Any, affine: NDArray[np.float64], volume: Volume) -> None:
    if volume.source.kind == "nifti":
        own = _own_header(volume.source.path_or_uid)
        if own is not None and np.abs(own.get_best_affine() - affine).max() < SAME_MM:
            for field in FORM_FIELDS:
                header[field] = own[field]
            return
    header.set_sform(affine, SCANNER)
    # A quaternion cannot hold shear: strip it and say that the sform alone counts.
    sheared = volume.require_stack().tilt_deg > 1e-3
    header.set_qform(affine, UNKNOWN if sheared else SCANNER, strip_shears=True)


def _own_header(path: str) -> Any | None:
    """Return the header of the file that was read, or None where it is out of reach (inside a zip, or gone)."""
    try:
        return nib.load(path).header if Path(path).is_file() else None
    except (OSError, ValueError, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError):
        return None


def _mean_step(stack: Stack) -> float:
    if len(stack) == 1:
        return 1.0
    return float(np.ptp(stack.offsets_mm) / (len(stack) - 1))


def _geometry(volume: Volume) -> bytes:
    stack = volume.require_stack()
    layers = [
        {
            "index": k,
            "source": volume.slice_label(k),
            "position_mm": [round(float(v), 6) for v in stack.positions_mm[k]],
            "row_direction": [round(float(v), 9) for v in stack.row_directions[k]],
            "column_direction": [round(float(v), 9) for v in stack.column_directions[k]],
            "spacing_mm": [round(float(v), 6) for v in stack.spacings_mm[k]],
            "extent_mm": round(float(stack.extents_mm[k]), 6) if np.isfinite(stack.extents_mm[k]) else None,
        }
        for k in range(len(stack))
    ]
    told = {
        "about": "Where each layer of mask.nii.gz lies, which has no affine. The center of voxel [i, j, k] is, for "
        "layer k, position_mm + i * spacing_mm[1] * row_direction + j * spacing_mm[0] * column_direction in the "
        "DICOM patient system (LPS). extent_mm is how much of the slice normal the layer stands for.",
        "layers": layers,
    }
    return (json.dumps(told, indent=1, allow_nan=False) + "\n").encode()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _safe(name: str) -> str:
    return "".join("_" if c in UNSAFE or not c.isprintable() else c for c in name).strip(". ")
