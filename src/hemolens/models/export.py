"""Writing a network as ONNX, checked against torch before it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hemolens.errors import ModelError
from hemolens.models.effunet2d import EffUNet2d

LARGEST_DIFFERENCE = 1e-3
"""Between the logits of torch and of ONNX Runtime on the same input."""


def export_onnx(network: EffUNet2d, size: int, path: Path) -> float:
    """Write `network` for inputs ``images`` (n, 3, size, size), outputs ``mask`` and ``slice``; n is free.

    Returns
    -------
    float
        The largest difference between torch and ONNX Runtime over three batches of noise of 1, 2 and 5 images.

    Raises
    ------
    ModelError
        If it exceeds `LARGEST_DIFFERENCE`; the file is then removed.
    """
    network = network.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, size, size),),
        path,
        input_names=["images"],
        output_names=["mask", "slice"],
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    difference = _difference(network, size, path)
    if difference > LARGEST_DIFFERENCE:
        path.unlink()
        raise ModelError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}; the export was not kept.")
    return difference


@torch.no_grad()
def _difference(network: EffUNet2d, size: int, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    largest = 0.0
    for n in (1, 2, 5):
        images = rng.uniform(0, 255, (n, 3, size, size)).astype(np.float32)
        expected = network(torch.from_numpy(images))
        for own, given in zip(session.run(["mask", "slice"], {"images": images}), expected, strict=True):
            largest = max(largest, float(np.abs(own - given.numpy()).max()))
    return largest
