"""What every data set is turned into: cases of labeled slices, and one way to their pixels.

A `Case` holds names and labels only. Opening a data set reads tables and listings; pixels are read case by case, with
`DataSet.volume` and `DataSet.labels`, which stand on the same grid and in the same order of slices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.volume import Volume

UNKNOWN_SUBTYPE = 6
"""Label of blood whose subtype is not known."""
EDEMA = 7
"""Label of perihematomal edema, which is no blood."""
UNKNOWN = 255
"""Label of a pixel of which nothing is known; a slice of unknown mask is 255 throughout."""

MaskState = Literal["drawn", "pseudo", "empty", "unknown"]
"""What is known of a slice's blood: outlined by hand, derived (a training signal, never a yardstick), known to be
absent, or nothing; unknown is never empty."""

NoteKind = Literal["known", "missing", "spare_mask", "disagreement", "unlabeled", "left_out"]
"""What a note is about: a defect that was published as such, or none at all; files that the table names and that are
not here; masks without an image; labels that contradict each other or their mask; images without a label; files that
cannot be used. All but the first are what `hemolens data check` is for."""

NO_FINDINGS: tuple[float, ...] = (0.0,) * len(FINDING_NAMES)
UNKNOWN_FINDINGS: tuple[float, ...] = (math.nan,) * len(FINDING_NAMES)


class Note(str):
    """A remark on a data set: one line of text that knows what it is about."""

    kind: NoteKind

    def __new__(cls, kind: NoteKind, text: str) -> Note:
        """Make a note; nothing but text for everyone who does not ask for its kind."""
        note = super().__new__(cls, text)
        note.kind = kind
        return note

    def __getnewargs__(self) -> tuple[NoteKind, str]:  # type: ignore[override]
        """Tell pickle what to make it from: data sets go to the loader's processes."""
        return self.kind, str(self)


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """One slice and what its data set says of it."""

    name: str
    """As the data set names it (``"14"``, ``"0001_05"``, a SOP Instance UID); unique in its case."""
    findings: tuple[float, ...]
    """1, 0 or NaN (unknown), in the order of `hemolens.labels.FINDING_NAMES`."""
    mask_state: MaskState


@dataclass(frozen=True, eq=False)
class Case:
    """One scan of one patient; a loose slice is a case of one slice."""

    dataset: str
    patient: str
    study: str
    """Tells the scans of one patient apart; empty where the patient has one."""
    slices: tuple[SliceRecord, ...]
    """In the order of the volume."""
    scan_findings: tuple[float, ...] | None = None
    """Where only whole scans are labeled (CQ500); else derived from the slices."""
    age_years: float | None = None
    """None where it is not published."""

    @property
    def group(self) -> str:
        """``dataset/patient``: what splits are made of."""
        return f"{self.dataset}/{self.patient}"

    @property
    def id(self) -> str:
        """``dataset/patient``, or ``dataset/patient/study``."""
        return f"{self.group}/{self.study}" if self.study else self.group

    @property
    def findings(self) -> tuple[float, ...]:
        """What is known of the whole scan: 1 where a slice has it, else NaN where one is unknown, else 0."""
        if self.scan_findings is not None:
            return self.scan_findings
        return merged_findings(record.findings for record in self.slices)

    def slice_id(self, index: int) -> str:
        """Name slice `index` among all data sets: ``ct_ich/049#14``."""
        return f"{self.id}#{self.slices[index].name}"


class DataSet(Protocol):
    """A data set that was opened."""

    @property
    def name(self) -> str:
        """Short name, the first part of every group; see `hemolens.sources.datasets.opening.NAMES`."""
        ...

    @property
    def root(self) -> Path:
        """The folder that it lies in."""
        ...

    @property
    def license(self) -> str:
        """As its publisher states it."""
        ...

    @property
    def trainable(self) -> bool:
        """Whether weights trained on it may be given away; False means research use only."""
        ...

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every scan, in a fixed order."""
        ...

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was skipped and why."""
        ...

    def volume(self, case: Case) -> Volume:
        """Read the pixels, one per record of ``case.slices`` and in that order.

        Raises
        ------
        InputError
            If a file is missing or cannot be read.
        """
        ...

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """Read the masks, on the grid of `volume`: 0, a subtype (1 to 5), 6, 7 or 255 (see the constants above).

        Raises
        ------
        InputError
            If a file cannot be read or does not fit its slice.
        """
        ...

    def files(self, case: Case) -> tuple[Path, ...]:
        """Return every file that `volume` and `labels` read: when one changes, whatever was derived is stale."""
        ...


def merged_findings(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Merge findings of slices or scans: 1 where any is 1, else NaN where any is unknown, else 0; NaN for no rows."""
    columns = list(zip(*rows, strict=True))
    return tuple(_merged(column) for column in columns) if columns else UNKNOWN_FINDINGS


def _merged(values: Sequence[float]) -> float:
    if any(v == 1.0 for v in values):
        return 1.0
    return math.nan if any(math.isnan(v) for v in values) else 0.0


def findings_of_labels(labels: NDArray[np.uint8]) -> tuple[float, ...]:
    """Tell a slice's findings from its mask, which must be complete.

    A subtype that is drawn is there. One that is not drawn is absent, unless there is blood of unknown subtype (6) or
    pixels of which nothing is known (255).
    """
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    subtypes = [s.index in present for s in SUBTYPES]
    vague = UNKNOWN_SUBTYPE in present
    if UNKNOWN in present:
        otherwise, none = math.nan, math.nan
    else:
        otherwise, none = (math.nan if vague else 0.0), 0.0
    return (1.0 if vague or any(subtypes) else none, *(1.0 if there else otherwise for there in subtypes))


def single_subtype(findings: Sequence[float]) -> int:
    """Return the label for a binary mask: the one subtype that the slice has, or `UNKNOWN_SUBTYPE`.

    A slice whose findings name several subtypes, none, or leave one open does not say which pixel is which.
    """
    present = [s.index for s in SUBTYPES if findings[s.index] == 1.0]
    open_ones = any(math.isnan(findings[s.index]) for s in SUBTYPES)
    return present[0] if len(present) == 1 and not open_ones else UNKNOWN_SUBTYPE


def fingerprint(dataset: DataSet) -> str:
    """Return a digest of what a data set holds and says (names, findings, mask states), not of its pixels."""
    digest = hashlib.sha256(dataset.name.encode())
    for case in dataset.cases:
        digest.update(f"\n{case.id} {case.scan_findings}".encode())
        for record in case.slices:
            digest.update(f"\n {record.name} {record.findings} {record.mask_state}".encode())
    return digest.hexdigest()
