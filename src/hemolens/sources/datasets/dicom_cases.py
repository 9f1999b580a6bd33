"""Data sets of DICOM files: scans rebuilt from their headers once, and the result kept beside the data set.

Looking at the headers of RSNA's 752,803 files takes a good part of an hour; ``hemolens-series.csv`` holds the outcome,
one line per slice in the order of its volume, and is valid as long as the same files are there.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import DecodeError, InputError
from hemolens.sources.datasets.cases import UNKNOWN, Case, Note, NoteKind
from hemolens.sources.datasets.tables import quoted, write_quietly
from hemolens.sources.dicom.header import COLUMNS, ROWS
from hemolens.sources.dicom.read import read_dicom
from hemolens.sources.dicom.tags import quiet, read_tags
from hemolens.sources.files import file_entry, listing
from hemolens.volume import Volume

INDEX_FILE = "hemolens-series.csv"
FORMAT = "hemolens-series-1"

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Scan:
    """Slices that make one volume, lowest along their normal first."""

    patient: str
    study: str
    slices: tuple[str, ...]
    """SOP Instance UIDs, or file names where those are no names."""
    files: tuple[str, ...]
    """Paths inside the data set, in the same order."""


@dataclass(frozen=True, eq=False)
class DicomCases:
    """Rebuilt DICOM scans, as a `hemolens.sources.datasets.cases.DataSet`; no slice has a mask."""

    name: str
    root: Path
    license: str
    trainable: bool
    cases: tuple[Case, ...]
    notes: tuple[Note, ...]
    paths: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Case id → files inside `root`, in the order of the slices."""

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`."""
        entries = [file_entry(path) for path in self.files(case)]
        volume = read_dicom(entries, case.id, None, lambda _fraction: None)
        lost = [note.message for note in volume.notes if note.code == "slices_unreadable"]
        if lost:
            remedy = "Download the file again, or delete it: the scan is then used without this slice."
            raise DecodeError(case.id, lost[0], remedy)
        if volume.source.slice_names != tuple(entry.name for entry in entries):
            raise InputError(case.id, f"its files no longer fit {INDEX_FILE}", "Delete that file and open again.")
        return volume

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`: 0 throughout where there is no hemorrhage, else unknown."""
        with quiet():
            _, tags = read_tags(file_entry(self.files(case)[0]), (ROWS, COLUMNS))
        labels = np.zeros((len(case.slices), tags.word(ROWS) or 0, tags.word(COLUMNS) or 0), dtype=np.uint8)
        for plane, record in zip(labels, case.slices, strict=True):
            plane[:] = 0 if record.mask_state == "empty" else UNKNOWN
        return labels

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        return tuple(self.root / name for name in self.paths[case.id])


def walk_files(root: Path, folder: Path) -> list[str]:
    """Return the paths inside `root` of all files under `folder`, sorted; hidden ones are left out."""
    found: list[str] = []
    prefix = len(str(root)) + 1
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [f"{where}/{name}"[prefix:] for name in names if not name.startswith(".")]
    return sorted(found)


def indexed_scans(
    root: Path,
    files: Sequence[str],
    rebuild: Callable[[], tuple[Sequence[Scan], Sequence[Note]]],
) -> tuple[tuple[Scan, ...], tuple[Note, ...]]:
    """Return the scans of a data set and notes on what was left out, from the index where it is current.

    Parameters
    ----------
    root
        The data set's folder.
    files
        Every file that is there, which tells whether the index is current.
    rebuild
        Reads the headers.
    """
    digest = hashlib.sha256("\n".join(files).encode()).hexdigest()
    known = _read_index(root / INDEX_FILE, digest)
    if known is not None:
        return known
    scans, notes = rebuild()
    lines = _index_lines(digest, scans, notes)
    if not write_quietly(root / INDEX_FILE, lines):
        text = f"{INDEX_FILE} cannot be written: all headers are read again each time this data set is opened"
        notes = (*notes, Note("known", text))
    return tuple(scans), tuple(notes)


def _index_lines(digest: str, scans: Iterable[Scan], notes: Iterable[Note]) -> Iterator[str]:
    yield f"{FORMAT},{digest}"
    for note in notes:
        yield f"#,{note.kind},{quoted(note)}"
    for scan in scans:
        for name, file in zip(scan.slices, scan.files, strict=True):
            yield ",".join(map(quoted, (scan.patient, scan.study, name, file)))


def _read_index(path: Path, digest: str) -> tuple[tuple[Scan, ...], tuple[Note, ...]] | None:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream)
            if next(rows, None) != [FORMAT, digest]:
                return None
            notes: list[Note] = []
            grouped: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
            for row in rows:
                if row[0] == "#":
                    notes.append(Note(cast(NoteKind, row[1]), row[2]))
                else:
                    names, files = grouped.setdefault((row[0], row[1]), ([], []))
                    names.append(row[2])
                    files.append(row[3])
    except (OSError, csv.Error, UnicodeDecodeError, IndexError):
        return None
    scans = tuple(Scan(p, s, tuple(names), tuple(files)) for (p, s), (names, files) in grouped.items())
    return scans, tuple(notes)


def counted(kind: NoteKind, text: str, names: Sequence[str]) -> list[Note]:
    """Return a note with a count and the first names, or nothing where there are none."""
    return [Note(kind, f"{len(names)} {text}: {listing(list(names))}")] if names else []
