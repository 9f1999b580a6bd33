"""The queue in one SQLite file: write-ahead log, every commit flushed to disk before it counts."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hemolens.errors import QueueError
from hemolens.pacs.queue_sql import Row, SqlQueue
from hemolens.pacs.queue_tables import make_tables

BUSY_S = 30.0
"""How long a writer waits for another one."""
TYPES = {"real": "REAL", "big": "INTEGER", "serial": "INTEGER PRIMARY KEY AUTOINCREMENT"}


class SqliteCursor:
    """See `hemolens.pacs.queue_sql.Cursor`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """Run a statement and return its rows."""
        return self._connection.execute(statement, values).fetchall()

    def run(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        return self._connection.execute(statement, values).rowcount


class SqliteDatabase:
    """See `hemolens.pacs.queue_sql.Database`. One writer at a time: a transaction takes the whole file."""

    skip_locked = ""
    lock = ""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error

    def now(self) -> float:
        """Return the time: one host, one clock."""
        return time.time()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[SqliteCursor]:
        """Run the block in one transaction, for this thread alone."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield SqliteCursor(self._connection)
                    self._connection.execute("COMMIT")
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def _refused(self, error: Exception) -> QueueError:
        return QueueError(f"{self._path}: the queue cannot be used ({error}). Check its disk and who may write there.")


def open_sqlite(path: str | Path) -> SqlQueue:
    """Open the queue in a file, which is made if it is not there.

    Raises
    ------
    QueueError
        If it cannot be opened, or was made by another version.
    """
    database = SqliteDatabase(Path(path))
    with database.transaction() as cursor:
        fits = make_tables(cursor, TYPES)
    if not fits:
        raise QueueError(f"{path}: was made by another version of hemolens. Name another file in queue.url.")
    return SqlQueue(database)
