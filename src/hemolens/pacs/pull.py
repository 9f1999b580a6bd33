"""Fetch head CTs from an archive: by C-FIND with C-GET or C-MOVE, or by QIDO-RS and WADO-RS, day by day.

What is kept already is not fetched again, so that a pull that was cut off goes on where it ended and one that is run
every hour fetches what is new. Instances take the way of the listener's: on disk first, then recorded, as they came.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from io import BytesIO
from typing import Literal, Protocol

from pydicom import dcmread

from hemolens.errors import ConfigError, DecodeError, HemolensError
from hemolens.pacs.config import DicomDestination, PacsConfig, WebDestination
from hemolens.pacs.incoming import read_header
from hemolens.pacs.listener import keep
from hemolens.pacs.queue import Kept, Queue
from hemolens.pacs.spool import FullError, Spool, short_hash

Method = Literal["get", "move", "web"]
FORM = re.compile(r"(\d+)([hd])")

log = logging.getLogger(__name__)


class PullError(HemolensError):
    """An archive cannot be reached, or refuses what it was asked for."""


@dataclass(frozen=True)
class FoundSeries:
    """One CT series in an archive."""

    study_uid: str
    series_uid: str
    instances: int | None
    """How many it says that there are."""


@dataclass
class PullReport:
    """What a pull did."""

    studies: int = 0
    series: int = 0
    """CT series that the archive named."""
    known: int = 0
    """Of these, kept before."""
    pulled: int = 0
    instances: int = 0
    """New ones."""
    failed: dict[str, str] = field(default_factory=dict)
    """Series UID → why it could not be fetched, or not all of it."""


class Archive(Protocol):
    """Something that head CTs can be fetched from."""

    def series_of(self, day: date) -> Iterator[FoundSeries]:
        """Yield the CT series of the studies of a day."""

    def fetch(self, found: FoundSeries, keeper: Keeper) -> None:
        """Hand every instance of a series to the keeper, or have the archive send them to the listener.

        Raises
        ------
        PullError
            If not all of them came.
        """

    def close(self) -> None:
        """Hang up."""


class Keeper:
    """Puts what arrives into spool and queue, exactly as the listener does.

    Parameters
    ----------
    queue, spool
        Of the service.
    peer
        AE title or name of the archive, and its address.
    """

    def __init__(self, queue: Queue, spool: Spool, peer: tuple[str, str]) -> None:
        self._queue, self._spool, self._peer, self._salt = queue, spool, peer, queue.salt()
        self.new = 0
        self.full: FullError | None = None

    def has(self, sop_uid: str) -> bool:
        """Whether an instance is kept already."""
        return self._queue.instance_kept(sop_uid) is not None

    def take(self, content: bytes, data: bytes, transfer_syntax: str) -> None:
        """Keep one instance.

        Parameters
        ----------
        content
            The file.
        data
            Its data set, without file meta information.
        transfer_syntax
            Of the data set.

        Raises
        ------
        HemolensError
            If it is damaged or cannot be kept.
        """
        header = read_header(data, transfer_syntax, self._salt)
        try:
            kept = keep(self._queue, self._spool, header, content, hashlib.sha256(data).hexdigest(), self._peer)
        except FullError as error:
            self.full = error
            raise
        self.new += kept is Kept.NEW

    def take_file(self, content: bytes) -> None:
        """Keep one DICOM file.

        Raises
        ------
        HemolensError
            If it is damaged or cannot be kept.
        """
        if content[128:132] != b"DICM":
            raise DecodeError("instance", "is no DICOM file", "Look at what the archive holds.")
        start = 144 + int.from_bytes(content[140:144], "little")
        try:
            head = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
            syntax = str(head.file_meta.TransferSyntaxUID)
        except Exception as error:  # hostile bytes make pydicom raise anything
            raise DecodeError("instance", "has a damaged header", "Look at what the archive holds.") from error
        self.take(content, content[start:], syntax)


def parse_since(text: str, now: datetime) -> date:
    """Return the day that ``2026-03-01``, ``36h`` or ``7d`` before `now` means.

    Raises
    ------
    ConfigError
        If it is none of these, or lies in the future.
    """
    span = FORM.fullmatch(text)
    try:
        if span:
            hours = int(span[1]) * (24 if span[2] == "d" else 1)
            return (now - timedelta(hours=hours)).date()
        day = date.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"--since: '{text}' is no date such as 2026-03-01 nor a time such as 36h or 7d.") from error
    if day > now.date():
        raise ConfigError(f"--since: {text} lies in the future.")
    return day


def days(since: date, until: date) -> Iterator[date]:
    """Yield every day from the newest to the oldest, both included: the urgent come first."""
    for back in range((until - since).days + 1):
        yield until - timedelta(days=back)


def pull(
    config: PacsConfig,
    queue: Queue,
    spool: Spool,
    source: str,
    span: tuple[date, date],
    method: Method | None = None,
    limit: int | None = None,
) -> PullReport:
    """Fetch the CT series of some days that are not kept yet, and have them analyzed.

    Parameters
    ----------
    config, queue, spool
        Of the service.
    source
        Name of the destination that they are fetched from.
    span
        First and last day, by the date of the study.
    method
        ``get`` (the default for a DICOM peer), ``move`` (the peer sends them to the running listener) or ``web``.
    limit
        Fetch no more series than this.

    Raises
    ------
    ConfigError
        If there is no such destination, or the method does not fit it.
    PullError
        If the archive cannot be reached or refuses to search.
    FullError
        If the spool is full; what was fetched is kept, and the next pull goes on from there.
    """
    archive = open_archive(config, source, method)
    report, studies = PullReport(), set()
    keeper = Keeper(queue, spool, (source, ""))
    try:
        for found in _all(archive, span):
            studies.add(found.study_uid)
            report.series += 1
            if _is_known(queue, found):
                report.known += 1
                continue
            if limit is not None and report.pulled + len(report.failed) >= limit:
                break
            _fetch(archive, found, keeper, queue, report)
    finally:
        report.studies, report.instances = len(studies), keeper.new
        archive.close()
    return report


def _all(archive: Archive, span: tuple[date, date]) -> Iterable[FoundSeries]:
    for day in days(*span):
        yield from list(archive.series_of(day))  # the search is over before anything is fetched


def _is_known(queue: Queue, found: FoundSeries) -> bool:
    kept = queue.series(found.series_uid)
    return kept is not None and found.instances is not None and kept.instances >= found.instances


def _fetch(archive: Archive, found: FoundSeries, keeper: Keeper, queue: Queue, report: PullReport) -> None:
    try:
        archive.fetch(found, keeper)
    except FullError:
        raise
    except HemolensError as error:
        if keeper.full is not None:
            raise keeper.full from error
        log.warning("series %s: %s", short_hash(found.series_uid), error)
        report.failed[found.series_uid] = str(error)
        return
    if found.instances is not None and queue.series(found.series_uid) is not None:
        queue.expect(found.series_uid, found.instances)  # all of it is here: nothing to wait for
    report.pulled += 1


def open_archive(config: PacsConfig, source: str, method: Method | None) -> Archive:
    """Return the archive of that name.

    Raises
    ------
    ConfigError
        If there is none, or the method does not fit it.
    """
    peer = config.destination(source)
    if isinstance(peer, DicomDestination) and method != "web":
        from hemolens.pacs.pull_dicom import DicomArchive

        return DicomArchive(config, peer, method or "get")
    if isinstance(peer, WebDestination) and method in {None, "web"}:
        from hemolens.pacs.pull_web import WebArchive

        return WebArchive(peer, config.sender.timeout_s)
    if peer is None:
        names = ", ".join(d.name for d in config.destinations) or "none"
        raise ConfigError(f"--from: there is no destination called '{source}' in the settings. There are: {names}.")
    raise ConfigError(f"--method {method}: does not fit '{source}', which is of kind {peer.kind}.")
