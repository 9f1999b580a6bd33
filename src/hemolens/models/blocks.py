"""Small pieces that several networks are built from."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["none", "batch", "group"]
Triple = tuple[int, int, int]
GROUPS = 8
"""Of group normalization, or the largest number below that divides the channels."""
BLOOD_BIAS = -4.0
"""Where the blood logit starts: blood is rare, and a start at 0 first unlearns half the picture."""


def normalization(kind: Norm, channels: int, dims: Literal[2, 3]) -> list[nn.Module]:
    """Return no layer or one."""
    if kind == "none":
        return []
    if kind == "group":
        return [nn.GroupNorm(math.gcd(GROUPS, channels), channels)]
    return [nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)]


def convolution(inputs: int, outputs: int, norm: Norm, kernel: Triple | None = None) -> nn.Sequential:
    """Convolve, normalize, ReLU, keeping the size: 3 x 3 where no kernel is given, else in three dimensions."""
    bias = norm == "none"
    layer: nn.Module
    if kernel is None:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    else:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        layer = nn.Conv3d(inputs, outputs, kernel, padding=padding, bias=bias)
    return nn.Sequential(layer, *normalization(norm, outputs, 2 if kernel is None else 3), nn.ReLU())


def start_weights(network: nn.Module) -> None:
    """Draw the weights of all convolutions and dense layers as He et al. 2015 (arXiv 1502.01852) do, biases 0."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mean_and_max(x: Tensor) -> Tensor:
    """Return the mean and the maximum over all dimensions after the second, joined: ``(n, 2 c)``."""
    flat = x.flatten(2)
    return torch.cat([flat.mean(dim=2), flat.amax(dim=2)], dim=1)


def check_common(width: int, dropout: float) -> None:
    """Raise ValueError where a setting that most configurations share is out of range."""
    if width < 1:
        raise ValueError("width must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError("dropout must be from 0 to below 1")
