"""What DICOM results must repeat of their source: patient and study as the scanner wrote them, and what each slice is.

Taken while the files are open, so that a zip or a spool may be gone by the time results are written. Pixels are never
part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.valuerep import validate_value

from hemolens.sources.dicom.header import SliceHeader
from hemolens.sources.dicom.tags import MAX_INFLATED_HEADER, inflated
from hemolens.sources.files import Entry
from hemolens.volume import DicomOrigin

PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate",
    "PatientBirthTime", "PatientSex", "OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup",
    "PatientSpeciesDescription", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "QualityControlSubject",
)  # fmt: skip
"""PS3.3 C.7.1.1."""
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "ProcedureCodeSequence", "PatientAge", "PatientSize",
    "PatientWeight", "AdmittingDiagnosesDescription",
)  # fmt: skip
"""PS3.3 C.7.2.1 and C.7.2.2."""
TRIAL = (
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)  # fmt: skip
"""PS3.3 C.7.1.3 and C.7.2.3."""
COMMON = ("SyntheticData", "TimezoneOffsetFromUTC")
"""PS3.3 C.12.1."""
IMAGE = (
    "PositionReferenceIndicator", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
"""For what is derived from the pixels."""
IDENTITY = (*PATIENT, *STUDY, *TRIAL, *COMMON)
KEYWORDS = (*IDENTITY, *IMAGE)
TYPE_2 = frozenset({
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
})  # fmt: skip
"""There in every object, even if empty, and as the source has them: archives match by them, right or wrong. Of the
others, what breaks the standard is left out."""
CHARACTER_SET = "ISO_IR 192"
"""UTF-8: holds whatever the source's own character set does."""


def origin_of(kept: Sequence[SliceHeader]) -> DicomOrigin:
    """Return what DICOM results on these slices must repeat. Call inside `quiet`, while their files can be opened."""
    return DicomOrigin(
        header=_header(kept[0].entry),
        sop_class_uids=tuple(h.sop_class for h in kept),
        frame_numbers=tuple(h.frame + 1 if h.frames > 1 else None for h in kept),
        thicknesses_mm=tuple(h.thickness_mm for h in kept),
    )


def _header(entry: Entry) -> bytes:
    """Return the elements of `KEYWORDS` as a bare dataset, explicit little endian, UTF-8; empty if none can be read."""
    tags = [tag_for_keyword(keyword) or 0 for keyword in KEYWORDS]
    try:
        with entry.open() as stream:
            found = pydicom.dcmread(
                inflated(stream, MAX_INFLATED_HEADER), stop_before_pixels=True, force=True, specific_tags=tags
            )
        return _encoded(found, tags)
    except Exception:  # noqa: BLE001  hostile bytes raise anything; the scan itself can be read and is worth a result
        return b""


def _encoded(found: Dataset, tags: Sequence[int]) -> bytes:
    kept = Dataset()
    for tag in tags:
        try:
            single = Dataset()
            if "SpecificCharacterSet" in found:
                single.SpecificCharacterSet = found.SpecificCharacterSet
            single.add(found[tag])
            single.decode()
            element = single[tag]
            if element.keyword not in TYPE_2:
                _validate(element)
            single.SpecificCharacterSet = CHARACTER_SET
            _write(single)
        except Exception:  # noqa: BLE001  absent, or no value of its type, such as a weight of "70 kg"
            continue
        kept.add(element)
    kept.SpecificCharacterSet = CHARACTER_SET
    return _write(kept)


def _validate(element: DataElement) -> None:
    """Raise `ValueError` if a value breaks the standard."""
    if element.VR == "SQ":
        return
    for value in element.value if element.VM > 1 else [element.value]:
        validate_value(element.VR, str(value), pydicom.config.RAISE)


def _write(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def read_header(origin: DicomOrigin) -> Dataset:
    """Return the elements that `origin_of` kept; text in it is UTF-8."""
    return read_dataset(BytesIO(origin.header), is_implicit_VR=False, is_little_endian=True)
