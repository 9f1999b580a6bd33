"""Which side of a split every slice stands on: what a model was trained on, chosen by, and never saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hemolens.errors import ConfigError, InputError
from hemolens.inference.registry import Model
from hemolens.sources.datasets.cases import Case, DataSet
from hemolens.sources.splits import SIDES, Split, Unit, group_of, read_split, slices_in

SplitSource = Literal["file", "run", "card", "none"]
SPLIT_FILE = "split.json"
UNKNOWN_SIDE = "unknown"
"""Side of every slice where nothing is known of what a model was trained on."""


@dataclass(frozen=True)
class Sides:
    """Members of the three sides and where that is written.

    A patient whom nobody names was neither trained on nor chosen by: the test side.
    """

    source: SplitSource
    members: Mapping[str, Collection[str]]
    """Side to ``dataset/patient`` or ``dataset/patient#slice``; empty where nothing is known."""
    unit: Unit = "patient"
    seed: int | None = None
    fold: int | None = None
    closed: bool = False
    """Whether only named members count: a split that was asked for leaves out whom it does not name."""

    @property
    def leaks(self) -> bool:
        """Whether slices of one patient stand on several sides."""
        return self.unit == "slice"

    @property
    def trained(self) -> frozenset[str]:
        """Patients on the training side."""
        return frozenset(group_of(member) for member in self.members.get("train", ()))

    def of(self, case: Case) -> tuple[str, ...]:
        """Return the side of every slice of a case; empty for slices that are on none."""
        n = len(case.slices)
        if not self.members:
            return (UNKNOWN_SIDE,) * n
        found = [""] * n
        for side, members in self.members.items():
            for index in slices_in(case, members):
                found[index] = side
        if not self.closed and not any(found):
            return ("test",) * n
        return tuple(found)


def sides_of_split(split: Split, fold: int, datasets: Sequence[DataSet]) -> Sides:
    """Return the sides of one fold of a split that was asked for.

    Raises
    ------
    ConfigError
        If there is no such fold, or the split was made for other data.
    """
    chosen = split.fold(fold)
    split.check(datasets, partial=True)
    members = {side: frozenset(getattr(chosen, side)) for side in SIDES}
    return Sides("file", members, split.unit, split.seed, fold, closed=True)


def sides_of_model(model: Model) -> Sides:
    """Return the sides that a model knows of; nothing is known where it was moved away from its split.

    A training run leaves ``split.json`` beside its network and names its fold in the card; shipped models name patients
    in the card, as ``{data set: {side: [patient]}}``.

    Raises
    ------
    InputError
        If the split beside a run cannot be read or is not the one that the run was trained on.
    """
    training = model.card.get("training")
    run = training.get("split") if isinstance(training, Mapping) else None
    if isinstance(run, Mapping) and "fold" in run:
        return _sides_of_run(run, model.path.with_name(SPLIT_FILE))
    told = model.card.get("split")
    named: dict[str, list[str]] = {side: [] for side in SIDES}
    for dataset, sides in told.items() if isinstance(told, Mapping) else ():
        for side in SIDES:
            named[side] += [f"{dataset}/{patient}" for patient in sides.get(side, ())]
    if not any(named.values()):
        return Sides("none", {})
    return Sides("card", {side: frozenset(names) for side, names in named.items()})


def _sides_of_run(run: Mapping[str, Any], path: Path) -> Sides:
    if not path.is_file():
        return Sides("none", {})
    split, number = read_split(path), int(run["fold"])
    fold = split.fold(number) if number < len(split.folds) else None
    if fold is None or any(run.get(side) != len(getattr(fold, side)) for side in SIDES):
        problem = "is not the split that the model beside it was trained on"
        raise InputError(path, problem, "Put the run's own split back, or name one with --split.")
    members = {side: frozenset(getattr(fold, side)) for side in SIDES}
    return Sides("run", members, split.unit, split.seed, number)


def check_folds(sides: Sequence[Sides]) -> None:
    """Make sure that runs are the folds of one split, so that no test patient of one is counted twice.

    Data sets that stand on the test side of every fold are fine: their patients count once in every interval.

    Raises
    ------
    ConfigError
        If a fold is there twice, splits differ, or a run has no split.
    """
    if len(sides) < 2:
        raise ConfigError("Cross-validation needs at least two runs, one for each fold.")
    if any(s.fold is None for s in sides):
        raise ConfigError("Cross-validation needs runs that know their split and fold.")
    if len({(s.unit, s.seed) for s in sides}) > 1 or len({_patients(s) for s in sides}) > 1:
        raise ConfigError("These runs were trained on different splits: cross-validation needs folds of one.")
    folds = [s.fold for s in sides]
    if len(set(folds)) < len(folds):
        raise ConfigError(f"Two of these runs were trained on the same fold; the folds are {folds}.")


def _patients(sides: Sides) -> frozenset[str]:
    return frozenset(member for members in sides.members.values() for member in members)
