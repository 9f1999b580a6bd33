"""`Volume` owns the Hounsfield units, the pose of every slice and what is known of the source; `LabelMap` its mask."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.geometry import Stack
from hemolens.notes import QualityNote

SourceKind = Literal["dicom", "nifti", "images"]
AIR_HU = -1024.0


@dataclass(frozen=True)
class DisplayWindow:
    """The window that 8-bit images were rendered with: ``level ± width / 2`` in Hounsfield units."""

    level_hu: float = 40.0
    width_hu: float = 120.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.level_hu) and np.isfinite(self.width_hu) and self.width_hu > 0):
            raise ValueError("the window needs a finite level and a positive width")

    @property
    def low_hu(self) -> float:
        """Value of black."""
        return self.level_hu - self.width_hu / 2

    @property
    def high_hu(self) -> float:
        """Value of white."""
        return self.level_hu + self.width_hu / 2


@dataclass(frozen=True, repr=False)
class DicomOrigin:
    """What DICOM results must repeat of a series.

    The one place that carries a patient's identity through an analysis: it is never printed, and goes nowhere but into
    the DICOM results of that very patient.
    """

    header: bytes
    """Patient and study of the first slice, encoded; see `hemolens.sources.dicom.origin`. Empty if unreadable."""
    sop_class_uids: tuple[str, ...]
    """Of each slice."""
    frame_numbers: tuple[int | None, ...]
    """Of each slice in its file, from 1; None where the file has one frame."""
    thicknesses_mm: tuple[float, ...]
    """Nominal, of each slice; NaN where unknown."""

    def __repr__(self) -> str:
        return f"DicomOrigin({len(self.frame_numbers)} slices)"


@dataclass(frozen=True)
class SourceInfo:
    """Where a volume came from: what a report must be able to name.

    Shows no patient name or number, whoever prints it; `origin` keeps them for DICOM results.
    """

    kind: SourceKind
    path_or_uid: str
    """Path of a file or folder, or the Series Instance UID of a DICOM series."""
    slice_names: tuple[str, ...] = ()
    """File name of each slice, in the order of the volume; empty for NIfTI."""
    slice_numbers: tuple[int, ...] = ()
    """Number of each slice in its source, such as CT-ICH's, which start at 1; empty when there is none."""
    sop_instance_uids: tuple[str, ...] = ()
    study_uid: str | None = None
    series_uid: str | None = None
    frame_of_reference_uid: str | None = None
    series_description: str | None = None
    window: DisplayWindow | None = None
    """Set for 8-bit images only."""
    ndarray_axes: tuple[int, int, int] = (0, 1, 2)
    """NIfTI: which axis of the file became slice, row and column."""
    ndarray_flips: tuple[bool, bool, bool] = (False, False, False)
    """NIfTI: which axes (of the volume) run against the file's."""
    origin: DicomOrigin | None = None
    """DICOM: what results must repeat of the series."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A head CT in Hounsfield units on its source grid.

    Parameters
    ----------
    hu
        Shape ``(slices, rows, columns)``, int16 or float32, finite.
    stack
        The pose of every slice, or None where the source has no geometry at all (slice images of unknown spacing).
    source
        Where it came from.
    notes
        What the reader had to do or could not do.

    Raises
    ------
    InputError
        If `hu` is not three-dimensional, is empty, or does not match `stack`.
    """

    hu: NDArray[np.int16] | NDArray[np.float32]
    stack: Stack | None
    source: SourceInfo
    notes: tuple[QualityNote, ...] = field(default=())

    def __post_init__(self) -> None:
        name = self.source.path_or_uid
        if self.hu.ndim != 3 or 0 in self.hu.shape:
            raise InputError(name, f"the image has shape {self.hu.shape}", "Give a volume of slices, rows and columns.")
        if self.stack is not None and len(self.stack) != len(self.hu):
            raise InputError(name, f"{len(self.hu)} slices but {len(self.stack)} positions", "Check the source.")

    def __len__(self) -> int:
        return len(self.hu)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        s, r, c = self.hu.shape
        return s, r, c

    @property
    def affine(self) -> NDArray[np.float64]:
        """See `Stack.affine`; raises `GeometryError` where no single affine exists."""
        return self.require_stack().affine

    @property
    def has_volumes(self) -> bool:
        """Whether millimeters, square millimeters and milliliters can be told."""
        return self.stack is not None and bool(np.isfinite(self.stack.extents_mm).all())

    def require_stack(self) -> Stack:
        """Return the geometry.

        Raises
        ------
        InputError
            If the source has none.
        """
        if self.stack is None:
            raise InputError(
                self.source.path_or_uid,
                "these images carry no geometry",
                "Name the pixel and slice spacing, or give DICOM or NIfTI.",
            )
        return self.stack

    def with_notes(self, *notes: QualityNote) -> Volume:
        """Return the same volume with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def slice_label(self, index: int) -> str:
        """Name slice `index` as its source does."""
        return self.source.slice_names[index] if self.source.slice_names else str(index)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Which voxel holds which subtype, on the grid of its volume.

    Parameters
    ----------
    labels
        uint8, shape of the volume; 0 is background, 1 to 5 are `hemolens.labels.SUBTYPES`.
    volume
        The scan that it belongs to.
    edema
        Where perihematomal edema is, bool, same shape; never where blood is. None where nobody looked for it.

    Raises
    ------
    InputError
        If the shapes differ.
    """

    labels: NDArray[np.uint8]
    volume: Volume
    edema: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for mask in (self.labels, self.edema):
            if mask is not None and mask.shape != self.volume.shape:
                raise InputError(
                    self.volume.source.path_or_uid,
                    f"a mask of shape {mask.shape} cannot belong to a scan of shape {self.volume.shape}",
                    "Use the mask of this very scan.",
                )

    def volume_ml(self, index: int | None = None) -> float:
        """Return the volume of one label, or of all of them; NaN where millimeters are unknown."""
        if not self.volume.has_volumes:
            return float("nan")
        chosen = self.labels > 0 if index is None else self.labels == index
        per_slice = chosen.reshape(len(chosen), -1).sum(axis=1)
        return float((per_slice * self.volume.require_stack().voxel_volumes_ml).sum())
