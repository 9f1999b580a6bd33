"""The queue in SQL: each method one transaction, the same statements for SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from hemolens.pacs.queue import (
    Delivery,
    DeliveryState,
    Instance,
    InstanceKind,
    Job,
    JobState,
    Kept,
    Letter,
    Outcome,
    QueueEvent,
    Received,
    Series,
    SeriesState,
)
from hemolens.pacs.queue_tables import DELIVERIES, INSTANCES, JOBS, SERIES

Row = tuple[Any, ...]
T = TypeVar("T")


class Cursor(Protocol):
    """One open transaction. Parameters stand as ``?`` in the statements."""

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """Run a statement and return its rows."""

    def run(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""


class Database(Protocol):
    """A connection that several threads share."""

    skip_locked: str
    """What ends a SELECT that leases rows."""
    lock: str
    """What ends a SELECT whose row stays locked until the transaction ends."""

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Run the block in one transaction, for this thread alone."""

    def now(self) -> float:
        """Return the database's time."""

    def close(self) -> None:
        """Let go of it."""


def job_id(series_uid: str, digest: str, model: str) -> str:
    """Return the id of a job, which follows from what is analyzed with what."""
    return hashlib.sha256(f"{series_uid}|{digest}|{model}".encode()).hexdigest()[:20]


class SqlQueue:
    """See `hemolens.pacs.queue.Queue`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()

    def now(self) -> float:
        """Return the time by the queue's own clock."""
        return self._database.now()

    def salt(self) -> bytes:
        """Return the salt for hashes of identifiers."""
        with self._database.transaction() as cursor:
            return bytes.fromhex(str(cursor.rows("SELECT value FROM settings WHERE key = 'salt'")[0][0]))

    # Receiving

    def keep(self, received: Received) -> Kept:
        """Record an instance; its series goes back to receiving if it is new."""
        return self.keep_all([received])[0]

    def keep_all(self, received: Sequence[Received]) -> list[Kept]:
        """Record several instances in one transaction; what became of each, in the order given."""
        with self._database.transaction() as cursor:
            # Every host locks series in the same order, so that no two wait for each other.
            kept = {id(one): self._keep(cursor, one) for one in sorted(received, key=lambda one: one.series_uid)}
        return [kept[id(one)] for one in received]

    def _keep(self, cursor: Cursor, received: Received) -> Kept:
        cursor.run(
            "INSERT INTO series VALUES (?, ?, ?, ?, ?, ?, 0, NULL, 'receiving', ?, ?, ?, ?, '', 0) "
            "ON CONFLICT (series_uid) DO NOTHING",
            *(received.series_uid, received.study_uid, received.patient_key, received.modality),
            *(received.received, received.received, received.calling_ae, received.calling_address),
            *(received.accession_hash, received.acquired),
        )
        # The row stays locked: what completes a series waits, or is waited for.
        owner = "SELECT study_uid, patient_key FROM series WHERE series_uid = ?"
        (belongs,) = cursor.rows(f"{owner}{self._database.lock}", received.series_uid)
        there = cursor.rows("SELECT sha256, series_uid FROM instances WHERE sop_uid = ?", received.sop_uid)
        if there or belongs != (received.study_uid, received.patient_key):
            same = there == [(received.sha256, received.series_uid)]
            return Kept.SAME if same else self._conflict(cursor, received)
        cursor.run(
            "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(received.sop_uid, received.series_uid, received.path, received.size, received.sha256),
            *(received.kind, received.received),
        )
        cursor.run(
            "UPDATE series SET received_last = ?, acquired = COALESCE(acquired, ?), reason = '', instances = "
            # The instances of an expired series are gone; their number is kept until more come.
            "CASE WHEN state = 'expired' THEN 1 ELSE instances + 1 END, state = 'receiving' WHERE series_uid = ?",
            *(received.received, received.acquired, received.series_uid),
        )
        return Kept.NEW

    def _conflict(self, cursor: Cursor, received: Received) -> Kept:
        cursor.run("UPDATE series SET conflicts = conflicts + 1 WHERE series_uid = ?", received.series_uid)
        message = "other contents under the UID of a kept instance, or another patient or study; kept aside"
        self._tell(cursor, "instance.conflict", received.series_uid, message)
        # A series that was only made for the newcomer goes again.
        cursor.run("DELETE FROM series WHERE series_uid = ? AND instances = 0 AND state = 'receiving'",
                   received.series_uid)  # fmt: skip
        return Kept.CONFLICT

    def instance_kept(self, sop_uid: str) -> Instance | None:
        """Return the instance with that UID, if it is kept."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{INSTANCES} WHERE sop_uid = ?", sop_uid)
        return _instance(rows[0]) if rows else None

    def instances(self, series_uid: str) -> list[Instance]:
        """Return the instances of a series, ordered by UID."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{INSTANCES} WHERE series_uid = ? ORDER BY sop_uid", series_uid)
        return [_instance(row) for row in rows]

    def known_paths(self) -> set[str]:
        """Return where all kept instances lie."""
        with self._database.transaction() as cursor:
            return {row[0] for row in cursor.rows("SELECT path FROM instances")}

    def series(self, series_uid: str) -> Series | None:
        """Return a series."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{SERIES} WHERE series_uid = ?", series_uid)
        return _series(rows[0]) if rows else None

    def receiving(self) -> list[Series]:
        """Return the series that are not complete yet, the longest waiting first."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{SERIES} WHERE state = 'receiving' ORDER BY received_last")
        return [_series(row) for row in rows]

    def expect(self, series_uid: str, instances: int) -> None:
        """Record how many instances a series has where it comes from."""
        with self._database.transaction() as cursor:
            cursor.run("UPDATE series SET expected = ? WHERE series_uid = ?", instances, series_uid)

    def complete(self, series_uid: str, seen: int, model: str) -> Job | None:
        """Take a series as complete and queue its analysis."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{SERIES} WHERE series_uid = ?{self._database.lock}", series_uid)
            series = _series(rows[0]) if rows else None
            if series is None or series.state is not SeriesState.RECEIVING or series.instances != seen:
                return None
            hashes = cursor.rows("SELECT sha256 FROM instances WHERE series_uid = ? ORDER BY sha256", series_uid)
            digest = hashlib.sha256("".join(row[0] for row in hashes).encode()).hexdigest()
            made = job_id(series_uid, digest, model)
            now = self.now()
            new = cursor.run(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, 'queued', 0, ?, '', NULL, ?, NULL, NULL, '', NULL, NULL, '', "
                "NULL, NULL, '', NULL) ON CONFLICT DO NOTHING",
                *(made, series_uid, digest, model, now, now),
            )
            cursor.run("UPDATE series SET state = 'complete' WHERE series_uid = ?", series_uid)
            what = f"{seen} instances; analysis queued" if new else f"{seen} instances; analyzed before"
            self._tell(cursor, "series.complete", series_uid, what)
            return _job(cursor.rows(f"{JOBS} WHERE j.id = ?", made)[0]) if new else None

    def ignore(self, series_uid: str, reason: str) -> None:
        """Take a series as not to be analyzed."""
        with self._database.transaction() as cursor:
            cursor.run("UPDATE series SET state = 'ignored', reason = ? WHERE series_uid = ?", reason, series_uid)
            self._tell(cursor, "series.ignored", series_uid, reason)

    # Working

    def claim_job(self, worker: str, lease_s: float, attempts: int) -> Job | None:
        """Lease the next job; those whose lease ran out count too, and are dead after so many attempts."""
        with self._database.transaction() as cursor:
            now = self.now()
            rows = cursor.rows(
                "SELECT id, attempts FROM jobs WHERE (state = 'queued' AND not_before <= ?) OR (state = 'running' AND "
                f"lease_until < ?) ORDER BY not_before, created LIMIT 1{self._database.skip_locked}",
                *(now, now),
            )
            if not rows:
                return None
            found, tried = rows[0]
            if tried >= attempts:
                error = f"the worker died or hung {tried} times"
                cursor.run("UPDATE jobs SET state = 'dead', error = ?, finished = ? WHERE id = ?", error, now, found)
                self._tell(cursor, "job.dead", found, error)
                return None
            cursor.run(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, worker = ?, lease_until = ?, started = ? "
                "WHERE id = ?",
                *(worker, now + lease_s, now, found),
            )
            return _job(cursor.rows(f"{JOBS} WHERE j.id = ?", found)[0])

    def extend_job(self, job_id: str, worker: str, lease_s: float) -> bool:
        """Renew a lease; False if it is lost."""
        with self._database.transaction() as cursor:
            return bool(
                cursor.run(
                    "UPDATE jobs SET lease_until = ? WHERE id = ? AND worker = ? AND state = 'running'",
                    *(self.now() + lease_s, job_id, worker),
                )
            )

    def finish_job(self, job_id: str, worker: str, outcome: Outcome, letters: Sequence[Letter]) -> bool:
        """Record a result and queue its deliveries; False, and nothing recorded, if the lease is lost."""
        with self._database.transaction() as cursor:
            now = self.now()
            done = cursor.run(
                "UPDATE jobs SET state = 'done', error = '', lease_until = NULL, finished = ?, probability = ?, "
                "volume_ml = ?, decision = ?, positive = ?, partial = ?, findings_path = ? "
                "WHERE id = ? AND worker = ? AND state = 'running'",
                *(now, outcome.probability, outcome.volume_ml, outcome.decision, int(outcome.positive)),
                *(int(outcome.partial), outcome.findings_path, job_id, worker),
            )
            if not done:
                return False
            for place, letter in enumerate(letters):
                name = hashlib.sha256(f"{letter.destination}|{letter.sop_uid}".encode()).hexdigest()[:20]
                cursor.run(
                    "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', 0, ?, NULL, ?, NULL, '', NULL, '') "
                    "ON CONFLICT DO NOTHING",
                    *(name, job_id, letter.destination, letter.sop_uid, letter.sop_class, letter.path, place, now, now),
                )
            self._tell(cursor, "job.done", job_id, f"{outcome.decision}; {len(letters)} deliveries queued")
            return True

    def fail_job(self, job_id: str, worker: str, error: str, *, retry_in_s: float | None, dead: bool = False) -> bool:
        """Record a failure: try again later, or never."""
        state = JobState.QUEUED if retry_in_s is not None else JobState.DEAD if dead else JobState.FAILED
        with self._database.transaction() as cursor:
            now = self.now()
            done = cursor.run(
                "UPDATE jobs SET state = ?, error = ?, not_before = ?, finished = ?, lease_until = NULL "
                "WHERE id = ? AND worker = ? AND state = 'running'",
                *(state, error, now + (retry_in_s or 0), now if retry_in_s is None else None, job_id, worker),
            )
            if done:
                self._tell(cursor, "job.retry" if retry_in_s is not None else f"job.{state}", job_id, error)
            return bool(done)

    def link_prior(self, job_id: str, prior_job: str) -> None:
        """Record the earlier scan of the same patient."""
        with self._database.transaction() as cursor:
            cursor.run("UPDATE jobs SET prior_job = ? WHERE id = ?", prior_job, job_id)

    # Sending

    def claim_deliveries(self, destination: str, lease_s: float, limit: int) -> list[Delivery]:
        """Lease what is due for one destination, oldest first."""
        with self._database.transaction() as cursor:
            now = self.now()
            rows = cursor.rows(
                f"{DELIVERIES} WHERE destination = ? AND ((state = 'queued' AND not_before <= ?) OR "
                "(state = 'sending' AND lease_until < ?)) ORDER BY created, job_id, place LIMIT ?"
                f"{self._database.skip_locked}",
                *(destination, now, now, limit),
            )
            for row in rows:
                cursor.run(
                    "UPDATE deliveries SET state = 'sending', attempts = attempts + 1, lease_until = ? WHERE id = ?",
                    *(now + lease_s, row[0]),
                )
            return [_delivery(cursor.rows(f"{DELIVERIES} WHERE id = ?", row[0])[0]) for row in rows]

    def finish_delivery(self, delivery: Delivery) -> bool:
        """Record that the peer has it; False if it is recorded already."""
        with self._database.transaction() as cursor:
            done = cursor.run(
                "UPDATE deliveries SET state = 'done', error = '', finished = ?, lease_until = NULL "
                "WHERE id = ? AND state = 'sending'",
                *(self.now(), delivery.id),
            )
            if done:
                self._tell(cursor, "delivery.done", delivery.job_id, f"sent to {delivery.destination}")
            return bool(done)

    def fail_delivery(self, delivery: Delivery, error: str, *, retry_in_s: float | None, dead: bool = False) -> bool:
        """Record a failure: try again later, or never."""
        state = DeliveryState.QUEUED if retry_in_s is not None else DeliveryState.DEAD if dead else DeliveryState.FAILED
        with self._database.transaction() as cursor:
            now = self.now()
            done = cursor.run(
                "UPDATE deliveries SET state = ?, error = ?, not_before = ?, lease_until = NULL "
                "WHERE id = ? AND state = 'sending' AND attempts = ?",
                *(state, error, now + (retry_in_s or 0), delivery.id, delivery.attempts),
            )
            if done and state is not DeliveryState.QUEUED:
                self._tell(cursor, f"delivery.{state}", delivery.job_id, f"{delivery.destination}: {error}")
            return bool(done)

    def deliveries(self, job_id: str | None = None, state: DeliveryState | None = None) -> list[Delivery]:
        """Return deliveries of a job or in a state."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(
                f"{DELIVERIES} WHERE (? = '' OR job_id = ?) AND (? = '' OR state = ?) ORDER BY created, job_id, place",
                *(job_id or "", job_id or "", state or "", state or ""),
            )
        return [_delivery(row) for row in rows]

    def claim_commitments(self, destination: str, transaction: str, wait_s: float, limit: int) -> list[Delivery]:
        """Put what a peer has not committed to keep under a transaction UID; it is asked again after `wait_s`."""
        with self._database.transaction() as cursor:
            now = self.now()
            rows = cursor.rows(
                f"{DELIVERIES} WHERE destination = ? AND state = 'done' AND committed IS NULL AND "
                f"(lease_until IS NULL OR lease_until < ?) ORDER BY created LIMIT ?{self._database.skip_locked}",
                *(destination, now, limit),
            )
            for row in rows:
                cursor.run(
                    "UPDATE deliveries SET transaction_uid = ?, lease_until = ? WHERE id = ?",
                    *(transaction, now + wait_s, row[0]),
                )
            return [_delivery(cursor.rows(f"{DELIVERIES} WHERE id = ?", row[0])[0]) for row in rows]

    def commit(self, transaction: str, sop_uid: str, problem: str = "") -> bool:
        """Record the peer's answer to a request for storage commitment."""
        with self._database.transaction() as cursor:
            now = self.now()
            if problem:
                done = cursor.run(
                    "UPDATE deliveries SET state = 'queued', error = ?, not_before = ?, transaction_uid = '' "
                    "WHERE transaction_uid = ? AND sop_uid = ? AND state = 'done' AND committed IS NULL",
                    *(problem, now, transaction, sop_uid),
                )
                self._tell(cursor, "delivery.not_committed", sop_uid, problem)
            else:
                done = cursor.run(
                    "UPDATE deliveries SET committed = ? WHERE transaction_uid = ? AND sop_uid = ?",
                    *(now, transaction, sop_uid),
                )
            return bool(done)

    # Looking and tending

    def worklist(self, limit: int = 200) -> list[Job]:
        """Return the newest jobs in any state."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{JOBS} ORDER BY j.created DESC, j.id LIMIT ?", limit)
        return [_job(row) for row in rows]

    def job(self, job_id: str) -> Job | None:
        """Return a job."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{JOBS} WHERE j.id = ?", job_id)
        return _job(rows[0]) if rows else None

    def prior(self, patient_key: str, before: float) -> Job | None:
        """Return the last finished analysis of a patient's scan made before a time."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(
                f"{JOBS} WHERE s.patient_key = ? AND j.state = 'done' AND COALESCE(s.acquired, s.received_first) < ? "
                "ORDER BY COALESCE(s.acquired, s.received_first) DESC, j.created DESC LIMIT 1",
                *(patient_key, before),
            )
        return _job(rows[0]) if rows else None

    def counts(self) -> Mapping[str, float]:
        """Return numbers such as ``jobs.queued``, ``deliveries.dead``, ``instances``, ``jobs.oldest_queued_s``."""
        told: dict[str, float] = {f"series.{s}": 0 for s in SeriesState}
        told |= {f"jobs.{s}": 0 for s in JobState} | {f"deliveries.{s}": 0 for s in DeliveryState}
        with self._database.transaction() as cursor:
            for table in ("series", "jobs", "deliveries"):
                rows = cursor.rows(f"SELECT state, COUNT(*) FROM {table} GROUP BY state")
                told |= {f"{table}.{state}": int(count) for state, count in rows}
            count, size = cursor.rows("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM instances")[0]
            told |= {"instances": int(count), "instances.bytes": int(size)}
            told["conflicts"] = int(cursor.rows("SELECT COALESCE(SUM(conflicts), 0) FROM series")[0][0])
            for table in ("jobs", "deliveries"):
                oldest = cursor.rows(f"SELECT MIN(created) FROM {table} WHERE state = 'queued'")[0][0]
                told[f"{table}.oldest_queued_s"] = max(0.0, self.now() - float(oldest)) if oldest is not None else 0.0
            told["deliveries.uncommitted"] = int(
                cursor.rows("SELECT COUNT(*) FROM deliveries WHERE transaction_uid <> '' AND committed IS NULL")[0][0]
            )
        return told

    def retry(self, ids: Sequence[str] | None = None) -> int:
        """Queue dead and failed jobs and deliveries again, all or those with these ids; return how many."""
        done = 0
        with self._database.transaction() as cursor:
            now = self.now()
            for table in ("jobs", "deliveries"):
                again = (
                    f"UPDATE {table} SET state = 'queued', attempts = 0, not_before = ?, error = '' "
                    "WHERE state IN ('dead', 'failed')"
                )
                if ids is None:
                    done += cursor.run(again, now)
                else:
                    done += sum(cursor.run(f"{again} AND id = ?", now, name) for name in ids)
            self._tell(cursor, "retry", "", f"{done} queued again by hand")
        return done

    def events(self, since: int = 0, limit: int = 1000) -> list[QueueEvent]:
        """Return what happened after the event of that id, oldest first."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(
                "SELECT id, at, kind, subject, message FROM events WHERE id > ? ORDER BY id LIMIT ?", since, limit
            )
        return [QueueEvent(*row) for row in rows]

    def tell(self, kind: str, subject: str, message: str) -> None:
        """Record an event."""
        with self._database.transaction() as cursor:
            self._tell(cursor, kind, subject, message)

    def purgeable(self, before: float) -> list[Series]:
        """Return the series last touched before a time that owe nothing."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(
                f"{SERIES} WHERE state IN ('complete', 'ignored') AND received_last < ? AND NOT EXISTS "
                "(SELECT 1 FROM jobs j WHERE j.series_uid = series.series_uid AND (j.state IN ('queued', 'running', "
                "'dead') OR j.finished >= ? OR EXISTS (SELECT 1 FROM deliveries d WHERE d.job_id = j.id AND "
                "d.state <> 'done'))) ORDER BY received_last",
                *(before, before),
            )
        return [_series(row) for row in rows]

    def expire(self, series_uid: str, seen: int, bury: Callable[[], None]) -> list[str] | None:
        """Forget the instances of a series; return the ids of its jobs, None if it changed since."""
        with self._database.transaction() as cursor:
            rows = cursor.rows(f"{SERIES} WHERE series_uid = ?{self._database.lock}", series_uid)
            series = _series(rows[0]) if rows else None
            if series is None or series.state is SeriesState.RECEIVING or series.instances != seen:
                return None
            gone = cursor.run("DELETE FROM instances WHERE series_uid = ?", series_uid)
            cursor.run("UPDATE series SET state = 'expired' WHERE series_uid = ?", series_uid)
            self._tell(cursor, "series.expired", series_uid, f"{gone} instances purged")
            jobs = [row[0] for row in cursor.rows("SELECT id FROM jobs WHERE series_uid = ?", series_uid)]
            bury()
            return jobs

    def _tell(self, cursor: Cursor, kind: str, subject: str, message: str) -> None:
        cursor.run(
            "INSERT INTO events (at, kind, subject, message) VALUES (?, ?, ?, ?)", self.now(), kind, subject, message
        )


def _series(row: Row) -> Series:
    return _made(Series, row, state=SeriesState)


def _instance(row: Row) -> Instance:
    return _made(Instance, row, kind=InstanceKind)


def _job(row: Row) -> Job:
    return _made(Job, row, state=JobState, positive=_flag, partial=_flag)


def _delivery(row: Row) -> Delivery:
    return _made(Delivery, row, state=DeliveryState)


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _made(cls: type[T], row: Row, **kinds: Callable[[Any], Any]) -> T:
    """Return a row, whose columns stand in the order of the fields, as a dataclass."""
    values = dict(zip((f.name for f in fields(cls)), row, strict=True))  # type: ignore[arg-type]
    return cls(**values | {name: kind(values[name]) for name, kind in kinds.items()})
