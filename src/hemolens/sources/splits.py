"""Who is trained on, who is validated on and who is tested on: by patient, written to a file, read back and checked."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

from hemolens.errors import ConfigError, InputError, OutputError
from hemolens.labels import SUBTYPE_NAMES
from hemolens.sources.datasets.cases import Case, DataSet, merged_findings
from hemolens.sources.files import listing

Unit = Literal["patient", "slice"]
SIDES = ("train", "validation", "test")
FORMAT = "hemolens-split-1"
LEAK_WARNING = (
    "Slices of one patient stand on several sides of this split. Scores measured with it are too good and must not be "
    "reported as performance; it exists to show what such a leak does."
)


@dataclass(frozen=True)
class Fold:
    """Members of the three sides: ``dataset/patient``, or ``dataset/patient#slice`` where slices were split."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        twice = [m for m, count in Counter(chain(self.train, self.validation, self.test)).items() if count > 1]
        if twice:
            raise ConfigError(f"The split names {listing(sorted(twice))} twice in one fold.")


@dataclass(frozen=True)
class Split:
    """Folds over data sets.

    Raises
    ------
    ConfigError
        If a member belongs to no patient of `datasets`, or stands on two sides of a fold.
    """

    unit: Unit
    seed: int
    datasets: Mapping[str, tuple[str, ...]]
    """Every patient that was known when the split was made."""
    folds: tuple[Fold, ...]

    def __post_init__(self) -> None:
        groups = {f"{name}/{patient}" for name, patients in self.datasets.items() for patient in patients}
        for member in chain.from_iterable((*f.train, *f.validation, *f.test) for f in self.folds):
            if group_of(member) not in groups or ("#" in member) != (self.unit == "slice"):
                raise ConfigError(f"The split's member {member!r} is no {self.unit} of its data sets.")

    @property
    def leaks(self) -> bool:
        """Whether slices of one patient stand on several sides; everything that reads such a split says so."""
        return self.unit == "slice"

    def fold(self, number: int) -> Fold:
        """Return a fold, from 0.

        Raises
        ------
        ConfigError
            If there is no such fold.
        """
        if not 0 <= number < len(self.folds):
            raise ConfigError(f"The split has folds 0 to {len(self.folds) - 1}; there is no fold {number}.")
        return self.folds[number]

    def check(self, datasets: Sequence[DataSet], *, partial: bool = False) -> None:
        """Make sure that the split was made for these data sets, and that every side of every fold shows blood.

        Parameters
        ----------
        datasets
            As opened.
        partial
            Some data sets of the split were left out on purpose.

        Raises
        ------
        ConfigError
            If data sets or patients differ, or a side of a fold has no case with hemorrhage.
        """
        opened = {dataset.name: {case.patient for case in dataset.cases} for dataset in datasets}
        strange, lacking = sorted(set(opened) - set(self.datasets)), sorted(set(self.datasets) - set(opened))
        if strange:
            raise ConfigError(f"The split was made for {_names(self.datasets)}, not for {_names(strange)}.")
        if lacking and not partial:
            raise ConfigError(f"The split also needs {_names(lacking)}, which is not here.")
        for name, patients in opened.items():
            new, gone = patients - set(self.datasets[name]), set(self.datasets[name]) - patients
            if new:
                raise ConfigError(f"The split does not know {name} patients {listing(sorted(new))}: make a new one.")
            if gone:
                raise ConfigError(f"The split names {name} patients that are not here: {listing(sorted(gone))}.")
        self._check_positives([case for dataset in datasets for case in dataset.cases], set(opened))

    def _check_positives(self, cases: Sequence[Case], opened: Collection[str]) -> None:
        positive = {case.group for case in cases if case.findings[0] == 1.0}
        for number, fold in enumerate(self.folds):
            for side in SIDES:
                members = [m for m in getattr(fold, side) if m.partition("/")[0] in opened]
                if members and not any(group_of(m) in positive for m in members):
                    raise ConfigError(
                        f"Fold {number} of the split has no hemorrhage in its {side} side: use fewer folds."
                    )


def group_of(member: str) -> str:
    """Return ``dataset/patient`` of a member."""
    dataset, _, rest = member.partition("#")[0].partition("/")
    return f"{dataset}/{rest.partition('/')[0]}"


SAME_PEOPLE: Mapping[str, str] = {"ct_ich_nifti": "ct_ich", "bhsd": "rsna"}
"""Data sets that were published from the scans of another one, under the same patient names."""


def person_of(group: str) -> str:
    """Return one name for a patient who is in two data sets."""
    dataset, _, patient = group.partition("/")
    return f"{SAME_PEOPLE.get(dataset, dataset)}/{patient}"


def slices_in(case: Case, members: Collection[str]) -> tuple[int, ...]:
    """Return which slices of a case are meant by `members`: all where its patient is named, else those named."""
    if case.group in members:
        return tuple(range(len(case.slices)))
    return tuple(index for index in range(len(case.slices)) if case.slice_id(index) in members)


def make_split(
    datasets: Sequence[DataSet],
    *,
    folds: int = 5,
    seed: int = 0,
    train_only: Collection[str] = (),
    test_only: Collection[str] = (),
    unit: Unit = "patient",
) -> Split:
    """Split into k folds: fold i tests on part i, validates on part i + 1 and trains on the rest.

    Parts are stratified by what a patient's scans show: any hemorrhage, and the rarest subtype among it. People who are
    in two data sets stand on one side; those of a data set that is put aside are left out of the others.

    Parameters
    ----------
    datasets
        As opened.
    folds
        At least 3.
    seed
        The same seed and data give the same split.
    train_only, test_only
        Names of data sets that stand on that side of every fold.
    unit
        ``slice`` deals single slices, so that patients leak from side to side; see `LEAK_WARNING`.

    Raises
    ------
    ConfigError
        If a name is unknown, or there are too few patients, or too few with hemorrhage, for so many folds.
    """
    known = [dataset.name for dataset in datasets]
    for name in (*train_only, *test_only):
        if name not in known:
            raise ConfigError(f"There is no data set {name!r} to put aside; here are: {_names(known)}.")
    if set(train_only) & set(test_only):
        raise ConfigError(f"{_names(set(train_only) & set(test_only))} cannot be on the train and the test side.")
    if folds < 3:
        raise ConfigError(f"A split needs at least 3 folds (train, validation, test); got {folds}.")
    aside = {
        side: tuple(sorted(m for d in datasets if d.name in names for m in _strata([d], unit)))
        for side, names in (("train", train_only), ("test", test_only))
    }
    tested = {person_of(group_of(m)) for m in aside["test"]}
    aside["train"] = tuple(m for m in aside["train"] if person_of(group_of(m)) not in tested)
    taken = tested | {person_of(group_of(m)) for m in aside["train"]}
    dealt = [d for d in datasets if d.name not in train_only and d.name not in test_only]
    free = {m: f for m, f in _strata(dealt, unit).items() if person_of(group_of(m)) not in taken}
    parts = _parts(free, folds, seed, unit)
    made = []
    for number in range(folds):
        validation = (number + 1) % folds
        train = chain.from_iterable(parts[i] for i in range(folds) if i not in (number, validation))
        made.append(Fold(
            train=(*sorted(train), *aside["train"]),
            validation=tuple(sorted(parts[validation])),
            test=(*sorted(parts[number]), *aside["test"]),
        ))  # fmt: skip
    patients = {d.name: tuple(sorted({case.patient for case in d.cases})) for d in datasets}
    return Split(unit, seed, patients, tuple(made))


def thin_split(
    split: Split, datasets: Sequence[DataSet], *, train: int | None = None, validation: int | None = None,
    test: int | None = None,
) -> Split:  # fmt: skip
    """Keep only a few patients on each side of every fold, for a quick look.

    Patients with hemorrhage and without are kept in turns, drawn by the split's seed; nobody changes sides.

    Parameters
    ----------
    split
        Made for `datasets`.
    train, validation, test
        At most so many patients of each data set; None keeps all.

    Raises
    ------
    ConfigError
        If a number is below 1, or the split was made for other data.
    """
    most = {"train": train, "validation": validation, "test": test}
    if any(number is not None and number < 1 for number in most.values()):
        raise ConfigError("A side needs at least 1 patient; None keeps all.")
    split.check(datasets, partial=True)
    shows_blood = {case.group for d in datasets for case in d.cases if case.findings[0] == 1.0}
    folds = tuple(
        Fold(**{side: _few(getattr(fold, side), most[side], shows_blood, split.seed) for side in SIDES})
        for fold in split.folds
    )
    return Split(split.unit, split.seed, split.datasets, folds)


def _few(members: Sequence[str], most: int | None, positive: Collection[str], seed: int) -> tuple[str, ...]:
    """Return the members of at most `most` patients of each data set."""
    if most is None:
        return tuple(members)
    kept: set[str] = set()
    groups = sorted({group_of(m) for m in members})
    random.Random(seed).shuffle(groups)
    for name in {g.partition("/")[0] for g in groups}:
        own = [g for g in groups if g.partition("/")[0] == name]
        kinds = [g for g in own if g in positive], [g for g in own if g not in positive]
        turns = [g for pair in zip_longest(*kinds) for g in pair if g is not None]
        kept |= set(turns[:most])
    return tuple(m for m in members if group_of(m) in kept)


Findings = tuple[float, ...]


def _strata(datasets: Sequence[DataSet], unit: Unit) -> dict[str, Findings]:
    """Return what each member shows."""
    if unit == "slice":
        cases = [case for dataset in datasets for case in dataset.cases]
        return {c.slice_id(i): record.findings for c in cases for i, record in enumerate(c.slices)}
    grouped: dict[str, list[Findings]] = {}
    for dataset in datasets:
        for case in dataset.cases:
            grouped.setdefault(case.group, []).append(case.findings)
    return {group: merged_findings(rows) for group, rows in grouped.items()}


def _parts(members: Mapping[str, Findings], folds: int, seed: int, unit: Unit) -> list[list[str]]:
    bound: dict[str, list[str]] = {}  # what stays together: a person's patients, or a single slice
    for member in sorted(members):
        bound.setdefault(member if unit == "slice" else person_of(member), []).append(member)
    shown = {key: merged_findings(members[m] for m in some) for key, some in bound.items()}
    positives = sum(findings[0] == 1.0 for findings in shown.values())
    if positives < folds:
        found = f"{len(shown)} {unit}s, {positives} of them with hemorrhage"
        raise ConfigError(f"{folds} folds need at least {folds} {unit}s with hemorrhage; there are {found}.")
    counts = [sum(f[k] == 1.0 for f in shown.values()) for k in range(1, len(SUBTYPE_NAMES) + 1)]

    def stratum(key: str) -> tuple[int, str, int]:
        findings = shown[key]
        present = [k for k, value in enumerate(findings[1:]) if value == 1.0]
        rarest = min(present, key=lambda k: (counts[k], k), default=-1)
        return {1.0: 0, 0.0: 1}.get(findings[0], 2), bound[key][0].partition("/")[0], rarest

    order = sorted(bound)
    random.Random(seed).shuffle(order)
    order.sort(key=stratum)  # stable: shuffled within a stratum; dealing in this order spreads each one evenly
    return [[m for key in order[number::folds] for m in bound[key]] for number in range(folds)]


def write_split(split: Split, path: Path, *, overwrite: bool = False) -> None:
    """Write a split as JSON.

    Raises
    ------
    OutputError
        If the file exists and `overwrite` is not set, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: this file exists. Name another one, or allow it to be replaced.")
    content: dict[str, Any] = {"format": FORMAT, "unit": split.unit, "seed": split.seed}
    if split.leaks:
        content["warning"] = LEAK_WARNING
    content["datasets"] = {name: list(patients) for name, patients in split.datasets.items()}
    content["folds"] = [{side: list(getattr(fold, side)) for side in SIDES} for fold in split.folds]
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        whole.replace(path)
    except OSError as error:
        with suppress(OSError):  # where nothing could be written there may be nothing to remove either
            whole.unlink()
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def read_split(path: Path) -> Split:
    """Read a split.

    Raises
    ------
    InputError
        If the file is missing, is no split, or contradicts itself.
    """
    remedy = "Make one with 'hemolens data split'."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, "cannot be read as a split", remedy) from error
    except ValueError as error:
        raise InputError(path, "is no JSON", remedy) from error
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or content.get("unit") not in ("patient", "slice")
    ):
        raise InputError(path, "is no split of hemolens", remedy)
    try:
        folds = tuple(Fold(*(tuple(map(str, fold[side])) for side in SIDES)) for fold in content["folds"])
        patients = {str(name): tuple(map(str, known)) for name, known in content["datasets"].items()}
        return Split(content["unit"], int(content["seed"]), patients, folds)
    except ConfigError as error:
        raise InputError(path, str(error).rstrip("."), remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, "lacks a part of a split", remedy) from error


def _names(names: Collection[str]) -> str:
    return listing(sorted(names), most=10) or "none"
