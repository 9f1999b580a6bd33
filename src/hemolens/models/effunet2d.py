"""`effunet2d`: EfficientNet-Lite0 encoder, a light decoder, a mask head and a slice head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES
from hemolens.models.blocks import mean_and_max
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
    head: Literal["pooled", "attended"] = "pooled"
    """What the slice head sees: the encoder's deepest features over the whole slice, or also those at the place that
    the mask head takes for blood, and what it says of it there."""
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


class AttendedHead(nn.Module):
    """Findings from the whole slice and from the place that looks most like blood.

    A small bleed is lost in an average over a slice. Attention is the mask's own (a softmax of blood over the pixels),
    and takes no gradient: how a slice is called must not move its outline.
    """

    HIDDEN = 64
    SCALE = 8.0
    """What mask logits are divided by, to be of the size of features."""

    def __init__(self, deep: int, fine: int, masks: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(3 * deep + fine + masks + 2, self.HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(self.HIDDEN, len(FINDING_NAMES)),
        )

    def forward(self, deep: Tensor, fine: Tensor, masks: Tensor) -> Tensor:
        """Shapes ``(n, deep, h / 32, w / 32)``, ``(n, fine, h / 2, w / 2)`` and ``(n, masks, h, w)`` to ``(n, 6)``."""
        logits = masks.detach()
        blood = logits[:, :1]
        attention = blood.flatten(1).softmax(dim=1).view_as(blood)
        seen = [deep.mean(dim=(2, 3)), deep.amax(dim=(2, 3))]
        for features, stride in ((deep, STRIDE), (fine, 2)):
            coarse = F.avg_pool2d(attention, stride) * stride**2
            seen.append((features * coarse).sum(dim=(2, 3)))
        told = [(logits * attention).sum(dim=(2, 3)), blood.amax(dim=(2, 3)), blood.flatten(1).logsumexp(1, True)]
        found: Tensor = self.net(torch.cat([*seen, *(value / self.SCALE for value in told)], dim=1))
        return found


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
        deep = FEATURE_CHANNELS[-1]
        self.slice_head = (
            AttendedHead(deep, channels, self.mask_channels, config.dropout)
            if config.head == "attended"
            else nn.Sequential(nn.Dropout(config.dropout), nn.Linear(2 * deep, len(FINDING_NAMES)))
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
        y = deep
        for block, skip in zip(self.decoder, features[-2::-1], strict=True):
            y = block(y, skip)
        masks = self.mask_head(y)
        if isinstance(self.slice_head, AttendedHead):
            return NetOutput(crop_to(masks, x), self.slice_head(deep, y, masks))
        return NetOutput(crop_to(masks, x), self.slice_head(mean_and_max(deep)))
