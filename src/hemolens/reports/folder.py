"""The folder of results: all of it is written, or nothing.

A new folder is filled under another name beside its place and then renamed. An existing one (perhaps a mount point or
the current folder, which cannot be renamed) is filled through a hidden folder inside it, whose files then change
places with the old ones: ``findings.json`` goes first and comes last, so a folder that has it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hemolens.errors import OutputError
from hemolens.inference.prediction import Prediction
from hemolens.measurements.findings import Findings
from hemolens.reports.as_json import to_text
from hemolens.reports.dicom_files import dicom_files
from hemolens.reports.html import render_html
from hemolens.reports.nifti import mask_files, probability_files
from hemolens.reports.truth import Truth
from hemolens.volume import LabelMap, Volume

FINDINGS = "findings.json"
REPORT = "report.html"
FILES = frozenset({FINDINGS, REPORT, "mask.nii.gz", "edema.nii.gz", "mask_geometry.json", "probability.nii.gz"}) | {
    "seg.dcm", "sr.dcm", "summary.dcm",
}  # fmt: skip
"""Names of files that hemolens writes into a result folder."""
FOLDERS = frozenset({"masks", "edema", "probability"})
"""Names of folders of PNG files."""


@dataclass(frozen=True)
class ResultKind:
    """What one verb writes into its folder, so that nothing else is ever replaced."""

    marker: str
    """Name of the JSON file that comes last: a folder that has it is complete."""
    files: frozenset[str]
    """Names of files, `marker` among them."""
    folders: frozenset[str] = frozenset()
    """Names of folders that hold PNG files alone."""


ANALYSIS = ResultKind(FINDINGS, FILES, FOLDERS)
"""What `hemolens analyze` writes."""
INVISIBLE = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Names that desktops put into any folder; they are left where they are."""
STAGING = ".hemolens-"
"""Prefix of temporary folders; one is left behind only where the process was killed."""


def write_reports(
    out: Path,
    volume: Volume,
    prediction: Prediction,
    label_map: LabelMap,
    findings: Findings,
    *,
    overwrite: bool = False,
    probability: bool = False,
    summary_image: bool = False,
    truth: Truth | None = None,
) -> dict[str, Path]:
    """Write ``findings.json``, ``report.html``, the mask and, for DICOM, SEG and SR into a folder.

    Parameters
    ----------
    out
        The folder; made with its parents.
    volume, prediction, label_map, findings
        The scan and what was found in it. `findings` gets its time for "report" here.
    overwrite
        Whether earlier results in `out` may be replaced. Other files in it are never touched: with them it is refused.
    probability
        Whether to write the probability of blood per voxel.
    summary_image
        DICOM: whether to write a picture of the result as secondary capture.
    truth
        Known lesions to set beside the found ones.

    Returns
    -------
    dict
        ``findings``, ``report``, ``mask`` or ``masks`` (a folder), and where they exist ``mask_geometry``,
        ``edema``, ``probability``, ``seg``, ``sr`` and ``summary``.

    Raises
    ------
    OutputError
        If `out` is not empty, holds files of others, or cannot be written; nothing is left half-written then.
    ConfigError
        If a summary image is asked for and the scan is no DICOM.
    """
    started = time.perf_counter()
    check_target(out, overwrite=overwrite)
    contents = mask_files(label_map)
    if probability:
        contents |= probability_files(volume, prediction)
    contents |= dicom_files(label_map, findings, summary_image=summary_image)
    contents[REPORT] = render_html(label_map, findings, truth).encode()
    findings = replace(findings, timing_s={**findings.timing_s, "report": time.perf_counter() - started})
    contents[FINDINGS] = to_text(findings).encode()
    write_folder(out, contents)
    return _named(out, contents)


def check_target(out: Path, *, overwrite: bool, kind: ResultKind = ANALYSIS) -> None:
    """Find out whether results of a kind may be written to `out`, before any work is done for them.

    Raises
    ------
    OutputError
        If `out` is a file, is not empty and `overwrite` is not set, or holds what is not an earlier result.
    """
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: this is a file. Name a folder with -o.")
        entries = _entries(out) if out.exists() else []
        foreign = [entry.name for entry in entries if not _is_ours(entry, kind)]
    except OSError as error:
        raise _refused(out, error) from error
    if entries and not overwrite:
        raise OutputError(f"{out}: the folder is not empty. Use --overwrite to replace it, or name another with -o.")
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise OutputError(f"{out}: holds {foreign[0]}{more}, no result of hemolens. Name another folder with -o.")
    if entries and not _is_result(out / kind.marker):
        raise OutputError(f"{out}: holds no earlier result of hemolens to overwrite. Name another folder with -o.")


def write_folder(out: Path, contents: Mapping[str, bytes], kind: ResultKind = ANALYSIS) -> None:
    """Write files into a new folder, or in place of an earlier result; all of them or none.

    Parameters
    ----------
    out
        The folder.
    contents
        Relative path → bytes.
    kind
        Whose result it is.

    Raises
    ------
    OutputError
        If anything cannot be written; `out` is then as it was.
    """
    made: list[Path] = []
    try:
        for parent in reversed(out.absolute().parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        if out.exists():
            _replace(out, contents, kind.marker)
        else:
            with _staging(out.absolute().parent) as staging:
                _write_all(staging, contents)
                staging.rename(out)
            _flush_folder(out.absolute().parent)
    except BaseException as error:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise _refused(out, error) from error
        raise


def _replace(out: Path, contents: Mapping[str, bytes], marker: str) -> None:
    with _staging(out) as staging:
        new, old = staging / "new", staging / "old"
        new.mkdir()
        old.mkdir()
        _write_all(new, contents)
        gone = sorted((entry.name for entry in _entries(out)), key=lambda name: name != marker)
        come = sorted((entry.name for entry in new.iterdir()), key=lambda name: name == marker)
        moves = [(out / name, old / name) for name in gone] + [(new / name, out / name) for name in come]
        done: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                done.append((source, target))
                source.rename(target)
        except BaseException:
            for source, target in reversed(done):
                if not source.exists():
                    target.rename(source)
            raise
        _flush_folder(out)


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """Make a folder for the time of the block; whatever happens, it is gone afterwards."""
    staging = parent / f"{STAGING}{secrets.token_hex(6)}"
    try:
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            stream.write(content)
            stream.flush()
            # A full disk may show only now.
            os.fsync(stream.fileno())
    for inner in {(folder / name).parent for name in contents}:
        _flush_folder(inner)


def _flush_folder(folder: Path) -> None:
    """Put a folder's entries on disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entries(out: Path) -> list[Path]:
    """Return what counts in a result folder."""
    return sorted(e for e in out.iterdir() if not e.name.startswith(STAGING) and e.name not in INVISIBLE)


def _is_ours(entry: Path, kind: ResultKind) -> bool:
    if entry.name in kind.folders:
        return entry.is_dir() and not entry.is_symlink() and all(e.suffix == ".png" for e in entry.iterdir())
    return entry.name in kind.files and entry.is_file()


def _is_result(path: Path) -> bool:
    try:
        told = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and "hemolens_version" in told


def _refused(out: Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    remedy = "Free some space, or" if full else "Check that you may write there, or"
    return OutputError(f"{out}: cannot be written ({reason}). {remedy} name another folder with -o.")


def _named(out: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Return what was written under the names that callers know."""
    named = {}
    for name in contents:
        first = name.split("/")[0]
        named[first.split(".")[0]] = out / first
    return named
