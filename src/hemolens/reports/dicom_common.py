"""What SEG, SR and summary image share: whose they are, what they are called, who made them, and how they are written.

*Identity* is copied from the source and never made up; what it lacks stays empty.

*UIDs* follow from the scan (its UIDs, pixels and geometry), the model (weights and card), and the version of hemolens:
the same scan and model make the same objects, so that what is sent twice is stored once. The version is part of it
because another version may measure otherwise, and DICOM forbids two contents under one UID. Whoever gets the UIDs of an
earlier result gets the same bytes too, but for the date and time of creation: those say when this was made, which the
standard asks for and which no source can tell.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from hemolens.labels import EDEMA, Subtype
from hemolens.measurements.findings import NOTICE, Findings
from hemolens.notes import QualityNote, Severity
from hemolens.sources.dicom.origin import CHARACTER_SET, IDENTITY, TYPE_2, read_header
from hemolens.sources.dicom.tags import quiet
from hemolens.volume import DicomOrigin, SourceInfo, Volume

OBJECTS_VERSION = "2"
"""Part of every UID; raised when the same findings are written down differently."""
SERIES_NUMBERS = {"SEG": 9801, "SR": 9802, "OT": 9803}
"""Of the series by modality: high enough to stay behind a scanner's own."""
MANUFACTURER = "hemolens"
RESEARCH_ONLY = "research use only"
PRIVATE_SCHEME = "99HEMOLENS"
"""Coding scheme of the few concepts that no standard scheme has."""
VALID_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
LONG_STRING = 64

INTRACRANIAL = Code("1101003", "SCT", "Intracranial")
HEMORRHAGE = Code("1386000", "SCT", "Intracranial hemorrhage")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")


def subtype_code(subtype: Subtype) -> Code:
    """Return what a kind of hemorrhage, or edema, is called in SNOMED CT."""
    if subtype == EDEMA:
        return Code(subtype.snomed_code, "SCT", "Cerebral edema")
    return Code(subtype.snomed_code, "SCT", f"{subtype.title} hemorrhage")


def origin_notes(volume: Volume) -> tuple[QualityNote, ...]:
    """Say why there will be no DICOM results for a DICOM source, if so."""
    problem = obstacle(volume) if volume.source.kind == "dicom" else ""
    if not problem:
        return ()
    return (QualityNote("no_dicom_results", Severity.INFO, f"no DICOM SEG or SR can be written: {problem}"),)


def obstacle(volume: Volume) -> str:
    """Return why a DICOM result on a volume would be broken; empty if nothing stands in its way."""
    source = volume.source
    if source.origin is None or not source.origin.header or volume.stack is None:
        return "the headers of the source are not at hand"
    named = {
        "Study Instance UID": source.study_uid,
        "Series Instance UID": source.series_uid,
        "Frame of Reference UID": source.frame_of_reference_uid,
    }
    for name, uid in named.items():
        if not uid:
            return f"the images have no {name}, or not the same"
        if not is_uid(uid):
            return f"the {name} is no UID"
    if not all(is_uid(uid) for uid in source.origin.sop_class_uids):
        return "images do not say of which SOP class they are"
    if not all(is_uid(uid) for uid in source.sop_instance_uids):
        return "a SOP Instance UID of the images is missing or no UID"
    if len(set(zip(source.sop_instance_uids, source.origin.frame_numbers, strict=True))) < len(volume):
        return "several images have the same SOP Instance UID"
    return ""


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5 9.1)."""
    return len(text) <= 64 and VALID_UID.fullmatch(text) is not None


@dataclass(frozen=True)
class SourceFrame:
    """One slice as DICOM refers to it."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    """None where the file has one frame."""


@dataclass(frozen=True, eq=False)
class Origin:
    """One scan, its findings, and everything that DICOM results repeat of them.

    Raises
    ------
    ValueError
        If there is an `obstacle`.
    """

    volume: Volume
    findings: Findings

    def __post_init__(self) -> None:
        problem = obstacle(self.volume)
        if problem:
            raise ValueError(problem)

    @property
    def source(self) -> SourceInfo:
        """Where the scan came from."""
        return self.volume.source

    @property
    def kept(self) -> DicomOrigin:
        """What its reader kept of it."""
        assert self.source.origin is not None  # as `obstacle` has checked
        return self.source.origin

    @cached_property
    def header(self) -> Dataset:
        """Patient and study of the source."""
        with quiet():
            header = read_header(self.kept)
            header.decode()  # now, for pydicom remarks on odd values when it turns them into Python
        return header

    @cached_property
    def frames(self) -> tuple[SourceFrame, ...]:
        """How to refer to each slice."""
        told = zip(self.kept.sop_class_uids, self.source.sop_instance_uids, self.kept.frame_numbers, strict=True)
        return tuple(SourceFrame(*frame) for frame in told)

    @property
    def frame_of_reference_uid(self) -> str:
        """Shared by all slices."""
        return self.source.frame_of_reference_uid or ""

    @property
    def software(self) -> list[str]:
        """Version of hemolens and name of the model."""
        return [f"hemolens {self.findings.hemolens_version}", self.findings.model.name[:LONG_STRING]]

    @cached_property
    def created(self) -> datetime:
        """When the findings were made, on the clock that the source's own times are told by."""
        created = datetime.fromisoformat(self.findings.created)
        found = re.fullmatch(r"([+-])(\d\d)(\d\d)", str(self.header.get("TimezoneOffsetFromUTC", "")))
        if found is None:
            return created.astimezone()
        minutes = int(found[1] + "1") * (60 * int(found[2]) + int(found[3]))
        return created.astimezone(timezone(timedelta(minutes=minutes)))

    @cached_property
    def _fingerprint(self) -> str:
        """Digest of scan, model and version."""
        findings, stack = self.findings, self.volume.require_stack()
        digest = hashlib.sha256()
        told: list[Any] = [
            OBJECTS_VERSION, findings.hemolens_version, findings.schema_version, self.source.study_uid,
            self.source.series_uid, self.source.sop_instance_uids, self.kept.frame_numbers, findings.model.sha256,
            findings.model.card, str(self.volume.hu.dtype), self.volume.shape,
        ]  # fmt: skip
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        for array in (stack.positions_mm, stack.row_directions, stack.column_directions, stack.spacings_mm):
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        # Slice by slice, as a flat copy of all of them would double the memory.
        for plane in self.volume.hu:
            digest.update(np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def uid(self, *what: str) -> str:
        """Return the UID of one thing in the results on this scan: always the same for the same name (PS3.5 B.2)."""
        return _uid(self._fingerprint, *what)

    @property
    def device_uid(self) -> str:
        """Of this model in this version of hemolens, whatever the scan."""
        return _uid("device", self.findings.hemolens_version, self.findings.model.sha256)

    def tracking(self, subtype: str, lesion: int | None = None) -> tuple[str, str]:
        """Return Tracking ID and UID of a subtype's segment, or of one lesion.

        The only lesion of its subtype is the very thing that the segment is, and has its name.
        """
        if lesion is None or sum(found.subtype == subtype for found in self.findings.lesions) == 1:
            told = EDEMA.title.lower() if subtype == EDEMA.name else f"{subtype} hemorrhage"
            return told, self.uid("segment", subtype)
        return f"lesion {lesion}: {subtype} hemorrhage", self.uid("lesion", str(lesion))


def _uid(*what: str) -> str:
    digest = hashlib.sha256("\0".join(what).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def complete(dataset: Dataset, origin: Origin, modality: str) -> Dataset:
    """Give an object its patient, study, series, maker and time.

    Parameters
    ----------
    dataset
        With SOP Class UID; changed in place, and returned.
    modality
        ``SEG``, ``SR`` or ``OT``: each is a series of its own.
    """
    dataset.SpecificCharacterSet = CHARACTER_SET
    for keyword in IDENTITY:
        if _is_told(origin.header, keyword):
            dataset[keyword] = origin.header[keyword]
        elif keyword in TYPE_2:
            setattr(dataset, keyword, None)
    dataset.StudyInstanceUID = origin.source.study_uid
    dataset.SeriesInstanceUID = origin.uid("series", modality)
    dataset.SOPInstanceUID = origin.uid("instance", modality)
    dataset.Modality = modality
    dataset.SeriesNumber = SERIES_NUMBERS[modality]
    dataset.InstanceNumber = 1
    dataset.ContentQualification = "RESEARCH"
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MANUFACTURER
    dataset.SoftwareVersions = origin.software
    # Software has no serial number; which weights it ran is what a serial number would be asked for.
    dataset.DeviceSerialNumber = origin.findings.model.sha256[:LONG_STRING]
    date, time = origin.created.strftime("%Y%m%d"), origin.created.strftime("%H%M%S")
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{name}Date", date)
        setattr(dataset, f"{name}Time", time)
    return dataset


def _is_told(header: Dataset, keyword: str) -> bool:
    """Whether the source says something that an object may repeat."""
    if keyword == "PatientIdentityRemoved" and not (
        header.get("DeidentificationMethod") or header.get("DeidentificationMethodCodeSequence")
    ):
        return False  # it may not be said without saying how (PS3.3 C.7.1.1)
    return keyword in header and not header[keyword].is_empty


def encoded(dataset: Dataset) -> bytes:
    """Return the file of an object, explicit little endian."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    buffer = BytesIO()
    # Whatever is odd in a patient's name was odd in the source and is no business of a log.
    with quiet():
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def algorithm_parameters(findings: Findings) -> dict[str, str]:
    """Return what pins the algorithm down besides its name."""
    return {
        "weights_sha256": findings.model.sha256,
        "study_threshold": f"{findings.study.threshold:.6g}",
        "notice": NOTICE,
    }


def one_line(text: str, most: int = LONG_STRING) -> str:
    r"""Cut a text to what a string element holds, without the backslash that would split it."""
    return text.replace("\\", "/")[:most]
