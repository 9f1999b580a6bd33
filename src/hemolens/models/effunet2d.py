"""`effunet2d`: EfficientNet-Lite0 encoder, a light decoder, a mask head and a slice head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES
from hemolens.models.encoder import FEATURE_CHANNELS, EfficientNetLite0

MASK_CHANNELS = 1 + len(SUBTYPE_NAMES)
"""Blood logit, then one logit per subtype (softmax over the subtypes, given blood)."""


@dataclass(frozen=True)
class EffUNetConfig:
    """Shape of the network."""

    decoder_channels: tuple[int, ...] = (96, 64, 48, 32)
    dropout: float = 0.2
    imagenet: bool = True
    """Start from ImageNet weights."""
    frozen_stages: int = 3
    """The stem and this many first stages keep their weights; 0 lets all of them learn."""

    def __post_init__(self) -> None:
        if len(self.decoder_channels) != len(FEATURE_CHANNELS) - 1:
            raise ValueError(f"decoder_channels needs {len(FEATURE_CHANNELS) - 1} values")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be from 0 to below 1")


class DecoderBlock(nn.Module):
    """Double the resolution, join the encoder's features, convolve."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(inputs + skip, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.mix = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Shapes ``(n, inputs, h, w)`` and ``(n, skip, 2h, 2w)`` to ``(n, outputs, 2h, 2w)``."""
        up = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y: Tensor = self.mix(self.reduce(torch.cat([up, skip], dim=1)))
        return y


class EffUNet2d(nn.Module):
    """Three neighboring slices in; blood and subtype logits per pixel and findings logits for the middle slice out."""

    def __init__(self, config: EffUNetConfig = EffUNetConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = EfficientNetLite0()
        if config.imagenet:
            self.encoder.load_imagenet()
        self.decoder = nn.ModuleList()
        channels = FEATURE_CHANNELS[-1]
        for skip, outputs in zip(FEATURE_CHANNELS[-2::-1], config.decoder_channels, strict=True):
            self.decoder.append(DecoderBlock(channels, skip, outputs))
            channels = outputs
        self.mask_head = nn.Sequential(nn.Conv2d(channels, 4 * MASK_CHANNELS, 1), nn.PixelShuffle(2))
        nn.init.constant_(self.mask_head[0].bias[:4], -4.0)  # type: ignore[index]  # blood is rare
        self.slice_head = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(2 * FEATURE_CHANNELS[-1], len(FINDING_NAMES))
        )
        self.freeze()

    def freeze(self) -> None:
        """Keep the stem, the first stages and the running statistics of the encoder's batch normalization."""
        if self.config.frozen_stages:
            for part in (self.encoder.stem, *self.encoder.stages[: self.config.frozen_stages]):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> EffUNet2d:
        """Switch to training, except the encoder's batch normalization, whose statistics stay ImageNet's."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map gray values to logits.

        Parameters
        ----------
        x
            Gray 0 to 255 as float, shape ``(n, 3, h, w)``: slice below, slice, slice above; h and w multiples of 32.

        Returns
        -------
        tuple
            Mask logits ``(n, 6, h, w)`` (blood, then subtypes) and slice logits ``(n, 6)`` in `FINDING_NAMES` order.
        """
        features = self.encoder((x - 127.0) / 128.0)
        deep = features[-1]
        pooled = torch.cat([deep.mean(dim=(2, 3)), deep.amax(dim=(2, 3))], dim=1)
        y = deep
        for block, skip in zip(self.decoder, features[-2::-1], strict=True):
            y = block(y, skip)
        return self.mask_head(y), self.slice_head(pooled)
