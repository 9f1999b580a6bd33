"""`hemolens tune`: a search over settings, trial by trial, that can go on at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemolens.cli import exits
from hemolens.cli.interrupts import as_interrupt
from hemolens.cli.training import (
    RUNS,
    AsJson,
    Cache,
    Data,
    Debug,
    FoldNumber,
    Names,
    Preset,
    Quiet,
    SplitFile,
    open_data,
    progress_line,
    ready_to_train,
)

if TYPE_CHECKING:
    from hemolens.training.tune import TuneProgress


def tune(
    preset: Preset,
    data: Data,
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", min=1, help="Trials, those of earlier calls included.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=LOW..HIGH | KEY=A,B | KEY=VALUE]...",
            help="What to search, and settings to change. Without a range: rate, optimizer, batch, decay, width.",
            show_default=False,
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option("--space", metavar="FILE", help="TOML file with ranges and choices to search.")
    ] = None,
    datasets: Names = None,
    split: SplitFile = None,
    fold: FoldNumber = 0,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="Folder of the search. [default: runs/PRESET-tune]", show_default=False
        ),
    ] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search the settings of a preset; give the same command again to go on.

    The folder holds study.db (Optuna), trials.csv, best.toml and a run for each trial.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    ready_to_train()
    from hemolens.sources.splits import read_split
    from hemolens.training.config import load_preset, parse_overrides, read_toml
    from hemolens.training.tune import default_space, parse_space, read_space
    from hemolens.training.tune import tune as search

    dimensions, words = parse_space(settings or [])
    config = load_preset(preset, parse_overrides(words))
    dimensions += read_space(read_toml(space)) if space is not None else ()
    opened = open_data(data, datasets)
    chosen = read_split(split) if split is not None else None
    out = run if run is not None else RUNS / f"{Path(preset).stem}-tune"
    try:
        with as_interrupt(), progress_line(quiet=quiet) as show:

            def told(progress: TuneProgress) -> None:
                if show:
                    best = "" if progress.best is None else f"  best {progress.best:.4f}"
                    show(progress.run, f"trial {progress.trial}/{progress.trials}{best}")

            result = search(
                config, dimensions or default_space(config), opened, chosen, fold, out,
                trials=trials, cache=cache, progress=told,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise exits.Interrupted(f"Go on with the same command; {out} holds the trials so far.") from None
    if as_json:
        values = {
            "run": str(result.folder), "preset": str(result.preset), "select": config.select, "best": result.value,
            "settings": dict(result.settings), "finished": result.finished, "pruned": result.pruned,
        }  # fmt: skip
        print(json.dumps(values, indent=2, allow_nan=False))
    elif not quiet:
        print(f"{result.finished} trials reached their end, {result.pruned} were pruned.")
        print(
            f"Best {config.select}: {result.value:.4f} with "
            + ", ".join(f"{k}={v}" for k, v in result.settings.items())
        )
        print(f"Train with it: hemolens train {result.preset} --data {data}")
