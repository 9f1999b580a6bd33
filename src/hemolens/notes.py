"""Quality notes: what a reader should know before trusting a result. Every code that can be raised stands here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a note weighs."""

    INFO = "info"
    """Good to know; the result stands."""
    WARNING = "warning"
    """The result may suffer; look at the named slices."""
    PARTIAL = "partial"
    """Something that belongs to the scan was not analyzed or is missing: exit code 3."""


CODES: dict[str, str] = {
    "series_chosen": "one series among several was analyzed",
    "files_skipped": "files that are no part of the chosen series were left out",
    "slices_unreadable": "slices could not be decoded and are missing from the result",
    "slices_missing": "the stack has a gap where one or more slices should be",
    "duplicate_slices": "slices at the same position were found; one of each was used",
    "mixed_geometry": "slices of another size, orientation or pixel spacing were left out",
    "uneven_spacing": "the distance between slices changes along the stack",
    "gantry_tilt": "slices are sheared against the stacking direction",
    "thick_slices": "slices are thicker or farther apart than the model was trained on",
    "rescale_assumed": "rescale slope or intercept is missing; stored values were taken as Hounsfield units",
    "padding_replaced": "pixels outside the scanner's field were set to air",
    "non_finite": "NaN or infinite values were set to air",
    "unknown_window": "8-bit images: intensities rest on the window that was named, not on the scanner",
    "no_spacing": "pixel size is unknown; areas are in pixels and no volume is given",
    "orientation_assumed": "images carry no orientation; face up and seen from the feet was assumed",
    "too_few_slices": "too few slices for a head; volumes are incomplete",
    "cropped_head": "the head is cut off by the image border",
    "not_a_head": "no head-sized skull was found",
    "field_of_view": "the field of view is not that of a head CT",
    "contrast_suspected": "vessels look enhanced; contrast medium can pass for blood",
    "metal_suspected": "metal or its artifacts are in the image",
    "not_axial": "slices are far from axial; the model saw axial slices only",
    "modality": "values do not look like CT",
    "no_dicom_results": "the source's headers allow no DICOM SEG and SR; all other results are complete",
    "corrected": "a person changed the outlines; lesions and volumes are those of the corrected mask",
}
"""Code → what it means, in general words. A note's own message says it for the scan at hand."""


@dataclass(frozen=True)
class QualityNote:
    """One remark on the input or the result.

    Raises
    ------
    ValueError
        If `code` is not one of `CODES`.
    """

    code: str
    severity: Severity
    message: str
    slices: tuple[int, ...] = ()
    """Indices into the volume that the note is about, from 0; empty for the whole scan."""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown quality code {self.code!r}")


def is_partial(notes: tuple[QualityNote, ...]) -> bool:
    """Whether any note says that part of the scan is missing from the result."""
    return any(note.severity is Severity.PARTIAL for note in notes)
