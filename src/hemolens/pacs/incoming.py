"""What the service reads of an instance that arrives: UIDs, kind, and hashes in place of identifiers."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from hemolens.errors import DecodeError
from hemolens.pacs.queue import InstanceKind

CT_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
    }
)
TAGS = (
    "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "SeriesDate", "AcquisitionDate", "AcquisitionDateTime",
    "StudyTime", "SeriesTime", "AcquisitionTime", "AccessionNumber", "Modality", "PatientID", "IssuerOfPatientID",
    "StudyInstanceUID", "SeriesInstanceUID",
)  # fmt: skip
WANTED = {name: Tag(name) for name in TAGS}
LAST_TAG = 0x0020000E
"""Nothing behind it is read."""
UID_FORM = re.compile(r"[0-9A-Za-z._-]{1,64}")
"""What is taken as a UID; real archives hold some that break PS3.5 9.1, such as ``ID_0a1b``."""


@dataclass(frozen=True)
class Header:
    """What an instance says of itself."""

    sop_class: str
    sop_uid: str
    series_uid: str
    study_uid: str
    modality: str
    kind: InstanceKind
    patient_key: str
    accession_hash: str
    acquired: float | None


def read_header(data: bytes, transfer_syntax: str, salt: bytes, start: int = 0) -> Header:
    """Read the header of a data set without its file meta information.

    Parameters
    ----------
    data
        As encoded by the peer.
    transfer_syntax
        That of the presentation context.
    salt
        For the hashes that stand for identifiers.
    start
        Where in `data` the data set begins.

    Raises
    ------
    DecodeError
        If it cannot be parsed or lacks a UID.
    """
    syntax, stream = UID(transfer_syntax), BytesIO(data)
    stream.seek(start)
    try:
        found = read_dataset(
            stream,
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=lambda tag, _vr, _length: tag > LAST_TAG,
            specific_tags=list(WANTED.values()),
        )
        return _header(found, salt)
    except DecodeError:
        raise
    except Exception as error:  # hostile bytes make pydicom raise anything
        raise _damaged() from error


def read_file_header(content: bytes, salt: bytes) -> Header:
    """Read the header of a DICOM file.

    Raises
    ------
    DecodeError
        If it cannot be parsed or lacks a UID.
    """
    try:
        found = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(TAGS))
        return _header(found, salt)
    except DecodeError:
        raise
    except Exception as error:  # hostile bytes make pydicom raise anything
        raise _damaged() from error


def _damaged() -> DecodeError:
    return DecodeError("instance", "has a damaged header", "Send it again, or look at what the sender holds.")


def _header(found: Dataset, salt: bytes) -> Header:
    modality = _text(found, "Modality")[:16]
    sop_class = _uid(found, "SOPClassUID")
    number = _text(found, "PatientID")
    # Nobody knows whether two patients without a number are one: each of their studies stands for itself.
    patient = "|".join((number, _text(found, "IssuerOfPatientID"))) if number else _uid(found, "StudyInstanceUID")
    accession = _text(found, "AccessionNumber")
    return Header(
        sop_class=sop_class,
        sop_uid=_uid(found, "SOPInstanceUID"),
        series_uid=_uid(found, "SeriesInstanceUID"),
        study_uid=_uid(found, "StudyInstanceUID"),
        modality=modality if re.fullmatch(r"[A-Z0-9_ ]*", modality) else "",
        kind=_kind(sop_class, modality, _text(found, "ImageType")),
        patient_key=salted(patient, salt),
        accession_hash=salted(accession, salt) if accession else "",
        acquired=_acquired(found),
    )


def salted(text: str, salt: bytes) -> str:
    """Return what stands for an identifier: it cannot be turned back, not even by trying all, without the salt."""
    return hmac.new(salt, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]


def _kind(sop_class: str, modality: str, image_type: str) -> InstanceKind:
    if sop_class not in CT_CLASSES or modality not in {"CT", ""}:
        return InstanceKind.OTHER
    return InstanceKind.LOCALIZER if "LOCALIZER" in image_type.upper() else InstanceKind.CT


def _text(found: Dataset, name: str) -> str:
    raw: Any = found.get_item(WANTED[name])  # None if it is not there
    value = raw.value if raw is not None else None
    if isinstance(value, bytes) and value.isascii():
        text = value.decode("ascii")
    else:  # only now pydicom need look at the character set, which takes it long
        value = found.get(name)
        text = "" if value is None else str(value)
    return text.strip().strip("\0").strip()


def _uid(found: Dataset, name: str) -> str:
    value = _text(found, name)
    if not UID_FORM.fullmatch(value):
        raise DecodeError("instance", f"has no usable {name}", "Look at what the sender holds.")
    return value


def _acquired(found: Dataset) -> float | None:
    told = [_text(found, "AcquisitionDateTime")]
    told += [_text(found, f"{at}Date") + _text(found, f"{at}Time") for at in ("Acquisition", "Series", "Study")]
    for text in told:
        digits = re.match(r"\d{8}(\d{6})?", text)
        if digits:
            try:
                return datetime.strptime(digits[0].ljust(14, "0"), "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
            except ValueError:
                continue
    return None
