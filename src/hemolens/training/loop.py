"""The training loop, top to bottom.

What happens at a step depends on the settings, the data and the step alone: a run that was cut off goes on as if it
had not been, and processes that share a batch end with the weights that one process would reach.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemolens.config import to_mapping
from hemolens.errors import ConfigError, DivergedError
from hemolens.models.network import Network
from hemolens.models.output import NetOutput
from hemolens.training.augment import augment_batch
from hemolens.training.checkpoint import (
    BEST,
    CHECKPOINT,
    check_same_run,
    disk_watched,
    load_state,
    load_weights,
    save_state,
)
from hemolens.training.config import TrainConfig
from hemolens.training.data import Batch, DataConfig, epoch_steps, open_batches
from hemolens.training.devices import deterministic, reducer
from hemolens.training.logs import RunLog
from hemolens.training.losses import Loss, Reduce, loss_parts, total_loss
from hemolens.training.schedule import build_optimizer, set_rate, update_average
from hemolens.training.store import Store
from hemolens.training.validation import Tally, to_device, validate

NAN_BATCH = "nan_batch.npz"
HIGHER_IS_BETTER = {"loss": False, "dice": True, "auc": True}


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    """``"prepare"`` (decoding), ``"train"``, ``"validate"`` or ``"export"``."""
    step: int
    steps: int
    seconds: float
    """Since this process began with the stage."""
    done_before: int = 0
    """Steps that were done when it began."""
    row: Mapping[str, float] | None = None
    """A line of the log, when one was written: ``loss`` and its parts, ``rate``, and ``val_…`` after a validation."""

    @property
    def seconds_left(self) -> float:
        """From the speed so far; NaN before there is one."""
        ran = self.step - self.done_before
        return self.seconds / ran * (self.steps - self.step) if ran else math.nan


Tell = Callable[[Progress], None]


@dataclass
class State:
    """What a run knows besides its weights; part of every checkpoint."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    idle: int = 0
    """Validations since the best one."""
    waited: int = 0
    """Validations since the best one or the last drop of the rate."""
    drops: int = 0
    stopped: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    """Of the loss and its parts since the last line of the log."""
    counts: dict[str, int] = field(default_factory=dict)
    tally: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a run ended."""

    average: Network
    """The averaged weights of the last step."""
    state: State
    rows: list[Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Job:
    """What a run works with; fixed from beginning to end."""

    config: TrainConfig
    data: DataConfig
    train: Store
    validation: Store | None
    identity: str
    """Digest of the data and the fold: a checkpoint of other data is refused."""
    out: Path
    fabric: Any


def train(job: Job, network: Network, *, resume: bool = False, tell: Tell | None = None) -> Outcome:
    """Train `network`, and leave ``checkpoint.pt``, ``best.pt`` and the logs in the folder of the run.

    Parameters
    ----------
    job
        Settings and data.
    network
        With its first weights.
    resume
        Go on from the checkpoint in the folder, if there is one.
    tell
        Called after every step, in the first process only.

    Raises
    ------
    ConfigError
        If the checkpoint is of a run with other settings or data, or the score to watch is undefined.
    OutputError
        If the disk is full.
    DivergedError
        If the loss becomes NaN or infinite; the batch is written down.
    """
    config, fabric = job.config, job.fabric
    first = bool(fabric.is_global_zero)
    period = epoch_steps(job.train, job.data, sample=network.sample, batch=config.batch)
    steps = config.steps or config.epochs * period
    every = config.validate_every or period
    with deterministic():
        network = _placed(network, fabric)
        average: Network = copy.deepcopy(network).eval().requires_grad_(False)
        optimizer = build_optimizer(network, config.optimizer)
        state = _restore(job, network, average, optimizer) if resume else State()
        log = RunLog(job.out, config, state.step) if first else None
        module, stepper = fabric.setup(network, optimizer)
        batches = open_batches(
            job.train, job.data, config.synthesis, config.augment, sample=network.sample, channels=network.channels,
            batch=config.batch, seed=config.seed, start_step=state.step, shard=(fabric.global_rank, fabric.world_size),
        )  # fmt: skip
        tally = Tally(torch.tensor(state.tally, dtype=torch.float64)) if state.tally and first else Tally()
        began, before, start = time.monotonic(), state.seconds, state.step
        for step in range(state.step, steps):
            if state.stopped:
                break
            set_rate(optimizer, config.schedule.at(step, steps, state.drops))
            batch = augment_batch(to_device(next(batches), fabric.device), config.augment, config.seed)
            output, loss, norm = _step(job, module, stepper, batch, step)
            update_average(average, network, config.optimizer.ema_decay, step)
            state.step, state.seconds = step + 1, before + time.monotonic() - began
            tally.add(output, batch)
            _gather(state, {**loss.values, "gradient_norm": norm})
            found = _validation(job, average, state, first) if _due(step + 1, every, steps) and job.validation else {}
            row = None
            if found or _due(step + 1, config.log_every, steps) or state.stopped:
                row = _row(state, tally, optimizer, period, found, reducer(fabric))
                tally = Tally()
                if log:
                    log.write(row)
            if _due(step + 1, config.checkpoint_every, steps) or state.stopped:
                state.tally = tally.sums.tolist()
                _save(job, state, network, average, optimizer)
            if first and tell:
                tell(Progress("train", step + 1, steps, time.monotonic() - began, start, row))
        if first and config.select == "last" and state.step:
            save_state(job.out / BEST, _kept(config, state, average))
        if log:
            log.close()
    fabric.barrier()
    return Outcome(average, state, list(log.rows) if log else [])


def _placed(network: Network, fabric: Any) -> Network:
    """Move a network to its device and into the layout that convolutions like."""
    network.freeze()
    layout = torch.contiguous_format if network.sample == "volume" else torch.channels_last
    return network.to(fabric.device, memory_format=layout).train()  # type: ignore[call-overload, no-any-return]


def _step(job: Job, module: nn.Module, stepper: Any, batch: Batch, step: int) -> tuple[NetOutput, Loss, float]:
    """Forward, loss, backward, one move of the weights."""
    config, fabric = job.config, job.fabric
    # Dropout hangs on the step alone, so that a run that was cut off goes on as if it was not.
    torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + fabric.global_rank)
    images = batch["images"]
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    module.train()
    output = NetOutput(*(None if part is None else part.float() for part in module(images)))
    loss = total_loss(loss_parts(output, batch, config.loss), config.loss, reducer(fabric), fabric.world_size)
    if not math.isfinite(loss.values["loss"]):
        raise _not_finite(job, batch, step, f"The loss is {loss.values['loss']}")
    total = loss.total
    if fabric.world_size > 1:  # every process waits for the gradients of every weight, whatever its share says of them
        total = total + 0.0 * torch.stack([part.sum() for part in output if part is not None]).sum()
    stepper.zero_grad(set_to_none=True)
    fabric.backward(total)
    longest = config.optimizer.clip_norm or math.inf
    norm = float(fabric.clip_gradients(module, stepper, max_norm=longest, error_if_nonfinite=False))
    if (
        not math.isfinite(norm) and config.precision != "16"
    ):  # 16-bit steps are scaled, and skipped where that overflows
        raise _not_finite(job, batch, step, f"The gradient is {norm}")
    stepper.step()
    return output, loss, norm


def _not_finite(job: Job, batch: Batch, step: int, problem: str) -> DivergedError:
    """Write the batch down and return the error to raise."""
    rank = job.fabric.global_rank
    path = job.out / (NAN_BATCH if not rank else NAN_BATCH.replace(".", f"-{rank}."))
    arrays = {key: value.cpu().numpy() for key, value in batch.items() if isinstance(value, Tensor)}
    with disk_watched(path), path.open("wb") as file:
        np.savez_compressed(file, names=np.array(batch["names"], dtype=str), **arrays)  # type: ignore[arg-type]
    strange = [key for key in ("images", "inside") if key in arrays and not np.isfinite(arrays[key]).all()]
    remedy = f"Its {strange[0]} are not finite: look there." if strange else "Lower optimizer.rate."
    return DivergedError(f"{problem} at step {step + 1}. The batch is in {path}. {remedy}")


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _gather(state: State, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if math.isfinite(value):
            state.sums[name] = state.sums.get(name, 0.0) + value
            state.counts[name] = state.counts.get(name, 0) + 1


def _row(
    state: State, tally: Tally, optimizer: torch.optim.Optimizer, period: int, found: Mapping[str, float],
    reduce: Reduce | None,
) -> dict[str, float]:  # fmt: skip
    """Return a line of the log: means since the last one, and what a validation found."""
    means = {name: total / state.counts[name] for name, total in state.sums.items()}
    state.sums, state.counts = {}, {}
    sums = Tally(reduce(tally.sums).cpu()) if reduce else tally
    rate = max(group["lr"] for group in optimizer.param_groups)
    return {
        "step": state.step,
        "epoch": round(state.step / period, 3),
        "seconds": round(state.seconds, 1),
        "rate": rate,
        **means,
        **sums.scores(),
        **{f"val_{name}": value for name, value in found.items()},
    }


def _validation(job: Job, average: Network, state: State, first: bool) -> dict[str, float]:
    """Measure, keep the weights if they are the best, drop the rate or stop; every process decides the same."""
    config = job.config
    found: dict[str, float] = {}
    if first and job.validation is not None:
        found = validate(average, job.validation, config, job.data, job.fabric)
    found = job.fabric.broadcast(found)
    if config.select == "last":
        return found
    if config.select not in found:
        raise ConfigError(
            f"select={config.select} cannot be told on the validation side of this fold (no drawn mask with blood, or "
            "only one class). Set select=loss."
        )
    score = found[config.select]
    higher = HIGHER_IS_BETTER[config.select]
    if state.best is None or (score > state.best if higher else score < state.best):
        state.best, state.best_step, state.idle, state.waited = score, state.step, 0, 0
        if first:
            save_state(job.out / BEST, _kept(config, state, average))
        return found
    state.idle, state.waited = state.idle + 1, state.waited + 1
    if config.schedule.name == "plateau" and state.waited >= config.schedule.patience:
        state.drops, state.waited = state.drops + 1, 0
    state.stopped = 0 < config.stop_after <= state.idle
    return found


def _kept(config: TrainConfig, state: State, average: Network) -> dict[str, Any]:
    score = None if config.select == "last" else state.best
    return {**_weights(config, average), "step": state.step, "score": score}


def _weights(config: TrainConfig, average: Network) -> dict[str, Any]:
    """Return what `hemolens.models.saved.read_network` looks for, and all settings."""
    return {"network": to_mapping(average.config), "weights": average.state_dict(), "config": to_mapping(config)}


def _save(job: Job, state: State, network: Network, average: Network, optimizer: torch.optim.Optimizer) -> None:
    if job.fabric.is_global_zero:
        whole = {
            **_weights(job.config, average),
            "data": job.identity,
            "state": asdict(state),
            "learning": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "precision": job.fabric.strategy.precision.state_dict(),
        }
        save_state(job.out / CHECKPOINT, whole)


def _restore(job: Job, network: Network, average: Network, optimizer: torch.optim.Optimizer) -> State:
    """Read the checkpoint of the run, or return the state of a new one."""
    path = job.out / CHECKPOINT
    if not path.exists():
        return State()
    whole = load_state(path)
    check_same_run(whole, job.config, job.out)
    if whole["data"] != job.identity:
        raise ConfigError(f"{job.out}: holds a run on other data or another fold. Go on with those, or choose another.")
    load_weights(network, whole["learning"], path)
    load_weights(average, whole["weights"], path)
    optimizer.load_state_dict(whole["optimizer"])
    job.fabric.strategy.precision.load_state_dict(whole["precision"])
    return replace(State(), **whole["state"])
