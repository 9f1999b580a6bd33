"""`resnet2d`: the residual network of 18 layers of He et al. 2016 (arXiv 1512.03385) as a slice classifier.

It starts from random weights: no package in the registries carries ResNet weights, and nothing is downloaded. For a
classifier that starts from ImageNet use `effunet2d`, whose slice head stands on a pretrained encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.labels import FINDING_NAMES
from hemolens.models.blocks import check_common, start_weights
from hemolens.models.network import Network, pad_to
from hemolens.models.output import NetOutput

STRIDE = 32


@dataclass(frozen=True)
class ResNet2dConfig:
    """Shape of the network; the defaults are ResNet-18's."""

    kind: Literal["resnet2d"] = "resnet2d"
    channels: Literal[1, 3] = 3
    """1: the slice alone; 3: the slice below, the slice, the slice above."""
    width: int = 64
    """Channels of the first stage; each of the three further ones has twice as many."""
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Residual blocks of each stage."""
    dropout: float = 0.2
    """Before the last layer."""

    def __post_init__(self) -> None:
        check_common(min(self.width, *self.blocks), self.dropout)


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.carry: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.carry = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        return F.relu(self.carry(x) + self.layers(x))


class ResNet2d(Network):
    """A slice, with its neighbors or alone, in; findings logits out."""

    config: ResNet2dConfig

    def __init__(self, config: ResNet2dConfig = ResNet2dConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        channels = config.width
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        stages: list[nn.Module] = []
        for stage, count in enumerate(config.blocks):
            for block in range(count):
                outputs = config.width * 2**stage
                stages.append(Residual(channels, outputs, 2 if stage and not block else 1))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.slice_head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, len(FINDING_NAMES)))
        start_weights(self)

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values ``(n, channels, h, w)`` to findings logits ``(n, 6)``."""
        features = self.stages(self.stem((pad_to(x, (STRIDE, STRIDE)) - 127.0) / 128.0))
        return NetOutput(None, self.slice_head(features.mean(dim=(2, 3))))
