"""Random changes of whole batches, geometry and gray values, on whichever device the batch lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def augment(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Turn, scale, shift, mirror and re-gray a batch; masks follow the pictures by nearest neighbor.

    Parameters
    ----------
    batch
        ``images`` (n, 3, h, w) gray 0-255 float, ``labels`` and ``inside`` (n, h, w), and what does not change.
    """
    images, labels, inside = batch["images"], batch["labels"], batch["inside"]
    grid = _grid(len(images), images.shape[-1], generator).to(images.device)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    flat = torch.stack([labels.float(), inside.float()], dim=1)
    moved = F.grid_sample(flat, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    changed = dict(batch)
    changed["images"] = _regray(images, generator)
    changed["labels"], changed["inside"] = moved[:, 0].round().to(labels.dtype), moved[:, 1].to(inside.dtype)
    return changed


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _grid(n: int, size: int, generator: torch.Generator) -> Tensor:
    angle = torch.randn(n, generator=generator) * math.radians(12)
    scale = torch.exp(_uniform(n, math.log(0.85), math.log(1.2), generator))
    stretch = torch.exp(_uniform(n, -0.08, 0.08, generator))
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = _uniform(2 * n, -0.08, 0.08, generator).reshape(n, 2)
    matrix = torch.stack(
        [
            torch.stack([cos * mirror * stretch, -sin, shift[:, 0]], dim=1),
            torch.stack([sin * mirror * stretch, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, [n, 1, size, size], align_corners=False)
    bend = torch.randn(n, 2, 6, 6, generator=generator) * 0.012
    smooth = F.interpolate(bend, size=(size, size), mode="bicubic", align_corners=True)
    return grid + smooth.permute(0, 2, 3, 1)


def _regray(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another window, gamma, noise or sharpness, as other scanners and other readers give."""
    n, device = len(images), images.device

    def some(low: float, high: float) -> Tensor:
        return _uniform(n, low, high, generator).to(device)[:, None, None, None]

    gain, level = some(0.85, 1.18), some(-14, 14)
    x = (images - 105) * gain + 105 + torch.where(images > 0, level, torch.zeros_like(level))
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    amount = some(-0.4, 0.9)
    x = x + (blurred - x) * amount
    coarse = torch.randn(images.shape, generator=generator).to(device)
    noise = coarse + F.avg_pool2d(coarse, 3, stride=1, padding=1) * 2
    strength = some(0.0, 5.0) * (some(0.0, 1.0) < 0.5)
    return (x + noise * strength * (images > 0)).clamp(0, 255)
