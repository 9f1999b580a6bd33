"""CQ500 (Chilamkurthy et al., Lancet 2018; CC BY-NC-SA 4.0): 491 head CTs, each judged as a whole by three readers.

::

    <root>/reads.csv        name,Category,R1:ICH,R1:IPH,R1:IVH,R1:SDH,R1:EDH,R1:SAH,…,R2:ICH,…,R3:ICH,…
    <root>/CQ500CT0 CQ500CT0/Unknown Study/CT Plain/CT000000.dcm

What two of the three say is taken. The series of a study is chosen as `hemolens analyze` chooses it. In a scan without
hemorrhage every slice is clear; in any other nothing is known of single slices, except that kinds of blood that the
scan does not show are in none of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from hemolens.errors import HemolensError, InputError
from hemolens.sources.datasets.cases import NO_FINDINGS, UNKNOWN_FINDINGS, Case, MaskState, Note, SliceRecord
from hemolens.sources.datasets.dicom_cases import DicomCases, Progress, Scan, counted, indexed_scans, walk_files
from hemolens.sources.datasets.tables import read_table
from hemolens.sources.dicom.scan import scan_entries
from hemolens.sources.dicom.select import choose
from hemolens.sources.dicom.stacks import order_slices
from hemolens.sources.files import file_entry

TABLE = "reads.csv"
READERS = ("R1", "R2", "R3")
ABBREVIATIONS = ("ICH", "EDH", "SDH", "SAH", "IPH", "IVH")
"""In the order of `hemolens.labels.FINDING_NAMES`."""
STUDY = re.compile(r"CQ500[-_ ]?CT[-_ ]?(\d+)", re.IGNORECASE)
LICENSE = "CC BY-NC-SA 4.0"


def find_cq500(path: Path) -> Path | None:
    """Return the folder that holds ``reads.csv``, given itself."""
    return path if (path / TABLE).is_file() else None


def open_cq500(root: Path, progress: Progress) -> DicomCases:
    """Open CQ500.

    Raises
    ------
    InputError
        If the table is missing or lacks a reader's column, or there are no scans.
    """
    truth = read_reads(root / TABLE)
    by_study: dict[str, list[str]] = {}
    for file in walk_files(root, root):
        match = next((m for part in file.split("/")[:-1] if (m := STUDY.match(part))), None)
        if match:
            by_study.setdefault(f"CQ500-CT-{int(match[1])}", []).append(file)
    if not by_study:
        raise InputError(root, "holds no scans beside reads.csv", "Unpack the CQ500-CT-*.zip files here.")
    listing_of_all = [file for files in by_study.values() for file in files]
    scans, notes = indexed_scans(root, listing_of_all, lambda: _rebuild(root, by_study, progress))
    cases = tuple(_case(scan, truth.get(scan.patient)) for scan in scans)
    paths = {case.id: scan.files for case, scan in zip(cases, scans, strict=True)}
    bare = [case.patient for case in cases if case.patient not in truth]
    absent = [name for name in truth if name not in by_study]
    more = (*counted("unlabeled", "scans without a row in the table, taken as unknown", bare),
            *counted("missing", "scans of the table are not here", absent))  # fmt: skip
    return DicomCases("cq500", root, LICENSE, False, cases, (*notes, *more), paths)


def read_reads(path: Path) -> dict[str, tuple[float, ...]]:
    """Read the table: findings of each scan by the majority of its readers, NaN where there is none.

    Raises
    ------
    InputError
        If the table is missing, lacks a column or holds something else than 0 and 1.
    """
    columns = [f"{reader}:{finding}" for reader in READERS for finding in ABBREVIATIONS]
    rows = read_table(path, ["name", *columns], "Download the data set's table again.")
    truth = {}
    for line, row in enumerate(rows, 2):
        strange = sorted({row[column] for column in columns} - {"0", "1", ""})
        if strange:
            raise InputError(path, f"line {line} holds {strange[0]!r}, not 0 or 1", "Download the table again.")
        match = STUDY.match(row["name"])
        name = f"CQ500-CT-{int(match[1])}" if match else row["name"]
        truth[name] = tuple(_majority([row[f"{r}:{finding}"] for r in READERS]) for finding in ABBREVIATIONS)
    return truth


def _majority(votes: list[str]) -> float:
    counts = Counter(votes)
    if counts["1"] >= 2:
        return 1.0
    return 0.0 if counts["0"] >= 2 else math.nan


def _case(scan: Scan, truth: tuple[float, ...] | None) -> Case:
    findings = truth or UNKNOWN_FINDINGS
    if findings[0] == 0.0:
        findings = NO_FINDINGS
    clear = findings[0] == 0.0
    state: MaskState = "empty" if clear else "unknown"
    of_slices = NO_FINDINGS if clear else tuple(0.0 if value == 0.0 else math.nan for value in findings)
    records = tuple(SliceRecord(name, of_slices, state) for name in scan.slices)
    return Case("cq500", scan.patient, "", records, findings)


def _rebuild(root: Path, by_study: Mapping[str, list[str]], progress: Progress) -> tuple[list[Scan], list[Note]]:
    scans, notes = [], []
    for number, (name, files) in enumerate(sorted(by_study.items())):
        progress(number / len(by_study))
        path_of = {file_entry(root / file): file for file in files}
        try:
            series = choose(scan_entries(list(path_of), lambda _fraction: None), name, None).series
        except HemolensError as error:
            notes.append(Note("left_out", f"left out: {error}"))
            continue
        kept = order_slices(series.slices).slices
        chosen = tuple(path_of[header.entry] for header in kept)  # type: ignore[index]
        uids = tuple(header.sop_uid for header in kept)
        names = uids if all(uids) and len(set(uids)) == len(uids) else tuple(Path(file).name for file in chosen)
        scans.append(Scan(name, "", names, chosen))
    return scans, notes
