"""The mean of two networks' weights: of one that learned on from another, and that other.

What is learned on for an hour takes the network from where it was to one solution of many near by; half the way back
often lies better than either end (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). It costs no
time in use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def average_onnx(first: Path, second: Path, target: Path) -> None:
    """Write a network whose weights are the mean of those of two of the same build.

    Parameters
    ----------
    first, second
        ONNX files in 32 bits.
    target
        May be one of them.

    Raises
    ------
    ValueError
        If they are not of the same build.
    """
    import onnx
    from onnx import numpy_helper

    mean, other = onnx.load(str(first)), onnx.load(str(second))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in other.graph.initializer}
    steps = [[(node.op_type, list(node.input)) for node in network.graph.node] for network in (mean, other)]
    if steps[0] != steps[1] or set(weights) != {tensor.name for tensor in mean.graph.initializer}:
        raise ValueError(f"{first.name} and {second.name} are not of the same build: their weights have no mean")
    for tensor in mean.graph.initializer:
        one, two = numpy_helper.to_array(tensor), weights[tensor.name]
        if one.shape != two.shape or one.dtype != two.dtype:
            raise ValueError(f"{first.name} and {second.name} differ in the shape of '{tensor.name}'")
        if np.issubdtype(one.dtype, np.floating):
            tensor.CopyFrom(numpy_helper.from_array((one + two) / one.dtype.type(2), tensor.name))
        elif not np.array_equal(one, two):
            raise ValueError(f"{first.name} and {second.name} differ in the constant '{tensor.name}'")
    part = target.with_name(target.name + ".part")
    onnx.save(mean, str(part))
    part.replace(target)
