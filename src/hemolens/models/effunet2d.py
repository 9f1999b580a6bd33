"""`effunet2d`: EfficientNet-Lite0 encoder, a light decoder, a mask head and a slice head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES
from hemolens.models.encoder import FEATURE_CHANNELS, EfficientNetLite0
from hemolens.models.network import Network, crop_to, pad_to
from hemolens.models.output import NetOutput

MASK_CHANNELS = 1 + len(SUBTYPE_NAMES)
"""Blood logit, then one logit per subtype (softmax over the subtypes, given blood)."""
STRIDE = 32
"""Between the input and the deepest features."""


@dataclass(frozen=True)
class EffUNetConfig:
    """Shape of the network."""

    kind: Literal["effunet2d"] = "effunet2d"
    channels: Literal[1, 3] = 3
    """1: the slice alone, shown three times; 3: the slice below, the slice, the slice above."""
    decoder_channels: tuple[int, ...] = (96, 64, 48, 32)
    dropout: float = 0.2
    imagenet: bool = True
    """Start from ImageNet weights."""
    edema: bool = False
    """Tell perihematomal edema, too, as a last channel of the mask."""
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


class EffUNet2d(Network):
    """A slice, with its neighbors or alone, in; blood and subtype logits per pixel and findings logits out."""

    config: EffUNetConfig

    def __init__(self, config: EffUNetConfig = EffUNetConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.mask_channels = MASK_CHANNELS + config.edema
        self.encoder = EfficientNetLite0()
        if config.imagenet and pretrained:
            self.encoder.load_imagenet()
        self.decoder = nn.ModuleList()
        channels = FEATURE_CHANNELS[-1]
        for skip, outputs in zip(FEATURE_CHANNELS[-2::-1], config.decoder_channels, strict=True):
            self.decoder.append(DecoderBlock(channels, skip, outputs))
            channels = outputs
        self.mask_head = nn.Sequential(nn.Conv2d(channels, 4 * self.mask_channels, 1), nn.PixelShuffle(2))
        for rare in (0, MASK_CHANNELS)[: 1 + config.edema]:  # blood and edema
            nn.init.constant_(self.mask_head[0].bias[4 * rare : 4 * rare + 4], -4.0)  # type: ignore[index]
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

    def pretrained_parts(self) -> tuple[nn.Module, ...]:
        """Return the encoder."""
        return (self.encoder,)

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values to logits.

        Parameters
        ----------
        x
            Gray 0 to 255 as float, shape ``(n, channels, h, w)``: slice below, slice, slice above; or the slice.

        Returns
        -------
        NetOutput
            Mask logits ``(n, 6 or 7, h, w)`` (blood, the subtypes, edema) and slice logits ``(n, 6)`` in
            `FINDING_NAMES` order.
        """
        padded = pad_to(x, (STRIDE, STRIDE))
        if self.channels == 1:
            padded = padded.expand(-1, 3, -1, -1)
        features = self.encoder((padded - 127.0) / 128.0)
        deep = features[-1]
        pooled = torch.cat([deep.mean(dim=(2, 3)), deep.amax(dim=(2, 3))], dim=1)
        y = deep
        for block, skip in zip(self.decoder, features[-2::-1], strict=True):
            y = block(y, skip)
        return NetOutput(crop_to(self.mask_head(y), x), self.slice_head(pooled))
