"""The spool: instances on disk exactly as they came, never overwritten, and the folders of results.

::

    incoming/<study>/<series>/<instance>.dcm    names are hashes of UIDs
    aside/<instance>-<contents>.dcm             other contents under a UID that is taken
    results/<job>/<attempt>/                    what `hemolens analyze` writes
    trash/                                      what is being purged
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hemolens.errors import OutputError

INCOMING, ASIDE, RESULTS, TRASH = "incoming", "aside", "results", "trash"
PART = ".part"
STALE_PART_S = 3600.0
"""Age after which a half-written file is no longer another process's work."""
GIB = 1024**3
MEASURE_S = 5.0
"""The size on disk is measured this often at most."""


class FullError(OutputError):
    """The spool is at its limit, or the disk is full."""


@dataclass(frozen=True)
class Stored:
    """Where an instance lies."""

    path: str
    """Relative to the spool."""
    conflict: bool
    """Whether other contents lie under its UID; it was kept aside then."""


def short_hash(text: str) -> str:
    """Return the name that stands for a UID in the spool and in logs."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


class Spool:
    """A folder that takes instances durably.

    Parameters
    ----------
    root
        The folder; made if it is not there.
    quota_gb
        Size at which it is full.
    min_free_gb
        Free space of the disk below which it is full.

    Raises
    ------
    OutputError
        If it cannot be made.
    """

    def __init__(self, root: str | Path, quota_gb: float = float("inf"), min_free_gb: float = 0.0) -> None:
        self.root = Path(root)
        self._quota = quota_gb * GIB
        self._min_free = min_free_gb * GIB
        self._lock = threading.Lock()
        self._used = 0.0
        self._measured = 0.0
        self._measuring = 0.0
        self._mark, self._numbers = secrets.token_hex(6), itertools.count()
        try:
            for name in (INCOMING, ASIDE, RESULTS, TRASH):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(self.root, error) from error

    def path_of(self, study_uid: str, series_uid: str, sop_uid: str) -> str:
        """Return where an instance belongs, relative to the spool."""
        return f"{INCOMING}/{short_hash(study_uid)}/{short_hash(series_uid)}/{short_hash(sop_uid)}.dcm"

    def check_room(self, size: int) -> None:
        """Find out whether so many bytes may be added.

        Raises
        ------
        FullError
            If not.
        """
        try:
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise _refused(self.root, error) from error
        if free - size < self._min_free:
            raise FullError(f"{self.root}: only {free / GIB:.2f} GB of the disk are free. Make room, or purge.")
        if self.used() + size > self._quota:
            raise FullError(f"{self.root}: at its quota of {self._quota / GIB:.2f} GB. Purge, or raise spool.quota_gb.")

    def used(self) -> float:
        """Return how many bytes lie here: measured now and then, with what was added since."""
        with self._lock:
            # A large spool takes long to measure: then seldom.
            if time.monotonic() - self._measured > max(MEASURE_S, 50 * self._measuring) or not self._measured:
                started = time.monotonic()
                self._used = float(_size_of(self.root))
                self._measured = time.monotonic()
                self._measuring = self._measured - started
            return self._used

    def store(self, path: str, content: bytes) -> Stored:
        """Put an instance on disk, so that it is there after a power cut when this returns.

        Parameters
        ----------
        path
            From `path_of`.
        content
            The whole file.

        Raises
        ------
        FullError
            If there is no room.
        OutputError
            If it cannot be written; nothing of it is left.
        """
        target = f"{self.root}/{path}"
        try:
            if os.access(target, os.F_OK):
                return self._compare(path, content)
            self.check_room(len(content))
            part = f"{target.removesuffix('.dcm')}-{self._mark}-{next(self._numbers)}{PART}"
            try:
                self._write(part, content)
                # Unlike a rename, a link never replaces what another association has put there meanwhile.
                os.link(part, target)
            except FileExistsError:
                return self._compare(path, content)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)  # noqa: PTH108 - here and below: for each instance Path takes as long as the rest
            flush_folder(os.path.dirname(target))  # noqa: PTH120
        except OSError as error:
            raise _refused(self.root, error) from error
        self._grow(len(content))
        return Stored(path, conflict=False)

    def _write(self, part: str, content: bytes) -> None:
        try:
            _write(part, content)
        except FileNotFoundError:
            _make_folders(Path(part).parent, self.root)
            _write(part, content)

    def set_aside(self, path: str) -> None:
        """Move an instance that does not fit what is known of its series out of the way; its contents are kept."""
        source = self.root / path
        content = source.read_bytes()
        self._keep_aside(path, content)
        source.unlink()

    def _compare(self, path: str, content: bytes) -> Stored:
        if (self.root / path).read_bytes() == content:
            # Another process may have linked it and not flushed yet: Success may be answered only after that.
            flush_folder((self.root / path).parent)
            return Stored(path, conflict=False)
        return Stored(self._keep_aside(path, content), conflict=True)

    def _keep_aside(self, path: str, content: bytes) -> str:
        name = f"{ASIDE}/{Path(path).stem}-{hashlib.sha256(content).hexdigest()[:12]}.dcm"
        target = self.root / name
        if not target.exists():
            self.check_room(len(content))
            part = target.with_name(f"{target.stem}-{secrets.token_hex(6)}{PART}")
            _write(part, content)
            part.replace(target)
            self._grow(len(content))
        flush_folder(target.parent)
        return name

    def _grow(self, size: int) -> None:
        with self._lock:
            self._used += size

    def unknown(self, known: Collection[str]) -> Iterator[str]:
        """Yield the instances that lie here and are not `known`: a process died before it could record them."""
        for file in sorted((self.root / INCOMING).rglob("*.dcm")):
            path = file.relative_to(self.root).as_posix()
            if path not in known:
                yield path

    def tidy(self) -> int:
        """Remove half-written files that no process works on any more; return how many."""
        removed = 0
        for file in [*(self.root / INCOMING).rglob(f"*{PART}"), *(self.root / ASIDE).glob(f"*{PART}")]:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > STALE_PART_S:
                    file.unlink()
                    removed += 1
        return removed

    def results_of(self, job_id: str) -> Path:
        """Return the folder of a job's attempts."""
        return self.root / RESULTS / job_id

    def bury(self, series_folder: str) -> None:
        """Take the instances of a series away at one stroke; `empty_trash` removes them, `unbury` brings them back."""
        source, target = self.root / series_folder, self._grave(series_folder)
        target = target.with_name(f"{target.name}__{secrets.token_hex(4)}")
        if source.exists():
            source.rename(target)

    def empty_trash(self, series_folder: str) -> None:
        """Remove what was buried of a series."""
        grave = self._grave(series_folder)
        for buried in grave.parent.glob(f"{grave.name}__*"):
            shutil.rmtree(buried, ignore_errors=True)
        with contextlib.suppress(OSError):  # other series of the study are there
            (self.root / series_folder).parent.rmdir()

    def _grave(self, series_folder: str) -> Path:
        return self.root / TRASH / "__".join(Path(series_folder).parts[1:])

    def unbury(self, known: Collection[str]) -> int:
        """Bring back what was taken away by a process that died before the queue forgot it; remove the rest."""
        restored = 0
        for grave in sorted((self.root / TRASH).glob("*__*__*")):
            study, series, _ = grave.name.split("__")
            for file in sorted(grave.iterdir()):
                path = f"{INCOMING}/{study}/{series}/{file.name}"
                if path in known and not (self.root / path).exists():
                    (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, self.root / path)
                    restored += 1
            shutil.rmtree(grave, ignore_errors=True)
        return restored

    def has(self, path: str) -> bool:
        """Whether a file lies here."""
        return os.access(f"{self.root}/{path}", os.F_OK)

    def remove_results(self, job_id: str) -> None:
        """Remove what was written for a job."""
        shutil.rmtree(self.results_of(job_id), ignore_errors=True)


def flush_folder(folder: str | Path) -> None:
    """Put a folder's entries on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folders(folder: Path, root: Path) -> None:
    """Make a folder and those above it, each durably; one that is purged at this moment is made again."""
    missing = []
    while folder != root and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True, parents=True)
        flush_folder(made.parent)


def _write(path: str | Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        written, view = 0, memoryview(content)
        while written < len(content):
            written += os.write(handle, view[written:])
        # A full disk may show only now.
        os.fsync(handle)
    finally:
        os.close(handle)


def _size_of(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118 - a third of Path's time
    return total


def _refused(root: Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return FullError(f"{root}: the disk is full ({reason}). Make room, or purge.")
    return OutputError(f"{root}: the spool cannot be used ({reason}). Check its disk and who may write there.")
