"""The mean of networks' weights: of some that learned on from another, each by itself, and that other.

What is learned on for an hour takes the network from where it was to one solution of many near by; half the way back
often lies better than either end (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), and so does
the middle of several of them (Wortsman et al., "Model soups", ICML 2022). It costs no time in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def average_onnx(files: Sequence[Path], target: Path) -> None:
    """Write a network whose weights are the mean of those of several of the same build.

    Parameters
    ----------
    files
        ONNX files in 32 bits; one that is named twice counts twice.
    target
        May be one of them.

    Raises
    ------
    ValueError
        If there are none, or they are not of the same build.
    """
    import onnx
    from onnx import numpy_helper

    if not files:
        raise ValueError("there is no mean of no networks")
    mean, *others = [onnx.load(str(file)) for file in files]
    sums = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in mean.graph.initializer}
    steps = [(node.op_type, list(node.input)) for node in mean.graph.node]
    for file, other in zip(files[1:], others, strict=True):
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in other.graph.initializer}
        names = f"{files[0].name} and {file.name}"
        if steps != [(node.op_type, list(node.input)) for node in other.graph.node] or set(weights) != set(sums):
            raise ValueError(f"{names} are not of the same build: their weights have no mean")
        for name, total in sums.items():
            one = weights[name]
            if one.shape != total.shape or one.dtype != total.dtype:
                raise ValueError(f"{names} differ in the shape of '{name}'")
            if np.issubdtype(one.dtype, np.floating):
                sums[name] = total + one
            elif not np.array_equal(one, total):
                raise ValueError(f"{names} differ in the constant '{name}'")
    for tensor in mean.graph.initializer:
        total = sums[tensor.name]
        if np.issubdtype(total.dtype, np.floating):
            tensor.CopyFrom(numpy_helper.from_array(total / total.dtype.type(len(files)), tensor.name))
    part = target.with_name(target.name + ".part")
    onnx.save(mean, str(part))
    part.replace(target)
