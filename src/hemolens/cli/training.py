"""What `hemolens train` and `hemolens tune` share: options, the progress line, what other processes may print."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hemolens.sources.datasets.cases import DataSet
    from hemolens.training.loop import Progress

RUNS = Path("runs")
Preset = Annotated[
    str,
    typer.Argument(metavar="PRESET", help="Name of a preset, or a TOML file with settings.", show_default=False),
]
Data = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", help="A data set, or a folder that holds several.", show_default=False),
]
Names = Annotated[
    str | None,
    typer.Option("--datasets", metavar="NAMES", help="Use only these of them, such as ct_ich,phe_sich."),
]
SplitFile = Annotated[
    Path | None,
    typer.Option(
        "--split",
        metavar="FILE",
        help="Who is trained, validated and tested on (see 'hemolens data split'); without it one is made.",
    ),
]
FoldNumber = Annotated[int, typer.Option("--fold", metavar="N", min=0, help="Fold of the split, from 0.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Folder for decoded slices, which runs may share."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")]

SCORES = ("val_dice", "val_auc", "val_loss")
"""Shown beside the loss, the first that there is."""
Show = Callable[["Progress", str], None]


def open_data(path: Path, names: str | None) -> tuple[DataSet, ...]:
    """Open the data sets that were asked for."""
    from hemolens.sources.datasets.opening import open_datasets

    return open_datasets(path, tuple(n.strip() for n in (names or "").split(",") if n.strip()))


def is_first_process() -> bool:
    """Whether this process may print: of those that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def ready_to_train() -> None:
    """Make sure that torch is there, and let cuBLAS keep a workspace of its own: else its sums differ between runs.

    Raises
    ------
    DependencyError
        If torch is not installed.
    """
    from hemolens.errors import DependencyError

    if importlib.util.find_spec("torch") is None:
        raise DependencyError("torch", "train")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def progress_line(*, quiet: bool) -> Iterator[Show | None]:
    """Yield what shows a `Progress` and a title: one live line on a terminal, else a line for each of the log."""
    if quiet or not is_first_process():
        yield None
    elif not sys.stderr.isatty():
        yield _print_rows
    else:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        latest: dict[str, float] = {}
        with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:

            def show(progress: Progress, title: str) -> None:
                latest.update(progress.row or {})
                live.update(Text(line_of(progress, latest, title), no_wrap=True, overflow="ellipsis"))

            yield show


def _print_rows(progress: Progress, title: str) -> None:
    if progress.row or progress.step == progress.steps:
        print(line_of(progress, progress.row or {}, title), file=sys.stderr, flush=True)


def line_of(progress: Progress, row: Mapping[str, float], title: str = "") -> str:
    """Write progress as one line: ``train 120/2400  loss 0.531  val_dice 0.412  3:20 left``."""
    if progress.stage == "prepare":
        words = [f"decoding {progress.step} %"]
    elif progress.stage == "export":
        words = ["exporting the model"]
    else:
        words = [f"train {progress.step}/{progress.steps}"]
        if "loss" in row:
            words.append(f"loss {row['loss']:.3f}")
        words += [f"{name} {row[name]:.3f}" for name in SCORES if name in row][:1]
        if math.isfinite(progress.seconds_left):
            words.append(f"{clock(progress.seconds_left)} left")
    return "  ".join([title, *words] if title else words)


def clock(seconds: float) -> str:
    """Write seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
