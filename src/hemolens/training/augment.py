"""Random changes of whole batches, geometry and gray values, on whichever device the batch lies.

What happens to a sample depends on the seed and its number alone, never on the batch or the process that it is in.
Slices of one sample (neighbors, a volume, a scan) are moved and re-grayed together, in plane.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hemolens.sources.datasets.cases import UNKNOWN

Batch = dict[str, Any]
"""See `hemolens.training.data`."""
BEND_KNOTS, BEND_STEPS = 6, 36
MIDDLE_GRAY = 105.0
"""Gain turns about this value, somewhat below brain."""
UNIFORMS = 12


@dataclass(frozen=True)
class AugmentConfig:
    """How far samples are changed; 0 switches a change off, `enabled` all of them.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    enabled: bool = True
    rotation_deg: float = 12.0
    """Standard deviation of the angle."""
    scale: float = 0.17
    """Zoom by a factor from ``exp(-scale)`` to ``exp(scale)``."""
    stretch: float = 0.08
    """Change of the ratio of width to height, as `scale`."""
    shift: float = 0.08
    """Largest shift in each direction, as a share of half the picture."""
    mirror: float = 0.5
    """Chance to swap left and right."""
    elastic: float = 0.012
    """Standard deviation of a smooth bend, as a share of half the picture."""
    gain: float = 0.17
    """Change of the window's width, as `scale`."""
    level: float = 14.0
    """Largest shift of the window, in gray values."""
    gamma: float = 0.12
    """Exponent of the gray values, as `scale`."""
    noise: float = 5.0
    """Largest standard deviation of added noise, in gray values; half of all samples get some."""
    blur: float = 0.9
    """Largest share of a 3 x 3 mean that is mixed in."""
    sharpen: float = 0.4
    """Largest share of a 3 x 3 mean that is taken off."""
    jpeg: float = 0.15
    """Chance that a sample passes through JPEG (in the loader, see `compress`)."""
    jpeg_quality: int = 40
    """Lowest quality."""

    def __post_init__(self) -> None:
        strengths = (self.rotation_deg, self.scale, self.stretch, self.shift, self.elastic, self.gain, self.level)
        if min(*strengths, self.gamma, self.noise, self.blur, self.sharpen) < 0:
            raise ValueError("strengths must be at least 0")
        if not (0 <= self.mirror <= 1 and 0 <= self.jpeg <= 1):
            raise ValueError("mirror and jpeg are chances, from 0 to 1")
        if not 1 <= self.jpeg_quality <= 95:
            raise ValueError("jpeg_quality must be from 1 to 95")


def augment_batch(batch: Batch, config: AugmentConfig, seed: int) -> Batch:
    """Turn, scale, shift, bend, mirror and re-gray a batch; masks follow the pictures by nearest neighbor.

    Parameters
    ----------
    batch
        ``images`` float gray 0-255, ``(n, c, h, w)``, ``(n, 1, d, h, w)`` or ``(n, s, c, h, w)``; ``number`` (n,);
        optionally ``labels`` and ``inside``, ``(n, h, w)`` or ``(n, d, h, w)``; all else passes through.
    config
        How far.
    seed
        Of the run.

    Returns
    -------
    Batch
        A new batch. What a moved mask shows from beyond the picture is unknown where the whole slice was, else 0;
        ``inside`` is 1 there where it was 1 throughout.
    """
    if not config.enabled:
        return batch
    images = batch["images"]
    shape, device = images.shape, images.device
    flat = images.reshape(len(images), -1, *shape[-2:])
    draws = [_Draw.of(seed, int(number)) for number in batch["number"]]
    uniform = torch.stack([d.uniform for d in draws])
    grid = _grid(uniform, torch.stack([d.bend for d in draws]), shape[-2:], config).to(device)
    moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    changed = dict(batch)
    changed["images"] = _regray(moved, uniform.to(device), draws, config).reshape(shape)
    if "labels" in batch:
        changed["labels"] = _move(batch["labels"], grid, UNKNOWN)
    if "inside" in batch:
        changed["inside"] = _move(batch["inside"], grid, 1)
    return changed


def compress(images: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pass ``(…, h, w)`` through JPEG at one random quality, by the chance `AugmentConfig.jpeg`."""
    if not config.enabled or rng.random() >= config.jpeg:
        return images
    quality = int(rng.integers(config.jpeg_quality, 96))
    flat = images.reshape(-1, *images.shape[-2:])
    return np.stack([_through_jpeg(image, quality) for image in flat]).reshape(images.shape)


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as file:
        return np.asarray(file)


@dataclass(frozen=True, eq=False)
class _Draw:
    """The random numbers of one sample."""

    uniform: Tensor
    """Shape ``(UNIFORMS,)``, 0 to 1."""
    bend: Tensor
    """Standard normal, shape ``(2, BEND_KNOTS, BEND_KNOTS)``; the first angle is drawn here too."""
    generator: torch.Generator
    """For the noise, which only some samples need."""

    @classmethod
    def of(cls, seed: int, number: int) -> _Draw:
        state = np.random.SeedSequence([seed, number, 1]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        uniform = torch.rand(UNIFORMS, generator=generator)
        return cls(uniform, torch.randn(2, BEND_KNOTS, BEND_KNOTS, generator=generator), generator)


def _grid(uniform: Tensor, bend: Tensor, size: torch.Size, config: AugmentConfig) -> Tensor:
    """Return where each pixel is taken from, ``(n, h, w, 2)``."""
    signed = uniform * 2 - 1
    angle = torch.erfinv(signed[:, 0].clamp(-0.999, 0.999)) * math.sqrt(2) * math.radians(config.rotation_deg)
    scale, stretch = torch.exp(signed[:, 1] * config.scale), torch.exp(signed[:, 2] * config.stretch)
    mirror = torch.where(uniform[:, 3] < config.mirror, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = signed[:, 4:6] * config.shift
    rows = [
        torch.stack([cos * mirror * stretch, -sin, shift[:, 0]], dim=1),
        torch.stack([sin * mirror * stretch, cos, shift[:, 1]], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [len(uniform), 1, *size], align_corners=False)
    if not config.elastic:
        return grid
    coarse = F.interpolate(bend * config.elastic, size=(BEND_STEPS, BEND_STEPS), mode="bicubic", align_corners=True)
    smooth = F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=True)
    return grid + smooth.permute(0, 2, 3, 1)


def _move(values: Tensor, grid: Tensor, whole: int) -> Tensor:
    """Move a mask; a slice that is `whole` throughout stays so to the new border."""
    flat = values.reshape(len(values), -1, *values.shape[-2:]).float()
    moved = F.grid_sample(flat + 1, grid, mode="nearest", padding_mode="zeros", align_corners=False).round() - 1
    border = (flat == whole).all(dim=-1).all(dim=-1)[:, :, None, None].float() * whole
    return torch.where(moved < 0, border, moved).reshape(values.shape).to(values.dtype)


def _regray(images: Tensor, uniform: Tensor, draws: list[_Draw], config: AugmentConfig) -> Tensor:
    """Another window, gamma, noise or sharpness, as other scanners and other readers give; black stays black."""
    signed = (uniform * 2 - 1)[:, :, None, None, None].unbind(1)
    gain, level = torch.exp(signed[6] * config.gain), signed[7] * config.level
    shown = images > 0
    x = images.mul(gain).add_(MIDDLE_GRAY * (1 - gain) + level).clamp_(0, 255)
    if config.gamma:
        x.div_(255).pow_(torch.exp(signed[8] * config.gamma)).mul_(255)
    if config.blur or config.sharpen:
        amount = uniform[:, 9, None, None, None] * (config.blur + config.sharpen) - config.sharpen
        x = x.lerp_(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False), amount)
    if config.noise:
        _add_noise(x, images, uniform, draws, config.noise)
    return x.mul_(shown).clamp_(0, 255)


def _add_noise(x: Tensor, images: Tensor, uniform: Tensor, draws: list[_Draw], strength: float) -> None:
    """Grainy noise for half of the samples; slices that are one slice repeated get the same."""
    for k, draw in enumerate(draws):
        if uniform[k, 10] < 0.5:
            repeated = bool((images[k] == images[k, :1]).all())
            shape = (1 if repeated else images.shape[1], *images.shape[2:])
            fine = torch.randn(shape, generator=draw.generator)
            grain = F.avg_pool2d(fine, 3, stride=1, padding=1).mul_(2).add_(fine)
            x[k] += grain.mul_(float(uniform[k, 11]) * strength).to(images.device)
