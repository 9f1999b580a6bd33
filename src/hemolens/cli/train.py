"""`hemolens train`: a preset and data in, a run folder with weights, logs and a model out."""

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
    is_first_process,
    open_data,
    progress_line,
    ready_to_train,
)

if TYPE_CHECKING:
    from hemolens.training.run import RunResult


def train(
    preset: Preset,
    data: Data,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings to change, such as optimizer.rate=1e-3.", show_default=False
        ),
    ] = None,
    datasets: Names = None,
    split: SplitFile = None,
    fold: FoldNumber = 0,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", "-o", metavar="DIR", help="Folder of the run. [default: runs/PRESET]", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint, if there is one.")
    ] = False,
    cache: Cache = None,
    pseudo: Annotated[
        Path | None,
        typer.Option(
            "--pseudo", metavar="DIR", help="Learn from derived masks, too: what 'hemolens data pseudo' wrote."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a network.

    The run folder holds settings, provenance, logs, curves, checkpoints and the model.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (go on with --resume).
    """
    ready_to_train()
    from hemolens.sources.splits import read_split
    from hemolens.training.checkpoint import CHECKPOINT
    from hemolens.training.config import load_preset, parse_overrides
    from hemolens.training.run import run_training

    config = load_preset(preset, parse_overrides(settings or []))
    opened = open_data(data, datasets)
    if pseudo is not None:
        from hemolens.sources.datasets.pseudo import read_pseudo, with_pseudo

        opened = with_pseudo(opened, read_pseudo(pseudo))
    chosen = read_split(split) if split is not None else None
    out = run if run is not None else RUNS / Path(preset).stem
    try:
        with as_interrupt(), progress_line(quiet=quiet) as show:
            result = run_training(
                config, opened, chosen, fold, out,
                resume=resume, cache=cache, progress=(lambda p: show(p, "")) if show else None,
            )  # fmt: skip
    except KeyboardInterrupt:
        held = "the last whole checkpoint" if (out / CHECKPOINT).exists() else "no checkpoint yet"
        advice = f"Go on with the same command and --resume; {out} holds {held}." if is_first_process() else ""
        raise exits.Interrupted(advice) from None
    if is_first_process():
        _tell(result, as_json=as_json, quiet=quiet)


def _tell(result: RunResult, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        told = {
            "run": str(result.folder),
            "model": str(result.model) if result.model else None,
            "step": result.step,
            "stopped_early": result.stopped_early,
            "select": result.config.select,
            "best": result.best,
            "best_step": result.best_step,
            "last": dict(result.rows[-1]) if result.rows else {},
        }
        print(json.dumps(told, indent=2, allow_nan=False))
    elif not quiet:
        early = " (stopped early)" if result.stopped_early else ""
        kept = f"weights of step {result.best_step}"
        score = f", {result.config.select} {result.best:.4f} on validation" if result.best is not None else ""
        print(f"Trained for {result.step} steps{early}. Kept: {kept}{score}.")
        print("Research use only. Scores with intervals: hemolens evaluate.")
        print(f"Model: {result.model}")
