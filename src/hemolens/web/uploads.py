"""Where dropped files lie until they are read: streamed to a private temporary folder, bounded, and then deleted."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hemolens.errors import InputError
from hemolens.sources.files import MAX_FILES, printable
from hemolens.sources.study import ReadOptions
from hemolens.web.jobs import Order

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
ALONE = (".zip", ".nii", ".nii.gz")
"""Each such file is a scan of its own."""
MAX_NAME = 200
"""Bytes of one part of a path."""
SPARE_BYTES = 2**29
"""Disk space that uploads leave free."""
BATCH = re.compile(r"[A-Za-z0-9_-]{8,64}")


@dataclass(eq=False)
class Batch:
    """Files that were dropped together."""

    folder: Path
    limit: int
    names: dict[str, Path] = field(default_factory=dict)
    """What the user calls each file, and where it lies."""
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    """Scans of this batch that are still to be read."""

    @classmethod
    def new(cls, limit: int) -> Batch:
        """Make an empty one that may hold `limit` bytes."""
        return cls(Path(tempfile.mkdtemp(prefix="hemolens-web-")), limit)

    def place(self, name: str) -> Path:
        """Return where the file of this name is to be written; never outside the batch's own folder.

        Raises
        ------
        InputError
            If there are too many files.
        """
        shown = clean_name(name)
        with self.lock:
            if len(self.names) >= MAX_FILES:
                raise InputError("upload", f"holds more than {MAX_FILES:,} files", "Drop the files of one study.")
            while shown in self.names:
                shown = f"{PurePosixPath(shown).parent / secrets.token_hex(3)}-{PurePosixPath(shown).name}"
            path = self.folder / shown
            self.names[shown] = path
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def count(self, size: int) -> None:
        """Add received bytes.

        Raises
        ------
        InputError
            If they are more than the batch may hold, or more than the disk.
        """
        with self.lock:
            self.received += size
            received = self.received
        if received > self.limit:
            raise InputError("upload", f"is larger than {self.limit / 2**30:.3g} GiB", "Drop the head series alone.")

    def require_space(self, size: int) -> None:
        """Make sure that the disk can take `size` more bytes.

        Raises
        ------
        InputError
            If it cannot.
        """
        if shutil.disk_usage(self.folder).free - size < SPARE_BYTES:
            raise InputError("upload", "does not fit on the server's disk", "Free some space there, or drop less.")

    def forget(self, path: Path) -> None:
        """Drop a file that did not arrive whole."""
        with self.lock:
            self.names = {name: place for name, place in self.names.items() if place != path}
        with contextlib.suppress(OSError):
            path.unlink()

    def orders(self, options: ReadOptions) -> tuple[Order, ...]:
        """Return what is to be analyzed; the files go when the last of it has been read."""
        groups = scans(list(self.names))
        self.users = len(groups)
        return tuple(
            Order(
                name=title,
                path=self.names[members[0]] if len(members) == 1 else self._gather(members, number),
                options=options if all(m.lower().endswith(PICTURES) for m in members) else ReadOptions(),
                cleanup=self._done,
            )
            for number, (title, members) in enumerate(groups)
        )

    def _gather(self, members: Sequence[str], number: int) -> Path:
        """Return the folder that holds these files and no others."""
        parts = [PurePosixPath(m).parts for m in members]
        depth = 0
        while all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts):
            depth += 1
        shared = self.folder.joinpath(*parts[0][:depth])
        others = [n for n in self.names if n not in set(members)]
        if depth and not any(self.names[n].is_relative_to(shared) for n in others):
            return shared
        if not others:
            return self.folder
        apart = self.folder / f"scan-{number}-{secrets.token_hex(4)}"
        for member in members:
            target = apart / member
            target.parent.mkdir(parents=True, exist_ok=True)
            self.names[member].rename(target)
        return apart

    def _done(self) -> None:
        with self.lock:
            self.users -= 1
            last = self.users <= 0
        if last:
            self.delete()

    def delete(self) -> None:
        """Remove every file."""
        shutil.rmtree(self.folder, ignore_errors=True)


def clean_name(name: str) -> str:
    """Return a relative path that cannot lead out of its folder, of printable and bounded parts."""
    parts = [p for p in PurePosixPath(name.replace("\\", "/")).parts if p.strip(". ") and p != "/"]
    cleaned = [re.sub(r'[<>:"|?*]', "_", printable(p)).lstrip(".") for p in parts[-6:]]
    return "/".join(_bounded(p) for p in cleaned if p) or "unnamed"


def _bounded(part: str) -> str:
    """Shorten a part to `MAX_NAME` bytes, from its front: the ending tells what it is."""
    return part.encode("utf-8", "replace")[-MAX_NAME:].decode("utf-8", "ignore")


def scans(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Sort dropped files into scans: ``(title, files)``.

    A zip or NIfTI file is a scan of its own; the other files of one dropped folder, or those dropped loose, are one.
    """
    alone = [name for name in names if name.lower().endswith(ALONE)]
    groups: dict[str, list[str]] = {}
    for name in names:
        if name not in alone:
            parts = PurePosixPath(name).parts
            groups.setdefault(parts[0] if len(parts) > 1 else "", []).append(name)
    result = [(PurePosixPath(name).name, [name]) for name in alone]
    for folder, members in groups.items():
        first = PurePosixPath(members[0]).name
        title = folder or (first if len(members) == 1 else f"{first} and {len(members) - 1} more")
        result.append((title, members))
    return result
