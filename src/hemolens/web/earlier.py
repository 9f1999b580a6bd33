"""Earlier results, ranked beside the open scans: those of a folder, and those of the PACS service's queue."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hemolens.errors import HemolensError
from hemolens.reports.as_json import read_findings
from hemolens.web.uncertain import Doubt, doubt

FINDINGS = "findings.json"
DEPTH = 4
"""Levels of folders that are searched."""
MOST = 500
"""Results that are ranked, the newest."""


@dataclass(frozen=True)
class Earlier:
    """One result that was written before."""

    name: str
    """Its folder, as seen from the folder of results."""
    created: str
    """When it was made, as ``findings.json`` says."""
    path_or_uid: str
    doubt: Doubt
    scan: Path | None
    """Where its images lie on this machine, if that is known."""


def find_results(folder: Path) -> list[Earlier]:
    """Return the results below a folder, the least certain first; what cannot be read is left out."""
    paths = [path for depth in range(DEPTH) for path in folder.glob("/".join(["*"] * depth + [FINDINGS]))]
    return read_results((path, path.parent.relative_to(folder).as_posix(), None) for path in _newest(paths))


def read_results(told: Iterable[tuple[Path, str, Path | None]]) -> list[Earlier]:
    """Return results, the least certain first.

    Parameters
    ----------
    told
        Of each its ``findings.json``, its name, and its images where they are known.
    """
    found = []
    for path, name, scan in told:
        try:
            created, told_path, judged = _judged(path, path.stat().st_mtime_ns)
        except (HemolensError, OSError):
            continue  # half written, of another version, or gone: it is no result to rank
        found.append(Earlier(name, created, told_path, judged, scan or _scan(told_path)))
    return sorted(found, key=lambda one: -one.doubt.score)


def _scan(told: str) -> Path | None:
    """Return the file or folder that a result names; DICOM results name a UID instead."""
    path = Path(told)
    return path if path.is_absolute() and path.exists() else None


def _newest(paths: list[Path]) -> list[Path]:
    def written(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    return sorted(paths, key=written, reverse=True)[:MOST]


@lru_cache(maxsize=4 * MOST)
def _judged(path: Path, _written: int) -> tuple[str, str, Doubt]:
    findings = read_findings(path)
    return findings.created, findings.input.path_or_uid, doubt(findings)
