"""RSNA 2019 (Flanders et al., 10.1148/ryai.2020190211): single DICOM slices, labeled one by one, to be put in order.

::

    <root>/stage_2_train.csv              ID,Label with six rows a slice: ID_28fbab7eb_epidural,0 … ID_28fbab7eb_any,0
    <root>/stage_2_train/ID_28fbab7eb.dcm

The names say nothing of patients. Scans are rebuilt from PatientID, StudyInstanceUID and SeriesInstanceUID and ordered
by ImagePositionPatient. The table names a few slices twice. There are no masks: a slice without hemorrhage has an empty
one, any other an unknown one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hemolens.errors import DecodeError, InputError
from hemolens.labels import FINDING_NAMES
from hemolens.sources.datasets.cases import NO_FINDINGS, UNKNOWN_FINDINGS, Case, Note, SliceRecord
from hemolens.sources.datasets.ct_ich import only_folder
from hemolens.sources.datasets.dicom_cases import DicomCases, Progress, Scan, counted, indexed_scans
from hemolens.sources.dicom.header import HEADER_TAGS, PATIENT_ID, Pose, SliceHeader, slice_headers
from hemolens.sources.dicom.stacks import order_slices, split_stacks
from hemolens.sources.dicom.tags import quiet, read_tags
from hemolens.sources.files import FileEntry, file_entry

TABLE = "stage_2_train.csv"
FOLDER = "stage_2_train"
LICENSE = "RSNA, non-commercial research and education only"
BROKEN = "ID_6431af929"
"""Published with pixels that are cut short."""
NO_REMEDY = "Download the data set's table again."

Light = tuple[str, str, Pose, tuple[int, int]]
"""What must be remembered of each of 752,803 slices: file stem, SOP Instance UID, pose, size."""


def find_rsna(path: Path) -> Path | None:
    """Return what holds the table and the slices: the folder itself or the one folder in it, twice at most."""
    for _ in range(3):
        if (path / TABLE).is_file() and (path / FOLDER).is_dir():
            return path
        inner = only_folder(path)
        if not inner:
            return None
        path = path / inner[0]
    return None


def open_rsna(root: Path, progress: Progress) -> DicomCases:
    """Open RSNA 2019.

    Raises
    ------
    InputError
        If the table is missing or malformed, or there are no slices.
    """
    labels, doubtful = read_labels(root / TABLE)
    names = (entry.name for entry in (root / FOLDER).iterdir())
    stems = sorted(name.removesuffix(".dcm") for name in names if name.endswith(".dcm") and not name.startswith("."))
    if not stems:
        raise InputError(root / FOLDER, "holds no .dcm files", "Unpack the data set here.")
    wanted = [stem for stem in stems if stem != BROKEN]
    scans, notes = indexed_scans(root, wanted, lambda: rebuild_scans(root, wanted, progress))
    cases, paths, bare = [], {}, []
    for scan in scans:
        records = []
        for name in scan.slices:
            findings = labels.get(name)
            if findings is None:
                bare.append(name)
                records.append(SliceRecord(name, UNKNOWN_FINDINGS, "unknown"))
            else:
                records.append(SliceRecord(name, findings, "empty" if findings == NO_FINDINGS else "unknown"))
        case = Case("rsna", scan.patient, scan.study, tuple(records))
        cases.append(case)
        paths[case.id] = scan.files
    here = set(stems)
    missing = [name for name in labels if name not in here]
    broken = [Note("known", f"{BROKEN}.dcm was published with its pixels cut short and is left out")] * (BROKEN in here)
    more = (
        *counted("unlabeled", "slices without labels, taken as unknown", bare),
        *counted("missing", "slices of the table are not here", missing),
        *counted("disagreement", "slices with two different labels in the table, taken as unknown", doubtful),
    )
    return DicomCases("rsna", root, LICENSE, False, tuple(cases), (*broken, *notes, *more), paths)


def read_labels(path: Path) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """Read the table: findings by slice, and the slices that it labels twice and differently.

    Raises
    ------
    InputError
        If the table is missing, is another one, or a row makes no sense.
    """
    place = {name: index for index, name in enumerate(FINDING_NAMES)}
    said: dict[str, int] = {}  # two bits per finding: "0 was said", "1 was said"; half a million slices stay small
    with file_entry(path).path.open(encoding="utf-8-sig") as stream:
        if next(stream, "").strip() != "ID,Label":
            raise InputError(path, "has no columns ID and Label", NO_REMEDY)
        for number, line in enumerate(stream, 2):
            key, _, value = line.strip().partition(",")
            name, _, finding = key.rpartition("_")
            if finding not in place or value not in ("0", "1"):
                if not line.strip():
                    continue
                raise InputError(path, f"line {number} is no label of a slice", NO_REMEDY)
            said[name] = said.get(name, 0) | (1 if value == "0" else 2) << 2 * place[finding]
    shared: dict[int, tuple[float, ...]] = {}
    meaning = (math.nan, 0.0, 1.0, math.nan)
    for bits in set(said.values()):
        findings = tuple(meaning[bits >> 2 * k & 3] for k in range(len(FINDING_NAMES)))
        shared[bits] = NO_FINDINGS if findings == NO_FINDINGS else findings
    doubtful = [name for name, bits in said.items() if any(bits >> 2 * k & 3 == 3 for k in range(len(FINDING_NAMES)))]
    return {name: shared[bits] for name, bits in said.items()}, doubtful


def rebuild_scans(root: Path, stems: Sequence[str], progress: Progress) -> tuple[list[Scan], list[Note]]:
    """Read every header and put the slices of each series in order.

    Returns
    -------
    list of Scan
        Sorted by patient and study. A second stack of a study gets ``-2`` behind the study's name, and so on.
    list of Note
        What was left out.
    """
    series: dict[tuple[str, str, str], list[Light]] = {}
    damaged: list[str] = []
    unposed: list[str] = []
    template: SliceHeader | None = None
    with quiet():
        for number, stem in enumerate(stems):
            if number % 100 == 0:
                progress(number / len(stems))
            try:
                header, patient = _header(root / FOLDER / f"{stem}.dcm")
            except DecodeError:
                damaged.append(stem)
                continue
            if header.pose is None or header.pixels is None:
                unposed.append(stem)
                continue
            template = template or header
            light = (stem, header.sop_uid or stem, header.pose, (header.pixels.rows, header.pixels.columns))
            series.setdefault((patient, header.study_uid, header.series_uid), []).append(light)
    scans: list[Scan] = []
    doubled = 0
    stacks_of: dict[tuple[str, str], int] = {}
    for (patient, study, _), members in sorted(series.items()):
        assert template is not None
        for stack in split_stacks(list(_headers(members, template))):
            ordered = order_slices(stack)
            doubled += ordered.dropped
            count = stacks_of[patient, study] = stacks_of.get((patient, study), 0) + 1
            names = tuple(h.entry.name for h in ordered.slices)
            files = tuple(f"{FOLDER}/{name}.dcm" for name in names)
            scans.append(Scan(patient, study if count == 1 else f"{study}-{count}", names, files))
    notes = counted("left_out", "slices cannot be read and are left out", damaged)
    notes += counted("left_out", "slices without position, orientation or pixel size are left out", unposed)
    if doubled:
        notes.append(Note("known", f"{doubled} slices lie where another of their series does and are left out"))
    return scans, notes


def _header(path: Path) -> tuple[SliceHeader, str]:
    meta, tags = read_tags(FileEntry(path.name, 0, path), HEADER_TAGS)
    header = slice_headers(FileEntry(path.name, 0, path), meta, tags)[0]
    return header, tags.text(PATIENT_ID) or header.study_uid or path.stem


def _headers(members: Sequence[Light], template: SliceHeader) -> Iterator[SliceHeader]:
    """Put the headers of one series together again; only what orders slices matters."""
    assert template.pixels is not None
    for stem, sop, pose, (rows, columns) in members:
        pixels = replace(template.pixels, rows=rows, columns=columns)
        yield replace(template, entry=FileEntry(stem, 0, Path(stem)), sop_uid=sop, pose=pose, pixels=pixels)
