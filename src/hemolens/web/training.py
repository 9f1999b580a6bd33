"""Training runs from their folders: which are running, their curves and tables, and what they were scored.

Reads files only, so that it works without torch and beside a run on another machine that writes to the same disk.
"""

from __future__ import annotations

import csv
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from hemolens.inference.registry import RUN_CARD
from hemolens.web.components import repeat
from hemolens.web.findings import table
from hemolens.web.session import settings

LOG, CONFIG, PROVENANCE, METRICS = "log.jsonl", "config.toml", "provenance.json", "metrics.json"
QUIET_S = 900.0
"""A run that has written nothing for so long is taken for stopped."""
DEPTH = 4
"""Levels of folders that are searched."""
MOST_PANELS = 12
REFRESH_S = 15.0
CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("loss", "val_loss")),
    ("Dice, pooled", ("dice", "val_dice")),
    ("Hemorrhage or not", ("detection_accuracy", "val_detection_accuracy", "val_auc", "val_average_precision")),
    ("Learning rate", ("rate",)),
)
STATE_WORDS = {"running": "running", "finished": "finished", "stopped": "stopped before its end"}

State = Literal["running", "finished", "stopped"]
Row = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One training run."""

    path: Path
    name: str
    """Its folder, as seen from the folder of runs."""
    state: State
    network: str
    step: int
    steps: int
    """0 where its length is told in epochs."""
    epochs: int
    rows: tuple[Row, ...]
    written: float
    """When its log was written last."""

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        if self.state == "finished":
            return 1.0
        epoch = float(self.rows[-1].get("epoch", 0.0)) if self.rows else 0.0
        done = self.step / self.steps if self.steps else epoch / self.epochs if self.epochs else 0.0
        return min(max(done, 0.0), 1.0)

    @property
    def left_s(self) -> float | None:
        """Seconds that a running one still takes, told by those that it took."""
        seconds = float(self.rows[-1].get("seconds", 0.0)) if self.rows else 0.0
        if self.state != "running" or not 0 < self.share < 1:
            return None
        return seconds * (1 - self.share) / self.share


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model, as `hemolens evaluate` wrote them."""

    path: Path
    name: str


def find_runs(folder: Path, now: float | None = None) -> list[Run]:
    """Return every training run below a folder, the last written first; what cannot be read is left out."""
    now = time.time() if now is None else now
    found = []
    for config in _below(folder, CONFIG):
        run = _read(config.parent, folder, now)
        if run is not None:
            found.append(run)
    return sorted(found, key=lambda run: -run.written)


def find_evaluations(folder: Path) -> list[Evaluation]:
    """Return every evaluation below a folder."""
    found = [path.parent for path in _below(folder, METRICS)]
    return [Evaluation(path, _name(path, folder)) for path in sorted(found)]


def read_rows(path: Path) -> list[Row]:
    """Return the lines of a run's log; one that is still being written ends it."""
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict):
            rows.append({k: v for k, v in row.items() if isinstance(v, (int, float))})
    return rows


def curve(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return the measured points of some columns, name → step → value; those never measured are left out."""
    named = {key: {int(r["step"]): float(r[key]) for r in rows if key in r and "step" in r} for key in keys}
    return {_label(key): points for key, points in named.items() if points}


def read_table(path: Path, most: int = 40) -> Sequence[tuple[str, ...]]:
    """Return the head and the first lines of a CSV file; nothing where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [tuple(row) for row, _ in zip(csv.reader(stream), range(most + 1), strict=False)]
    except (OSError, csv.Error, UnicodeDecodeError):
        return []
    return [row for row in rows if len(row) == len(rows[0])]


def main_metrics(path: Path) -> Sequence[tuple[str, ...]]:
    """Return the scores of an evaluation that a reader looks for first, with their intervals."""
    rows = read_table(path / "metrics.csv", 2000)
    if not rows:
        return []
    wanted = {"dice_score", "auc_score", "average_precision_score", "recall_score", "specificity_score"}
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    return [
        (r["dataset"], r["side"], r["level"], r["metric"].removesuffix("_score").replace("_", " "), _scored(r), r["n"])
        for r in named
        if r.get("metric") in wanted and r.get("finding") == "any" and r.get("fold", "all") == "all"
    ][:24]


def show(ui: Any) -> None:
    """Draw the page."""
    folder = settings().runs
    if folder is None:
        ui.info("To see training runs here, start the app with their folder: `hemolens web --runs runs`.")
        return
    if not folder.is_dir():
        ui.info(
            f"There is no folder {folder} yet. Start a run: `hemolens train effunet2d --data DIR --run {folder}/mine`."
        )
        return
    _watched(folder)


@st.fragment
def _watched(folder: Path) -> None:
    repeat(REFRESH_S, key="training-clock")
    runs = find_runs(folder)
    if not runs:
        st.info(
            f"{folder} holds no training run. Start one: `hemolens train effunet2d --data DIR --run {folder}/mine`."
        )
    else:
        rows = [(r.name, r.network, STATE_WORDS[r.state], f"{r.step}", _last(r), _left(r)) for r in runs]
        st.markdown(table(("Run", "Network", "State", "Step", "Last scores", "Time left"), rows))
        names = [r.name for r in runs]
        chosen = st.selectbox("Run to look at", names, key="training-run")
        _run(next(r for r in runs if r.name == chosen))
    evaluations = find_evaluations(folder)
    if evaluations:
        st.markdown("### Evaluations")
        name = st.selectbox("Evaluation to look at", [e.name for e in evaluations], key="training-evaluation")
        _evaluation(next(e for e in evaluations if e.name == name))
    st.caption(f"Read again every {REFRESH_S:.0f} seconds.")


def _run(run: Run) -> None:
    st.progress(run.share, text=f"{run.name}: {STATE_WORDS[run.state]}, step {run.step}")
    if run.state == "stopped":
        st.caption("Go on with the same command and --resume.")
    shown = [(title, curve(run.rows, keys)) for title, keys in CURVES]
    shown = [(title, points) for title, points in shown if points]
    columns = st.columns(2)
    for number, (title, points) in enumerate(shown):
        with columns[number % 2]:
            st.markdown(f"**{title}**")
            st.line_chart(_frame(points), height=240, x_label="step")
    if not shown:
        st.caption("It has not logged anything yet.")
    if run.rows:
        with st.expander("Last lines of its log"):
            last = run.rows[-10:]
            keys = [k for k in run.rows[-1] if any(k in row for row in last)]
            st.markdown(table(tuple(_label(k) for k in keys), [tuple(_cell(row.get(k)) for k in keys) for row in last]))
    with st.expander("Settings and where it comes from"):
        st.code(_text(run.path / CONFIG), language="toml")
        st.code(_text(run.path / PROVENANCE), language="json")


def _evaluation(evaluation: Evaluation) -> None:
    rows = main_metrics(evaluation.path)
    if rows:
        st.markdown(table(("Data set", "Side", "Of each", "Score for any hemorrhage", "Value", "n"), rows))
    panels = sorted((evaluation.path / "panels").glob("*.png")) if (evaluation.path / "panels").is_dir() else []
    figures = sorted((evaluation.path / "figures").glob("*.png")) if (evaluation.path / "figures").is_dir() else []
    for title, pictures in (("Figures", figures), ("Panels: image, truth, found", panels)):
        if pictures:
            with st.expander(f"{title} ({len(pictures)})", expanded=title.startswith("Panels")):
                for picture in pictures[:MOST_PANELS]:
                    name = picture.stem.replace("-", " ").replace("_", " ")
                    st.image(str(picture), caption=name, alt=name)
                if len(pictures) > MOST_PANELS:
                    st.caption(f"{len(pictures) - MOST_PANELS} more lie in {picture.parent}.")


def _read(path: Path, root: Path, now: float) -> Run | None:
    try:
        told = tomllib.loads((path / CONFIG).read_text(encoding="utf-8"))
        written = max(p.stat().st_mtime for p in (path / CONFIG, path / LOG) if p.exists())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    if "network" not in told:
        return None
    rows = tuple(read_rows(path / LOG))
    state: State = "running" if now - written < QUIET_S else "stopped"
    if (path / RUN_CARD).is_file():
        state = "finished"
    step = int(rows[-1].get("step", 0)) if rows else 0
    kind = str(told["network"].get("kind", "?")) if isinstance(told["network"], dict) else "?"
    return Run(
        path, _name(path, root), state, kind, step, int(told.get("steps", 0)), int(told.get("epochs", 0)), rows, written
    )


def _below(folder: Path, name: str) -> list[Path]:
    found: list[Path] = []
    for depth in range(DEPTH):
        found += folder.glob("/".join(["*"] * depth + [name]))
    return found


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name


def _label(key: str) -> str:
    name = key.removeprefix("val_").replace("_", " ")
    return f"{name}, validation" if key.startswith("val_") else name


def _frame(points: Mapping[str, Mapping[int, float]]) -> Any:
    import pandas as pd

    return pd.DataFrame({name: pd.Series(dict(values)) for name, values in points.items()})


def _last(run: Run) -> str:
    for row in reversed(run.rows):
        told = [f"{_label(key)} {row[key]:.3f}" for key in ("val_loss", "val_dice", "val_auc") if key in row]
        if told:
            return ", ".join(told)
    return f"loss {run.rows[-1]['loss']:.3f}" if run.rows and "loss" in run.rows[-1] else "–"


def _left(run: Run) -> str:
    left = run.left_s
    if left is None:
        return "–"
    hours, minutes = divmod(round(left / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _scored(row: Mapping[str, str]) -> str:
    try:
        value = f"{float(row['value']):.3f}"
        return f"{value} ({float(row['low']):.3f} to {float(row['high']):.3f})" if row.get("low") else value
    except ValueError:
        return "–"


def _cell(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return f"{path.name} is not there"
