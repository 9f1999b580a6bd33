"""A folder of your own: ``images/`` and ``masks/`` with the same names in both, and what you know of them in a table.

::

    <root>/images/anna/01.png …      a folder is a patient, its pictures the slices of one scan, in natural order
    <root>/images/17.png             a picture at the top is a patient of one slice, unless labels.csv names the patient
    <root>/images/bob.nii.gz         a NIfTI is a scan, in Hounsfield units
    <root>/masks/<same name>         pictures: .png or .jpg; NIfTI: the same grid. No mask: unknown, never empty
    <root>/labels.csv                optional: file (below images/), patient, any, epidural, subdural, … (1, 0 or blank)

Masks of 0 and 1, or 0 and 255, are blood of unknown subtype; masks with any of 2 to 5 hold subtypes as
`hemolens.labels.SUBTYPES` numbers them, 6 blood of unknown subtype, 7 edema. One rule holds for the whole folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.labels import FINDING_NAMES
from hemolens.sources.datasets.cases import (
    EDEMA,
    UNKNOWN,
    UNKNOWN_FINDINGS,
    UNKNOWN_SUBTYPE,
    Case,
    Note,
    SliceRecord,
    findings_of_labels,
    single_subtype,
)
from hemolens.sources.datasets.dicom_cases import Progress, walk_files
from hemolens.sources.datasets.mask_index import mask_presence
from hemolens.sources.datasets.nifti_pairs import ENDINGS, read_codes, slice_names, stem
from hemolens.sources.datasets.tables import read_table
from hemolens.sources.files import file_entry, listing
from hemolens.sources.images import SUFFIXES, natural_key, read_gray, read_images
from hemolens.sources.nifti import read_nifti, read_nifti_layout
from hemolens.volume import DisplayWindow, Volume

TABLE = "labels.csv"
WINDOW = DisplayWindow(40.0, 120.0)
LICENSE = "your own data"


@dataclass(frozen=True)
class Part:
    """One file of a case: a picture (one slice) or a NIfTI (all of them)."""

    image: Path
    mask: Path | None


@dataclass(frozen=True, eq=False)
class PlainFolder:
    """A folder of images and masks, as a `hemolens.sources.datasets.cases.DataSet`."""

    root: Path
    cases: tuple[Case, ...]
    notes: tuple[Note, ...]
    parts: Mapping[str, tuple[Part, ...]] = field(repr=False)
    """Case id → its files, in the order of the slices."""
    subtyped: bool = False
    """Whether masks hold subtypes; else anything but 0 is blood."""
    name: str = "folder"
    license: str = LICENSE
    trainable: bool = True

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`; pictures are read with the window of level 40 and width 120."""
        parts = self.parts[case.id]
        entries = [file_entry(part.image) for part in parts]
        if _is_nifti(parts[0].image):
            volume = read_nifti(entries[0], str(parts[0].image), lambda _fraction: None)
            if len(volume) != len(case.slices):
                raise InputError(parts[0].image, "changed since the data set was opened", "Open it again.")
            return volume
        return read_images(entries, str(parts[0].image.parent), WINDOW, (None, None), lambda _fraction: None)

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`."""
        parts = self.parts[case.id]
        if _is_nifti(parts[0].image):
            layout = read_nifti_layout(file_entry(parts[0].image), str(parts[0].image))
            planes = list(_codes(parts[0].mask, parts[0].image)) if parts[0].mask else [None] * layout.shape[0]
            shape = layout.shape[1:]
        else:
            shape = read_gray(file_entry(parts[0].image)).shape
            planes = [_codes(part.mask, part.image)[0] if part.mask else None for part in parts]
        labels = np.zeros((len(case.slices), *shape), dtype=np.uint8)
        for plane, record, codes, part in zip(labels, case.slices, planes, _spread(parts, len(planes)), strict=True):
            if record.mask_state == "unknown" or (codes is None and record.mask_state != "empty"):
                plane[:] = UNKNOWN
            elif codes is not None and record.mask_state == "drawn":
                if codes.shape != shape:
                    problem = f"is {codes.shape}, the first slice of its scan {shape}"
                    raise InputError(part.mask or part.image, problem, "Use slices of one size.")
                plane[:] = codes if self.subtyped else np.where(codes > 0, single_subtype(record.findings), 0)
        return labels

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        parts = self.parts[case.id]
        return (*(part.image for part in parts), *(part.mask for part in parts if part.mask is not None))


def _spread(parts: Sequence[Part], count: int) -> Sequence[Part]:
    return parts if len(parts) == count else [parts[0]] * count


def _is_nifti(path: Path) -> bool:
    return path.name.endswith(ENDINGS)


def find_folder(path: Path) -> Path | None:
    """Return the folder itself if it holds images/ and masks/."""
    return path if (path / "images").is_dir() and (path / "masks").is_dir() else None


def open_folder(root: Path, progress: Progress) -> PlainFolder:
    """Open a folder of images and masks.

    Raises
    ------
    InputError
        If there are no images, the table is malformed, or a mask cannot be read or does not fit its image.
    """
    images = [f for f in walk_files(root / "images", root / "images") if _is_image(f)]
    if not images:
        raise InputError(root / "images", "holds no PNG, JPEG or NIfTI", "Put the slices or scans there.")
    rows = _read_rows(root, images)
    masks = {_key(f): root / "masks" / f for f in walk_files(root / "masks", root / "masks") if _is_image(f)}
    parts = {f: Part(root / "images" / f, masks.pop(_key(f), None)) for f in images}
    image_of = {part.mask: part.image for part in parts.values() if part.mask is not None}
    presence, notes = mask_presence(root, list(image_of), lambda mask: _codes(mask, image_of[mask]), progress)
    codes = frozenset().union(*(labels for shown in presence.values() for labels in shown))
    subtyped = bool(codes & {2, 3, 4, 5, UNKNOWN_SUBTYPE, EDEMA}) and 255 not in codes
    cases, kept, remarks = [], {}, list(notes)
    for patient, study, members in _grouped(images, rows):
        records: list[SliceRecord] = []
        for file in members:
            part, row = parts[file], rows.get(file, {})
            shown = presence[part.mask] if part.mask is not None else None
            records += _records(file, part, row, shown, subtyped, remarks)
        case = Case("folder", patient, study, tuple(records))
        cases.append(case)
        kept[case.id] = tuple(parts[file] for file in members)
    if masks:
        spare = [path.relative_to(root).as_posix() for path in masks.values()]
        remarks.append(Note("spare_mask", f"masks without an image, left out: {listing(spare)}"))
    return PlainFolder(root, tuple(cases), tuple(remarks), kept, subtyped)


def _is_image(file: str) -> bool:
    return file.endswith(ENDINGS) or Path(file).suffix.lower() in SUFFIXES


def _key(file: str) -> str:
    """Name under which an image and its mask are the same: without the ending, pictures apart from NIfTI."""
    path = Path(file)
    return f"{path.parent / stem(path)}.nii" if _is_nifti(path) else str(path.with_suffix(""))


def _codes(mask: Path, image: Path) -> NDArray[np.uint8]:
    """Read a mask's values, ``(slices, rows, columns)``; what is no label becomes 0 or 255 around the middle."""
    if _is_nifti(image):
        layout = read_nifti_layout(file_entry(image), str(image))
        values = np.rint(read_codes(mask, layout, same_place=True))
    else:
        values = read_gray(file_entry(mask))[None].astype(np.float64)
        shape = read_gray(file_entry(image)).shape
        if values.shape[1:] != shape:
            raise InputError(mask, f"is {values.shape[1:]}, its image {shape}", "Use the mask of this very image.")
    if values.max() <= EDEMA and values.min() >= 0:
        return values.astype(np.uint8)
    return np.where(values > values.max() / 2, 255, 0).astype(np.uint8)


def _read_rows(root: Path, images: Sequence[str]) -> dict[str, dict[str, str]]:
    if not (root / TABLE).is_file():
        return {}
    remedy = f"Columns may be file, patient, {', '.join(FINDING_NAMES)}; findings are 1, 0 or blank."
    known, rows = set(images), {}
    for line, row in enumerate(read_table(root / TABLE, ["file"], remedy), 2):
        strange = sorted(set(row) - {"file", "patient", *FINDING_NAMES})
        if strange:
            raise InputError(root / TABLE, f"has a column {strange[0]!r} of unknown meaning", remedy)
        if row["file"] not in known:
            raise InputError(root / TABLE, f"line {line}: images/{row['file'][:80]} is not there", remedy)
        if any(row.get(name, "") not in ("", "0", "1") for name in FINDING_NAMES):
            raise InputError(root / TABLE, f"line {line} has a finding other than 0, 1 or blank", remedy)
        rows[row["file"]] = row
    return rows


def _grouped(images: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, list[str]]]:
    """Return patient, study and files of each scan; ``/`` and ``#`` may be in no patient's name."""
    scans: dict[tuple[str, str], list[str]] = {}
    for file in images:
        path = Path(file)
        folder = path.parent.as_posix()
        told = rows.get(file, {}).get("patient", "")
        patient = told or (stem(path) if folder == "." and _is_nifti(path) else folder if folder != "." else path.stem)
        study = stem(path) if _is_nifti(path) and (told or folder != ".") else ""
        if told and folder != "." and not _is_nifti(path):  # each folder of pictures is a scan of its own
            study = folder
        scans.setdefault((_safe(patient), _safe(study)), []).append(file)
    return [(p, s, sorted(f, key=natural_key)) for (p, s), f in sorted(scans.items())]


def _safe(name: str) -> str:
    return name.replace("/", "-").replace("#", "-")


def _records(
    file: str,
    part: Part,
    row: Mapping[str, str],
    shown: Sequence[frozenset[int]] | None,
    subtyped: bool,
    remarks: list[Note],
) -> list[SliceRecord]:
    names: Sequence[str] = [Path(file).name]
    if _is_nifti(part.image):
        names = slice_names(part.image, read_nifti_layout(file_entry(part.image), str(part.image)))
    told = tuple({"1": 1.0, "0": 0.0}.get(row.get(name, ""), math.nan) for name in FINDING_NAMES)
    if len(names) > 1:  # a row on a whole scan says of its slices only what is in none of them
        told = tuple(0.0 if value == 0.0 else math.nan for value in told)
    if told[0] == 0.0:
        told = (0.0,) * len(told)
    records = []
    labels_of: Sequence[frozenset[int] | None] = [None] * len(names) if shown is None else shown
    for name, labels in zip(names, labels_of, strict=True):
        seen = _seen(labels, subtyped)
        merged = tuple(s if math.isnan(t) else t for t, s in zip(told, seen, strict=True))
        if labels is None:
            records.append(SliceRecord(name, merged, "empty" if merged[0] == 0.0 else "unknown"))
        elif any(a != b for a, b in zip(told, seen, strict=True) if not (math.isnan(a) or math.isnan(b))):
            text = f"{file}: slice {name}: its row and its mask disagree; the mask is taken as unknown"
            remarks.append(Note("disagreement", text))
            records.append(SliceRecord(name, told, "unknown"))
        else:
            records.append(SliceRecord(name, merged, "drawn" if merged[0] == 1.0 else "empty"))
    return records


def _seen(labels: frozenset[int] | None, subtyped: bool) -> tuple[float, ...]:
    if labels is None:
        return UNKNOWN_FINDINGS
    meant = sorted(labels) if subtyped else [UNKNOWN_SUBTYPE] * bool(labels)
    return findings_of_labels(np.array(meant, dtype=np.uint8))
