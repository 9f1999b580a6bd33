"""Masks that a network derived, laid over the slices of a data set that bleed and have none, or a derived one.

They are `pseudo` from then on: a training signal, never a yardstick. `hemolens data pseudo` makes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.sources.datasets.cases import Case, DataSet, Note, SliceRecord
from hemolens.volume import Volume

INDEX = "pseudo.json"
FORMAT = "hemolens-pseudo-1"
REMEDY = "Make the folder again with hemolens data pseudo."


@dataclass(frozen=True)
class PseudoCase:
    """What the folder holds of a case."""

    file: str
    slices: tuple[str, ...]
    """Names of those that are in the file."""
    findings: Mapping[str, tuple[float, ...]]
    """What is known from now on of the slices that had a derived mask, or were said to have none."""


@dataclass(frozen=True, eq=False)
class PseudoFolder:
    """What `hemolens data pseudo` wrote."""

    root: Path
    cases: Mapping[str, PseudoCase]
    """By the id of the case."""
    origin: Mapping[str, Any]
    """Model, its SHA-256 and settings: goes into the provenance of what is trained with it."""


def file_name(case: Case) -> str:
    """Return the name of a case's file in the folder."""
    return case.id.replace("/", "_") + ".npz"


def read_pseudo(root: Path) -> PseudoFolder:
    """Read the index of a folder.

    Raises
    ------
    InputError
        If it is missing or not of this form.
    """
    path = root / INDEX
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(root, f"holds no {INDEX}", REMEDY) from error
    except ValueError as error:
        raise InputError(path, "is not JSON", REMEDY) from error
    wrong = InputError(path, f"is not of the form {FORMAT}", REMEDY)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise wrong
    try:
        cases = {name: _case(entry) for name, entry in told["cases"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise wrong from error
    return PseudoFolder(root, cases, told.get("origin", {}))


def _case(entry: Mapping[str, Any]) -> PseudoCase:
    rows = [tuple(math.nan if v is None else float(v) for v in row) for row in entry.get("findings", ())]
    findings = dict(zip(entry["slices"], rows, strict=True)) if rows else {}
    return PseudoCase(entry["file"], tuple(entry["slices"]), findings)


def with_pseudo(datasets: Sequence[DataSet], folder: PseudoFolder) -> tuple[DataSet, ...]:
    """Return the data sets, those that the folder has masks for with them.

    Raises
    ------
    InputError
        If the folder has masks for scans or slices that are not here, or for slices whose mask is known: drawn, or
        neither unknown nor mended.
    """
    known = {case.id: case for dataset in datasets for case in dataset.cases}
    for name, held in folder.cases.items():
        if name not in known:
            raise InputError(folder.root, f"has masks for {name}, which is not in the data", REMEDY)
        states = {record.name: record.mask_state for record in known[name].slices}
        derived = "pseudo" in states.values()
        for record in held.slices:
            free = {"unknown", "pseudo", "empty"} if derived and record in held.findings else {"unknown"}
            if states.get(record) not in free:
                raise InputError(
                    folder.root, f"has a mask for {name}#{record}, which is no slice of unknown mask", REMEDY
                )
    touched = {case.dataset for case in known.values() if case.id in folder.cases}
    return tuple(PseudoMasked(d, folder) if d.name in touched else d for d in datasets)


class PseudoMasked:
    """A data set some of whose unknown masks are derived; everything else is as in `under`."""

    def __init__(self, under: DataSet, folder: PseudoFolder) -> None:
        self.under, self.folder = under, folder
        self.name, self.root, self.license, self.trainable = under.name, under.root, under.license, under.trainable
        self.notes: tuple[Note, ...] = under.notes
        self._own = {case.id: case for case in under.cases}
        self.cases: tuple[Case, ...] = tuple(self._told(case) for case in under.cases)

    def _told(self, case: Case) -> Case:
        held = self.folder.cases.get(case.id)
        return replace(case, slices=tuple(_record(r, held) for r in case.slices)) if held else case

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`."""
        return self.under.volume(self._own[case.id])

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`."""
        labels = self.under.labels(self._own[case.id])
        if case.id not in self.folder.cases:
            return labels
        labels = labels.copy()  # they are the data set's own
        held = self.folder.cases[case.id]
        path = self.folder.root / held.file
        try:
            with np.load(path) as stored:
                planes = stored["labels"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(path, "cannot be read", REMEDY) from error
        if planes.shape != (len(held.slices), *labels.shape[1:]):
            raise InputError(path, f"has shape {planes.shape}, its scan {labels.shape}", REMEDY)
        place = {record.name: k for k, record in enumerate(case.slices)}
        for name, plane in zip(held.slices, planes, strict=True):
            labels[place[name]] = plane
        return labels

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        own = self.under.files(self._own[case.id])
        return (*own, self.folder.root / self.folder.cases[case.id].file) if case.id in self.folder.cases else own


def _record(record: SliceRecord, held: PseudoCase) -> SliceRecord:
    """Tell of a slice what the folder says; one of which nothing is known any more is of unknown mask."""
    if record.name not in held.slices:
        return record
    findings = held.findings.get(record.name, record.findings)
    return replace(record, findings=findings, mask_state="unknown" if math.isnan(findings[0]) else "pseudo")
