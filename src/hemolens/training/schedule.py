"""Optimizer, learning rate and the averaged copy of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hemolens.models.network import Network


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    rate: float = 1e-3
    """Learning rate at its highest."""
    encoder_factor: float = 0.4
    """On the rate of the parts that hold weights from before (`Network.pretrained_parts`)."""
    weight_decay: float = 0.02
    """Not on biases and normalization."""
    momentum: float = 0.9
    """Of sgd; the first beta of adam and adamw."""
    clip_norm: float = 3.0
    """Longest gradient; 0 leaves it as it is."""
    ema_decay: float = 0.99
    """Of the averaged weights, which are what is measured and kept; 0 keeps the last weights themselves."""

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError("rate must be above 0")
        if min(self.encoder_factor, self.weight_decay, self.clip_norm) < 0:
            raise ValueError("encoder_factor, weight_decay and clip_norm must be at least 0")
        if not (0 <= self.momentum < 1 and 0 <= self.ema_decay < 1):
            raise ValueError("momentum and ema_decay must be from 0 to below 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    name: Literal["cosine", "plateau", "constant"] = "cosine"
    """Half a cosine down to 0; times `factor` whenever validation has not improved for `patience` times; or level."""
    warmup_steps: int = 40
    """Steps of linear rise at the start."""
    factor: float = 0.5
    patience: int = 3
    """Validations without improvement before the rate drops (plateau)."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.patience < 1:
            raise ValueError("warmup_steps must be at least 0 and patience at least 1")
        if not 0 < self.factor < 1:
            raise ValueError("factor must be between 0 and 1")

    def at(self, step: int, steps: int, drops: int = 0) -> float:
        """Return the factor on the rate at a step, counted from 0.

        Parameters
        ----------
        step, steps
            Which, and of how many.
        drops
            How often a plateau was met.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "cosine":
            done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * done))
        return float(self.factor**drops) if self.name == "plateau" else 1.0


def build_optimizer(network: Network, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of all weights that learn; each group remembers its own rate as ``"base"``."""
    before = {id(p) for part in network.pretrained_parts() for p in part.parameters()}
    groups: list[dict[str, Any]] = []
    for pretrained in (True, False):
        rate = config.rate * (config.encoder_factor if pretrained else 1.0)
        for decays in (True, False):
            chosen = [
                p
                for p in network.parameters()
                if p.requires_grad and (id(p) in before) == pretrained and (p.ndim > 1) == decays
            ]
            if chosen:
                groups.append({"params": chosen, "base": rate, "weight_decay": config.weight_decay if decays else 0.0})
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=config.momentum > 0)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.rate, betas=(config.momentum, 0.999))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its own base times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights toward the present ones; early on faster, so that the start is soon forgotten."""
    amount = 1 - min(decay, (1 + step) / (10 + step))
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, amount)
        else:
            kept.copy_(new)
