"""Files to read from, whether they lie in a folder or inside a zip, with bounds on what is followed and unpacked.

Nothing is ever extracted: the members of a zip are read in memory, one at a time, so no path inside an archive can
reach the disk.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from hemolens.errors import DecodeError, InputError

MAX_FILES = 50_000
"""Most files that a folder or zip may hold; more is an archive, not a study."""
MAX_DEPTH = 12
"""Folders nested deeper than this are not followed."""
MAX_FILE_BYTES = 2**31
"""Largest single file that is read; an enhanced CT of 1,000 slices is a quarter of this."""
MAX_ZIP_BYTES = 2**32
"""Most bytes that a zip may unpack to."""
MAX_ZIP_RATIO = 200
"""A zip that unpacks to more than this many times its size is a bomb; CT slices reach about 10, blank ones excepted."""
SMALL_ZIP_BYTES = 2**26
"""Below this unpacked size the ratio does not matter."""
MAX_VOXELS = 2**29
"""Largest volume that is accepted, in voxels: 1 GiB as int16, three times a 1024 x 1024 head of 170 slices."""


class Entry(Protocol):
    """One file, wherever it lies."""

    @property
    def name(self) -> str:
        """Path inside the source, with ``/``; a bare file name at the top level."""
        ...

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        ...

    def open(self) -> BinaryIO:
        """Open for reading; the caller closes it. Raises `OSError` or `DecodeError`."""
        ...


@dataclass(frozen=True)
class FileEntry:
    """A file on disk."""

    name: str
    size: int
    path: Path

    def open(self) -> BinaryIO:
        """Open the file.

        Raises
        ------
        DecodeError
            If it is larger than `MAX_FILE_BYTES`.
        """
        if self.size > MAX_FILE_BYTES:
            limit = f"is larger than {MAX_FILE_BYTES / 2**30:.0f} GiB"
            raise DecodeError(self.name, limit, "No head CT is; give the scan itself.")
        return self.path.open("rb")


@dataclass(frozen=True)
class ZipEntry:
    """A member of an open zip; read into memory, because the readers seek."""

    name: str
    size: int
    archive: zipfile.ZipFile
    member: zipfile.ZipInfo

    def open(self) -> BinaryIO:
        """Unpack the member in memory.

        Raises
        ------
        DecodeError
            If it is damaged.
        """
        try:
            # ZipExtFile never yields more than the size that the directory declares, which `zip_entries` has bounded.
            with self.archive.open(self.member) as stream:
                return BytesIO(stream.read())
        except Exception as error:  # zlib, struct, EOF, CRC and more, all from hostile bytes
            raise DecodeError(
                self.name, "this member of the zip is damaged", "Copy or download the zip again."
            ) from error


def read_head(entry: Entry, count: int) -> bytes:
    """Return the first `count` bytes of `entry`, or fewer; empty if it cannot be opened."""
    try:
        with entry.open() as stream:
            return stream.read(count)
    except (OSError, DecodeError):
        return b""


def file_entry(path: Path) -> FileEntry:
    """Return the entry for one file on disk.

    Raises
    ------
    InputError
        If it does not exist, is no regular file or cannot be read.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InputError(path, "this is no regular file", "Give a DICOM, NIfTI, zip or image file, or a folder.")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(path, f"cannot be read ({reason})", "Check the path and its permissions.") from error
    return FileEntry(printable(path.name), info.st_size, path)


def folder_entries(folder: Path) -> tuple[FileEntry, ...]:
    """List the regular files under `folder`, sorted by path; hidden ones and links to folders are left out.

    Raises
    ------
    InputError
        If the folder cannot be listed or holds more than `MAX_FILES` files.
    """
    entries: list[FileEntry] = []
    try:
        for entry in _walk(folder, folder, 0):
            entries.append(entry)
            if len(entries) > MAX_FILES:
                raise InputError(folder, f"holds more than {MAX_FILES:,} files", "Give the folder of one study.")
    except OSError as error:
        raise InputError(folder, f"cannot be listed ({error.strerror})", "Check its permissions.") from error
    return tuple(entries)


def _walk(folder: Path, root: Path, depth: int) -> Iterator[FileEntry]:
    with os.scandir(folder) as listing:
        items = sorted(listing, key=lambda item: item.name)
    for item in items:
        if item.name.startswith("."):
            continue
        path = Path(item.path)
        if item.is_dir(follow_symlinks=False):
            if depth < MAX_DEPTH:
                yield from _walk(path, root, depth + 1)
        elif item.is_file():
            yield FileEntry(printable(path.relative_to(root).as_posix()), item.stat().st_size, path)


@contextmanager
def zip_entries(path: Path) -> Iterator[tuple[ZipEntry, ...]]:
    """Open a zip and list its members, refusing bombs before a byte is unpacked.

    Raises
    ------
    InputError
        If it is unreadable, encrypted, oddly compressed, or would unpack to more than the bounds above.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a hostile directory raises struct, Unicode, OS and zip errors alike
        raise InputError(path, "is no readable zip file", "Copy or download it again, or unpack it first.") from error
    with archive:
        members = [m for m in archive.infolist() if not m.filename.endswith("/")]  # is_dir fails on an empty name
        _check_zip(path, members)
        entries = [ZipEntry(_member_name(m), m.file_size, archive, m) for m in members if _is_wanted(m)]
        yield tuple(sorted(entries, key=lambda entry: entry.name))


def _check_zip(path: Path, members: list[zipfile.ZipInfo]) -> None:
    unpacked, packed = sum(m.file_size for m in members), path.stat().st_size
    if len(members) > MAX_FILES:
        raise InputError(path, f"holds more than {MAX_FILES:,} files", "Zip one study only.")
    too_dense = unpacked > SMALL_ZIP_BYTES and unpacked > MAX_ZIP_RATIO * packed
    if unpacked > MAX_ZIP_BYTES or too_dense or any(m.file_size > MAX_FILE_BYTES for m in members):
        raise InputError(
            path,
            f"would unpack from {packed:,} to {unpacked:,} bytes, which no scan does",
            "Zip one study only; hemolens does not open zip bombs.",
        )
    if any(m.flag_bits & 0x1 for m in members):
        raise InputError(path, "is protected by a password", "Unpack it first.")
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        # bzip2 and LZMA unpack without a bound on each step.
        raise InputError(path, "uses an unusual compression", "Unpack it first, or zip it the ordinary way.")


def _member_name(member: zipfile.ZipInfo) -> str:
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    return printable("/".join(p for p in parts if p not in ("/", "..", "."))) or "unnamed"


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    parts = _member_name(member).split("/")
    return "__MACOSX" not in parts and not any(p.startswith(".") for p in parts)


def printable(text: str) -> str:
    """Return `text` with everything that would break a line or a terminal replaced by ``?``."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def short_names(names: list[str]) -> tuple[str, ...]:
    """Return bare file names where they are all different, else the names as they are."""
    bare = [PurePosixPath(name).name for name in names]
    return tuple(bare if len(set(bare)) == len(bare) else names)


def listing(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    """Join names for a message: the first few, then how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
