"""Looking through data sets for what spoils training or flatters a score: one pass over every pixel."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import DecodeError, InputError
from hemolens.labels import SUBTYPES
from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE, Case, DataSet, Note, SliceRecord
from hemolens.sources.files import listing
from hemolens.sources.images import SUFFIXES
from hemolens.sources.splits import SIDES, Split, group_of, person_of
from hemolens.volume import Volume

ProblemKind = Literal[
    "duplicate", "leak", "mismatch", "unreadable", "spare_mask", "disagreement", "missing", "unlabeled", "left_out"
]
"""The same image twice in one patient; the same image in two patients, or the same person on two sides; files that do
not fit each other, such as a mask of another size; files that cannot be read; and the kinds of
`hemolens.sources.datasets.cases.NoteKind`."""
GRAY_HU = (0.0, 100.0)
"""Images are compared within these, so that the same slice is found in DICOM and in a clipped picture."""
LEAST_TISSUE = 400
"""An image with fewer pixels strictly inside `GRAY_HU` is air or bone, and like any other such image."""


@dataclass(frozen=True)
class Problem:
    """Something that was found."""

    kind: ProblemKind
    dataset: str
    """Name of the data set; several are joined by ``+``."""
    where: tuple[str, ...]
    """Slices, cases or patients that it is about."""
    message: str


def check_datasets(
    datasets: Sequence[DataSet], split: Split | None = None, progress: Callable[[str, float], None] | None = None
) -> tuple[Problem, ...]:
    """Look for duplicates, leaks, wrong sizes, masks without slices, and slices whose label and mask disagree.

    Parameters
    ----------
    datasets
        As opened.
    split
        Also look for images and people that stand on two sides of one of its folds.
    progress
        Called with the name of a data set and the fraction of its cases that was read.

    Returns
    -------
    tuple of Problem
        In the order of the data sets.
    """
    problems: list[Problem] = []
    seen: dict[bytes, list[str]] = defaultdict(list)
    for dataset in datasets:
        problems += [_of_note(dataset.name, note) for note in dataset.notes if note.kind != "known"]
        for number, case in enumerate(dataset.cases):
            if progress is not None:
                progress(dataset.name, number / len(dataset.cases))
            problems += _check_case(dataset, case, seen)
    twins = sorted({tuple(names) for names in seen.values() if len(names) > 1})
    problems += _merged(_same_image(twins))
    problems += _same_people(datasets)
    if split is not None:
        problems += _across_sides(split, twins)
    return tuple(problems)


def _of_note(dataset: str, note: Note) -> Problem:
    assert note.kind != "known"
    return Problem(note.kind, dataset, (), str(note))


def _check_case(dataset: DataSet, case: Case, seen: dict[bytes, list[str]]) -> Iterator[Problem]:
    try:
        volume, labels = dataset.volume(case), dataset.labels(case)
    except DecodeError as error:
        yield Problem("unreadable", dataset.name, (case.id,), str(error))
        return
    except InputError as error:
        yield Problem("mismatch", dataset.name, (case.id,), str(error))
        return
    if labels.shape != volume.shape:
        text = f"{case.id}: masks of shape {labels.shape}, images of {volume.shape}"
        yield Problem("mismatch", dataset.name, (case.id,), text)
        return
    copies = file_keys(dataset.files(case)[: len(volume)])
    for index, (shown, stored) in enumerate(zip(image_keys(volume), copies, strict=False)):
        if shown is not None:
            seen[shown].append(case.slice_id(index))
            if stored is not None:
                seen[stored].append(case.slice_id(index))
    for index, record in enumerate(case.slices):
        text = _disagreement(record, labels[index])
        if text:
            name = case.slice_id(index)
            yield Problem("disagreement", dataset.name, (name,), f"{name}: {text}")


def image_keys(volume: Volume) -> Iterator[bytes | None]:
    """Yield a digest of each slice as seen between 0 and 100 HU; None where there is too little tissue to tell."""
    for plane in volume.hu:
        gray = np.clip(np.rint(plane), *GRAY_HU).astype(np.uint8)
        tissue = int(((gray > GRAY_HU[0]) & (gray < GRAY_HU[1])).sum())
        if tissue < min(LEAST_TISSUE, gray.size // 10):
            yield None
        else:
            yield hashlib.blake2b(gray.tobytes() + str(gray.shape).encode(), digest_size=16).digest()


def file_keys(paths: Sequence[Path]) -> Iterator[bytes | None]:
    """Yield a digest of each slice's picture file; None for scans that are no pictures, without end.

    PHE-SICH's gray values are scaled scan by scan, so that a copy in another scan would look different.
    """
    if all(path.suffix.lower() in SUFFIXES for path in paths):
        yield from (hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths)
    yield from repeat(None)


def _disagreement(record: SliceRecord, labels: NDArray[np.uint8]) -> str:
    any_blood, *subtypes = record.findings
    if any_blood == 0.0 and 1.0 in subtypes:
        return "its label says no hemorrhage and names a subtype"
    if any_blood == 1.0 and all(value == 0.0 for value in subtypes):
        return "its label says hemorrhage and no subtype"
    counts = np.bincount(labels.ravel(), minlength=256)
    drawn = [s for s in SUBTYPES if counts[s.index]]
    blood = bool(drawn) or bool(counts[UNKNOWN_SUBTYPE])
    if record.mask_state in ("drawn", "pseudo") and not blood:
        return "its mask is there and holds no blood"
    if any_blood == 0.0 and blood:
        return "its label says no hemorrhage and its mask shows blood"
    denied = [s.name for s in drawn if record.findings[s.index] == 0.0]
    if denied:
        return f"its mask shows {listing(denied)} blood, which its label denies"
    return ""


def _same_image(twins: Iterable[Sequence[str]]) -> Iterator[Problem]:
    for names in twins:
        groups = sorted({group_of(name) for name in names})
        sets = "+".join(sorted({name.partition("/")[0] for name in names}))
        if len(groups) > 1:
            text = f"the same image in patients {listing(groups)}"
            yield Problem("leak", sets, tuple(names), text)
        else:
            yield Problem("duplicate", sets, tuple(names), f"patient {groups[0]}: the same image twice")


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """Tell a whole series of equal images in one line."""
    gathered: dict[tuple[ProblemKind, str, str], list[str]] = defaultdict(list)
    for p in problems:
        gathered[p.kind, p.dataset, p.message] += p.where
    return [
        Problem(kind, sets, tuple(where), f"{text}: {listing(where)}") for (kind, sets, text), where in gathered.items()
    ]


def _same_people(datasets: Sequence[DataSet]) -> Iterator[Problem]:
    """Yield people who are in two data sets, which were published from the same scans."""
    homes: dict[str, set[str]] = defaultdict(set)
    for dataset in datasets:
        for case in dataset.cases:
            homes[person_of(case.group)].add(case.group)
    shared: dict[str, list[str]] = defaultdict(list)
    for home in homes.values():
        if len(home) > 1:
            shared["+".join(sorted(group.partition("/")[0] for group in home))] += sorted(home)
    for sets, groups in sorted(shared.items()):
        text = f"the same people are in {sets.replace('+', ' and ')}: {listing(groups)}; splits keep them together"
        yield Problem("leak", sets, tuple(groups), text)


def _across_sides(split: Split, twins: Sequence[Sequence[str]]) -> Iterator[Problem]:
    for number, fold in enumerate(split.folds):
        side_of = {member: side for side in SIDES for member in getattr(fold, side)}
        people: dict[str, dict[str, str]] = defaultdict(dict)
        for member, side in side_of.items():
            people[person_of(group_of(member))][side] = member
        split_people = [person for person, sides in people.items() if len(sides) > 1]
        if split_people:
            text = f"fold {number}: the same person on several sides: {listing(sorted(split_people))}"
            sets = "+".join(sorted({person.partition("/")[0] for person in split_people}))
            yield Problem("leak", sets, tuple(split_people), text)
        for names in twins:
            sides = {side_of.get(name) or side_of.get(group_of(name)) or "" for name in names} - {""}
            if len(sides) > 1:
                sets = "+".join(sorted({name.partition("/")[0] for name in names}))
                text = f"fold {number}: the same image on the sides {listing(sorted(sides))}: {listing(list(names))}"
                yield Problem("leak", sets, tuple(names), text)
