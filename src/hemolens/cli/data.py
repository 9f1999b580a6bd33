"""`hemolens data`: fetch, check, sum up and split data sets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hemolens.cli import exits
from hemolens.cli.exits import WrongUsage
from hemolens.cli.terminal import plain_console, progress_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hemolens.sources.datasets.cases import DataSet
    from hemolens.sources.datasets.summary import Summary
    from hemolens.sources.splits import Split

data = typer.Typer(help="Fetch, check, sum up and split data sets for training; derive masks.", no_args_is_help=True)


class UnitName(StrEnum):
    """What is dealt to the sides of a split."""

    PATIENT = "patient"
    SLICE = "slice"


Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a data set, or one that holds several.", show_default=False)
]
Names = Annotated[
    str, typer.Option("--datasets", metavar="NAMES", help="Use only these of them, such as ct_ich,phe_sich.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set: ct_ich, rsna or bhsd.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for data sets; NAME is made in it.")],
    force: Annotated[bool, typer.Option("--force", help="Download again what is already there.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download a data set from Kaggle, go on where an earlier try broke off, and check that it is whole.

    Needs hemolens[data] and a Kaggle access token. Never runs by itself: no other verb downloads anything.
    """
    silence = {"KAGGLEHUB_VERBOSITY": "error", "TQDM_DISABLE": "1"} if quiet or not sys.stderr.isatty() else {}
    with _environment(silence):  # before the first import of the libraries that read it
        from hemolens.sources.datasets import kaggle

        source = kaggle.source_of(name)  # a wrong name is told before a package is asked for
        if not quiet:
            exits.say(f"{name}: {source.page} ({source.terms})")
        with _environment({"KAGGLEHUB_CACHE": str((out / kaggle.CACHE).absolute())}):
            dataset = kaggle.fetch(name, out, kaggle.load_kagglehub(), force=force)
    if not quiet:
        _print_notes([dataset])
        slices = sum(len(case.slices) for case in dataset.cases)
        print(f"{out / name}: {len(dataset.cases):,} scans, {slices:,} slices")


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables for kagglehub, which has no other way to be told, and put back what was there."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@data.command()
def check(
    folder: Folder,
    names: Names = "",
    split: Annotated[
        Path | None, typer.Option("--split", metavar="FILE", help="Also look for leaks between the sides of a split.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read every image and mask; find duplicates, leaks, wrong sizes, masks without slices, labels at odds with masks.

    Exit codes: 0 nothing was found, 1 the data cannot be opened, 3 something was found.
    """
    from hemolens.sources.datasets.checking import check_datasets
    from hemolens.sources.splits import LEAK_WARNING, read_split

    parts = read_split(split) if split is not None else None
    datasets = _open(folder, names, quiet=quiet)
    if parts is not None:
        parts.check(datasets, partial=bool(names))
        if parts.leaks:
            exits.say(LEAK_WARNING)
    with progress_shown("", quiet=quiet) as tell:
        problems = check_datasets(datasets, parts, tell)
    known = [note for dataset in datasets for note in dataset.notes if note.kind == "known"]
    if as_json:
        found = [asdict(problem) for problem in problems]
        print(json.dumps({"datasets": [d.name for d in datasets], "notes": known, "problems": found}, indent=2))
    elif not quiet:
        for problem in problems:
            print(f"{problem.kind:13} {problem.dataset:9} {problem.message}")
        for note in known:
            print(f"{'known':13} {'':9} {note}")
        slices = sum(len(case.slices) for dataset in datasets for case in dataset.cases)
        print(f"{len(problems):,} problems in {slices:,} slices of {', '.join(d.name for d in datasets)}.")
    raise typer.Exit(exits.PARTIAL if problems else exits.DONE)


@data.command()
def summary(
    folder: Folder,
    names: Names = "",
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also save a picture (PNG).")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Count patients, scans, slices, findings and masks of each data set."""
    from hemolens.sources.datasets.summary import plot_summaries, summarize

    datasets = _open(folder, names, quiet=quiet)
    summaries = [summarize(dataset) for dataset in datasets]
    if plot is not None:
        plot_summaries(summaries, plot)
    if as_json:
        print(json.dumps([asdict(s) for s in summaries], indent=2))
    elif not quiet:
        _print_summaries(summaries)
        _print_notes(datasets)
        if plot is not None:
            print(f"Picture: {plot}")


@data.command()
def split(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON file to write.")],
    names: Names = "",
    folds: Annotated[int, typer.Option("--folds", metavar="K", help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same split.")] = 0,
    train_only: Annotated[
        str, typer.Option("--train-only", metavar="NAMES", help="Data sets that are trained on in every fold.")
    ] = "",
    test_only: Annotated[
        str, typer.Option("--test-only", metavar="NAMES", help="Data sets that are tested on in every fold.")
    ] = "",
    unit: Annotated[
        UnitName, typer.Option("--unit", help="slice splits single slices: only to show what such a leak does.")
    ] = UnitName.PATIENT,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Split by patient into k folds, stratified by what the scans show, and write that to a file.

    Fold i is tested on part i, validated on part i + 1 and trained on the rest.
    """
    from hemolens.sources.splits import LEAK_WARNING, make_split, write_split

    if out.suffix.lower() != ".json":
        raise WrongUsage("data split", "--out must name a .json file.")
    datasets = _open(folder, names, quiet=quiet)
    made = make_split(
        datasets,
        folds=folds,
        seed=seed,
        train_only=_listed(train_only),
        test_only=_listed(test_only),
        unit="slice" if unit is UnitName.SLICE else "patient",
    )
    made.check(datasets)
    write_split(made, out, overwrite=overwrite)
    if made.leaks:
        exits.say(LEAK_WARNING)
    if as_json:
        print(json.dumps(_counts(made, datasets), indent=2))
    elif not quiet:
        _print_split(made, datasets)
        print(f"Split: {out}")


@data.command()
def pseudo(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a training run, or a model.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of a data set, or one that holds several.")
    ],
    split_file: Annotated[
        Path, typer.Option("--split", metavar="FILE", help="Masks are derived for its training side alone.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.")],
    fold: Annotated[int, typer.Option("--fold", metavar="N", min=0, help="Fold of the split, from 0.")] = 0,
    mend: Annotated[bool, typer.Option("--mend", help="Complete published masks that are derived, too.")] = False,
    names: Names = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let a model outline the bleeding slices that have no mask, and keep what can be trusted: self-training.

    The next network learns from it with 'hemolens train --pseudo'. Derived masks are never a yardstick.
    """
    from hemolens.cli.training import ready_to_train

    ready_to_train()
    from hemolens.inference.predictor import Predictor
    from hemolens.inference.registry import load_model
    from hemolens.sources.splits import read_split
    from hemolens.training.pseudo_folder import write_pseudo
    from hemolens.training.self_training import SelfTrainingConfig

    chosen = read_split(split_file).fold(fold)
    datasets = _open(folder, names, quiet=quiet)
    predictor = Predictor(load_model(model))
    with progress_shown("outlining", quiet=quiet) as tell:
        index = write_pseudo(
            predictor,
            datasets,
            chosen.train,
            out,
            SelfTrainingConfig(mend=mend),
            tell and (lambda k, n: tell("infer", k / n)),
        )
    if as_json:
        print(json.dumps(index["origin"], indent=2))
    elif not quiet:
        wanted = sum(index["origin"]["bleeding_slices_without_mask"].values())
        print(f"{out}: masks for {index['origin']['slices_outlined']} of {wanted} bleeding slices without one")
        if mend:
            print(f"{out}: {index['origin']['slices_mended']} slices of scans with derived masks are told anew")


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _open(folder: Path, names: str, *, quiet: bool) -> tuple[DataSet, ...]:
    from hemolens.sources.datasets.opening import open_datasets

    with progress_shown("", quiet=quiet) as tell:
        return open_datasets(folder, _listed(names), tell)


def _print_notes(datasets: Sequence[DataSet]) -> None:
    for dataset in datasets:
        for note in dataset.notes:
            exits.say(f"{dataset.name}: {note}")


def _print_summaries(summaries: Sequence[Summary]) -> None:
    from rich.table import Table

    from hemolens.labels import FINDING_NAMES

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("data set", "of", "total", *FINDING_NAMES, "drawn", "pseudo", "empty", "unknown")
    for name in columns:
        table.add_column(name, justify="left" if name in ("data set", "of") else "right")
    for item in summaries:
        for of, tally in (("patients", item.patients), ("slices", item.slices)):
            found = [_found(tally.present[name], tally.absent[name], tally.total) for name in FINDING_NAMES]
            masks = [f"{count:,}" for count in item.masks.values()] if of == "slices" else [""] * 4
            table.add_row(item.name if of == "patients" else "", of, f"{tally.total:,}", *found, *masks)
    plain_console().print(table)
    for item in summaries:
        use = "" if item.trainable else "; weights trained on it may not be given away"
        print(f"{item.name}: {item.scans:,} scans, license {item.license}{use}")


def _found(present: int, absent: int, total: int) -> str:
    """Tell how many have a finding, and of how many that is known where it is not known of all."""
    return f"{present:,}" if present + absent == total else f"{present:,} of {present + absent:,}"


def _counts(made: Split, datasets: Sequence[DataSet]) -> list[dict[str, Any]]:
    from hemolens.sources.splits import SIDES, slices_in

    cases = [case for dataset in datasets for case in dataset.cases]
    rows = []
    for number, fold in enumerate(made.folds):
        row: dict[str, Any] = {"fold": number}
        for side in SIDES:
            members = frozenset(getattr(fold, side))
            chosen = [(case, slices_in(case, members)) for case in cases]
            row[side] = {
                "patients": len({case.group for case, which in chosen if which}),
                "patients_with_hemorrhage": len({c.group for c, which in chosen if which and c.findings[0] == 1.0}),
                "slices": sum(len(which) for _, which in chosen),
            }
        rows.append(row)
    return rows


def _print_split(made: Split, datasets: Sequence[DataSet]) -> None:
    for row in _counts(made, datasets):
        sides = (
            f"{side} {row[side]['patients']:,} patients ({row[side]['patients_with_hemorrhage']:,} with hemorrhage), "
            f"{row[side]['slices']:,} slices"
            for side in ("train", "validation", "test")
        )
        print(f"fold {row['fold']}: {'; '.join(sides)}")
