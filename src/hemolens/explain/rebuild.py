"""The torch network behind a shipped ONNX file: its weights carry the parameters' names, so gradients can be had.

The exporter folds batch normalization into the convolution before it and calls the sum of both biases
``<convolution>.weight_bias``. A normalization with mean 0 and variance 1 - ε (so that ε makes it 1), scale 1 and that
bias does the same, so the network is the trained one to the last rounding; it is compared with the file before use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hemolens.config import from_mapping
from hemolens.errors import ConfigError, DependencyError, ModelError
from hemolens.inference.registry import Model
from hemolens.models.network import Network
from hemolens.models.registry import NetworkConfig, build_network

LARGEST_DIFFERENCE = 1e-3
"""Between the logits of the rebuilt network and of the file."""
FOLDED = "weight_bias"


@dataclass(frozen=True)
class _Holder:
    network: NetworkConfig


def rebuild_network(model: Model) -> Network:
    """Return the torch network whose weights an ONNX file holds.

    Raises
    ------
    ModelError
        If the card does not say which network it is, or a weight is not in the file, or results differ; or if the file
        is an 8-bit copy, whose rounding has no gradients.
    DependencyError
        If onnx is not installed.
    """
    whole = model.card.get("network", {}).get("quantized_from")
    if whole:
        raise ModelError(f"The model '{model.name}' is in 8 bits, which has no gradients. Use --model {whole}.")
    network = build_network(_config(model), pretrained=False).eval()
    _fill(network, _weights(model.verified_bytes()), model)
    difference = _difference(network, model)
    if not difference <= LARGEST_DIFFERENCE:
        raise _refused(model, f"its results differ by {difference:.2g}")
    return network


def _config(model: Model) -> NetworkConfig:
    told = model.card.get("network", {})
    values: Any = told.get("config")
    if values is None:  # cards of the first version name the preset, and the settings of each stage of training
        stages = model.card.get("training", {}).get("stages") or [{}]
        values = {"kind": told.get("preset"), **stages[-1].get("config", {}).get("network", {})}
    try:
        return from_mapping(_Holder, {"network": values}).network
    except ConfigError as error:
        raise _refused(model, f"the card does not say which network it is: {error}") from error


def _weights(content: bytes) -> dict[str, NDArray[np.float32]]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise DependencyError("onnx", "train") from error
    graph = onnx.load_model_from_string(content).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@torch.no_grad()
def _fill(network: nn.Module, weights: Mapping[str, NDArray[np.float32]], model: Model) -> None:
    layers = [(name, layer) for name, layer in network.named_modules() if not any(layer.children())]
    missing = {name for name, _ in network.named_parameters()}
    for number, (name, layer) in enumerate(layers):
        for short, target in layer.named_parameters():
            value = weights.get(f"{name}.{short}")
            if value is not None and value.shape == target.shape:
                target.copy_(torch.from_numpy(value.copy()))
                missing.discard(f"{name}.{short}")
        for short, target in layer.named_buffers():
            value = weights.get(f"{name}.{short}")
            if value is not None and value.shape == target.shape:
                target.copy_(torch.from_numpy(value.copy()))
        bias = weights.get(f"{name}.{FOLDED}")
        if bias is not None:
            after, norm = layers[number + 1] if number + 1 < len(layers) else ("", None)
            if not isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)) or norm.bias.shape != bias.shape:
                raise _refused(model, f"no normalization follows '{name}'")
            _make_bias(norm, torch.from_numpy(bias.copy()))
            missing -= {f"{after}.weight", f"{after}.bias"}
    if missing:
        raise _refused(model, f"'{min(missing)}' is not in the file")


def _make_bias(norm: nn.BatchNorm2d | nn.BatchNorm3d, bias: torch.Tensor) -> None:
    """Turn a normalization into the addition of a bias."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("the normalization keeps no statistics")
    norm.weight.fill_(1.0)
    norm.bias.copy_(bias)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)


@torch.no_grad()
def _difference(network: Network, model: Model) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.verified_bytes(), providers=["CPUExecutionProvider"])
    size = [d if isinstance(d, int) else 2 for d in session.get_inputs()[0].shape]
    images = np.random.default_rng(0).uniform(0, 255, size).astype(np.float32)
    told = [t.numpy() for t in network(torch.from_numpy(images)) if t is not None]
    given = session.run(None, {"images": images})
    if len(told) != len(given) or any(a.shape != b.shape for a, b in zip(told, given, strict=True)):
        return float("inf")
    return max(float(np.abs(a - b).max()) for a, b in zip(told, given, strict=True))


def _refused(model: Model, why: str) -> ModelError:
    return ModelError(
        f"{model.path}: no gradients can be had from this file ({why}). "
        "Use --method occlusion, or name the folder of the training run instead."
    )
