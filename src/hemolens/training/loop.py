"""The training loop, top to bottom."""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hemolens.config import to_mapping
from hemolens.errors import ConfigError, HemolensError
from hemolens.models.effunet2d import EffUNet2d
from hemolens.training.augment import augment
from hemolens.training.config import OptimizerConfig, TrainConfig
from hemolens.training.data import Mixture, Sample
from hemolens.training.losses import total_loss

Progress = Callable[[int, dict[str, float]], None]


def train(
    config: TrainConfig,
    samples: list[Sample],
    out: Path,
    progress: Progress | None = None,
    start: EffUNet2d | None = None,
) -> EffUNet2d:
    """Train one network and return its averaged weights.

    Parameters
    ----------
    config
        Everything that can be set.
    samples
        Training slices only; what is measured on must not be among them.
    out
        Folder of the run: ``log.csv`` and ``checkpoint.pt``, from which a run that was cut off goes on by itself.
    progress
        Called with the step and the mean loss parts since the last call.
    start
        A trained network to go on from, of the same configuration.

    Raises
    ------
    ConfigError
        If `out` holds a run with other settings.
    HemolensError
        If the loss becomes NaN or infinite.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = copy.deepcopy(start).requires_grad_(True) if start else EffUNet2d(config.network)
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    network.freeze()
    average: EffUNet2d = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = _optimizer(network, config.optimizer)
    done = _resume(out, config, network, average, optimizer)
    if done == config.steps:
        return average
    batches = _batches(samples, config, done)
    sums: dict[str, float] = {}
    started = time.monotonic()
    for step in range(done, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule(step, config)
        # Dropout and augmentation hang on the step alone, so that a run that was cut off goes on as if it was not.
        torch.manual_seed(config.seed * 1_000_003 + step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        batch = augment({k: v.to(device) for k, v in next(batches).items()}, generator)
        output = network(batch["images"].contiguous(memory_format=torch.channels_last))
        parts = total_loss(output.mask, output.findings, batch, config.loss)
        loss = parts["total"]
        if not torch.isfinite(loss):
            raise HemolensError(f"{out}: the loss is {loss.item()} at step {step}. Lower optimizer.rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        _average(average, network, min(config.optimizer.ema_decay, (1 + step) / (10 + step)))
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / config.log_every
        if (step + 1) % config.log_every == 0:
            _log(out, step + 1, sums, time.monotonic() - started)
            if progress:
                progress(step + 1, sums)
            sums = {}
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            _save(out, step + 1, config, network, average, optimizer)
    return average


def schedule(step: int, config: TrainConfig) -> float:
    """Return the factor on the learning rate: linear warm-up, then half a cosine down to 0."""
    warmup = config.optimizer.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(config.steps - warmup, 1)))


def _batches(samples: list[Sample], config: TrainConfig, done: int) -> Iterator[dict[str, Tensor]]:
    mixture = Mixture(samples, config, start=done * config.batch)
    return iter(DataLoader(mixture, batch_size=config.batch, num_workers=config.workers))


def _optimizer(network: EffUNet2d, config: OptimizerConfig) -> torch.optim.Optimizer:
    encoder = {id(p) for p in network.encoder.parameters()}
    groups: list[dict[str, Any]] = []
    for from_encoder in (True, False):
        rate = config.rate * (config.encoder_factor if from_encoder else 1.0)
        for decays in (True, False):
            chosen = [
                p
                for p in network.parameters()
                if p.requires_grad and (id(p) in encoder) == from_encoder and (p.ndim > 1) == decays
            ]
            groups.append({"params": chosen, "base": rate, "weight_decay": config.weight_decay if decays else 0.0})
    return torch.optim.AdamW(groups, lr=config.rate)


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def _log(out: Path, step: int, sums: dict[str, float], seconds: float) -> None:
    path = out / "log.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "seconds", *sums])
        writer.writerow([step, f"{seconds:.1f}", *(f"{v:.5f}" for v in sums.values())])


def _save(out: Path, step: int, config: TrainConfig, *parts: Any) -> None:
    state = {"step": step, "config": to_mapping(config), "parts": [p.state_dict() for p in parts]}
    temporary = out / "checkpoint.pt.part"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out / "checkpoint.pt")


def _resume(out: Path, config: TrainConfig, *parts: Any) -> int:
    path = out / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["config"] != to_mapping(config):
        raise ConfigError(f"{out}: holds a run with other settings. Choose another folder.")
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    return int(state["step"])
