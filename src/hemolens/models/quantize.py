"""An exported network in 8 bits: a quarter of the size, and faster where the processor has the instructions for it.

Static quantization with ONNX Runtime: weights per channel (int8), activations per tensor (uint8), whose ranges are read
off real slices. The first convolutions, which see the gray values, and the last, whose logits are thresholded, stay in
32 bit: with them in 8 bit, outlines are others (docs/explanation/experiments.md). They are small.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT = "images"
FIRST_KEPT = 12
"""So many of the first convolutions stay as they are."""
QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "Concat")


def quantize_onnx(source: Path, target: Path, images: Iterable[NDArray[np.float32]]) -> None:
    """Write an 8-bit copy of a network that reads slices.

    Parameters
    ----------
    source, target
        ONNX files.
    images
        What the network is shown in use, each of shape ``(n, channels, size, size)``, gray 0 to 255; some hundred
        slices of many scans.

    Raises
    ------
    ValueError
        If there are no images or the network has no convolutions.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    shown = iter(images)
    first = next(shown, None)
    if first is None:
        raise ValueError("no images to read the ranges of activations off")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        part = target.with_name(target.name + ".part")
        quantize_static(
            str(prepared),
            str(part),
            _reader(first, shown),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=_kept(prepared),
        )
        part.replace(target)


def _reader(first: NDArray[np.float32], others: Iterator[NDArray[np.float32]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the images one by one."""

        waiting: NDArray[np.float32] | None = first

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            """Return the next, or None after the last."""
            given, self.waiting = self.waiting, next(others, None)
            return None if given is None else {INPUT: np.asarray(given, dtype=np.float32)}

    return Reader()


def _kept(path: Path) -> list[str]:
    """Return the names of the first convolutions and of the last."""
    import onnx

    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    if not names:
        raise ValueError("the network has no convolutions to quantize")
    return [*names[:FIRST_KEPT], names[-1]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's remarks on its own steps to itself."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
