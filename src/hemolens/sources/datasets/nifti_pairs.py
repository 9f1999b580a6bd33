"""Data sets of NIfTI scans with a NIfTI mask each: CT-ICH 1.3, BHSD and INSTANCE 2022 as they were published.

::

    CT-ICH 1.3.1 (PhysioNet)    hemorrhage_diagnosis_raw_ct.csv  ct_scans/049.nii  masks/049.nii (0, about 255)
    BHSD                        label_192/images/ID_<patient>_ID_<study>.nii.gz  label_192/ground truths/<same name>
                                or imagesTr, imagesTs with labelsTr, labelsTs; 1 to 5 as in its dataset.json
    INSTANCE 2022               train_2/data/001.nii.gz  train_2/label/001.nii.gz (0, 1)

Slices are named by their number in the file, from 1. In these data sets a mask's voxels stand for the scan's voxels
one by one, whatever the two headers say; a folder of your own is held to more (`hemolens.sources.datasets.folder`).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hemolens.errors import DecodeError, InputError
from hemolens.sources.datasets import ct_ich
from hemolens.sources.datasets.cases import (
    UNKNOWN,
    UNKNOWN_FINDINGS,
    UNKNOWN_SUBTYPE,
    Case,
    MaskState,
    Note,
    NoteKind,
    SliceRecord,
    findings_of_labels,
    single_subtype,
)
from hemolens.sources.datasets.mask_index import mask_presence
from hemolens.sources.files import file_entry, listing
from hemolens.sources.nifti import NiftiLayout, read_nifti, read_nifti_layout
from hemolens.volume import Volume

BHSD_CODES: Mapping[int, int] = {1: 1, 2: 4, 3: 5, 4: 3, 5: 2}
"""BHSD's ``dataset.json``: 1 epidural, 2 intraparenchymal, 3 intraventricular, 4 subarachnoid, 5 subdural."""
ENDINGS = (".nii.gz", ".nii")
SAME_PLACE_MM = 0.5
RESEARCH = "research use only"
CT_ICH_TABLE = "hemorrhage_diagnosis_raw_ct.csv"

Progress = Callable[[float], None]


def stem(path: Path) -> str:
    """Return a NIfTI's name without its ending."""
    return next((path.name.removesuffix(e) for e in ENDINGS if path.name.endswith(e)), path.name)


def niftis(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by `stem`, sorted; hidden ones are left out."""
    files = sorted(p for p in folder.iterdir() if p.name.endswith(ENDINGS) and not p.name.startswith("."))
    return {stem(path): path for path in files}


def read_codes(path: Path, layout: NiftiLayout, *, same_place: bool) -> NDArray[np.float64]:
    """Read a mask's values as stored, turned as its scan is: slices, rows, columns.

    Parameters
    ----------
    path
        The mask.
    layout
        Of the scan.
    same_place
        Refuse a mask whose header says that it lies elsewhere than the scan.

    Raises
    ------
    InputError
        If it cannot be read, has another shape, or lies elsewhere.
    """
    try:
        image: Any = nib.load(file_entry(path).path)
        values = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise DecodeError(path, "is cut short, damaged or no NIfTI", "Copy the data set again.") from error
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    turned = np.transpose(values, layout.axes) if values.ndim == 3 else values
    if turned.shape != layout.shape:
        problem = f"is {turned.shape}, its scan {layout.shape} (slices, rows, columns)"
        raise InputError(path, problem, "Use the mask of this very scan.")
    if same_place and _distance_mm(image.affine, layout) > SAME_PLACE_MM:
        raise InputError(path, "lies elsewhere than its scan by its header", "Use the mask of this very scan.")
    return np.asarray(np.flip(turned, tuple(i for i, flip in enumerate(layout.flips) if flip)), dtype=np.float64)


def _distance_mm(affine_ras: NDArray[np.float64], layout: NiftiLayout) -> float:
    """Return how far apart the corners of mask and scan are."""
    size = np.empty(3)
    size[list(layout.axes)] = layout.shape
    corners = np.array([[*(np.array([i, j, k]) * (size - 1)), 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    mask = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    return float(np.linalg.norm((corners @ (mask - layout.affine_lps).T)[:, :3], axis=1).max())


def to_labels(path: Path, codes: NDArray[np.float64], table: Mapping[int, int] | None) -> NDArray[np.uint8]:
    """Turn a mask's values into labels: by `table`, or anything above half of the largest is `UNKNOWN_SUBTYPE`.

    Raises
    ------
    InputError
        If a value is not in `table`.
    """
    if table is None:
        # Published as 0 and 1, or as 0 and about 255 with interpolated edges.
        highest = float(codes.max())
        blood = codes > (0.5 if highest <= 1.5 else highest / 2)
        return np.where(blood, UNKNOWN_SUBTYPE, 0).astype(np.uint8)
    rounded = np.rint(codes)
    labels = np.zeros(codes.shape, dtype=np.uint8)
    for code, label in table.items():
        labels[rounded == code] = label
    strange = np.setdiff1d(np.unique(rounded), [0, *table])
    if strange.size or np.abs(codes - rounded).max() > 0.01:
        named = listing([f"{v:g}" for v in (strange if strange.size else np.unique(codes))])
        raise InputError(path, f"holds values that are no labels: {named}", "Use the masks as they were published.")
    return labels


@dataclass(frozen=True, eq=False)
class NiftiPairs:
    """NIfTI scans with masks, as a `hemolens.sources.datasets.cases.DataSet`."""

    name: str
    root: Path
    license: str
    trainable: bool
    cases: tuple[Case, ...]
    notes: tuple[Note, ...]
    pairs: Mapping[str, tuple[Path, Path | None]] = field(repr=False)
    """Case id → scan and mask."""
    codes: Mapping[int, int] | None = None
    """Value in the masks → label; None for masks of blood and nothing else."""
    same_place: bool = False
    """Whether the headers of mask and scan must agree."""

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`."""
        image, _ = self.pairs[case.id]
        volume = read_nifti(file_entry(image), str(image), lambda _fraction: None)
        if len(volume) != len(case.slices):
            raise InputError(image, "changed since the data set was opened", "Open it again.")
        return volume

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`."""
        image, mask = self.pairs[case.id]
        layout = read_nifti_layout(file_entry(image), str(image))
        if mask is None:
            return _without_mask(case, layout.shape)
        labels = to_labels(mask, read_codes(mask, layout, same_place=self.same_place), self.codes)
        for plane, record in zip(labels, case.slices, strict=True):
            if record.mask_state == "unknown":
                plane[:] = UNKNOWN
            elif record.mask_state == "empty":
                plane[:] = 0
            elif self.codes is None:
                plane[plane > 0] = single_subtype(record.findings)
        return labels

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        image, mask = self.pairs[case.id]
        return (image,) if mask is None else (image, mask)


def _without_mask(case: Case, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    labels = np.zeros(shape, dtype=np.uint8)
    for plane, record in zip(labels, case.slices, strict=True):
        plane[:] = 0 if record.mask_state == "empty" else UNKNOWN
    return labels


def slice_names(path: Path, layout: NiftiLayout) -> tuple[str, ...]:
    """Name slices by their number in the file, from 1, in the order of the volume.

    Raises
    ------
    InputError
        If slices do not lie along the file's third axis.
    """
    if layout.axes[0] != 2:
        raise InputError(path, "is no stack of axial slices", "Use the scans as they were published.")
    numbers = range(layout.shape[0], 0, -1) if layout.flips[0] else range(1, layout.shape[0] + 1)
    return tuple(map(str, numbers))


@dataclass(frozen=True)
class Found:
    """One scan of a data set before its mask was looked at."""

    patient: str
    study: str
    image: Path
    mask: Path | None


def build(
    dataset: NiftiPairs,
    scans: list[Found],
    truth: Mapping[tuple[str, str], tuple[float, ...]] | None,
    progress: Progress,
) -> NiftiPairs:
    """Fill a data set with its cases.

    Parameters
    ----------
    dataset
        Without cases.
    scans
        What was found in its folders.
    truth
        ``(patient, slice name)`` → findings, where a table says so; else the masks are complete and say it.
    progress
        Called with the fraction that is done.
    """
    layouts = {scan.image: read_nifti_layout(file_entry(scan.image), str(scan.image)) for scan in scans}
    image_of = {scan.mask: scan.image for scan in scans if scan.mask is not None}

    def read(mask: Path) -> NDArray[np.uint8]:
        codes = read_codes(mask, layouts[image_of[mask]], same_place=dataset.same_place)
        return to_labels(mask, codes, dataset.codes)

    presence, notes = mask_presence(dataset.root, list(image_of), read, progress)
    cases, pairs = [], {}
    remarks: list[Note] = []
    for scan in scans:
        names = slice_names(scan.image, layouts[scan.image])
        shown = presence[scan.mask] if scan.mask is not None else (None,) * len(names)
        if len(shown) != len(names):
            raise InputError(scan.mask or scan.image, "is the mask of another scan", "Download the data set again.")
        rows = [truth.get((scan.patient, name)) if truth is not None else None for name in names]
        records = tuple(
            _judged(name, row, labels) if truth is not None else _shown(name, labels)
            for name, row, labels in zip(names, rows, shown, strict=True)
        )
        case = Case(dataset.name, scan.patient, scan.study, records)
        if truth is not None:
            remarks += _table_remarks(scan.patient, records, rows, shown)
        cases.append(case)
        pairs[case.id] = (scan.image, scan.mask)
    return replace(dataset, cases=tuple(cases), pairs=pairs, notes=(*dataset.notes, *remarks, *notes))


def _shown(name: str, labels: frozenset[int] | None) -> SliceRecord:
    """Judge a slice by its complete mask."""
    if labels is None:
        return SliceRecord(name, UNKNOWN_FINDINGS, "unknown")
    findings = findings_of_labels(np.array(sorted(labels), dtype=np.uint8))
    return SliceRecord(name, findings, "drawn" if labels else "empty")


def _judged(name: str, row: tuple[float, ...] | None, labels: frozenset[int] | None) -> SliceRecord:
    """Judge a slice by its row; a mask that contradicts it settles nothing."""
    if row is None:
        return SliceRecord(name, UNKNOWN_FINDINGS, "unknown")
    state: MaskState = "unknown"
    if row[0] == 0.0:
        state = "unknown" if labels else "empty"
    elif labels:
        state = "drawn"
    return SliceRecord(name, row, state)


def _table_remarks(
    patient: str,
    records: tuple[SliceRecord, ...],
    rows: list[tuple[float, ...] | None],
    shown: tuple[frozenset[int] | None, ...],
) -> list[Note]:
    absent = [r.name for r, row in zip(records, rows, strict=True) if row is None]
    at_odds = [
        r.name
        for r, labels in zip(records, shown, strict=True)
        if labels is not None and not math.isnan(r.findings[0]) and bool(labels) != (r.findings[0] == 1.0)
    ]
    kinds: tuple[tuple[NoteKind, str, list[str]], ...] = (
        ("unlabeled", "slices without a row in the table, taken as unknown", absent),
        ("disagreement", "slices whose row and mask disagree, mask taken as unknown", at_odds),
    )
    return [Note(kind, f"patient {patient}: {text}: {listing(which)}") for kind, text, which in kinds if which]


def find_ct_ich_nifti(path: Path) -> Path | None:
    """Return the root of CT-ICH 1.3 for itself or the folder above."""
    candidates = (path, *(path / name for name in ct_ich.only_folder(path)))
    return next((p for p in candidates if (p / "ct_scans").is_dir() and (p / "masks").is_dir()), None)


def open_ct_ich_nifti(root: Path, progress: Progress) -> NiftiPairs:
    """Open CT-ICH 1.3; the table is the truth of every slice, the masks that of its blood.

    Raises
    ------
    InputError
        If the table is missing or malformed, or a scan or mask cannot be read.
    """
    truth = {
        (row.patient, str(row.slice_number)): tuple(map(float, row.findings))
        for row in ct_ich.read_rows(root / CT_ICH_TABLE)
    }
    masks = niftis(root / "masks")
    scans = [Found(name, "", path, masks.pop(name, None)) for name, path in niftis(root / "ct_scans").items()]
    known, here = {patient for patient, _ in truth}, {scan.patient for scan in scans}
    notes = _spare(masks)
    if known - here:
        text = f"patients of the table whose scans are not here: {listing(sorted(known - here), most=20)}"
        notes.append(Note("missing", text))
    license_name = "PhysioNet Restricted Health Data License 1.5.0"
    return build(NiftiPairs("ct_ich_nifti", root, license_name, False, (), tuple(notes), {}), scans, truth, progress)


def _spare(masks: Mapping[str, Path]) -> list[Note]:
    return [Note("spare_mask", f"masks without a scan, left out: {listing(sorted(masks))}")] if masks else []


BHSD_FOLDERS = (("images", "ground truths"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))


def find_bhsd(path: Path) -> Path | None:
    """Return the root of BHSD's NIfTI form for itself or a folder above it."""
    for root in (path, path / "label_192", *(path / name for name in ct_ich.only_folder(path))):
        if any((root / images).is_dir() and (root / masks).is_dir() for images, masks in BHSD_FOLDERS):
            return root
    return None


def open_bhsd(root: Path, progress: Progress) -> NiftiPairs:
    """Open BHSD's 192 scans with drawn masks; names tell the RSNA patient and study that a scan is from.

    Raises
    ------
    InputError
        If a scan or mask cannot be read or a mask holds a value that is no class.
    """
    scans, notes = [], []
    for images, folder in BHSD_FOLDERS:
        if not (root / images).is_dir() or not (root / folder).is_dir():
            continue
        masks = niftis(root / folder)
        for name, path in niftis(root / images).items():
            match = re.fullmatch(r"(ID_\w+?)_(ID_\w+)", name)
            patient, study = match.groups() if match else (name, "")
            mask = masks.pop(name, None)
            if mask is None:
                notes.append(Note("left_out", f"{name}: no mask, left out"))
                continue
            scans.append(Found(patient, study, path, mask))
        notes += _spare(masks)
    base = NiftiPairs("bhsd", root, RESEARCH, False, (), tuple(notes), {}, BHSD_CODES)
    return build(base, scans, None, progress)


def find_instance(path: Path) -> Path | None:
    """Return the root of INSTANCE 2022 (what holds data/ and label/) for itself or a folder above it."""
    for root in (path, path / "train_2", path / "train"):
        if (root / "data").is_dir() and (root / "label").is_dir() and niftis(root / "data"):
            return root
    return None


def open_instance(root: Path, progress: Progress) -> NiftiPairs:
    """Open INSTANCE 2022's training scans; their masks tell blood, not its subtype.

    Raises
    ------
    InputError
        If a scan or mask cannot be read.
    """
    masks = niftis(root / "label")
    scans, notes = [], []
    for name, path in niftis(root / "data").items():
        if name in masks:
            scans.append(Found(name, "", path, masks.pop(name)))
        else:
            notes.append(Note("left_out", f"{name}: no mask, left out"))
    base = NiftiPairs("instance", root, RESEARCH, False, (), (*notes, *_spare(masks)), {})
    return build(base, scans, None, progress)
