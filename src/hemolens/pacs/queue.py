"""The durable queue: what it holds, what can be asked of it, and how it is opened.

Every method is one transaction. Times are seconds since 1970. Nothing in it names a patient: identifiers are hashed
with a salt that the queue keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hemolens.errors import ConfigError


class SeriesState(StrEnum):
    """Where a series stands."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    IGNORED = "ignored"
    """Kept and not analyzed: not CT, localizers alone, no head."""
    EXPIRED = "expired"
    """Its instances were purged."""


class JobState(StrEnum):
    """Where an analysis stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """The input cannot be analyzed; final."""
    DEAD = "dead"
    """Tried too often; `Queue.retry` takes it up again."""


class DeliveryState(StrEnum):
    """Where the sending of one object to one destination stands."""

    QUEUED = "queued"
    SENDING = "sending"
    DONE = "done"
    FAILED = "failed"
    """The peer refuses it for good."""
    DEAD = "dead"
    """A dead letter: tried too often; `Queue.retry` takes it up again."""


class InstanceKind(StrEnum):
    """What an instance is to the analysis."""

    CT = "ct"
    LOCALIZER = "localizer"
    OTHER = "other"


class Kept(StrEnum):
    """What became of an instance that was offered."""

    NEW = "new"
    SAME = "same"
    """It was there, byte for byte."""
    CONFLICT = "conflict"
    """Its UID or its series is taken by other contents, another study or another patient."""


@dataclass(frozen=True)
class Received:
    """One instance as it arrived, already on disk."""

    sop_uid: str
    series_uid: str
    study_uid: str
    patient_key: str
    """Salted hash of Patient ID and issuer."""
    modality: str
    kind: InstanceKind
    path: str
    """Relative to the spool."""
    size: int
    sha256: str
    received: float
    calling_ae: str = ""
    calling_address: str = ""
    accession_hash: str = ""
    acquired: float | None = None
    """When the scan was made, as far as the header tells."""


@dataclass(frozen=True)
class Instance:
    """One instance that is kept."""

    sop_uid: str
    series_uid: str
    path: str
    size: int
    sha256: str
    kind: InstanceKind
    received: float


@dataclass(frozen=True)
class Series:
    """One series."""

    series_uid: str
    study_uid: str
    patient_key: str
    modality: str
    received_first: float
    received_last: float
    instances: int
    expected: int | None
    state: SeriesState
    calling_ae: str
    calling_address: str
    accession_hash: str
    acquired: float | None
    reason: str
    """Why it is ignored."""
    conflicts: int
    """Instances that were kept aside because others had their UID."""


@dataclass(frozen=True)
class Job:
    """One analysis of one series as it was when complete, with what the worklist tells of the series."""

    id: str
    series_uid: str
    study_uid: str
    patient_key: str
    digest: str
    model: str
    state: JobState
    attempts: int
    not_before: float
    worker: str
    lease_until: float | None
    created: float
    started: float | None
    finished: float | None
    error: str
    probability: float | None
    volume_ml: float | None
    decision: str
    positive: bool | None
    partial: bool | None
    findings_path: str
    """Relative to the spool."""
    prior_job: str | None
    received_first: float
    received_last: float
    instances: int
    acquired: float | None
    accession_hash: str
    calling_ae: str


@dataclass(frozen=True)
class Outcome:
    """What an analysis found."""

    probability: float
    volume_ml: float | None
    decision: str
    positive: bool
    partial: bool
    findings_path: str


@dataclass(frozen=True)
class Letter:
    """An object to be delivered."""

    destination: str
    sop_uid: str
    sop_class: str
    path: str
    """Relative to the spool."""


@dataclass(frozen=True)
class Delivery:
    """The sending of one object to one destination."""

    id: str
    job_id: str
    destination: str
    sop_uid: str
    sop_class: str
    path: str
    state: DeliveryState
    attempts: int
    not_before: float
    lease_until: float | None
    created: float
    finished: float | None
    error: str
    committed: float | None
    """When the peer committed to keep it."""
    transaction: str
    """UID of the open request for storage commitment."""


@dataclass(frozen=True)
class QueueEvent:
    """Something that happened; never with an identifier of a patient."""

    id: int
    at: float
    kind: str
    subject: str
    """Id of a job, or UID of a series or instance."""
    message: str


class Queue(Protocol):
    """A durable queue; safe for several threads and processes, with PostgreSQL for several hosts."""

    def close(self) -> None:
        """Let go of the connection."""

    def now(self) -> float:
        """Return the time by the queue's own clock, which all hosts share."""

    def salt(self) -> bytes:
        """Return the salt for hashes of identifiers; the same for ever."""

    # Receiving
    def keep(self, received: Received) -> Kept:
        """Record an instance; its series goes back to receiving if it is new."""

    def keep_all(self, received: Sequence[Received]) -> list[Kept]:
        """Record several instances in one transaction; what became of each, in the order given."""

    def instance_kept(self, sop_uid: str) -> Instance | None:
        """Return the instance with that UID, if it is kept."""

    def instances(self, series_uid: str) -> list[Instance]:
        """Return the instances of a series, ordered by UID."""

    def known_paths(self) -> set[str]:
        """Return where all kept instances lie."""

    def series(self, series_uid: str) -> Series | None:
        """Return a series."""

    def receiving(self) -> list[Series]:
        """Return the series that are not complete yet, the longest waiting first."""

    def expect(self, series_uid: str, instances: int) -> None:
        """Record how many instances a series has where it comes from."""

    def complete(self, series_uid: str, seen: int, model: str) -> Job | None:
        """Take a series as complete and queue its analysis; None if instances came since, or it was queued before.

        Parameters
        ----------
        series_uid
            The series.
        seen
            How many instances it had when it was judged complete.
        model
            What the series is analyzed with: another model makes another job.
        """

    def ignore(self, series_uid: str, reason: str) -> None:
        """Take a series as not to be analyzed."""

    # Working
    def claim_job(self, worker: str, lease_s: float, attempts: int) -> Job | None:
        """Lease the next job; those whose lease ran out count too, and are dead after so many attempts."""

    def extend_job(self, job_id: str, worker: str, lease_s: float) -> bool:
        """Renew a lease; False if it is lost."""

    def finish_job(self, job_id: str, worker: str, outcome: Outcome, letters: Sequence[Letter]) -> bool:
        """Record a result and queue its deliveries; False, and nothing recorded, if the lease is lost."""

    def fail_job(self, job_id: str, worker: str, error: str, *, retry_in_s: float | None, dead: bool = False) -> bool:
        """Record a failure: try again later, or never (`retry_in_s` None; `dead` where it was tried too often)."""

    def link_prior(self, job_id: str, prior_job: str) -> None:
        """Record the earlier scan of the same patient."""

    # Sending
    def claim_deliveries(self, destination: str, lease_s: float, limit: int) -> list[Delivery]:
        """Lease what is due for one destination, oldest first."""

    def finish_delivery(self, delivery: Delivery) -> bool:
        """Record that the peer has it; False if it is recorded already."""

    def fail_delivery(self, delivery: Delivery, error: str, *, retry_in_s: float | None, dead: bool = False) -> bool:
        """Record a failure: try again later, or never."""

    def deliveries(self, job_id: str | None = None, state: DeliveryState | None = None) -> list[Delivery]:
        """Return deliveries of a job or in a state."""

    def claim_commitments(self, destination: str, transaction: str, wait_s: float, limit: int) -> list[Delivery]:
        """Put what a peer has not committed to keep under a transaction UID; it is asked again after `wait_s`."""

    def commit(self, transaction: str, sop_uid: str, problem: str = "") -> bool:
        """Record the peer's answer to a request for storage commitment; a problem puts it back into the queue."""

    # Looking and tending
    def worklist(self, limit: int = 200) -> list[Job]:
        """Return the newest jobs in any state."""

    def job(self, job_id: str) -> Job | None:
        """Return a job."""

    def prior(self, patient_key: str, before: float) -> Job | None:
        """Return the last finished analysis of a patient's scan made before a time."""

    def counts(self) -> Mapping[str, float]:
        """Return numbers such as ``jobs.queued``, ``deliveries.dead``, ``instances``, ``jobs.oldest_queued_s``."""

    def retry(self, ids: Sequence[str] | None = None) -> int:
        """Queue dead and failed jobs and deliveries again, all or those with these ids; return how many."""

    def events(self, since: int = 0, limit: int = 1000) -> list[QueueEvent]:
        """Return what happened after the event of that id, oldest first."""

    def tell(self, kind: str, subject: str, message: str) -> None:
        """Record an event."""

    def purgeable(self, before: float) -> list[Series]:
        """Return the series last touched before a time that owe nothing: ignored, failed, or delivered everywhere."""

    def expire(self, series_uid: str, seen: int, bury: Callable[[], None]) -> list[str] | None:
        """Forget the instances of a series; return the ids of its jobs, None if it changed since.

        Parameters
        ----------
        series_uid
            The series.
        seen
            How many instances it had when it was found purgeable.
        bury
            Takes its files away; called before the rows are gone for others, so that none sees a row's file vanish.
        """


def open_queue(url: str) -> Queue:
    """Open the queue at a URL, and make its tables if they are not there.

    Parameters
    ----------
    url
        ``sqlite:///path/to/queue.db`` or ``postgresql://user@host/database``.

    Raises
    ------
    ConfigError
        If the URL is of no known kind.
    QueueError
        If the database cannot be opened.
    DependencyError
        If psycopg is not installed.
    """
    if url.startswith("sqlite:///"):
        from hemolens.pacs.queue_sqlite import open_sqlite

        return open_sqlite(url.removeprefix("sqlite:///"))
    if url.startswith(("postgresql://", "postgres://")):
        from hemolens.pacs.queue_postgres import open_postgres

        return open_postgres(url)
    raise ConfigError(f"queue.url: '{url.split(':')[0]}' is no known kind. Use sqlite:///path or postgresql://…")
