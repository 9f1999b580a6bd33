"""Weights files: a network's configuration beside its weights, so that the file says by itself what it holds."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hemolens.config import to_mapping
from hemolens.errors import ModelError
from hemolens.models.network import Network

WEIGHTS_FILES = ("best.pt", "checkpoint.pt")
"""In a run folder, in the order in which they are looked for."""


def write_network(network: Network, path: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write a network's configuration (``"network"``) and weights (``"weights"``), all of the file or none of it.

    Parameters
    ----------
    extra
        What else to keep in the file: tensors and plain values.
    """
    content = {**(extra or {}), "network": to_mapping(network.config), "weights": network.state_dict()}
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration, as plain values, and the weights in a weights file or a run folder.

    Raises
    ------
    ModelError
        If there is none, or it is none of hemolens.
    """
    if path.is_dir():
        found = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
        if not found:
            raise ModelError(f"{path}: holds no weights ({' or '.join(WEIGHTS_FILES)}). Name a run folder.")
        path = found[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["network"]), dict(content["weights"])
    except OSError as error:
        raise ModelError(f"{path}: the weights cannot be read ({error.strerror}).") from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: is no weights file of hemolens. Name a run folder or its best.pt.") from error
