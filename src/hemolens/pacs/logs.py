"""Structured logs: one JSON object a line on standard error, without identifiers of patients.

The package logs hashes of series UIDs, ids of jobs and counts. What libraries log (calling titles, data sets, values
that they cannot parse) stays out.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

OURS = "hemolens"


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record.

    Parameters
    ----------
    role
        Of this process, such as ``listener``.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "pid": os.getpid(),
            "part": record.name.removeprefix(f"{OURS}.pacs."),
            "message": " ".join(record.getMessage().split()),
        }
        return json.dumps(told, ensure_ascii=True)


def log_to_stderr(role: str, level: int = logging.INFO) -> None:
    """Send what this package logs to standard error, and nothing that other libraries log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(role))
    logger = logging.getLogger(OURS)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]
    for name in ("pynetdicom", "pydicom", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
        logging.getLogger(name).propagate = False
        logging.getLogger(name).setLevel(logging.CRITICAL)
