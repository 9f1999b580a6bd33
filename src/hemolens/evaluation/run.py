"""Running models over cases with a known truth, by the very path that they take in use, one case at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from hemolens.errors import ConfigError, InputError
from hemolens.evaluation.bootstrap import DRAWS
from hemolens.evaluation.gallery import Gallery
from hemolens.evaluation.operating import OperatingPoint, choose, fallback
from hemolens.evaluation.scored import ScoredCase, read_case, score_case
from hemolens.evaluation.sides import UNKNOWN_SIDE, Sides, sides_of_model
from hemolens.evaluation.summary import Measure, Summarizer
from hemolens.evaluation.tables import Scale, ScanTable, SliceTable, fit_scale, scan_table, slice_table
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import Model
from hemolens.preprocessing.pipeline import Prepared
from hemolens.sources.datasets.cases import Case, DataSet
from hemolens.sources.files import listing
from hemolens.sources.splits import LEAK_WARNING
from hemolens.volume import Volume

NOTICE = "Research use only. Not a medical device; no clinical decision may rest on it."
REPORTED = ("test", "validation", UNKNOWN_SIDE)
"""Sides that are reported unless told otherwise; the training side only where it is asked for."""

Progress = Callable[[str, float], None]
Planned = tuple[DataSet, Case, tuple[str, ...]]
Ready = Future[tuple[Volume, Prepared]]


@dataclass(frozen=True)
class Options:
    """What is scored and how.

    Raises
    ------
    ConfigError
        If a side is unknown or a number is out of range.
    """

    sides: tuple[str, ...] = REPORTED
    """Sides to report. Validation patients are scored in any case, to choose operating points on."""
    patients: tuple[str, ...] = ()
    """Only these, as ``dataset/patient`` or by their number alone; empty for all."""
    limit: int | None = None
    """Only so many patients of each data set and side."""
    draws: int = DRAWS
    """Of the bootstrap."""
    pictures: bool = True
    """Whether to keep slices to look at."""

    def __post_init__(self) -> None:
        known = ("test", "validation", "train", UNKNOWN_SIDE)
        strange = [side for side in self.sides if side not in known]
        if strange:
            raise ConfigError(f"There is no side {strange[0]!r}; sides are {', '.join(known[:3])}.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError("The limit must be at least one patient.")
        if self.draws < 100:
            raise ConfigError("An interval needs at least 100 draws.")


@dataclass(frozen=True, eq=False)
class Entry:
    """A model and who is on which side for it."""

    predictor: Predictor
    sides: Sides
    """Sides to score it on: of a split that was asked for, else its own."""

    @property
    def model(self) -> Model:
        """What it runs."""
        return self.predictor.model


@dataclass(frozen=True, eq=False)
class CaseSet:
    """Everything about one data set on one side."""

    dataset: str
    side: str
    license: str
    slices: SliceTable
    scans: ScanTable
    measures: tuple[Measure, ...]
    gallery: Gallery | None
    assumed: str
    """What was assumed about the size of pixels."""

    @property
    def name(self) -> str:
        """As it is titled: data set and side."""
        return self.dataset if self.side == UNKNOWN_SIDE else f"{self.dataset}, {self.side}"

    @property
    def patients(self) -> int:
        """How many patients."""
        return len(np.unique(self.slices.group))


@dataclass(frozen=True, eq=False)
class Fold:
    """What one model brought."""

    number: int
    """-1 where there is one model only."""
    entry: Entry
    scale: Scale
    points: tuple[OperatingPoint, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result: sets of cases with their scores, and what a reader must know of them."""

    folds: tuple[Fold, ...]
    sets: tuple[CaseSet, ...]
    warnings: tuple[str, ...]
    skipped: tuple[str, ...]
    """Cases that could not be read, each with the reason."""
    options: Options
    created: str
    by_fold: tuple[tuple[int, str, tuple[Measure, ...]], ...] = ()
    """Cross-validation: measures of each fold and data set alone (test side)."""

    @property
    def partial(self) -> bool:
        """Whether cases that belong to it are missing."""
        return bool(self.skipped)


@dataclass(eq=False)
class _Pass:
    """One model's way through the data."""

    entry: Entry
    number: int
    cases: list[ScoredCase] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    errors: list[InputError] = field(default_factory=list)


def evaluate(
    entries: Sequence[Entry],
    datasets: Sequence[DataSet],
    options: Options | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score one model, or the folds of a cross-validation, on data sets.

    Parameters
    ----------
    entries
        One for each model. Several are pooled: each scores the patients on its own test side.
    datasets
        From `hemolens.sources.datasets.opening.open_datasets`.
    progress
        Called with what is being scored and the share that is done.

    Raises
    ------
    ConfigError
        If nothing is left to score.
    InputError
        If no case at all can be read; some that cannot are left out and told (`Evaluation.skipped`).
    """
    options = options or Options()
    galleries: dict[tuple[str, str], Gallery] = {}
    plans = [list(_plan(entry.sides, datasets, options)) for entry in entries]
    if not any(plans):
        raise ConfigError(f"There is nothing to score: {_nothing(entries, datasets, options)}")
    passes, done, total = [], 0, sum(len(case.slices) for plan in plans for _, case, _ in plan)
    for number, (entry, plan) in enumerate(zip(entries, plans, strict=True)):
        fold = entry.sides.fold if len(entries) > 1 and entry.sides.fold is not None else number
        current = _Pass(entry, fold if len(entries) > 1 else -1)
        passes.append(current)
        for dataset, case, sides, ready in _ahead(entry.predictor, plan):
            if progress:
                progress(case.id, done / total)
            _score(current, dataset, case, sides, ready, galleries, options)
            done += len(case.slices)
    errors = [error for current in passes for error in current.errors]
    if errors and not any(current.cases for current in passes):
        raise errors[0]
    if progress:
        progress("measuring", 1.0)
    return _finish(passes, datasets, options, galleries)


def _plan(sides: Sides, datasets: Sequence[DataSet], options: Options) -> Iterator[Planned]:
    """Yield the cases to score, each with the sides of its slices that are wanted."""
    wanted = {*options.sides, "validation"}
    counts: Counter[tuple[str, str]] = Counter()
    for dataset in datasets:
        last: dict[str, str] = {}
        for case in dataset.cases:
            if options.patients and not {case.group, case.patient} & set(options.patients):
                continue
            told = tuple(side if side in wanted else "" for side in sides.of(case))
            side = next((s for s in told if s), "")
            if not side:
                continue
            if last.get(side) != case.group:
                counts[dataset.name, side] += 1
                last[side] = case.group
            if options.limit is None or counts[dataset.name, side] <= options.limit:
                yield dataset, case, told


def _ahead(predictor: Predictor, plan: Sequence[Planned]) -> Iterator[tuple[DataSet, Case, tuple[str, ...], Ready]]:
    """Yield the cases while the next one is read and prepared beside them; two scans are held at most."""
    with ThreadPoolExecutor(1) as worker:
        waiting: deque[Ready] = deque()
        for place, (dataset, case, sides) in enumerate(plan):
            while len(waiting) < 2 and place + len(waiting) < len(plan):
                coming, wanted, _ = plan[place + len(waiting)]
                waiting.append(worker.submit(read_case, predictor, coming, wanted))
            yield dataset, case, sides, waiting.popleft()


def _nothing(entries: Sequence[Entry], datasets: Sequence[DataSet], options: Options) -> str:
    names = ", ".join(dataset.name for dataset in datasets)
    if options.patients:
        return f"{names} has no {listing(sorted(options.patients))} on the sides {', '.join(options.sides)}."
    return (
        f"the model was trained on every patient of {names}, or they stand on no side of the split. "
        "Name sides with --side, or other data."
    )


def _score(
    current: _Pass, dataset: DataSet, case: Case, sides: tuple[str, ...], ready: Ready,
    galleries: dict[tuple[str, str], Gallery], options: Options,
) -> None:  # fmt: skip
    side = next(s for s in sides if s)
    gallery = None
    if options.pictures and side in options.sides and not _only_for_points(current, side):
        outlines = current.entry.model.interface.mask_channels > 0
        gallery = galleries.setdefault((dataset.name, side), Gallery(outlines))
    try:
        watch = None if gallery is None else gallery.see
        current.cases.append(score_case(current.entry.predictor, dataset, case, sides, watch, ready.result()))
    except InputError as error:
        current.errors.append(error)
        current.skipped.append(f"{case.id}: {error}")


def _only_for_points(current: _Pass, side: str) -> bool:
    """Whether a side is scored for its operating points alone: of folds that are pooled, only the test side counts."""
    return current.number >= 0 and side != "test"


def _finish(
    passes: Sequence[_Pass], datasets: Sequence[DataSet], options: Options, galleries: dict[tuple[str, str], Gallery]
) -> Evaluation:
    notes: list[str] = []
    folds = [_fold(current, notes) for current in passes]
    slices = [slice_table(current.cases, fold.scale, fold.number) for current, fold in zip(passes, folds, strict=True)]
    scans = [scan_table(current.cases, fold.scale, fold.number) for current, fold in zip(passes, folds, strict=True)]
    points = {fold.number: fold.points for fold in folds}
    pooled = slices[0].and_also(slices[1:]), scans[0].and_also(scans[1:])
    reported = ("test",) if len(passes) > 1 else options.sides
    sets, by_fold = [], []
    for dataset in datasets:
        for side in reported:
            chosen = [table.where((table.dataset == dataset.name) & (table.side == side)) for table in pooled]
            if not len(chosen[0]):
                continue
            measures = Summarizer(chosen[0], chosen[1], points, options.draws).measures()  # type: ignore[arg-type]
            assumed = {
                case.grid.assumed for p in passes for case in p.cases
                if case.case.dataset == dataset.name and side in case.sides and case.grid.assumed
            }  # fmt: skip
            sets.append(CaseSet(
                dataset.name, side, dataset.license, chosen[0], chosen[1], tuple(measures),  # type: ignore[arg-type]
                galleries.get((dataset.name, side)), "; ".join(sorted(assumed)),
            ))  # fmt: skip
            if len(passes) > 1:
                for number in np.unique(chosen[0].fold):
                    rows = [table.where(table.fold == number) for table in chosen]
                    told = Summarizer(rows[0], rows[1], points, options.draws).measures()  # type: ignore[arg-type]
                    by_fold.append((int(number), dataset.name, tuple(told)))
    skipped = [line for current in passes for line in current.skipped]
    return Evaluation(
        tuple(folds), tuple(sets), (*_warnings(folds, sets, options, len(skipped)), *notes), tuple(skipped), options,
        datetime.now(UTC).isoformat(timespec="seconds"), tuple(by_fold),
    )  # fmt: skip


def _fold(current: _Pass, notes: list[str]) -> Fold:
    """Choose how probabilities are made and where the line is drawn: on validation patients, or as the card says."""
    validation = [case for case in current.cases if "validation" in case.sides]
    scale = Scale("none")
    if current.entry.model.calibrated:
        scale = Scale("card", current.entry.model.calibration)
    elif validation:
        try:
            scale = fit_scale([_only(case, "validation") for case in validation])
        except ValueError:
            notes.append("The validation patients all bleed, or none does: probabilities could not be fitted on them.")
    tables = slice_table(validation, scale), scan_table(validation, scale)
    points: list[OperatingPoint] = []
    for level, table in (("slice", tables[0]), ("scan", tables[1])):
        points += choose(level, table.where(table.side == "validation"))  # type: ignore[arg-type]
    card = current.entry.model.thresholds.study if scale.source == "card" else None
    told = {(point.level, point.finding) for point in points}
    rest = [p for p in fallback(card) if (p.level, p.finding) not in told or p.chosen_on == "card"]
    return Fold(current.number, current.entry, scale, (*points, *rest))


def _only(case: ScoredCase, side: str) -> ScoredCase:
    """Return a case as if it had been scored for one side alone."""
    return replace(case, sides=tuple(s if s == side else "" for s in case.sides))


def _warnings(folds: Sequence[Fold], sets: Sequence[CaseSet], options: Options, skipped: int) -> list[str]:
    """Say what a reader must know before any number."""
    told = []
    if any(fold.entry.sides.leaks for fold in folds):
        told.append(f"LEAKY SPLIT. {LEAK_WARNING}")
    for fold in folds:
        seen = _trained_on(fold, sets)
        if seen:
            name = fold.entry.model.name
            told.append(f"{name} was trained on {len(seen)} of these patients: their scores say nothing about others.")
    if any(case_set.side == UNKNOWN_SIDE for case_set in sets):
        told.append(
            "Neither a split nor the model's card says whom it was trained on: it may have seen these patients."
        )
    if options.limit is not None or options.patients:
        told.append("Only some patients were scored, as was asked for.")
    if skipped:
        told.append(f"{skipped} cases could not be read and are missing from every number.")
    if any(fold.scale.source == "none" for fold in folds):
        told.append("Probabilities are raw scores of the network: nothing was there to calibrate them on.")
    levels = {"slice", "scan"}
    for fold in folds:
        levels &= {p.level for p in fold.points if p.finding == "any" and p.chosen_on == "validation"}
    if not levels:
        told.append(
            "The validation side had no patients to choose thresholds on, or they are all alike: yes-or-no answers are "
            "cut at one half, or as the card says."
        )
    if any(case_set.side == "validation" for case_set in sets) and (levels or folds[0].scale.source != "none"):
        told.append(
            "On the validation side thresholds (and where fitted, probabilities) were chosen on the very patients that "
            "are scored: those rows are optimistic."
        )
    if any(m.low == m.high and m.patients > 1 and m.task == "detection" for s in sets for m in s.measures):
        told.append(
            "An interval without width, such as 1.00 to 1.00, says that no draw of these patients comes out otherwise, "
            "not that the score is certain: few patients look alike by chance."
        )
    return told


def _trained_on(fold: Fold, sets: Sequence[CaseSet]) -> Collection[str]:
    """Return the scored patients that the model says it was trained on, whatever split was asked for."""
    own = sides_of_model(fold.entry.model)
    if own.leaks or fold.entry.sides.leaks:  # told already
        return ()
    tables = [s.slices for s in sets if s.side != "train"]
    scored = {str(group) for table in tables for group in np.unique(table.group[table.fold == fold.number])}
    return scored & own.trained
