"""CT-ICH (Hssayeni et al., Data 2020, 5(1), 14): 8-bit slices in two windows, labels per slice, masks for some.

::

    <root>/hemorrhage_diagnosis.csv               one row per slice; numbers start at 1, number 1 is the lowest
    <root>/patient_demographics.csv               one row per patient; may be missing
    <root>/Patients_CT/078/brain/14.jpg           level 40, width 120
    <root>/Patients_CT/078/brain/14_HGE_Seg.jpg   blood is > 128; missing does not mean empty
    <root>/Patients_CT/078/bone/14.jpg            not used

The published download nests all this under one more folder; either level is taken.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError, SelectionError
from hemolens.notes import QualityNote, Severity
from hemolens.sources.datasets.cases import (
    NO_FINDINGS,
    UNKNOWN,
    UNKNOWN_FINDINGS,
    Case,
    MaskState,
    Note,
    NoteKind,
    SliceRecord,
    single_subtype,
)
from hemolens.sources.datasets.tables import read_table
from hemolens.sources.files import file_entry, folder_entries, listing
from hemolens.sources.images import natural_key, pick_slices, read_gray, read_images
from hemolens.volume import DisplayWindow, Volume

LABELS_FILE = "hemorrhage_diagnosis.csv"
PATIENTS_FOLDER = "Patients_CT"
AGES_FILE = "patient_demographics.csv"
AGE_COLUMNS = ("Patient Number", "Age (years)")
SLICE_STEP_MM = 5.0
WINDOW = DisplayWindow(40.0, 120.0)
BLOOD_ABOVE = 128
"""Mask pixels brighter than this are blood; JPEG blurs the rest."""
COLUMNS = (
    "PatientNumber", "SliceNumber", "Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural",
    "No_Hemorrhage",
)  # fmt: skip
REMEDY = "Download the data set's table again."
MASK_END = "_HGE_Seg.jpg"


@dataclass(frozen=True)
class Location:
    """What a path inside the data set points at."""

    root: Path
    patient: str | None
    """Three digits; None for the whole data set."""


@dataclass(frozen=True)
class SliceTruth:
    """One row of the label table."""

    patient: str
    """Three digits, as the folders are named."""
    slice_number: int
    """From 1, lowest first."""
    any: bool
    epidural: bool
    subdural: bool
    subarachnoid: bool
    intraparenchymal: bool
    intraventricular: bool

    @property
    def findings(self) -> tuple[bool, bool, bool, bool, bool, bool]:
        """In the order of `hemolens.labels.FINDING_NAMES`."""
        return (
            self.any,
            self.epidural,
            self.subdural,
            self.subarachnoid,
            self.intraparenchymal,
            self.intraventricular,
        )


def locate(path: Path) -> Location | None:
    """Recognize the data set's root, the folder above it, a patient's folder or its ``brain`` folder.

    Raises
    ------
    InputError
        For a ``bone`` folder: the bone window shows no blood.
    """
    here = path.absolute()
    for root in (here, *(here / name for name in only_folder(here))):
        if (root / PATIENTS_FOLDER).is_dir():
            return Location(root, None)
    if here.name == PATIENTS_FOLDER and _patient_folders(here):
        return Location(here.parent, None)
    patient = here if here.parent.name == PATIENTS_FOLDER else here.parent
    if patient.parent.name != PATIENTS_FOLDER or not patient.name.isdigit():
        return None
    if here.name == "bone":
        raise InputError(path, "is the bone window, which shows no blood", "Give the brain folder beside it.")
    if here != patient and here.name != "brain":
        return None
    return Location(patient.parent.parent, patient.name)


def only_folder(path: Path) -> list[str]:
    """Return the name of the one folder below, as in the published download; nothing if there are several."""
    try:
        folders = [item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")]
    except OSError:
        return []
    return folders if len(folders) == 1 else []


def _patient_folders(folder: Path) -> list[str]:
    try:
        return sorted(item.name for item in folder.iterdir() if item.name.isdigit() and (item / "brain").is_dir())
    except OSError:
        return []


def find_root(path: Path) -> Path:
    """Return the data set's root for the root itself or the folder above it.

    Raises
    ------
    InputError
        If it is not there.
    """
    found = locate(path)
    if found is None or found.patient is not None:
        raise InputError(path, "is not the root of CT-ICH", f"Give the folder that holds {PATIENTS_FOLDER}.")
    return found.root


def patients(root: Path) -> tuple[str, ...]:
    """Return the patients whose slices are here, as three digits."""
    return tuple(_patient_folders(find_root(root) / PATIENTS_FOLDER))


def brain_folder(root: Path, patient: str | int) -> Path:
    """Return the folder of a patient's brain-window slices; ``78``, ``"78"`` and ``"078"`` are one patient.

    Raises
    ------
    SelectionError
        If the patient is not there; near ones are named.
    """
    root = find_root(root)
    known = patients(root)
    wanted = str(patient).strip()
    name = f"{int(wanted):03d}" if wanted.isascii() and wanted.isdigit() else wanted
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"Near ones: {', '.join(near)}." if near else f"Here are: {listing(known, most=100) or 'none'}."
        raise SelectionError(root, f"holds no patient {wanted[:32]!r}", hint)
    return root / PATIENTS_FOLDER / name / "brain"


def read_patient(
    location: Location, patient: str | None, window: DisplayWindow, spacing_mm: tuple[float | None, float | None],
    progress: Callable[[float], None],
) -> Volume:  # fmt: skip
    """Read one patient's slices; the same whether the root, the patient's or the ``brain`` folder was given.

    Raises
    ------
    SelectionError
        If the location is the whole data set and `patient` is None, or `patient` is another one.
    InputError
        As `hemolens.sources.images.read_images`.
    """
    chosen = patient or location.patient
    if chosen is None:
        known = listing(patients(location.root), most=100)
        remedy = f"Choose one with --patient; here are: {known}."
        raise SelectionError(location.root, "is a data set of many patients", remedy)
    folder = brain_folder(location.root, chosen)
    if location.patient is not None and folder.parent.name != location.patient:
        here = f"holds patient {location.patient}, not {chosen}"
        raise SelectionError(folder.parent.parent / location.patient, here, "Give the root of the data set.")
    slices, _ = pick_slices(folder_entries(folder), str(folder))
    volume = read_images(slices, str(folder), window, spacing_mm, progress, window_is_published=window == WINDOW)
    return volume.with_notes(*_missing_note(location.root, volume))


def _missing_note(root: Path, volume: Volume) -> tuple[QualityNote, ...]:
    """Compare the slices with the label table, which sees missing ends that the numbers alone cannot."""
    if not (root / LABELS_FILE).is_file() or any(note.code == "slices_missing" for note in volume.notes):
        return ()
    patient = Path(volume.source.path_or_uid).parent.name
    wanted = {row.slice_number for row in read_labels(root) if row.patient == patient}
    missing = sorted(wanted - set(volume.source.slice_numbers))
    if not missing:
        return ()
    text = f"the label table names slices that are not here: {listing([str(n) for n in missing])}"
    return (QualityNote("slices_missing", Severity.PARTIAL, text),)


def read_labels(root: Path) -> tuple[SliceTruth, ...]:
    """Read the truth of every slice.

    Raises
    ------
    InputError
        If the table is missing, lacks a column or holds something else than numbers.
    """
    return read_rows(find_root(root) / LABELS_FILE)


def read_rows(path: Path) -> tuple[SliceTruth, ...]:
    """Read a table of slices; that of the NIfTI form (1.3) has the same columns. Raises as `read_labels`."""
    return tuple(_truth(path, line, row) for line, row in enumerate(read_table(path, COLUMNS, REMEDY), 2))


def _truth(path: Path, line: int, row: dict[str, str]) -> SliceTruth:
    def flag(column: str) -> bool:
        return _number(path, line, row, column) == 1

    return SliceTruth(
        patient=f"{_number(path, line, row, 'PatientNumber'):03d}",
        slice_number=_number(path, line, row, "SliceNumber"),
        any=not flag("No_Hemorrhage"),
        epidural=flag("Epidural"),
        subdural=flag("Subdural"),
        subarachnoid=flag("Subarachnoid"),
        intraparenchymal=flag("Intraparenchymal"),
        intraventricular=flag("Intraventricular"),
    )


def _number(path: Path, line: int, row: dict[str, str], column: str) -> int:
    try:
        return int(row[column])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"line {line} has no whole number for {column}"
        raise InputError(path, problem, REMEDY) from error


def read_ages(root: Path) -> dict[str, float]:
    """Read the age in years of every patient whose age is published, by three digits; nothing without the table.

    Raises
    ------
    InputError
        If the table lacks a column.
    """
    path = root / AGES_FILE
    if not path.is_file():
        return {}
    ages = {}
    for row in read_table(path, AGE_COLUMNS, "Download it again, or take it away: ages are then unknown."):
        number, age = (row[name] for name in AGE_COLUMNS)
        if number.isdecimal() and re.fullmatch(r"\d+(\.\d+)?", age):
            ages[f"{int(number):03d}"] = float(age)
    return ages


def slice_path(root: Path, truth: SliceTruth) -> Path:
    """Return the brain-window picture of a slice."""
    return find_root(root) / PATIENTS_FOLDER / truth.patient / "brain" / f"{truth.slice_number}.jpg"


def mask_path(root: Path, truth: SliceTruth) -> Path:
    """Return where the mask of a slice lies, if there is one."""
    return slice_path(root, truth).with_name(f"{truth.slice_number}{MASK_END}")


def mask_state(root: Path, truth: SliceTruth) -> MaskState:
    """Say what is known of the blood's outline on a slice.

    Only a slice whose row says no hemorrhage has an empty mask. A slice with hemorrhage and no mask file is unknown,
    and so is one whose mask contradicts its row.
    """
    exists = mask_path(root, truth).is_file()
    if truth.any:
        return "drawn" if exists else "unknown"
    return "unknown" if exists else "empty"


def read_mask(root: Path, truth: SliceTruth) -> NDArray[np.bool_] | None:
    """Return where blood is on a slice, shape of its picture; None where that is unknown.

    Raises
    ------
    InputError
        If a picture cannot be read.
    """
    state = mask_state(root, truth)
    if state == "unknown":
        return None
    if state == "empty":
        return np.zeros(read_gray(file_entry(slice_path(root, truth))).shape, dtype=bool)
    return np.asarray(read_gray(file_entry(mask_path(root, truth))) > BLOOD_ABOVE)


@dataclass(frozen=True, eq=False)
class CtIch:
    """CT-ICH 1.0 as a `hemolens.sources.datasets.cases.DataSet`: one case per patient."""

    root: Path
    cases: tuple[Case, ...]
    notes: tuple[Note, ...]
    name: str = "ct_ich"
    license: str = "CC BY 4.0"
    trainable: bool = True

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`."""
        location = Location(self.root, None)
        volume = read_patient(location, case.patient, WINDOW, (None, None), lambda _fraction: None)
        if tuple(Path(name).stem for name in volume.source.slice_names) != tuple(r.name for r in case.slices):
            raise InputError(self._folder(case), "changed since the data set was opened", "Open it again.")
        return volume

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`; a drawn mask carries the slice's subtype where its row names exactly one."""
        folder = self._folder(case)
        shape = read_gray(file_entry(folder / f"{case.slices[0].name}.jpg")).shape
        labels = np.zeros((len(case.slices), *shape), dtype=np.uint8)
        for plane, record in zip(labels, case.slices, strict=True):
            if record.mask_state == "unknown":
                plane[:] = UNKNOWN
            elif record.mask_state == "drawn":
                path = folder / f"{record.name}{MASK_END}"
                mask = read_gray(file_entry(path))
                if mask.shape != shape:
                    raise InputError(path, f"is {mask.shape}, its slice {shape}", "Use the mask of this very slice.")
                plane[mask > BLOOD_ABOVE] = single_subtype(record.findings)
        return labels

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        folder = self._folder(case)
        masks = (folder / f"{r.name}{MASK_END}" for r in case.slices if r.mask_state == "drawn")
        return (*(folder / f"{r.name}.jpg" for r in case.slices), *masks)

    def _folder(self, case: Case) -> Path:
        return self.root / PATIENTS_FOLDER / case.patient / "brain"


def open_ct_ich(root: Path) -> CtIch:
    """Open CT-ICH 1.0, given either folder level.

    Raises
    ------
    InputError
        If it is not there, or its table is missing or malformed.
    """
    root = find_root(root)
    truth: dict[str, dict[str, SliceTruth]] = {}
    for row in read_labels(root):
        truth.setdefault(row.patient, {})[str(row.slice_number)] = row
    ages = read_ages(root)
    cases, notes = [], []
    for patient in patients(root):
        case, remarks = _case(root, patient, truth.get(patient, {}))
        notes += remarks
        if case.slices:
            cases.append(replace(case, age_years=ages.get(patient)))
    absent = sorted(set(truth) - {case.patient for case in cases})
    if absent:
        notes.append(Note("missing", f"patients of the table whose slices are not here: {listing(absent, most=10)}"))
    return CtIch(root, tuple(cases), tuple(notes))


def _case(root: Path, patient: str, truth: dict[str, SliceTruth]) -> tuple[Case, list[Note]]:
    folder = root / PATIENTS_FOLDER / patient / "brain"
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    slices = [n.removesuffix(".jpg") for n in names if n.endswith(".jpg") and not n.endswith(MASK_END)]
    slices.sort(key=natural_key)
    masked = {n.removesuffix(MASK_END) for n in names if n.endswith(MASK_END)}
    at_odds = {n for n in masked & set(truth) if not truth[n].any}
    kinds: tuple[tuple[NoteKind, str, set[str]], ...] = (
        ("unlabeled", "slices without a row in the table, taken as unknown", set(slices) - set(truth)),
        ("missing", "rows of the table without a slice", set(truth) - set(slices)),
        ("spare_mask", "masks without a slice, left out", masked - set(slices)),
        ("disagreement", "slices whose row says no hemorrhage but that have a mask, taken as unknown", at_odds),
    )
    notes = [
        Note(kind, f"patient {patient}: {text}: {listing(sorted(which, key=natural_key))}")
        for kind, text, which in kinds
        if which
    ]
    records = tuple(_record(name, truth.get(name), name in masked) for name in slices)
    return Case("ct_ich", patient, "", records), notes


def _record(name: str, truth: SliceTruth | None, masked: bool) -> SliceRecord:
    """Only a slice whose row says no hemorrhage has an empty mask; a mask that contradicts its row settles nothing."""
    if truth is None:
        return SliceRecord(name, UNKNOWN_FINDINGS, "unknown")
    if truth.any:
        return SliceRecord(name, tuple(map(float, truth.findings)), "drawn" if masked else "unknown")
    return SliceRecord(name, NO_FINDINGS, "unknown" if masked else "empty")
