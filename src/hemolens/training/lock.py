"""One process at a time in a folder: two that train into the same one would overwrite each other's weights."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hemolens.errors import OutputError
from hemolens.training.checkpoint import disk_watched

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder` for this process.

    A POSIX record lock: the system takes it back however the process ends, and forked workers do not share it. Where
    there are none (Windows, some network drives) nothing is kept.

    Raises
    ------
    OutputError
        If another process keeps it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / LOCK
    with disk_watched(path):
        file = path.open("ab")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:  # the one that kept it has ended and removed it just now
                raise BlockingIOError(errno.EAGAIN, "removed")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise OutputError(
                    f"{folder}: another process is training here. Wait until it has ended, or name another folder."
                ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
