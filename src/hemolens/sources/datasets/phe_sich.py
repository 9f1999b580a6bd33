"""PHE-SICH-CT-IDS: slices of spontaneous intracerebral hemorrhage with drawn perihematomal edema (CC BY 4.0).

The display window differs between scans, so gray values are not Hounsfield units; slices are rendered face up, without
spacing.
`blood_pseudo/` holds *derived* masks of blood: a training signal, never a yardstick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemolens.errors import InputError
from hemolens.sources.datasets.cases import (
    EDEMA,
    NO_FINDINGS,
    UNKNOWN,
    UNKNOWN_FINDINGS,
    UNKNOWN_SUBTYPE,
    Case,
    MaskState,
    Note,
    SliceRecord,
)
from hemolens.sources.datasets.tables import read_table
from hemolens.sources.files import file_entry, listing
from hemolens.sources.images import read_gray
from hemolens.volume import DisplayWindow, SourceInfo, Volume

BloodState = Literal["pseudo", "unsure", "none"]
PSEUDO_FINDINGS: tuple[float, ...] = (1.0, 0.0, 0.0, math.nan, 1.0, math.nan)
"""Spontaneous hemorrhage inside the brain: the data set leaves out bleeds after trauma, and such a bleed may well have
broken into the ventricles or the subarachnoid space."""
WINDOW = DisplayWindow(40.0, 120.0)
"""What the gray values are read as, once `standardized`; the published windows differ and are not told."""
TYPICAL_BRAIN_GRAY = 113.0
"""Median gray value of brain under `WINDOW`, as in CT-ICH."""


@dataclass(frozen=True)
class PheSlice:
    """One row of ``slices.csv``."""

    file: str
    patient: str
    number: int
    blood: BloodState
    """`pseudo`: a pseudo-mask exists; `unsure`: blood is likely, the mask unknown; `none`: no lesion was marked."""


def read_slices(root: Path) -> tuple[PheSlice, ...]:
    """Read ``slices.csv``.

    Raises
    ------
    InputError
        If it is missing or lacks a column.
    """
    table = root / "slices.csv"
    if not table.is_file():
        raise InputError(root, "slices.csv is missing", "Point at the folder that holds slices.csv and images/.")
    remedy = "Use the table as it was published."
    rows = read_table(table, ("file", "patient", "slice", "blood"), remedy)
    states: dict[str, BloodState] = {"pseudo": "pseudo", "unsure": "unsure", "none": "none"}
    slices = []
    for line, row in enumerate(rows, 2):
        if row["blood"] not in states or not row["slice"].isdigit():
            raise InputError(table, f"line {line} has no slice number or no known state of blood", remedy)
        slices.append(PheSlice(row["file"], row["patient"], int(row["slice"]), states[row["blood"]]))
    return tuple(slices)


def read_image(root: Path, row: PheSlice) -> NDArray[np.uint8]:
    """Return the slice as gray values, shape ``(rows, columns)``."""
    with Image.open(root / "images" / row.file) as image:
        return np.asarray(image.convert("L"))


def read_pseudo_mask(root: Path, row: PheSlice) -> NDArray[np.bool_]:
    """Return the derived mask of blood of a slice whose state is ``pseudo``."""
    with Image.open((root / "blood_pseudo" / row.file).with_suffix(".png")) as image:
        return np.asarray(image.convert("L")) > 127


def standardized(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale a scan's gray values so that brain is as bright as under `WINDOW`; white stays white.

    Parameters
    ----------
    gray
        All slices of one scan, shape ``(slices, rows, columns)``.
    """
    inner = gray[:, gray.shape[1] // 4 : -gray.shape[1] // 4, gray.shape[2] // 4 : -gray.shape[2] // 4]
    tissue = inner[(inner > 40) & (inner < 200)]
    if not tissue.size:
        return gray
    scaled = gray.astype(np.float32) * np.float32(TYPICAL_BRAIN_GRAY / float(np.median(tissue)))
    return np.where(gray == 255, 255, np.clip(np.rint(scaled), 0, 255)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class PheSich:
    """PHE-SICH as a `hemolens.sources.datasets.cases.DataSet`: one case per patient."""

    root: Path
    cases: tuple[Case, ...]
    notes: tuple[Note, ...]
    name: str = "phe_sich"
    license: str = "CC BY 4.0"
    trainable: bool = True

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`; gray values are `standardized` and then read as Hounsfield units of `WINDOW`.

        Some scans lack slices in between: ``source.slice_numbers`` tells which follow each other.
        """
        gray = [read_gray(file_entry(self.root / "images" / record.name)) for record in case.slices]
        _check_sizes(self.root / "images", case, [g.shape for g in gray])
        hu = standardized(np.stack(gray)).astype(np.float32) * np.float32(WINDOW.width_hu / 255.0)
        hu += np.float32(WINDOW.low_hu)
        names = tuple(record.name for record in case.slices)
        numbers = tuple(int(Path(name).stem.rpartition("_")[2]) for name in names)
        return Volume(hu, None, SourceInfo("images", str(self.root), names, numbers, window=WINDOW))

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`: derived blood is `UNKNOWN_SUBTYPE`, drawn edema outside of it `EDEMA`."""
        shape = read_gray(file_entry(self.root / "images" / case.slices[0].name)).shape
        labels = np.zeros((len(case.slices), *shape), dtype=np.uint8)
        for plane, record in zip(labels, case.slices, strict=True):
            if record.mask_state == "unknown":
                plane[:] = UNKNOWN
            elif record.mask_state == "pseudo":
                for folder, label in (("oedema", EDEMA), ("blood_pseudo", UNKNOWN_SUBTYPE)):
                    path = (self.root / folder / record.name).with_suffix(".png")
                    if folder == "blood_pseudo" or path.is_file():
                        plane[_mask(path, shape)] = label
        return labels

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        images = [self.root / "images" / record.name for record in case.slices]
        masks = [
            (self.root / folder / record.name).with_suffix(".png")
            for record in case.slices
            if record.mask_state == "pseudo"
            for folder in ("oedema", "blood_pseudo")
        ]
        return (*images, *(path for path in masks if path.is_file()))


def _mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    file_entry(path)
    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
    except OSError as error:
        raise InputError(path, "is damaged or no picture", "Copy the data set again.") from error
    if mask.shape != shape:
        raise InputError(path, f"is {mask.shape}, its slice {shape}", "Use the mask of this very slice.")
    return mask


def _check_sizes(folder: Path, case: Case, shapes: list[tuple[int, ...]]) -> None:
    for record, shape in zip(case.slices, shapes, strict=True):
        if shape != shapes[0]:
            problem = f"is {shape}, the scan's first slice {shapes[0]}"
            raise InputError(folder / record.name, problem, "Use the slices as they were published.")


def open_phe_sich(root: Path) -> PheSich:
    """Open PHE-SICH.

    Raises
    ------
    InputError
        As `read_slices`, or if a slice's picture is missing.
    """
    by_patient: dict[str, list[PheSlice]] = {}
    for row in read_slices(root):
        by_patient.setdefault(row.patient, []).append(row)
    here = {path.name for path in (root / "images").iterdir()}
    cases, notes = [], []
    for patient, rows in sorted(by_patient.items()):
        rows.sort(key=lambda row: row.number)
        absent = [row.file for row in rows if row.file not in here]
        if absent:
            text = f"patient {patient}: slices of the table are not in images/: {listing(absent)}"
            notes.append(Note("missing", text))
        records = tuple(_record(row) for row in rows if row.file in here)
        if records:
            cases.append(Case("phe_sich", patient, "", records))
    return PheSich(root, tuple(cases), tuple(notes))


def _record(row: PheSlice) -> SliceRecord:
    findings, state = _KNOWN[row.blood]
    return SliceRecord(row.file, findings, state)


_KNOWN: dict[BloodState, tuple[tuple[float, ...], MaskState]] = {
    "pseudo": (PSEUDO_FINDINGS, "pseudo"),
    "unsure": (UNKNOWN_FINDINGS, "unknown"),
    "none": (NO_FINDINGS, "empty"),
}
