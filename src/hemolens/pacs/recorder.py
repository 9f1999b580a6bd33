"""Rows of several associations in one transaction: each waits for a flush of the disk, and they can share it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from hemolens.errors import QueueError
from hemolens.pacs.queue import Kept, Queue, Received


@dataclass
class _Entry:
    received: Received
    kept: Kept | None = None
    error: QueueError | None = None


class Recorder:
    """Records instances for several threads; whoever comes while another commits goes along with the next commit.

    Parameters
    ----------
    queue
        Where they are recorded.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[_Entry] = []
        self._gate, self._commit = threading.Lock(), threading.Lock()

    def keep(self, received: Received) -> Kept:
        """Record an instance; when this returns, it is on disk.

        Raises
        ------
        QueueError
            If it could not be recorded.
        """
        entry = _Entry(received)
        with self._gate:
            self._waiting.append(entry)
        with self._commit:
            if entry.kept is None and entry.error is None:
                self._commit_all()
        if entry.error is not None:
            raise entry.error
        assert entry.kept is not None
        return entry.kept

    def _commit_all(self) -> None:
        with self._gate:
            batch, self._waiting = self._waiting, []
        try:
            for entry, kept in zip(batch, self._queue.keep_all([e.received for e in batch]), strict=True):
                entry.kept = kept
        except QueueError as error:
            for entry in batch:
                entry.error = error
