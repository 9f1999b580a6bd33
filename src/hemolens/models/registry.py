"""Every network by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hemolens.models.effunet2d import EffUNet2d, EffUNetConfig
from hemolens.models.network import Network

NetworkConfig = EffUNetConfig
"""The configuration of any network; its ``kind`` says of which."""
NETWORKS: dict[str, Callable[..., Network]] = {
    "effunet2d": EffUNet2d,
}


def build_network(config: Any, *, pretrained: bool = True) -> Network:
    """Return the network that `config` describes.

    Parameters
    ----------
    config
        A `NetworkConfig`.
    pretrained
        Start from the weights that the configuration asks for; without it from random ones, as where a checkpoint's
        weights follow anyway.
    """
    return NETWORKS[config.kind](config, pretrained=pretrained)
