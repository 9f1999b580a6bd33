"""The tables of the queue, for SQLite and PostgreSQL alike."""

from __future__ import annotations

import secrets
from typing import Any, Protocol

VERSION = 1
"""Raised when the tables change."""

TABLES: tuple[str, ...] = (
    """CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS series (
        series_uid TEXT PRIMARY KEY, study_uid TEXT NOT NULL, patient_key TEXT NOT NULL, modality TEXT NOT NULL,
        received_first {real} NOT NULL, received_last {real} NOT NULL, instances INTEGER NOT NULL, expected INTEGER,
        state TEXT NOT NULL, calling_ae TEXT NOT NULL, calling_address TEXT NOT NULL, accession_hash TEXT NOT NULL,
        acquired {real}, reason TEXT NOT NULL, conflicts INTEGER NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS series_by_state ON series (state, received_last)""",
    """CREATE TABLE IF NOT EXISTS instances (
        sop_uid TEXT PRIMARY KEY, series_uid TEXT NOT NULL, path TEXT NOT NULL, size {big} NOT NULL,
        sha256 TEXT NOT NULL, kind TEXT NOT NULL, received {real} NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS instances_by_series ON instances (series_uid)""",
    """CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, series_uid TEXT NOT NULL, digest TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL,
        attempts INTEGER NOT NULL, not_before {real} NOT NULL, worker TEXT NOT NULL, lease_until {real},
        created {real} NOT NULL, started {real}, finished {real}, error TEXT NOT NULL, probability {real},
        volume_ml {real}, decision TEXT NOT NULL, positive INTEGER, partial INTEGER, findings_path TEXT NOT NULL,
        prior_job TEXT, UNIQUE (series_uid, digest, model))""",
    """CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, not_before)""",
    """CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (created)""",
    """CREATE TABLE IF NOT EXISTS deliveries (
        id TEXT PRIMARY KEY, job_id TEXT NOT NULL, destination TEXT NOT NULL, sop_uid TEXT NOT NULL,
        sop_class TEXT NOT NULL, path TEXT NOT NULL, place INTEGER NOT NULL, state TEXT NOT NULL,
        attempts INTEGER NOT NULL, not_before {real} NOT NULL, lease_until {real}, created {real} NOT NULL,
        finished {real}, error TEXT NOT NULL, committed {real}, transaction_uid TEXT NOT NULL,
        UNIQUE (destination, sop_uid))""",
    """CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (destination, state, not_before)""",
    """CREATE INDEX IF NOT EXISTS deliveries_by_job ON deliveries (job_id)""",
    """CREATE TABLE IF NOT EXISTS events (
        id {serial}, at {real} NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL, message TEXT NOT NULL)""",
)  # fmt: skip

JOB_COLUMNS = (
    "j.id, j.series_uid, s.study_uid, s.patient_key, j.digest, j.model, j.state, j.attempts, j.not_before, j.worker, "
    "j.lease_until, j.created, j.started, j.finished, j.error, j.probability, j.volume_ml, j.decision, j.positive, "
    "j.partial, j.findings_path, j.prior_job, s.received_first, s.received_last, s.instances, s.acquired, "
    "s.accession_hash, s.calling_ae"
)
JOBS = f"SELECT {JOB_COLUMNS} FROM jobs j JOIN series s ON s.series_uid = j.series_uid"
SERIES = (
    "SELECT series_uid, study_uid, patient_key, modality, received_first, received_last, instances, expected, state, "
    "calling_ae, calling_address, accession_hash, acquired, reason, conflicts FROM series"
)
INSTANCES = "SELECT sop_uid, series_uid, path, size, sha256, kind, received FROM instances"
DELIVERIES = (
    "SELECT id, job_id, destination, sop_uid, sop_class, path, state, attempts, not_before, lease_until, created, "
    "finished, error, committed, transaction_uid FROM deliveries"
)


class Runner(Protocol):
    """What runs statements in one transaction."""

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""

    def run(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""


def make_tables(cursor: Runner, types: dict[str, str]) -> bool:
    """Make the tables, salt and version where they are not there, with the column types of one kind of database.

    Returns
    -------
    bool
        Whether they are of this version.
    """
    for table in TABLES:
        cursor.run(table.format(**types))
    cursor.run("INSERT INTO settings VALUES ('salt', ?) ON CONFLICT DO NOTHING", secrets.token_hex(16))
    cursor.run("INSERT INTO settings VALUES ('version', ?) ON CONFLICT DO NOTHING", str(VERSION))
    return tables_fit(cursor)


def tables_fit(cursor: Runner) -> bool:
    """Return whether the tables that are there are of this version."""
    return bool(cursor.rows("SELECT value FROM settings WHERE key = 'version'")[0][0] == str(VERSION))
