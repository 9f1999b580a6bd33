"""The torch network behind a shipped ONNX file: its weights carry the parameters' names, so it can explain and learn.

The exporter folds batch normalization into the convolution before it and calls the sum of both biases
``<convolution>.weight_bias``. A normalization with mean 0 and variance 1 - ε (so that ε makes it 1), scale 1 and that
bias does the same, so the network is the trained one to the last rounding; it is compared with the file before use.

What learns on needs its normalization back, for batches are normalized by their own mean and variance then. `loosen`
gives it statistics again, without a change of what the network says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
SMALLEST_SCALE = 1e-4
"""Of a normalization; a channel that it scales down further stays folded."""


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
        raise ModelError(f"The model '{model.name}' is in 8 bits, which has no gradients. Use {whole}.")
    network = build_network(_config(model), pretrained=False).eval()
    _fill(network, _weights(model.verified_bytes()), model)
    difference = _difference(network, model)
    if not difference <= LARGEST_DIFFERENCE:
        raise _refused(model, f"its results differ by {difference:.2g}")
    return network


@torch.no_grad()
def loosen(network: Network, images: torch.Tensor) -> None:
    """Give a rebuilt network's normalization statistics again; what the network says in use stays the same.

    Those of the pretrained parts are what came with their weights, and their convolutions get back the scale that they
    had before the export; those of the others are measured.

    Parameters
    ----------
    network
        From `rebuild_network`.
    images
        What it reads in training, float gray 0 to 255, shape ``(n, channels, h, w)``.

    Raises
    ------
    ModelError
        If the results differ afterwards.
    """
    before = network(images)
    pretrained = {id(layer) for part in network.pretrained_parts() for layer in part.modules()}
    donors = dict(build_network(network.config, pretrained=True).named_modules())
    layers = [(name, layer) for name, layer in network.named_modules() if not any(layer.children())]
    measured = []
    for (_, layer), (name, norm) in pairwise(layers):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            if id(norm) in pretrained:
                _as_pretrained(layer, norm, donors[name])
            else:
                measured.append(norm)
    _as_measured(network, measured, images)
    for was, now in zip(before, network(images), strict=True):
        difference = 0.0 if was is None else float((was - now).abs().max() / was.abs().max().clamp(min=1.0))
        if not difference <= LARGEST_DIFFERENCE:
            raise ModelError(f"The network cannot learn on: with normalization it differs by {difference:.2g}.")


def _as_pretrained(convolution: nn.Conv2d, norm: nn.BatchNorm2d, donor: nn.Module) -> None:
    """Undo the folding with the statistics and the scale of `donor`."""
    assert isinstance(donor, nn.BatchNorm2d)
    assert donor.running_mean is not None
    assert donor.running_var is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = donor.weight / torch.sqrt(donor.running_var + donor.eps)
    told = scale.abs() >= SMALLEST_SCALE
    one = torch.ones_like(scale)
    convolution.weight.div_(torch.where(told, scale, one)[:, None, None, None])
    norm.running_mean.copy_(torch.where(told, donor.running_mean, 0 * one))
    norm.running_var.copy_(torch.where(told, donor.running_var, one - norm.eps))
    norm.weight.copy_(torch.where(told, donor.weight, one))
    norm.bias.add_(torch.where(told, donor.running_mean * scale, 0 * one))


def _as_measured(network: Network, norms: Sequence[nn.BatchNorm2d], images: torch.Tensor) -> None:
    """Set the statistics of folded normalization to those of what it is given for `images`."""
    given: dict[int, torch.Tensor] = {}
    hooks = [
        norm.register_forward_hook(lambda layer, inputs, output: given.update({id(layer): inputs[0]})) for norm in norms
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance, mean = torch.var_mean(given[id(norm)], dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.bias.add_(mean)


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
