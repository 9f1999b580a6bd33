"""`cnn2d`: the students' classifier: convolution, batch normalization, ReLU, pooling, repeated, then dense layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hemolens.labels import FINDING_NAMES
from hemolens.models.blocks import check_common, convolution, mean_and_max, start_weights
from hemolens.models.network import Network, pad_to
from hemolens.models.output import NetOutput


@dataclass(frozen=True)
class CNN2dConfig:
    """Shape of the network."""

    kind: Literal["cnn2d"] = "cnn2d"
    channels: Literal[1, 3] = 1
    """1: the slice alone; 3: the slice below, the slice, the slice above."""
    widths: tuple[int, ...] = (32, 64, 128, 128)
    """Channels of each block; each halves the size."""
    hidden: int = 128
    """Units of the dense layer before the last."""
    dropout: float = 0.5
    """Before the last layer."""

    def __post_init__(self) -> None:
        check_common(min(*self.widths, self.hidden), self.dropout)


class CNN2d(Network):
    """A slice in, findings logits out; gray is divided by 255."""

    config: CNN2dConfig

    def __init__(self, config: CNN2dConfig = CNN2dConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        blocks = []
        for inputs, outputs in zip([config.channels, *config.widths[:-1]], config.widths, strict=True):
            blocks += [convolution(inputs, outputs, "batch"), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Sequential(nn.Linear(2 * config.widths[-1], config.hidden), nn.ReLU())
        self.slice_head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, len(FINDING_NAMES)))
        start_weights(self)

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values ``(n, channels, h, w)`` to findings logits ``(n, 6)``."""
        stride = 2 ** len(self.config.widths)
        features = self.blocks(pad_to(x, (stride, stride)) / 255.0)
        return NetOutput(None, self.slice_head(self.dense(mean_and_max(features))))
