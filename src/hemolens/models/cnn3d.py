"""`cnn3d`: the classifier of `cnn2d` over windows of slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hemolens.labels import FINDING_NAMES
from hemolens.models.blocks import Norm, check_common, convolution, mean_and_max, start_weights
from hemolens.models.network import Network, pad_to
from hemolens.models.output import NetOutput
from hemolens.models.unet3d import steps_of, stride_of


@dataclass(frozen=True)
class CNN3dConfig:
    """Shape of the network; see `UNet3dConfig` for why its first levels are flat."""

    kind: Literal["cnn3d"] = "cnn3d"
    depth: int = 16
    """Slices of the windows in which a volume is run; a scan's findings are the highest of its windows'."""
    widths: tuple[int, ...] = (16, 32, 64, 128, 128)
    """Channels of each block; each block but the last is followed by pooling."""
    flat_levels: int = 2
    norm: Norm = "batch"
    hidden: int = 128
    """Units of the dense layer before the last."""
    dropout: float = 0.3
    """Before the last layer."""

    def __post_init__(self) -> None:
        check_common(min(*self.widths, self.hidden), self.dropout)
        if self.depth < 1:
            raise ValueError("depth must be at least 1")
        if len(self.widths) < 2 or not 0 <= self.flat_levels < len(self.widths):
            raise ValueError("widths needs at least 2 values, and more than flat_levels")


class CNN3d(Network):
    """A window of slices in, its findings logits out."""

    config: CNN3dConfig
    sample = "volume"
    channels = 1

    def __init__(self, config: CNN3dConfig = CNN3dConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.depth = config.depth
        steps = steps_of(len(config.widths), config.flat_levels)
        self.stride = stride_of(steps)
        blocks: list[nn.Module] = []
        for level, (inputs, outputs) in enumerate(zip([1, *config.widths[:-1]], config.widths, strict=True)):
            if level:
                blocks.append(nn.MaxPool3d(steps[level - 1]))
            blocks.append(convolution(inputs, outputs, config.norm, (1 if level < config.flat_levels else 3, 3, 3)))
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Sequential(nn.Linear(2 * config.widths[-1], config.hidden), nn.ReLU())
        self.scan_head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, len(FINDING_NAMES)))
        start_weights(self)

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values ``(n, 1, d, h, w)`` to findings logits ``(n, 6)``."""
        features = self.blocks((pad_to(x, self.stride) - 127.0) / 128.0)
        return NetOutput(None, self.scan_head(self.dense(mean_and_max(features))))
