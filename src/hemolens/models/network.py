"""What all networks have in common: what they take, what they tell, and which of their parts were trained before."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.inference.registry import Interface, SampleKind
from hemolens.models.output import NetOutput


class Network(nn.Module):
    """Gray values 0 to 255 as float in, a `NetOutput` out; a network scales its input by itself.

    Inputs are slices ``(n, channels, h, w)``, volumes ``(n, 1, d, h, w)`` or scans ``(n, slices, channels, h, w)``.
    Any height, width and depth is taken: odd sizes are padded inside, and masks cropped back.
    """

    config: Any
    """The frozen dataclass that the network was built from."""
    sample: SampleKind = "slice"
    channels: int = 3
    """1: the slice alone; 3: the slice between its neighbors. Volumes have 1."""
    mask_channels: int = 0
    """0: no mask; 1: blood; 6: blood, then the subtypes given blood."""
    findings: bool = True
    """Whether findings are told."""
    depth: int = 0
    """Slices of the windows in which volumes are run; 0 for the others."""

    @property
    def interface(self) -> Interface:
        """What a card says of the network's input and output."""
        return Interface(self.sample, self.channels, self.mask_channels, self.findings, self.depth)

    def pretrained_parts(self) -> tuple[nn.Module, ...]:
        """Return the parts that hold weights from before, which should learn at a lower rate."""
        return ()

    def freeze(self) -> None:
        """Switch off gradients of the weights that shall stay as they are."""

    def forward(self, x: Tensor) -> NetOutput:
        """Map gray values to logits."""
        raise NotImplementedError


def pad_to(x: Tensor, multiples: tuple[int, ...]) -> Tensor:
    """Pad the last dimensions with zeros at their ends up to multiples of `multiples`, the last one's last."""
    missing = [-size % multiple for size, multiple in zip(x.shape[-len(multiples) :], multiples, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [amount for extra in reversed(missing) for amount in (0, extra)])


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """Undo `pad_to`: cut the dimensions after the second down to those of `like`."""
    for dim in range(2, x.ndim):
        if x.shape[dim] != like.shape[dim]:
            x = x.narrow(dim, 0, like.shape[dim])
    return x
