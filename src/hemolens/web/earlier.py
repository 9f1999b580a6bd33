"""Earlier results, ranked beside the open scans: those of a folder, and those of the PACS service's queue."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hemolens.errors import HemolensError
from hemolens.measurements.findings import InputInfo
from hemolens.reports.as_json import read_findings
from hemolens.sources.study import ReadOptions
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
    kind: str = "dicom"
    """``dicom``, ``nifti`` or ``images``."""
    options: ReadOptions = field(default_factory=ReadOptions)
    """How its images were read."""

    @property
    def remedy(self) -> str:
        """What to do where the images are not known: one sentence."""
        if self.kind == "dicom":
            lead = f"This result names its scan by its series, {self.path_or_uid}, and not by where it lies"
        else:
            lead = f"This result names its scan {self.path_or_uid}, and nothing of that name lies here"
        return f"{lead}: drop the scan on the page **Open**, and it is analyzed again."

    def is_open(self, uids: Collection[str], paths: Collection[Path], analyses: Collection[tuple[str, str]]) -> bool:
        """Whether its scan is open: of the same series, of the same place, or the very same analysis."""
        return (
            (self.kind == "dicom" and self.path_or_uid in uids)
            or (self.scan is not None and self.scan in paths)
            or (self.path_or_uid, self.created) in analyses
        )


def find_results(folder: Path) -> list[Earlier]:
    """Return the results below a folder, the least certain first; what cannot be read is left out."""
    paths = [path for depth in range(DEPTH) for path in folder.glob("/".join(["*"] * depth + [FINDINGS]))]
    told = ((path, path.parent.relative_to(folder).as_posix(), None) for path in _newest(paths))
    return read_results(told, folder)


def read_results(told: Iterable[tuple[Path, str, Path | None]], folder: Path | None = None) -> list[Earlier]:
    """Return results, the least certain first.

    Parameters
    ----------
    told
        Of each its ``findings.json``, its name, and its images where they are known.
    folder
        What they lie in: scans that are named by a relative path are looked for where this app was started, and from
        each result's folder up to the one that holds `folder`.
    """
    found = []
    for path, name, scan in told:
        try:
            created, given, judged = _judged(path, path.stat().st_mtime_ns)
        except (HemolensError, OSError):
            continue  # half written, of another version, or gone: it is no result to rank
        scan = scan or (None if given.kind == "dicom" else _find(given.path_or_uid, path, folder))
        found.append(Earlier(name, created, given.path_or_uid, judged, scan, given.kind, _options(given)))
    return sorted(found, key=lambda one: -one.doubt.score)


def _find(told: str, findings: Path, folder: Path | None) -> Path | None:
    """Return the file or folder that a result names, looked for from the nearest place outward."""
    path = Path(told)
    if path.is_absolute():
        return path.resolve() if path.exists() else None
    roots = [Path()]
    if folder is not None:
        top, at = folder.resolve().parent, findings.resolve().parent
        roots += [place for place in (at, *at.parents) if place == top or top in place.parents]
    return next((place.resolve() for root in roots if told and (place := root / path).exists()), None)


def _options(given: InputInfo) -> ReadOptions:
    """Return how slice images were read; other scans say it themselves."""
    if given.kind != "images" or given.window is None:
        return ReadOptions()
    between, row, column = given.spacing_mm or (None, 0.0, 0.0)
    if between is None or row != column:
        return ReadOptions(window=given.window)
    return ReadOptions(window=given.window, pixel_spacing_mm=row, slice_spacing_mm=between)


def _newest(paths: list[Path]) -> list[Path]:
    def written(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    return sorted(paths, key=written, reverse=True)[:MOST]


@lru_cache(maxsize=4 * MOST)
def _judged(path: Path, _written: int) -> tuple[str, InputInfo, Doubt]:
    findings = read_findings(path)
    return findings.created, findings.input, doubt(findings)
