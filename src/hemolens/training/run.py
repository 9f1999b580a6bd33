"""One training run, from data sets and a split to a folder with weights, logs, curves and a model: the one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hemolens.models.network import Network
from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.splits import Split
from hemolens.training.config import TrainConfig


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    """``"prepare"`` (decoding), ``"train"``, ``"validate"`` or ``"export"``."""
    step: int
    steps: int
    seconds: float
    """Since this process began to train."""
    row: Mapping[str, float] | None = None
    """A line of the log, when one was written: ``loss`` and its parts, ``rate``, and ``val_…`` after a validation."""

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return self.step / self.steps if self.steps else 0.0


Tell = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run leaves."""

    folder: Path
    config: TrainConfig
    network: Network
    """With the weights that were kept, on the CPU, ready for use."""
    step: int
    """The last one."""
    stopped_early: bool
    best: float | None
    """The score that the kept weights were chosen by (`TrainConfig.select`); None for ``last``."""
    best_step: int
    rows: tuple[Mapping[str, float], ...]
    """The log; values that were not measured at a step are absent."""
    model: Path | None
    """``model.json`` beside ``model.onnx``, for `hemolens.inference.registry.load_model`."""


def run_training(
    config: TrainConfig,
    datasets: Sequence[DataSet],
    split: Split | None,
    fold: int,
    out: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    progress: Tell | None = None,
    export: bool = True,
) -> RunResult:
    """Train on one fold and write everything into `out`.

    Parameters
    ----------
    config
        Every setting; see `hemolens.training.config.load_preset`.
    datasets
        From `hemolens.sources.datasets.opening.open_datasets`.
    split
        Who is trained, validated and tested on; None makes one by patients (stratified, from ``config.seed``), which
        is written into `out`.
    fold
        Which fold of it, from 0.
    out
        Folder of the run.
    resume
        Go on from the last whole checkpoint in `out`; the weights end up as if the run had never stopped. Without one
        the run begins anew.
    cache
        Folder for decoded slices, which runs may share; ``out/cache`` if None.
    progress
        Called after every step.
    export
        Write ``model.onnx`` and its card at the end.

    Raises
    ------
    ConfigError
        For settings that do not fit the data, the machine, or the run that `out` holds.
    InputError
        For data or a split that cannot be used.
    OutputError
        If `out` holds a run already (and `resume` is off) or cannot be written.
    HemolensError
        If the loss becomes NaN or infinite (the batch is written down), or memory runs out.
    """
    raise NotImplementedError
