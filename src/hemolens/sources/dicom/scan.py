"""Look at every file once, headers only, and sort it: a slice, another DICOM object, damaged, or no DICOM at all."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from hemolens.errors import DecodeError
from hemolens.sources.dicom.header import (
    DIRECTORY_CLASS,
    HEADER_TAGS,
    MEDIA_CLASS,
    SOP_CLASS,
    SliceHeader,
    slice_headers,
)
from hemolens.sources.dicom.tags import Tags, quiet, read_tags
from hemolens.sources.files import Entry, read_head

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
EXPLICIT_VRS = frozenset((b"UI", b"CS", b"UL", b"OB", b"SH", b"LO", b"AE", b"DA", b"TM"))


@dataclass(frozen=True)
class Scan:
    """What lies in a folder, a zip or a file."""

    slices: tuple[SliceHeader, ...]
    """Frames of images of any modality."""
    damaged: tuple[str, ...]
    """Names of files that should be DICOM and cannot be parsed."""
    others: Counter[str] = field(default_factory=Counter)
    """How many other files, by kind."""


def is_dicom(entry: Entry) -> bool:
    """Whether a file looks like DICOM by its first bytes, with or without the preamble of PS3.10 7.1."""
    return _is_dicom_head(read_head(entry, 132))


def _is_dicom_head(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132:
        return False
    group, element = struct.unpack("<HH", head[:4])
    if (group, element) in ((0x0800, 0x0500), (0x0800, 0x0800)):
        return head[4:6] in EXPLICIT_VRS  # big endian
    # A bare dataset starts with group 2 or with one of the first elements of group 8.
    if group not in (0x0002, 0x0008) or element > 0x0020:
        return False
    length = struct.unpack("<L", head[4:8])[0]
    return head[4:6] in EXPLICIT_VRS or 0 < length <= 256


def may_hold_dicom(entry: Entry) -> bool:
    """Whether a file is DICOM, or is named like it and so is damaged if it is not."""
    return PurePosixPath(entry.name).suffix.lower() in DICOM_SUFFIXES or is_dicom(entry)


def scan_entries(entries: Sequence[Entry], progress: Callable[[float], None]) -> Scan:
    """Read the header of every DICOM file among `entries`.

    Parameters
    ----------
    entries
        Files of any kind.
    progress
        Called with the fraction that is done.
    """
    slices: list[SliceHeader] = []
    damaged: list[str] = []
    others: Counter[str] = Counter()
    with quiet():
        for index, entry in enumerate(entries):
            progress(index / len(entries))
            if not may_hold_dicom(entry):
                others["of another kind"] += 1
                continue
            try:
                headers = _headers_of(entry)
            except DecodeError:
                damaged.append(entry.name)
                continue
            if headers and headers[0].pixels is not None:
                slices.extend(headers)
            else:
                others[_kind_without_image(headers)] += 1
    return Scan(tuple(slices), tuple(damaged), others)


def _headers_of(entry: Entry) -> list[SliceHeader]:
    """Return the records of a file, none for a DICOMDIR.

    Raises
    ------
    DecodeError
        If it cannot be parsed or the part that was read names neither what it is nor an image.
    """
    meta, tags = read_tags(entry, HEADER_TAGS)
    if DIRECTORY_CLASS in (meta.text(MEDIA_CLASS), tags.text(SOP_CLASS)):
        return []
    headers = _parse(entry, meta, tags)
    cut_off = headers[0].pixels is None and (headers[0].is_ct or not headers[0].modality)
    if cut_off:
        raise DecodeError(entry.name, "ends before its image begins", "Copy or export the file again.")
    return headers


def _parse(entry: Entry, meta: Tags, tags: Tags) -> list[SliceHeader]:
    try:
        return slice_headers(entry, meta, tags)
    except Exception as error:  # sequences are parsed by pydicom only now, and hostile ones raise anything
        raise DecodeError(entry.name, "has a damaged header", "Copy or export the file again.") from error


def _kind_without_image(headers: Sequence[SliceHeader]) -> str:
    if not headers:
        return "directory"
    return {"SR": "dose or other report", "PR": "presentation state", "SEG": "segmentation"}.get(
        headers[0].modality, "DICOM without an image"
    )
