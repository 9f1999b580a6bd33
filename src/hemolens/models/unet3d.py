"""`unet3d`: a U-Net over windows of slices, which lie much farther apart than the pixels within them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.labels import FINDING_NAMES
from hemolens.models.blocks import (
    BLOOD_BIAS,
    Norm,
    Triple,
    check_common,
    convolution,
    mean_and_max,
    start_weights,
)
from hemolens.models.network import Network, crop_to, pad_to
from hemolens.models.output import NetOutput


@dataclass(frozen=True)
class UNet3dConfig:
    """Shape of the network.

    Head CT is cut at about 0.5 mm within slices and 5 mm between them. So the first `flat_levels` look and pool within
    slices only; below them a sample is about as wide as the slices are apart, and all three directions count.
    """

    kind: Literal["unet3d"] = "unet3d"
    depth: int = 16
    """Slices of the windows in which a volume is run."""
    mask_channels: Literal[1, 6] = 6
    """1: blood; 6: blood, then the subtypes given blood."""
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    """Channels of each level."""
    flat_levels: int = 2
    norm: Norm = "group"
    dropout: float = 0.0
    """Between the two convolutions of each level."""
    findings_head: bool = False
    """Tell the findings of the volume too, from the deepest level."""

    def __post_init__(self) -> None:
        check_common(min(self.widths), self.dropout)
        if self.depth < 1:
            raise ValueError("depth must be at least 1")
        if len(self.widths) < 2 or not 0 <= self.flat_levels < len(self.widths):
            raise ValueError("widths needs at least 2 values, and more than flat_levels")


def steps_of(levels: int, flat_levels: int) -> list[Triple]:
    """Return by how much each level but the first is smaller than the one above it."""
    return [(1, 2, 2) if level < flat_levels else (2, 2, 2) for level in range(levels - 1)]


def stride_of(steps: list[Triple]) -> Triple:
    """Return by how much the deepest level is smaller than the input."""
    deep, high, wide = zip(*steps, strict=True)
    return math.prod(deep), math.prod(high), math.prod(wide)


class UNet3d(Network):
    """A window of slices in; blood logits for every voxel out."""

    config: UNet3dConfig
    sample = "volume"
    channels = 1

    def __init__(self, config: UNet3dConfig = UNet3dConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.mask_channels, self.findings, self.depth = config.mask_channels, config.findings_head, config.depth
        widths = config.widths
        self.steps = steps_of(len(widths), config.flat_levels)
        self.stride = stride_of(self.steps)
        kernels: list[Triple] = [(1 if level < config.flat_levels else 3, 3, 3) for level in range(len(widths))]
        self.down = nn.ModuleList(
            self._pair(inputs, outputs, kernel)
            for inputs, outputs, kernel in zip([1, *widths[:-1]], widths, kernels, strict=True)
        )
        pairs = list(zip(widths[:-1], widths[1:], self.steps, strict=True))[::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose3d(deep, w, step, stride=step) for w, deep, step in pairs)
        self.up = nn.ModuleList(self._pair(2 * w, w, k) for w, k in zip(widths[-2::-1], kernels[-2::-1], strict=True))
        self.mask_head = nn.Conv3d(widths[0], config.mask_channels, 1)
        self.scan_head = nn.Linear(2 * widths[-1], len(FINDING_NAMES)) if config.findings_head else None
        start_weights(self)
        nn.init.xavier_uniform_(self.mask_head.weight)
        nn.init.constant_(self.mask_head.bias[:1], BLOOD_BIAS)  # type: ignore[index]

    def _pair(self, inputs: int, outputs: int, kernel: Triple) -> nn.Sequential:
        norm, dropout = self.config.norm, self.config.dropout
        return nn.Sequential(
            convolution(inputs, outputs, norm, kernel), nn.Dropout(dropout), convolution(outputs, outputs, norm, kernel)
        )

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values ``(n, 1, d, h, w)`` to mask logits ``(n, m, d, h, w)`` and, if told, findings ``(n, 6)``."""
        y = (pad_to(x, self.stride) - 127.0) / 128.0
        skips = []
        for level, pair in enumerate(self.down):
            y = pair(F.max_pool3d(y, self.steps[level - 1]) if level else y)
            skips.append(y)
        findings = self.scan_head(mean_and_max(y)) if self.scan_head else None
        for grow, pair, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            y = pair(torch.cat([grow(y), skip], dim=1))
        return NetOutput(crop_to(self.mask_head(y), x), findings)
