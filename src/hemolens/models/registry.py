"""Every network by its kind."""

from __future__ import annotations

from collections.abc import Callable

from hemolens.models.cnn2d import CNN2d, CNN2dConfig
from hemolens.models.cnn3d import CNN3d, CNN3dConfig
from hemolens.models.effunet2d import EffUNet2d, EffUNetConfig
from hemolens.models.network import Network
from hemolens.models.resnet2d import ResNet2d, ResNet2dConfig
from hemolens.models.sequence import SequenceConfig, SequenceNetwork
from hemolens.models.unet2d import UNet2d, UNet2dConfig
from hemolens.models.unet3d import UNet3d, UNet3dConfig

NetworkConfig = (
    UNet2dConfig | CNN2dConfig | EffUNetConfig | ResNet2dConfig | UNet3dConfig | CNN3dConfig | SequenceConfig
)
"""The configuration of any network; its ``kind`` says of which."""
NETWORKS: dict[str, Callable[..., Network]] = {
    "unet2d": UNet2d,
    "cnn2d": CNN2d,
    "effunet2d": EffUNet2d,
    "resnet2d": ResNet2d,
    "unet3d": UNet3d,
    "cnn3d": CNN3d,
    "sequence": SequenceNetwork,
}


def build_network(config: NetworkConfig, *, pretrained: bool = True) -> Network:
    """Return the network that `config` describes.

    Parameters
    ----------
    config
        Of any kind.
    pretrained
        Start from the weights that the configuration asks for; without it from random ones, as where a checkpoint's
        weights follow anyway.
    """
    return NETWORKS[config.kind](config, pretrained=pretrained)
