"""Writing a network as ONNX, checked against torch before it is kept."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemolens.errors import ModelError
from hemolens.models.network import Network
from hemolens.models.output import NetOutput
from hemolens.preprocessing.pipeline import PreprocessConfig

LARGEST_DIFFERENCE = 1e-3
"""Between the logits of torch and of ONNX Runtime on the same input."""
USUAL_LOGITS = 100.0
"""Where logits grow beyond this, as they do in networks without normalization, rounding grows with them: differences
are then taken as if the largest logit were this one. A probability is 0 or 1 long before."""
PREFIX = "network."
CHECKED = ((1, 7), (2, 1), (5, 4))
"""Numbers of samples, and of slices where these are free, of the batches that are compared."""


def export_onnx(network: Network, preprocess: PreprocessConfig, path: Path) -> float:
    """Write `network` for inputs ``images`` of the size that `preprocess` makes.

    The number of samples is free, and so is that of a scan's slices; volumes are windows of the network's depth.

    Outputs are ``mask``, ``slice`` (findings of each slice) and ``scan`` (findings of the volume or scan), as present.

    Returns
    -------
    float
        The largest difference between torch and ONNX Runtime over three batches of noise (`CHECKED`), of logits that
        are scaled down to `USUAL_LOGITS` where they exceed them.

    Raises
    ------
    ModelError
        If it exceeds `LARGEST_DIFFERENCE`; the file is then removed.
    """
    network = network.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    size = preprocess.size
    model = _traced(network, size, path) if network.sample == "scan" else _exported(network, size)
    _strip_names(model)
    path.write_bytes(model.SerializeToString())
    difference = _difference(network, size, path)
    if difference > LARGEST_DIFFERENCE:
        path.unlink()
        raise ModelError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}; the export was not kept.")
    return difference


def _strip_names(model: Any) -> None:
    """Name weights as the network does, without the wrapper's prefix."""
    weights = {w.name: w.name.removeprefix(PREFIX) for w in model.graph.initializer}
    for weight in model.graph.initializer:
        weight.name = weights[weight.name]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = weights.get(name, name)
    for value in model.graph.value_info:
        value.name = weights.get(value.name, value.name)


def _exported(network: Network, size: int) -> Any:
    """Return the ONNX model that torch's present exporter makes."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Told(network).eval(),
            (torch.zeros(_shape(network, size, 2, 3)),),
            input_names=["images"],
            output_names=output_names(network),
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # what dynamo=True returns
    return program.model_proto


def _traced(network: Network, size: int, path: Path) -> Any:
    """Return the ONNX model that torch's former exporter makes: the present one fixes how long recurrent layers run."""
    import onnx

    with torch.no_grad(), _quiet():
        torch.onnx.export(
            _Told(network).eval(),
            (torch.zeros(_shape(network, size, 2, 3)),),
            path,
            input_names=["images"],
            output_names=output_names(network),
            dynamic_axes={"images": {0: "n", 1: "slices"}, "slice": {0: "n", 1: "slices"}, "scan": {0: "n"}},
            dynamo=False,
        )
    return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks about its own insides to itself while it exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _shape(network: Network, size: int, n: int, slices: int) -> tuple[int, ...]:
    """Return the shape of a batch of `n` samples; scans have `slices` slices."""
    shapes = {
        "slice": (n, network.channels, size, size),
        "volume": (n, 1, network.depth, size, size),
        "scan": (n, slices, network.channels, size, size),
    }
    return shapes[network.sample]


def output_names(network: Network) -> list[str]:
    """Return the names of what the exported network tells."""
    names = ["mask"] if network.mask_channels else []
    if network.findings:
        names += {"slice": ["slice"], "volume": ["scan"], "scan": ["slice", "scan"]}[network.sample]
    return names


class _Told(nn.Module):
    """The network without what it does not tell: ONNX has no None."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the network's `NetOutput`."""
        return told(self.network(x))


def told(output: NetOutput) -> tuple[Tensor, ...]:
    """Return what is not None."""
    return tuple(part for part in output if part is not None)


@torch.no_grad()
def _difference(network: Network, size: int, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    largest = 0.0
    for n, slices in CHECKED:
        images = rng.uniform(0, 255, _shape(network, size, n, slices)).astype(np.float32)
        expected = told(network(torch.from_numpy(images)))
        for own, given in zip(session.run(output_names(network), {"images": images}), expected, strict=True):
            scale = max(1.0, float(given.abs().max()) / USUAL_LOGITS)
            largest = max(largest, float(np.abs(own - given.numpy()).max()) / scale)
    return largest
