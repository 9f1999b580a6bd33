"""Searching settings with Optuna: every trial is a training run, and everything lies in one folder that can go on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemolens.config import to_mapping, with_overrides
from hemolens.errors import ConfigError, DependencyError, DivergedError, OutputError
from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.splits import Split, read_split
from hemolens.training.checkpoint import disk_watched, write_whole
from hemolens.training.config import TrainConfig, parse_value, save_config
from hemolens.training.lock import LOCK, held
from hemolens.training.loop import HIGHER_IS_BETTER, Progress
from hemolens.training.run import SPLIT, own_split, run_training

STUDY = "study.db"
BEST_PRESET = "best.toml"
TRIALS_NAME = "trials.csv"
STARTUP_TRIALS = 4
"""Run to their end, whatever they score."""
WIDE = 10
"""A range whose ends are this many times apart is searched by its logarithm."""


@dataclass(frozen=True)
class Dimension:
    """One setting to search: a range, or a list of choices.

    Raises
    ------
    ValueError
        If it is neither, or its range is empty.
    """

    key: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices and not self.low < self.high:
            raise ValueError(f"{self.key}: the range {self.low}..{self.high} is empty")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.key}: a logarithmic range must begin above 0")

    def suggest(self, trial: Any) -> Any:
        """Return a value for an Optuna trial."""
        if self.choices:
            return self.setting(trial.suggest_categorical(self.key, list(self._labels())))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def setting(self, kept: Any) -> Any:
        """Return the value of a setting for what Optuna keeps of it."""
        return self._labels()[kept] if self.choices else kept

    def _labels(self) -> dict[Any, Any]:
        """Return each choice by what a study can keep of it: a list as text."""
        return {json.dumps(c) if isinstance(c, (list, tuple)) else c: c for c in self.choices}


@dataclass(frozen=True)
class TuneProgress:
    """How far a search is."""

    trial: int
    """From 1."""
    trials: int
    best: float | None
    run: Progress


@dataclass(frozen=True)
class TuneResult:
    """What a search found."""

    folder: Path
    preset: Path
    """The best settings, for `hemolens train`."""
    value: float
    settings: Mapping[str, Any]
    """Of the best trial: the searched ones."""
    finished: int
    pruned: int


def parse_space(words: Sequence[str]) -> tuple[tuple[Dimension, ...], tuple[str, ...]]:
    """Tell ``key=low..high`` and ``key=a,b,c`` (or ``a|b|c``, where values are lists) from plain ``key=value`` words.

    The latter are returned as they are.

    Raises
    ------
    ConfigError
        If a range is no range.
    """
    found, rest = [], []
    for word in words:
        key, _, text = word.partition("=")
        comma = "," in text and not text.strip().startswith("[")
        if "|" in text or comma:  # a shell takes | for its own unless it is quoted
            found.append(
                _dimension(key, [parse_value(part.strip()) for part in text.split("|" if "|" in text else ",")])
            )
        elif ".." in text:
            low, high = (parse_value(part.strip()) for part in text.split("..", 1))
            found.append(_dimension(key, {"low": low, "high": high}))
        else:
            rest.append(word)
    return tuple(found), tuple(rest)


def read_space(values: Mapping[str, Any], prefix: str = "") -> tuple[Dimension, ...]:
    """Read a search space from the tables of a TOML file: ``{low, high[, log]}`` or a list of choices per setting.

    Raises
    ------
    ConfigError
        If a range is no range.
    """
    found: list[Dimension] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            found += read_space(value, f"{name}.")
        else:
            found.append(_dimension(name, value))
    return tuple(found)


def _dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, list) and value:
        return Dimension(key, choices=tuple(value))
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        low, high = value["low"], value["high"]
        if all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
            try:
                return Dimension(key, low, high, bool(value.get("log", low > 0 and high >= WIDE * low)))
            except ValueError as error:
                raise ConfigError(f"{error}.") from error
    raise ConfigError(f"{key}: write a range as low..high, or choices as a,b,c.")


def default_space(config: TrainConfig) -> tuple[Dimension, ...]:
    """Return what is searched unless told otherwise: rate, batch, optimizer, weight decay, width of the network."""
    batches = sorted({max(config.batch // 2, 1), config.batch, config.batch * 2})
    found = [
        Dimension("optimizer.rate", 1e-4, 1e-2, log=True),
        Dimension("optimizer.name", choices=("adamw", "adam", "sgd")),
        Dimension("optimizer.weight_decay", 1e-5, 1e-1, log=True),
        Dimension("batch", choices=tuple(batches)),
    ]
    width = getattr(config.network, "width", None)
    if isinstance(width, int):
        found.append(Dimension("network.width", choices=(max(width // 2, 1), width, width * 2)))
    return tuple(found)


def tune(
    config: TrainConfig,
    space: Sequence[Dimension],
    datasets: Sequence[DataSet],
    split: Split | None,
    fold: int,
    out: Path,
    *,
    trials: int,
    cache: Path | None = None,
    progress: Callable[[TuneProgress], None] | None = None,
) -> TuneResult:
    """Search `space` around `config` until `trials` have ended, also those of an earlier call on the same folder.

    A trial that was cut off goes on from its checkpoint. Trials that fall behind the median of the others at the same
    validation are pruned, and so are those whose loss becomes NaN.

    Parameters
    ----------
    config
        Everything that is not searched; its ``select`` says what is compared.
    space
        What is searched; see `default_space`.
    datasets, split, fold
        As of `hemolens.training.run.run_training`.
    out
        Holds ``study.db`` (SQLite), ``trials.csv``, ``best.toml`` and a run folder for each trial.
    trials
        How many, pruned ones included.
    cache
        Folder for decoded slices; ``out/cache`` if None.
    progress
        Called after every training step.

    Raises
    ------
    ConfigError
        If the space or the score does not fit, `out` holds another search, or all trials failed.
    OutputError
        If `out` holds something else, another process searches there, or it cannot be written.
    """
    _check(config, space)
    _optuna()  # where it is missing, nothing is written
    _open_folder(out)
    with held(out):
        return _search(config, space, datasets, split, fold, out, trials, cache, progress)


def _search(
    config: TrainConfig, space: Sequence[Dimension], datasets: Sequence[DataSet], split: Split | None, fold: int,
    out: Path, trials: int, cache: Path | None, progress: Callable[[TuneProgress], None] | None,
) -> TuneResult:  # fmt: skip
    study = _open_study(config, space, out)
    if split is None:
        split = read_split(own_split(config, datasets, out / SPLIT))
    while (ended := _ended(study)) < trials:
        trial = study.ask()
        folder = out / str(trial.user_attrs.get("folder", f"trial-{trial.number:03d}"))
        trial.set_user_attr("folder", folder.name)
        changed = with_overrides(config, {d.key: d.suggest(trial) for d in space})

        def told(run: Progress, trial: Any = trial, number: int = ended + 1) -> None:
            if progress:
                progress(TuneProgress(number, trials, _best(study), run))
            _report(trial, run, config.select)

        _run_trial(study, trial, changed, datasets, split, fold, folder, cache or out / "cache", told)
        _write_trials(study, space, out / TRIALS_NAME)
    return _finish(study, config, space, out)


def _check(config: TrainConfig, space: Sequence[Dimension]) -> None:
    if config.select == "last":
        raise ConfigError("A search needs a score to compare: set select to loss, dice or auc.")
    for dimension in space:
        for value in dimension.choices or (dimension.low, dimension.high):
            with_overrides(config, {dimension.key: value})
        if dimension.key.startswith("loss.") and config.select == "loss":
            raise ConfigError(f"{dimension.key}: one loss cannot be compared with another. Set select to dice or auc.")
    if not space:
        raise ConfigError("There is nothing to search: write a range such as optimizer.rate=1e-4..1e-2.")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise DependencyError("optuna", "train") from error
    return optuna


def _open_folder(out: Path) -> None:
    """Make the folder of the search, and refuse one that holds something else."""
    if out.exists() and any(p.name != LOCK for p in out.iterdir()) and not (out / STUDY).exists():
        raise OutputError(f"{out}: is not empty and holds no search. Name another folder.")
    with disk_watched(out):
        out.mkdir(parents=True, exist_ok=True)


def _open_study(config: TrainConfig, space: Sequence[Dimension], out: Path) -> Any:
    """Open the study in `out`, or begin one; trials that were cut off are put first in line again."""
    optuna = _optuna()
    optuna.logging.disable_default_handler()
    study = optuna.create_study(
        study_name="hemolens",
        storage=f"sqlite:///{(out / STUDY).resolve()}",
        load_if_exists=True,
        direction="maximize" if HIGHER_IS_BETTER[config.select] else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1000),
    )
    base = {"config": to_mapping(config), "space": [to_mapping(d) for d in space]}
    if study.user_attrs.get("base", base) != base:
        raise ConfigError(f"{out}: holds a search with other settings. Go on with those, or choose another folder.")
    study.set_user_attr("base", base)
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials), n_startup_trials=STARTUP_TRIALS)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(
            trial.params, user_attrs={"folder": trial.user_attrs.get("folder", f"again-{trial.number}")}
        )
    return study


def _ended(study: Any) -> int:
    states = _optuna().trial.TrialState
    return len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))


def _best(study: Any) -> float | None:
    complete = study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))
    return float(study.best_value) if complete else None


def _report(trial: Any, run: Progress, select: str) -> None:
    """Tell Optuna what a validation found, and stop the trial where it falls behind."""
    value = (run.row or {}).get(f"val_{select}")
    if value is not None:
        trial.report(value, round(1000 * (run.row or {})["epoch"]))  # alike for every size of batch
        if run.step < run.steps and trial.should_prune():
            raise _optuna().TrialPruned


def _run_trial(
    study: Any, trial: Any, config: TrainConfig, datasets: Sequence[DataSet], split: Split, fold: int, folder: Path,
    cache: Path, told: Callable[[Progress], None],
) -> None:  # fmt: skip
    optuna = _optuna()
    try:
        result = run_training(
            config, datasets, split, fold, folder, resume=True, cache=cache, progress=told, export=False
        )
    except (optuna.TrialPruned, DivergedError) as error:
        if isinstance(error, DivergedError):
            trial.set_user_attr("problem", str(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, result.best)


def _write_trials(study: Any, space: Sequence[Dimension], path: Path) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *(d.key for d in space)])
    for trial in study.get_trials(deepcopy=False):
        value = "" if trial.value is None else f"{trial.value:.6g}"
        writer.writerow([trial.number, trial.state.name, value, *(trial.params.get(d.key, "") for d in space)])
    with disk_watched(path):
        write_whole(path, stream.getvalue().encode())


def _finish(study: Any, config: TrainConfig, space: Sequence[Dimension], out: Path) -> TuneResult:
    states = _optuna().trial.TrialState
    complete = study.get_trials(states=(states.COMPLETE,))
    if not complete:
        raise ConfigError(f"{out}: no trial reached its end. Search a lower optimizer.rate, or more trials.")
    best = study.best_trial
    settings = {d.key: d.setting(best.params[d.key]) for d in space}
    preset = out / BEST_PRESET
    with disk_watched(preset):
        save_config(with_overrides(config, settings), preset)
    pruned = len(study.get_trials(deepcopy=False, states=(states.PRUNED,)))
    return TuneResult(out, preset, float(best.value), settings, len(complete), pruned)
