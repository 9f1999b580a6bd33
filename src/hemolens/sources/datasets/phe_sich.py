"""PHE-SICH-CT-IDS: slices of spontaneous intracerebral hemorrhage with drawn perihematomal edema (CC BY 4.0).

The display window differs between scans, so gray values are not Hounsfield units; slices are rendered face up, without
spacing.
`blood_pseudo/` holds *derived* masks of blood: a training signal, never a yardstick.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemolens.errors import InputError

BloodState = Literal["pseudo", "unsure", "none"]


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
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"file", "patient", "slice", "blood"} - set(rows[0] if rows else ())
    if missing:
        raise InputError(table, f"no column {', '.join(sorted(missing))}", "Use the table as it was published.")
    states: dict[str, BloodState] = {"pseudo": "pseudo", "unsure": "unsure", "none": "none"}
    return tuple(PheSlice(r["file"], r["patient"], int(r["slice"]), states[r["blood"]]) for r in rows)


def read_image(root: Path, row: PheSlice) -> NDArray[np.uint8]:
    """Return the slice as gray values, shape ``(rows, columns)``."""
    with Image.open(root / "images" / row.file) as image:
        return np.asarray(image.convert("L"))


def read_pseudo_mask(root: Path, row: PheSlice) -> NDArray[np.bool_]:
    """Return the derived mask of blood of a slice whose state is ``pseudo``."""
    with Image.open((root / "blood_pseudo" / row.file).with_suffix(".png")) as image:
        return np.asarray(image.convert("L")) > 127
