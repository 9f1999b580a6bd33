"""DICOMDIR (PS3.10 8, PS3.3 F): which files a medium names."""

from __future__ import annotations

from collections.abc import Sequence

from hemolens.errors import DecodeError
from hemolens.sources.dicom.header import DIRECTORY_CLASS, MEDIA_CLASS
from hemolens.sources.dicom.tags import Tags, quiet, read_tags
from hemolens.sources.files import Entry

RECORDS, REFERENCED_FILE = 0x00041220, 0x00041500


def is_directory_file(entry: Entry) -> bool:
    """Whether a file is a DICOMDIR by its class; false if it cannot be read."""
    try:
        with quiet():
            meta, _ = read_tags(entry, [MEDIA_CLASS])
    except DecodeError:
        return False
    return meta.text(MEDIA_CLASS) == DIRECTORY_CLASS


def referenced_entries(directory: Entry, beside: Sequence[Entry]) -> tuple[list[Entry], int]:
    """Return the files beside a DICOMDIR that it names, and how many it names that are not there.

    Names are compared with what lies in the folder, never opened as paths, so a hostile DICOMDIR reaches nothing else.

    Parameters
    ----------
    directory
        The DICOMDIR.
    beside
        Everything in its folder and below, by names relative to it.

    Raises
    ------
    DecodeError
        If the DICOMDIR is damaged.
    """
    with quiet():
        _, tags = read_tags(directory, [RECORDS])
        names = {_file_id(record) for record in _records(directory, tags)}
    known = {entry.name.upper(): entry for entry in beside}
    # Media are written in capitals and often copied in lower case.
    found = [known[name] for name in sorted(names - {""}) if name in known]
    return found, len(names - {""}) - len(found)


def _records(directory: Entry, tags: Tags) -> tuple[Tags, ...]:
    try:
        return tags.items(RECORDS)
    except Exception as error:  # pydicom parses the sequence now, and hostile bytes raise anything
        raise DecodeError(directory.name, "is a damaged DICOMDIR", "Give the folder instead.") from error


def _file_id(record: Tags) -> str:
    return "/".join(record.texts(REFERENCED_FILE)).upper()
