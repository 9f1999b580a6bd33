"""`hemolens evaluate`: a model, or the folds of a cross-validation, against cases with a known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemolens.cli import exits
from hemolens.cli.exits import WrongUsage
from hemolens.cli.options import Debug, Quiet, Runtime, RuntimeName, Threads

if TYPE_CHECKING:
    from hemolens.evaluation.run import Entry, Evaluation
    from hemolens.evaluation.sides import Sides
    from hemolens.inference.registry import Model
    from hemolens.sources.datasets.cases import DataSet


class Side(StrEnum):
    """Sides of a split."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        show_default=False,
        help="Name of a model that ships, a training run's folder, or a card or network file; with --cross-validate "
        "the runs of all folds.",
    ),
]
Data = Annotated[
    Path, typer.Option("--data", metavar="DIR", show_default=False, help="A data set, or a folder of several.")
]
DataSets = Annotated[
    str | None,
    typer.Option("--datasets", metavar="NAMES", help="Only these of them, such as ct_ich,bhsd."),
]
SplitFile = Annotated[
    Path | None,
    typer.Option("--split", metavar="FILE", help="Split to score by; without it, the model's own (from its card)."),
]
FoldNumber = Annotated[int | None, typer.Option("--fold", metavar="N", min=0, help="Fold of the split, from 0.")]
CrossValidate = Annotated[
    bool, typer.Option("--cross-validate", help="Pool several runs, each on the test side of its own fold.")
]
Sides_ = Annotated[
    list[Side] | None,
    typer.Option("--side", help="Side to report; may be given several times (default: test and validation)."),
]
Patients = Annotated[
    list[str] | None,
    typer.Option(
        "--patient", metavar="NAME", help="Only this patient (049 or ct_ich/049); may be given several times."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Only N patients of each data set and side: a quick look."),
]
Draws = Annotated[int, typer.Option("--draws", metavar="N", min=100, help="Draws of the bootstrap.")]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Write the probabilities and thresholds that were fitted on the validation side into the run's card.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier evaluation that is in OUT.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print metrics.json to standard output, and nothing else there. -o may be left out."),
]


def evaluate(
    models: Models,
    data: Data,
    out: Out = None,
    datasets: DataSets = None,
    split: SplitFile = None,
    fold: FoldNumber = None,
    cross_validate: CrossValidate = False,
    side: Sides_ = None,
    patient: Patients = None,
    limit: Limit = None,
    draws: Draws = 2000,
    calibrate: Calibrate = False,
    runtime: RuntimeName = Runtime.AUTO,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score a model on data sets, with intervals over patients.

    Writes metrics.json, tables, figures, pictures and report.html into OUT.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some cases could not be read.
    """
    _check_usage(models, out, split, fold, cross_validate=cross_validate, calibrate=calibrate, as_json=as_json)

    from hemolens.cli.terminal import progress_shown
    from hemolens.evaluation.results import to_text
    from hemolens.evaluation.run import REPORTED, Options
    from hemolens.evaluation.run import evaluate as run
    from hemolens.sources.datasets.opening import open_datasets

    if out is not None:
        _check_out(out, overwrite=overwrite)
    options = Options(
        tuple(dict.fromkeys(s.value for s in side)) if side else REPORTED,
        tuple(patient or ()),
        limit,
        draws,
        pictures=out is not None,
    )
    opened = open_datasets(data, tuple(n.strip() for n in datasets.split(",")) if datasets else ())
    entries = _entries(models, split, fold, opened, runtime.value, threads, cross_validate=cross_validate)
    with progress_shown(Path(models[0]).name if len(models) == 1 else f"{len(models)} runs", quiet=quiet) as tell:
        result = run(entries, opened, options, tell)
        if out is not None:
            if tell:
                tell("report", 1.0)
            from hemolens.evaluation.folder import write_evaluation

            write_evaluation(result, out, overwrite=overwrite)
    if calibrate:
        _calibrate(result)
    if as_json:
        print(to_text(result), end="")
    elif not quiet:
        _show(result, out)
    raise typer.Exit(exits.PARTIAL if result.partial else exits.DONE)


def _check_usage(
    models: Sequence[str], out: Path | None, split: Path | None, fold: int | None,
    *, cross_validate: bool, calibrate: bool, as_json: bool,
) -> None:  # fmt: skip
    if out is None and not as_json:
        raise WrongUsage("evaluate", "Missing -o OUT: name a folder for the results, or use --json.")
    if len(models) > 1 and not cross_validate:
        raise WrongUsage("evaluate", "Several models are pooled as folds of one split: add --cross-validate.")
    if cross_validate and len(models) < 2:
        raise WrongUsage("evaluate", "--cross-validate needs the runs of at least two folds.")
    if cross_validate and fold is not None:
        raise WrongUsage("evaluate", "--cross-validate takes each run's own fold: leave --fold out.")
    if cross_validate and calibrate:
        raise WrongUsage("evaluate", "--calibrate is for one run: give its folder alone.")
    if fold is not None and split is None:
        raise WrongUsage("evaluate", "--fold is a fold of a split: name the split with --split.")


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Find out before minutes of work whether results could be drawn and written."""
    from importlib.util import find_spec

    from hemolens.errors import DependencyError
    from hemolens.reports.folder import check_target

    if find_spec("matplotlib") is None:
        raise DependencyError("matplotlib", "train")
    from hemolens.evaluation.folder import EVALUATION

    check_target(out, overwrite=overwrite, kind=EVALUATION)


def _entries(
    models: Sequence[str], split: Path | None, fold: int | None, datasets: Sequence[DataSet],
    runtime: str, threads: int | None, *, cross_validate: bool,
) -> list[Entry]:  # fmt: skip
    """Load the models and find out who is on which side for each."""
    from hemolens.evaluation.run import Entry
    from hemolens.evaluation.sides import check_folds
    from hemolens.inference.predictor import Predictor
    from hemolens.inference.registry import load_model

    loaded = [load_model(name) for name in models]
    sides = [_sides(model, split, fold, datasets, cross_validate=cross_validate) for model in loaded]
    if cross_validate:
        check_folds(sides)
    return [Entry(Predictor(model, runtime, threads), s) for model, s in zip(loaded, sides, strict=True)]


def _sides(
    model: Model, split: Path | None, fold: int | None, datasets: Sequence[DataSet], *, cross_validate: bool
) -> Sides:
    from hemolens.evaluation.sides import sides_of_model, sides_of_split
    from hemolens.sources.splits import read_split

    own = sides_of_model(model)
    if split is None:
        return own
    number = own.fold if fold is None and own.fold is not None else fold
    if cross_validate and own.fold is None:
        raise WrongUsage("evaluate", "--cross-validate needs training runs, which know their fold.")
    return sides_of_split(read_split(split), number or 0, datasets)


def _calibrate(result: Evaluation) -> None:
    """Write what was fitted on validation patients into the card of the run."""
    from hemolens.errors import ModelError
    from hemolens.evaluation.card import with_calibration, write_card

    (fold,) = result.folds
    model, calibration = fold.entry.model, fold.scale.calibration
    if fold.scale.source != "validation" or calibration is None:
        reason = "its probabilities are calibrated already" if fold.scale.source == "card" else "nothing was fitted"
        raise ModelError(f"{model.name}: the card was left as it is, for {reason}.")
    patients = max(point.patients for point in fold.points if (point.level, point.finding) == ("slice", "any"))
    told = f"Probabilities and the threshold for scans were fitted on {patients} validation patients."
    write_card(model.path.with_suffix(".json"), with_calibration(dict(model.card), calibration, told))


def _show(result: Evaluation, out: Path | None) -> None:
    """Print the headline scores, the warnings and the path of the report."""
    from rich.table import Table

    from hemolens.cli.terminal import plain_console
    from hemolens.evaluation.results import headline
    from hemolens.evaluation.run import NOTICE

    console = plain_console()
    for case_set in result.sets:
        title = f"{case_set.name}: {case_set.patients} patients, {len(case_set.slices)} slices"
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for name in ("score", "value", "95 % interval", "n"):
            table.add_column(name, justify="left" if name == "score" else "right")
        for name, m in headline(case_set.measures):
            interval = f"{m.low:.2f} to {m.high:.2f}" if math.isfinite(m.low) else "-"
            table.add_row(name, f"{m.value:.2f}", interval, f"{m.n} {m.unit}, {m.patients} patients")
        console.print(table)
    for line in (*result.warnings, *result.skipped):
        console.print(f"caution: {line}", markup=False, soft_wrap=True)
    console.print(NOTICE, markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"Report: {out / 'report.html'}", markup=False, soft_wrap=True)
