"""Every network by its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hemolens.config import from_mapping
from hemolens.errors import ConfigError, ModelError
from hemolens.models.cnn2d import CNN2d, CNN2dConfig
from hemolens.models.cnn3d import CNN3d, CNN3dConfig
from hemolens.models.effunet2d import EffUNet2d, EffUNetConfig
from hemolens.models.network import Network
from hemolens.models.resnet2d import ResNet2d, ResNet2dConfig
from hemolens.models.saved import read_network
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


@dataclass(frozen=True)
class _Holder:
    network: NetworkConfig


def load_network(path: Path) -> Network:
    """Return the network whose configuration and weights a run folder or weights file holds, ready to be run.

    Raises
    ------
    ModelError
        If there is none, or its weights are those of another network.
    """
    values, weights = read_network(path)
    try:
        network = build_network(from_mapping(_Holder, {"network": values}).network, pretrained=False)
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{path}: the weights are those of another network than its {values['kind']}.") from error
    return network.eval()
