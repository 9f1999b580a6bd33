"""`unet2d`: the plain U-Net of Ronneberger et al. 2015 (arXiv 1505.04597), as the students' notebook has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.labels import FINDING_NAMES
from hemolens.models.blocks import Norm, check_common, convolution, mean_and_max, start_weights
from hemolens.models.network import Network, crop_to, pad_to
from hemolens.models.output import NetOutput


@dataclass(frozen=True)
class UNet2dConfig:
    """Shape of the network; the defaults are the students'."""

    kind: Literal["unet2d"] = "unet2d"
    channels: Literal[1, 3] = 1
    """1: the slice alone; 3: the slice below, the slice, the slice above."""
    mask_channels: Literal[1, 6] = 1
    """1: blood; 6: blood, then the subtypes given blood."""
    width: int = 16
    """Channels of the first level; each further level has twice as many."""
    depth: int = 4
    """How often the size is halved."""
    norm: Norm = "none"
    dropout: float = 0.0
    """Between the two convolutions of each level."""
    findings_head: bool = False
    """Tell the slice's findings too, from the deepest level."""
    blood_bias: float = 0.0
    """Where the blood logit starts: 0 as in Keras; -4 says that blood is rare."""

    def __post_init__(self) -> None:
        check_common(self.width, self.dropout)
        if not 1 <= self.depth <= 6:
            raise ValueError("depth must be from 1 to 6")


class UNet2d(Network):
    """A slice in, blood logits per pixel out; gray is divided by 255."""

    config: UNet2dConfig

    def __init__(self, config: UNet2dConfig = UNet2dConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.channels, self.mask_channels, self.findings = config.channels, config.mask_channels, config.findings_head
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            self._pair(inputs, outputs) for inputs, outputs in zip([config.channels, *widths[:-1]], widths, strict=True)
        )
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.up = nn.ModuleList(self._pair(2 * w, w) for w in widths[-2::-1])
        self.mask_head = nn.Conv2d(config.width, config.mask_channels, 1)
        self.slice_head = nn.Linear(2 * widths[-1], len(FINDING_NAMES)) if config.findings_head else None
        start_weights(self)
        nn.init.xavier_uniform_(self.mask_head.weight)
        nn.init.constant_(self.mask_head.bias[:1], config.blood_bias)  # type: ignore[index]

    def _pair(self, inputs: int, outputs: int) -> nn.Sequential:
        norm, dropout = self.config.norm, self.config.dropout
        return nn.Sequential(
            convolution(inputs, outputs, norm), nn.Dropout(dropout), convolution(outputs, outputs, norm)
        )

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values ``(n, channels, h, w)`` to mask logits ``(n, m, h, w)`` and, if told, findings ``(n, 6)``."""
        stride = 2**self.config.depth
        y = pad_to(x, (stride, stride)) / 255.0
        skips = []
        for level, pair in enumerate(self.down):
            y = pair(F.max_pool2d(y, 2) if level else y)
            skips.append(y)
        findings = self.slice_head(mean_and_max(y)) if self.slice_head else None
        for grow, pair, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            y = pair(torch.cat([grow(y), skip], dim=1))
        return NetOutput(crop_to(self.mask_head(y), x), findings)
