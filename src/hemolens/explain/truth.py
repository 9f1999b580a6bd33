"""Reading the true mask that maps are scored against, on the very grid of the scan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hemolens.errors import GeometryError, InputError
from hemolens.labels import FINDING_NAMES
from hemolens.reports.nifti import file_affine
from hemolens.sources.files import listing
from hemolens.sources.images import MASK_NAME
from hemolens.volume import Volume

SAME_MM = 0.1
"""A mask whose corner lies farther than this from the scan's is another scan's."""
ON = 127
"""Pixels of mask pictures above this, in any color, are blood."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class TrueMask:
    """Where blood truly is."""

    labels: NDArray[np.uint8]
    """Shape of the volume; 0 is none, other values as in the file."""
    known: NDArray[np.bool_]
    """Shape ``(slices,)``: slices without a mask of their own are unknown, not empty."""

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> TrueMask:
        """Return labels, shape of the volume, that are known on every slice."""
        return cls(labels, np.ones(len(labels), dtype=bool))

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """Labels that occur."""
        return tuple(int(n) for n in np.flatnonzero(np.bincount(self.labels.ravel(), minlength=2)) if n)

    def of_finding(self, finding: str) -> str:
        """Return what the lesion of a finding is: a mask of one label, or the finding "any", means all blood."""
        return "any blood" if finding == "any" or len(self.kinds) < 2 else finding

    def lesion(self, finding: str, index: int | None = None) -> NDArray[np.bool_]:
        """Return the lesion that belongs to a finding, in the whole volume or on one slice."""
        labels = self.labels if index is None else self.labels[index]
        if self.of_finding(finding) == "any blood":
            return np.asarray(labels > 0)
        return np.asarray(labels == FINDING_NAMES.index(finding))


def read_truth(path: Path, volume: Volume) -> TrueMask:
    """Read a mask of a scan.

    Parameters
    ----------
    path
        For DICOM and NIfTI scans a NIfTI label map on their grid, such as ``mask.nii.gz`` of `hemolens analyze`; for
        slice images a folder of mask pictures, each named like its slice (``12.png``, ``12_HGE_Seg.jpg``), or one
        such picture.

    Raises
    ------
    InputError
        If it cannot be read, or is no mask of this scan.
    """
    if not path.exists():
        raise InputError(path, "is not there", "Name the mask of this scan.")
    if volume.source.kind == "images":
        return _read_pictures(path, volume)
    if not path.is_file() or not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(path, "is no NIfTI file", "Give the mask of this scan as .nii or .nii.gz on its own grid.")
    return _read_nifti(path, volume)


def _read_nifti(path: Path, volume: Volume) -> TrueMask:
    load: Any = nib.load
    try:
        image = load(path)
        data = np.asarray(image.dataobj)
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(path, "cannot be read as NIfTI", "Copy or export it again.") from error
    source = volume.source
    axes, flips = (source.ndarray_axes, source.ndarray_flips) if source.kind == "nifti" else ((2, 1, 0), (False,) * 3)
    data = data.reshape(data.shape[:3]) if data.ndim > 3 and set(data.shape[3:]) == {1} else data
    if data.ndim != 3 or data.transpose(axes).shape != volume.shape:
        shape = " x ".join(str(n) for n in data.shape)
        own = " x ".join(str(volume.shape[a]) for a in np.argsort(axes))
        raise InputError(path, f"is {shape} voxels, the scan {own}", "Use the mask of this very scan.")
    _check_place(path, image, volume)
    labels = np.flip(data.transpose(axes), tuple(axis for axis, flip in enumerate(flips) if flip))
    rounded = np.rint(labels)
    if (
        not np.isfinite(labels).all()
        or np.abs(labels - rounded).max() > 1e-3
        or not 0 <= rounded.min() <= rounded.max() < 256
    ):
        raise InputError(path, "holds other values than labels", "Give a mask: whole numbers, 0 where no blood is.")
    return TrueMask.of(rounded.astype(np.uint8))


def _check_place(path: Path, image: Any, volume: Volume) -> None:
    header = image.header
    if not (header["qform_code"] or header["sform_code"]):
        return  # it says nothing of its place, as masks of stacks without an affine
    try:
        own = file_affine(volume)
    except GeometryError:
        return
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*image.shape[:3], 1]
    apart = float(np.abs((corners @ own.T - corners @ image.affine.T)[:, :3]).max())
    if apart > SAME_MM:
        raise InputError(path, f"lies {apart:.1f} mm away from the scan", "Use the mask of this very scan.")


def _read_pictures(path: Path, volume: Volume) -> TrueMask:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
    named = [p for p in files if MASK_NAME.search(p.stem)]
    if not named and path.resolve() == Path(volume.source.path_or_uid).resolve():
        raise InputError(path, "holds the slices and no masks", "Name the folder of their masks.")
    masks = {_key(p.stem): p for p in named or files}
    labels = np.zeros(volume.shape, dtype=np.uint8)
    known = np.zeros(len(volume), dtype=bool)
    for k in range(len(volume)):
        found = masks.get(_key(Path(volume.slice_label(k)).stem))
        if found is None and path.is_file() and len(volume) == 1:
            found = path
        if found is not None:
            labels[k], known[k] = _read_picture(found, volume.shape[1:]), True
    if not known.any():
        names = listing([p.name for p in files]) or "no pictures"
        raise InputError(path, f"holds no mask named like a slice of the scan ({names})", "Name masks as their slices.")
    return TrueMask(labels, known)


def _key(stem: str) -> str:
    """Return the name of the slice that a picture belongs to: ``12`` for ``12_HGE_Seg``."""
    return MASK_NAME.sub("", stem).casefold() or stem.casefold()


def _read_picture(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(path, "cannot be read as a picture", "Copy or export it again.") from error
    if pixels.shape[:2] != shape:
        raise InputError(
            path, f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, its slice {shape[1]} x {shape[0]}",
            "Use the mask of this very slice.",
        )  # fmt: skip
    return np.asarray((pixels > ON).any(axis=-1).astype(np.uint8))
