"""What a run writes down as it goes: CSV, JSON lines, TensorBoard, and curves at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hemolens.errors import DependencyError
from hemolens.training.checkpoint import disk_watched, write_whole
from hemolens.training.config import TrainConfig

CSV_NAME = "log.csv"
JSON_NAME = "log.jsonl"
CURVES_NAME = "curves.png"
Row = Mapping[str, float]
CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("loss", "val_loss")),
    ("Dice, pooled", ("dice", "val_dice")),
    ("Pixel accuracy", ("accuracy", "val_accuracy")),
    ("Hemorrhage or not", ("detection_accuracy", "val_detection_accuracy", "val_auc", "val_average_precision")),
    ("Learning rate", ("rate",)),
)


def columns(config: TrainConfig) -> tuple[str, ...]:
    """Return the columns of a run's log."""
    told = ("loss", *config.loss.weights, *MEASURES)
    scores = (*told, "auc", "average_precision")
    return ("step", "epoch", "seconds", "rate", "gradient_norm", *told, *(f"val_{name}" for name in scores))


MEASURES = ("dice", "accuracy", "detection_accuracy")
"""Pooled Dice of blood, share of pixels told right, share of samples whose "any" is told right; all at 0.5."""


class RunLog:
    """The log of one run, from its first step or from where a checkpoint stands.

    Parameters
    ----------
    folder
        Of the run.
    config
        Its settings.
    step
        Lines beyond this step are dropped: they belong to steps that are run again.

    Raises
    ------
    DependencyError
        If TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, config: TrainConfig, step: int) -> None:
        self.folder = folder
        self.columns = columns(config)
        self.rows: list[Row] = [row for row in read_log(folder) if row["step"] <= step] if step else []
        self._board = _open_board(folder / "tensorboard", step) if config.tensorboard else None
        with disk_watched(folder / CSV_NAME):
            write_whole(folder / CSV_NAME, _csv([self.columns]) + _csv(self._cells(row) for row in self.rows))
            write_whole(folder / JSON_NAME, "".join(_json(row) for row in self.rows).encode())

    def write(self, row: Row) -> None:
        """Add a line.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        self.rows.append(row)
        with disk_watched(self.folder / CSV_NAME):
            with (self.folder / CSV_NAME).open("ab") as file:
                file.write(_csv([self._cells(row)]))
            with (self.folder / JSON_NAME).open("ab") as file:
                file.write(_json(row).encode())
            if self._board is not None:
                for name, value in row.items():
                    if name not in ("step", "epoch", "seconds"):
                        group, _, rest = name.partition("_")
                        tag = f"validation/{rest}" if group == "val" else f"train/{name}"
                        self._board.add_scalar(tag, value, int(row["step"]))
                self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _cells(self, row: Row) -> list[str]:
        return [_cell(row[name]) if name in row else "" for name in self.columns]


def read_log(folder: Path) -> list[Row]:
    """Return the lines of a run's log; one that a power cut left unfinished ends it."""
    path = folder / JSON_NAME
    rows: list[Row] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def draw_curves(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw loss, scores and learning rate over the steps as one PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("matplotlib", "train") from error
    shown = [(name, [key for key in keys if any(key in row for row in rows)]) for name, keys in CURVES]
    shown = [(name, keys) for name, keys in shown if keys]
    if not shown:
        return
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, keys) in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), place)
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=_label(key))
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    with disk_watched(path):
        write_whole(path, stream.getbuffer())


def _label(key: str) -> str:
    name = key.removeprefix("val_").replace("_", " ")
    return f"{name}, validation" if key.startswith("val_") else f"{name}, training" if key != "rate" else name


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DependencyError("tensorboard", "train") from error
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _json(row: Row) -> str:
    return json.dumps({k: v if isinstance(v, int) else float(f"{v:.6g}") for k, v in row.items()}) + "\n"
