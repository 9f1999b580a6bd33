"""`sequence`: an image encoder on every slice, then a recurrent network over the slices of the whole scan.

Reading a scan as a sequence of slice features is what the best entries of the RSNA 2019 challenge have in common
(Wang et al. 2021, NeuroImage: Clinical 32:102785): a slice is judged by what the slices around it show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hemolens.errors import ConfigError
from hemolens.labels import FINDING_NAMES
from hemolens.models.blocks import check_common
from hemolens.models.effunet2d import STRIDE
from hemolens.models.encoder import FEATURE_CHANNELS, EfficientNetLite0
from hemolens.models.network import Network, pad_to
from hemolens.models.output import NetOutput

FAR_BELOW = -1e4
"""Stands for "not there" where the highest of several values is taken."""


@dataclass(frozen=True)
class SequenceConfig:
    """Shape of the network."""

    kind: Literal["sequence"] = "sequence"
    channels: Literal[1, 3] = 3
    """1: each slice alone, shown three times; 3: each slice between its neighbors."""
    hidden: int = 128
    """Features of a slice, and units of the recurrent network in each direction."""
    layers: int = 1
    dropout: float = 0.3
    imagenet: bool = True
    """Start the encoder from ImageNet weights."""
    backbone: str = ""
    """Run folder or weights file (``.pt``) of a trained `effunet2d`, whose encoder to start from instead."""
    frozen: bool = True
    """Leave the encoder as it is: much faster, and a scan takes little memory."""

    def __post_init__(self) -> None:
        check_common(min(self.hidden, self.layers), self.dropout)


class BothWays(nn.Module):
    """A gated recurrent unit run up and one run down the slices, over the slices that are there."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.upward = nn.GRU(inputs, hidden, batch_first=True)
        self.downward = nn.GRU(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """Map ``(n, slices, inputs)`` to ``(n, slices, 2 hidden)``; `turned` is from `turn`."""
        up, _ = self.upward(x)
        down, _ = self.downward(_pick(x, turned))
        return torch.cat([up, _pick(down, turned)], dim=2)


def turn(present: Tensor) -> Tensor:
    """Return which slice stands where once each scan is turned upside down and its missing slices stay at its end.

    Parameters
    ----------
    present
        Whether a slice is there, shape ``(n, slices)``; only those after the last one of a scan count as missing.

    Returns
    -------
    Tensor
        Indices ``(n, slices)``; turning twice gives the first order again.
    """
    place = torch.arange(present.shape[1], device=present.device).expand(present.shape)
    length = ((place + 1) * present).amax(dim=1, keepdim=True)
    return torch.where(place < length, length - 1 - place, place)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))


class SequenceNetwork(Network):
    """A whole scan in; findings logits of each slice and of the scan out.

    Scans of different length share a batch by black slices after the last one: they change nothing for the others.
    """

    config: SequenceConfig
    sample = "scan"

    def __init__(self, config: SequenceConfig = SequenceConfig(), *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.encoder = EfficientNetLite0()
        if pretrained and config.backbone:
            self._take_encoder(Path(config.backbone))
        elif pretrained and config.imagenet:
            self.encoder.load_imagenet()
        self.features = nn.Sequential(nn.Linear(2 * FEATURE_CHANNELS[-1], config.hidden), nn.ReLU())
        self.drop = nn.Dropout(config.dropout)
        widths = [config.hidden, *[2 * config.hidden] * config.layers]
        self.recurrent = nn.ModuleList(BothWays(inputs, config.hidden) for inputs in widths[:-1])
        self.slice_head = nn.Linear(widths[0] + widths[-1], len(FINDING_NAMES))
        self.scan_head = nn.Linear(2 * (widths[0] + widths[-1]), len(FINDING_NAMES))
        self.freeze()

    def _take_encoder(self, source: Path) -> None:
        from hemolens.training.checkpoint import kept_weights  # builds networks itself

        weights = {n.removeprefix("encoder."): w for n, w in kept_weights(source).items() if n.startswith("encoder.")}
        own = self.encoder.state_dict()
        if weights.keys() != own.keys() or any(weights[n].shape != w.shape for n, w in own.items()):
            raise ConfigError(
                f"network.backbone: {source} holds no EfficientNet-Lite0 encoder. Name the run of an effunet2d or a "
                "sequence network."
            )
        self.encoder.load_state_dict(weights)

    def freeze(self) -> None:
        """Keep the encoder's weights where the configuration says so; its running statistics stay in any case."""
        if self.config.frozen:
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> SequenceNetwork:
        """Switch to training, except the encoder's batch normalization, whose statistics stay as they are."""
        super().train(mode)
        self.encoder.eval()
        return self

    def pretrained_parts(self) -> tuple[nn.Module, ...]:
        """Return the encoder."""
        return (self.encoder,)

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values ``(n, slices, channels, h, w)`` to findings logits ``(n, slices, 6)`` and ``(n, 6)``."""
        present = x.flatten(2).amax(dim=2) > 0
        turned = turn(present)
        y = self.features(self.encode(x))
        z = y
        for layer in self.recurrent:
            z = layer(self.drop(z), turned)
        y = self.drop(torch.cat([y, z], dim=2))
        # Every slice of an empty scan counts, so that its mean is defined.
        counted = (present | ~present.any(dim=1, keepdim=True))[:, :, None].to(y.dtype)
        mean = (y * counted).sum(dim=1) / counted.sum(dim=1)
        top = (y + (1 - counted) * FAR_BELOW).amax(dim=1)
        return NetOutput(None, self.slice_head(y), self.scan_head(torch.cat([mean, top], dim=1)))

    def encode(self, x: Tensor) -> Tensor:
        """Return the pooled features of every slice, shape ``(n, slices, 640)``; without gradients where frozen."""
        if self.config.frozen and torch.is_grad_enabled():
            with torch.no_grad():  # scan by scan, so that memory does not grow with the batch
                return torch.cat([self._encode(scan) for scan in x[:, None]])
        return self._encode(x)

    def _encode(self, x: Tensor) -> Tensor:
        images = pad_to(x.flatten(0, 1), (STRIDE, STRIDE))
        if self.channels == 1:
            images = images.expand(-1, 3, -1, -1)
        deep = self.encoder((images - 127.0) / 128.0)[-1]
        pooled = torch.cat([deep.mean(dim=(2, 3)), deep.amax(dim=(2, 3))], dim=1)
        return pooled.reshape(x.shape[0], x.shape[1], pooled.shape[1])
