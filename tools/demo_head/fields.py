"""Smooth functions of space: grids that are read between their points, noise, and the shapes that anatomy is made of.

Points are ``(…, 3)`` arrays of millimeters; signed distances are negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Point = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Grid:
    """Values on a regular grid, read anywhere by linear interpolation."""

    values: Field
    origin_mm: Point
    spacing_mm: float = 1.0

    def __call__(self, points: Field) -> Field:
        """Return the values at `points`; outside the grid the nearest value."""
        index = ((points - np.float32(self.origin_mm)) / np.float32(self.spacing_mm)).reshape(-1, 3).T
        out = np.empty(index.shape[1], np.float32)
        ndimage.map_coordinates(self.values, index, out, order=1, mode="nearest", prefilter=False)
        return out.reshape(points.shape[:-1])


def noise_grid(rng: np.random.Generator, low: Point, high: Point, length_mm: float) -> Grid:
    """Return smooth noise of mean 0 and deviation 1 whose bumps are about `length_mm` wide."""
    spacing = length_mm / 2.5
    shape = [int(np.ceil((b - a) / spacing)) + 2 for a, b in zip(low, high, strict=True)]
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.0, mode="wrap")
    return Grid((smooth - smooth.mean()) / smooth.std(), low, spacing)


def step(distance: Field, softness: float = 0.4) -> Field:
    """Return 1 inside, 0 outside, and the share of partial volume between, for a signed distance."""
    return np.clip(0.5 - distance / (2 * softness), 0.0, 1.0)


def bump(points: Field, center: Point, radius: float | Point) -> Field:
    """Return a Gaussian hill of height 1."""
    return np.exp(-(((points - np.float32(center)) / np.float32(radius)) ** 2).sum(axis=-1))


def ellipsoid(points: Field, center: Point, semi_axes: Point) -> Field:
    """Return the signed distance to an ellipsoid, exact at its surface to first order."""
    scaled = (points - np.float32(center)) / np.float32(semi_axes)
    length = np.sqrt((scaled**2).sum(axis=-1))
    slope = np.sqrt(((scaled / np.float32(semi_axes)) ** 2).sum(axis=-1))
    return length * (length - 1) / np.maximum(slope, np.float32(1e-4))


def capsule(points: Field, a: Point, b: Point, radius_a: float, radius_b: float | None = None) -> Field:
    """Return the signed distance to a rod from `a` to `b` whose radius changes evenly."""
    radius_b = radius_a if radius_b is None else radius_b
    start, axis = np.float32(a), np.float32(b) - np.float32(a)
    share = np.clip(((points - start) @ axis) / np.float32(axis @ axis), 0.0, 1.0)
    distance = np.linalg.norm(points - start - share[..., None] * axis, axis=-1)
    return distance - (radius_a + share * (radius_b - radius_a))


def blend(under: Field, value: Field | float, share: Field) -> Field:
    """Paint `value` over `under` where `share` is 1, mixed where it is less."""
    return under + (value - under) * share


def smooth_min(a: Field, b: Field, width: float) -> Field:
    """Return the union of two signed distances with a fillet of `width`."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0.0, 1.0)
    return b + (a - b) * h - width * h * (1 - h)
