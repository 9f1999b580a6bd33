"""What one running server holds: its settings, the rooms of its users, and the network they share. In memory only."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemolens.errors import InputError

if TYPE_CHECKING:
    from hemolens.web.jobs import Job, Office
    from hemolens.web.session import Study
    from hemolens.web.uploads import Batch

GIB = 2**30
PREFIX = "/hemolens"
"""Of the addresses that are this package's and not Streamlit's."""
MAX_BATCHES = 4
"""Uploads that one browser may have open at once."""
MAX_ROOMS = 200
"""Rooms beyond this are refused: memory is not without end."""
LOADING_S = 60.0
"""From a room's cookie to the first run of its page it may take so long; an empty room waits for it at least that."""


@dataclass(frozen=True)
class WebSettings:
    """What `hemolens web` was told."""

    keep: Path | None = None
    """Folder where results may be kept; None keeps nothing on disk."""
    runs: Path | None = None
    """Folder of training runs to show."""
    results: Path | None = None
    """Folder of earlier results, to be ranked by their doubt."""
    pacs: str | None = None
    """Configuration file or URL of the PACS service whose worklist is shown."""
    model: str | None = None
    """As in `hemolens.analysis.AnalyzeOptions`."""
    runtime: str = "auto"
    threads: int | None = None
    max_upload_bytes: int = 4 * GIB
    max_studies: int = 12
    """Open at once in one browser."""
    cookie: str = "hemolens_room"
    """Name of the cookie that tells which room a browser has."""
    idle_s: float = 600.0
    """A room that no browser has been in for so long is emptied."""


@dataclass(frozen=True)
class Shelved:
    """Something that a viewer may fetch; made when it does."""

    media_type: str
    make: Callable[[], bytes]
    packed: bool = False
    """Whether the bytes are gzipped."""
    digest: str = ""
    source: object = None
    """What the bytes are made of; the same object gives the same bytes."""
    present: tuple[int, ...] = ()
    """Labels that occur in it."""


@dataclass(eq=False)
class Room:
    """What one browser has open: it outlives a refresh of the page, and goes when the browser has been gone a while."""

    token: str
    lock: threading.RLock = field(default_factory=threading.RLock)
    studies: dict[str, Study] = field(default_factory=dict)
    """In the order they were opened."""
    jobs: dict[str, Job] = field(default_factory=dict)
    shelf: dict[str, Shelved] = field(default_factory=dict)
    """What the viewers of this room may fetch, by name."""
    batches: dict[str, Batch] = field(default_factory=dict)
    """Files that are being dropped, and those that no analysis has taken yet."""
    visitors: int = 0
    entered: bool = False
    """Whether a page has been in it yet."""
    left: float = field(default_factory=time.monotonic)

    def batch(self, key: str, limit: int) -> Batch:
        """Return the batch of this key, or a new one that may hold `limit` bytes.

        Raises
        ------
        InputError
            If too many are open.
        """
        from hemolens.web.uploads import Batch

        with self.lock:
            if key not in self.batches:
                if len(self.batches) >= MAX_BATCHES:
                    raise InputError("upload", f"{MAX_BATCHES} uploads are open", "Wait for them, or reload the page.")
                self.batches[key] = Batch.new(limit)
            return self.batches[key]

    def take_batch(self, key: str) -> Batch | None:
        """Return a batch and hold it no more."""
        with self.lock:
            return self.batches.pop(key, None)

    def clear(self) -> None:
        """Forget everything, and stop what is still being analyzed."""
        with self.lock:
            for batch in self.batches.values():
                batch.delete()
            self.batches.clear()
            for job in self.jobs.values():
                job.cancel()
            self.jobs.clear()
            self.studies.clear()
            self.shelf.clear()


class House:
    """All rooms of one server. Safe to use from any thread.

    Parameters
    ----------
    settings
        What the server was told.
    clock
        Seconds that only rise; tests pass their own.
    """

    def __init__(self, settings: WebSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings or WebSettings()
        self.clock = clock
        self._lock = threading.RLock()
        self._rooms: dict[str, Room] = {}
        self._left: dict[str, float] = {}
        self._office: Office | None = None
        self.emptied = 0
        """How many rooms were emptied so far."""

    @property
    def office(self) -> Office:
        """Where scans are analyzed; opened at the first use."""
        from hemolens.web.jobs import Office

        with self._lock:
            if self._office is None:
                self._office = Office(self.settings)
            return self._office

    def room(self, token: str | None) -> Room:
        """Return the room of this token, or a new one if there is none; a guessed token opens nothing."""
        with self._lock:
            self.sweep()
            if token is not None and token in self._rooms:
                return self._rooms[token]
            if len(self._rooms) >= MAX_ROOMS:
                oldest = min((r for r in self._rooms.values() if not r.visitors), key=lambda r: r.left, default=None)
                if oldest is None:
                    raise InputError("this server", f"has {MAX_ROOMS} users already", "Try again later.")
                self._close(oldest)
            room = Room(secrets.token_urlsafe(24), left=self.clock())
            self._rooms[room.token] = room
            return room

    def known(self, token: str) -> Room | None:
        """Return the room of this token, if there is one."""
        with self._lock:
            return self._rooms.get(token)

    def enter(self, room: Room, page: str = "") -> None:
        """Count one more page that is open on the room; `page` tells it from others."""
        with self._lock:
            self._rooms.setdefault(room.token, room)
            room.visitors += 1
            room.entered = True
            self._left.pop(page, None)

    def leave(self, room: Room, page: str = "") -> None:
        """Count one page less."""
        with self._lock:
            room.visitors = max(0, room.visitors - 1)
            room.left = self.clock()
            if page:
                self._left[page] = room.left

    def pages_gone(self, after_s: float) -> list[str]:
        """Return the pages that were left so long ago and not entered again, each of them once."""
        with self._lock:
            now = self.clock()
            gone = [page for page, left in self._left.items() if now - left >= after_s]
            for page in gone:
                del self._left[page]
            return gone

    def sweep(self) -> int:
        """Empty the rooms that nobody has been in for `WebSettings.idle_s`; return how many.

        One that was never entered waits for its page at least `LOADING_S`.
        """
        with self._lock:
            now, idle_s = self.clock(), self.settings.idle_s
            empty = [r for r in self._rooms.values() if not r.visitors]
            gone = [r for r in empty if now - r.left > (idle_s if r.entered else max(idle_s, LOADING_S))]
            for room in gone:
                self._close(room)
            return len(gone)

    def close(self) -> None:
        """Empty every room and stop the analyses."""
        with self._lock:
            for room in list(self._rooms.values()):
                self._close(room)
            if self._office is not None:
                self._office.close()
                self._office = None

    def counts(self) -> dict[str, Any]:
        """Return how many rooms, pages and studies there are."""
        with self._lock:
            rooms = self._rooms.values()
            return {
                "rooms": len(rooms),
                "visitors": sum(r.visitors for r in rooms),
                "studies": sum(len(r.studies) for r in rooms),
            }

    def _close(self, room: Room) -> None:
        room.clear()
        self._rooms.pop(room.token, None)
        self.emptied += 1


@cache
def house() -> House:
    """Return the house of this process; the server sets its `settings` before the first room."""
    return House()
