"""A corrected mask as files: NIfTI (or pictures), DICOM SEG, and a record of who changed what, when, on whose work."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.inference.prediction import Prediction
from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import NOTICE, Findings, build_findings, format_amount
from hemolens.measurements.lesions import measure_lesions
from hemolens.notes import QualityNote, Severity
from hemolens.reports.dicom_correction import corrected_segmentation
from hemolens.reports.folder import ResultKind
from hemolens.reports.nifti import mask_files
from hemolens.volume import LabelMap
from hemolens.web.corrections import Edit

RECORD = "correction.json"
CORRECTION = ResultKind(
    RECORD,
    frozenset({RECORD, "mask.nii.gz", "mask_geometry.json", "edema.nii.gz", "seg.dcm"}),
    frozenset({"masks", "edema"}),
)
"""What a folder of a correction may hold."""
AUTHOR_MOST = 64
"""Of a component group of a DICOM person name (PS3.5 6.2)."""


@dataclass(frozen=True, eq=False)
class Correction:
    """A corrected label map and how it came about.

    Raises
    ------
    InputError
        If the author has no usable name.
    ValueError
        If `when` has no time zone.
    """

    label_map: LabelMap
    original: NDArray[np.uint8]
    """The network's label map."""
    findings: Findings
    """The network's."""
    author: str
    when: datetime
    edits: Sequence[Edit] = ()
    subtypes_checked: bool = False
    """Whether the person vouches for the subtypes, or for the outlines alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "author", author_name(self.author))
        if self.when.tzinfo is None:
            raise ValueError("a correction needs a time zone")

    def files(self) -> dict[str, bytes]:
        """Return the files to keep: relative path → content; no SEG where DICOM allows none."""
        contents = mask_files(self.label_map)
        seg = corrected_segmentation(self.label_map, self.original, self.findings, self.author, self.when)
        if seg is not None:
            contents["seg.dcm"] = seg
        contents[RECORD] = (json.dumps(self.record(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        return contents

    def record(self) -> dict[str, Any]:
        """Return what ``correction.json`` says."""
        told = self.findings
        return {
            "schema_version": "1.0",
            "notice": NOTICE,
            "hemolens_version": told.hemolens_version,
            "author": self.author,
            "saved": self.when.isoformat(timespec="seconds"),
            "subtypes_checked": self.subtypes_checked,
            "model": {"name": told.model.name, "sha256": told.model.sha256},
            "input": {"kind": told.input.kind, "path_or_uid": told.input.path_or_uid, "slices": told.input.slices},
            "before": _sizes(LabelMap(self.original, self.label_map.volume)),
            "after": _sizes(self.label_map),
            "changed_voxels": int(np.count_nonzero(self.label_map.labels != self.original)),
            "mask_sha256": hashlib.sha256(self.label_map.labels.tobytes()).hexdigest(),
            "edits": [edit.to_mapping(self.label_map.volume) for edit in self.edits],
        }

    def findings_after(self, prediction: Prediction) -> Findings:
        """Return the findings with the corrected lesions; the network's probabilities and decision stay."""
        return corrected_findings(self.findings, self.label_map, prediction, self.author, self.when)


def author_name(text: str) -> str:
    """Return a name as DICOM and JSON can hold it.

    Raises
    ------
    InputError
        If nothing is left of it, or it is too long.
    """
    name = " ".join("".join(c if c.isprintable() and c not in "\\=" else " " for c in text).split())
    if not name:
        raise InputError("Your name", "is empty", "A corrected mask says who corrected it: type your name or initials.")
    if len(name) > AUTHOR_MOST:
        raise InputError("Your name", f"has more than {AUTHOR_MOST} characters", "Type a shorter form of it.")
    return name


def corrected_findings(
    findings: Findings, label_map: LabelMap, prediction: Prediction, author: str = "", when: datetime | None = None
) -> Findings:
    """Return findings that are measured on a corrected label map, and say so in a quality note.

    Parameters
    ----------
    findings
        The network's.
    label_map
        As corrected.
    prediction
        The network's answer, for the confidence of each lesion.
    author, when
        Who corrected it and when, once it is saved.
    """
    measured = build_findings(
        label_map.volume, prediction, label_map, measure_lesions(label_map, prediction),
        findings.quality, findings.timing_s, when or datetime.fromisoformat(findings.created),
    )  # fmt: skip
    before = format_amount(findings.total.size, findings.total.unit)
    after = format_amount(measured.total.size, measured.total.unit)
    by = f" by {author}" if author else ""
    on = f" on {when.strftime('%Y-%m-%d %H:%M %Z')}" if when else ""
    text = f"the outlines were corrected{by}{on}: {before} became {after}; probabilities are the network's own"
    total = replace(measured.total, volume_interval_ml=None)  # that of the network's own outlines
    return replace(measured, total=total, quality=(*findings.quality, QualityNote("corrected", Severity.INFO, text)))


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return files as one zip, without the time of writing: the same files make the same zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _sizes(label_map: LabelMap) -> dict[str, Any]:
    """Return the volume of each subtype: milliliters, or pixels where those are unknown."""
    if label_map.volume.has_volumes:
        return {
            "volume_ml": round(label_map.volume_ml(), 6),
            "by_subtype_ml": {s.name: round(label_map.volume_ml(s.index), 6) for s in SUBTYPES},
        }
    counts = np.bincount(label_map.labels.ravel(), minlength=len(SUBTYPES) + 1)
    return {"area_px": int(counts[1:].sum()), "by_subtype_px": {s.name: int(counts[s.index]) for s in SUBTYPES}}
