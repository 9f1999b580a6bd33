"""What painters of bleeds are made of: a slice as they see it, noise, blobs, soft edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

CROP_MM = 222.0
"""Typical side of a head crop."""
BONE_GRAY = 240
TABLE_GRAY = 185
"""Half way between brain and the white of bone: where the inner table begins."""
ROUND = 1.05
"""A skull whose length is less than this much its width does not tell where its midline runs."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One slice as a painter sees it; rows run toward the back of the head."""

    image: Picture
    """Gray values."""
    inside: Mask
    """Inside of the skull."""
    beside: Scene | None = None
    """A neighboring slice of which only this skull is known: what hangs on the skull alone is taken from there."""

    @cached_property
    def smooth(self) -> Picture:
        """Low-passed slice."""
        return np.asarray(ndimage.gaussian_filter(self.image, 1.2 * self.mm), dtype=np.float32)

    @cached_property
    def depth(self) -> Picture:
        """Distance to the inner table in pixels, 0 outside: the inside of the skull holds a rim that is mostly bone."""
        if self.beside is not None:
            return self.beside.depth
        depth = np.zeros(self.inside.shape, dtype=np.float32)
        rows, columns = (np.flatnonzero(self.inside.any(axis=a)) for a in (1, 0))
        if rows.size:
            box = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
            inside = self.inside[box]
            whole = ndimage.uniform_filter(inside.astype(np.float32), 2 * int(4 * self.mm) + 1) > 0.999
            depth[box] = ndimage.distance_transform_edt(inside & (whole | (self.image[box] < TABLE_GRAY)))
        return depth

    @cached_property
    def at_base(self) -> bool:
        """Whether bone stands deep inside the head: dark places in its middle are then cisterns, not ventricles."""
        if self.beside is not None:
            return self.beside.at_base
        bone = (self.image > BONE_GRAY) & ~self.inside
        head = ndimage.binary_fill_holes(bone | self.inside)
        deep = ndimage.uniform_filter(head.astype(np.float32), 2 * int(22 * self.mm) + 1) > 0.98
        return bool((bone & deep).sum() > 50 * self.mm**2)

    @cached_property
    def brain_gray(self) -> float:
        """Median gray value of the brain."""
        return float(np.median(self.image[self.inside]))

    @property
    def mm(self) -> float:
        """Pixels in a millimeter, about."""
        return float(self.inside.shape[0] / CROP_MM)

    @cached_property
    def midline(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Middle of the skull, and the unit vector from front to back: the long axis, unless the skull is round."""
        if self.beside is not None:
            return self.beside.midline
        places = np.argwhere(self.inside)
        middle = places.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov((places - middle).T))
        back = vectors[:, 1] if values[1] > ROUND**2 * values[0] else np.array([1.0, 0.0])
        back = back if abs(back[0]) > 0.7 else np.array([1.0, 0.0])
        return middle, back * np.sign(back[0])

    @cached_property
    def along(self) -> Picture:
        """Distance behind the middle of the skull, along the midline, in pixels."""
        (row, column), back = self.midline
        y, x = np.ogrid[: self.inside.shape[0], : self.inside.shape[1]]
        return np.asarray((y - row) * back[0] + (x - column) * back[1], dtype=np.float32)

    @cached_property
    def across(self) -> Picture:
        """Signed distance from the midline in pixels."""
        if self.beside is not None:
            return self.beside.across
        (row, column), back = self.midline
        y, x = np.ogrid[: self.inside.shape[0], : self.inside.shape[1]]
        return np.asarray((x - column) * back[0] - (y - row) * back[1], dtype=np.float32)

    @cached_property
    def bearing_deg(self) -> Picture:
        """Angle from the front around the middle of the skull, -180 to 180, positive to the right of the picture."""
        return np.asarray(np.degrees(np.arctan2(self.across, -self.along)), dtype=np.float32)

    @cached_property
    def ventricles(self) -> Mask:
        """What is as dark as fluid deep in the brain, with its blurred edge."""
        deep = self.depth > 0.3 * self.depth.max()
        if self.at_base:  # the fourth only: what is dark before it are cisterns
            deep &= (self.along > 12 * self.mm) & (np.abs(self.across) < 20 * self.mm)
        seed = ndimage.binary_opening((self.smooth < self.brain_gray - 28) & deep)
        edge = (self.smooth < self.brain_gray - 16) & deep
        return np.asarray(ndimage.binary_dilation(seed, mask=edge, iterations=int(3 * self.mm) + 1))

    @cached_property
    def furrows(self) -> Mask:
        """Narrow dark places near the surface, and wide ones that are as dark as fluid; no specks, no ventricles."""
        size = int(8 * self.mm) | 1
        narrow = ndimage.grey_closing(self.smooth, size=(size, size)) - self.smooth
        shallow = (self.depth < 28 * self.mm) | (np.abs(self.across) < 7 * self.mm)
        dark = (narrow > 11) & (self.smooth < self.brain_gray - 9) & shallow | (self.smooth < self.brain_gray - 28)
        dark &= self.inside & (self.depth > 0.5)
        if not self.at_base:
            dark &= ~ndimage.binary_dilation(self.ventricles, iterations=2)
        labels, _ = ndimage.label(dark, structure=np.ones((3, 3)))
        large = np.bincount(labels.ravel()) >= 12 * self.mm**2
        large[0] = False
        return np.asarray(large[labels])

    def point(self, across: float, along: float) -> tuple[int, int]:
        """Return the pixel at a place told in pixels from the middle of the skull, held inside the picture."""
        (row, column), back = self.midline
        at = (row + along * back[0] - across * back[1], column + along * back[1] + across * back[0])
        limits = self.inside.shape
        return int(np.clip(at[0], 0, limits[0] - 1)), int(np.clip(at[1], 0, limits[1] - 1))


Render = Callable[[Scene, float], Picture]
"""Paints the weight of one bleed on one slice; the float, from 0 to 1, is how far it has shrunk toward its end."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A bleed before it is painted: every random number is drawn, any slice of it can be rendered."""

    render: Render
    half_height: float
    """Half of what it spans along the body, in slices of 5 mm."""
    gray: tuple[float, float]
    """Range of its brightness above the brain, in gray values."""
    old: bool = False
    """Liquefied: darker than brain, in part layered."""


def noise(shape: tuple[int, ...], rng: Rng, scale: float) -> Picture:
    """Smooth noise of standard deviation 1 whose features are about `scale` pixels wide."""
    coarse = rng.standard_normal((max(2, int(shape[0] / scale) + 2), max(2, int(shape[1] / scale) + 2)))
    rows = np.linspace(0, coarse.shape[0] - 1, shape[0])
    columns = np.linspace(0, coarse.shape[1] - 1, shape[1])
    fine = (_linear(rows, coarse.shape[0]) @ coarse @ _linear(columns, coarse.shape[1]).T).astype(np.float32)
    fine = ndimage.uniform_filter(fine, max(1, int(scale / 2)))
    return np.asarray(fine / max(float(fine.std()), 1e-6), dtype=np.float32)


def _linear(at: NDArray[np.float64], inputs: int) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(inputs)))


def blob(
    shape: tuple[int, ...], center: tuple[int, int], radius: float, rng: Rng, narrowest: float = 0.55
) -> Callable[[float], Mask]:
    """Plan an uneven ellipse, at least `narrowest` times as wide as long; what is returned draws it, or less of it."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(narrowest, 1.0)
    dy, dx = y - center[0], x - center[1]
    u = dy * np.cos(turn) + dx * np.sin(turn)
    v = (-dy * np.sin(turn) + dx * np.cos(turn)) / stretch
    uneven = 1 + noise(shape, rng, max(2.0, radius / 2.5)) * rng.uniform(0.05, 0.3)
    reach = np.hypot(u, v) / np.clip(uneven, 0.4, 2.0)
    return lambda grow: np.asarray(reach < radius * grow)


def lines(shape: tuple[int, ...], rng: Rng, scale: float, width: float) -> Mask:
    """Winding lines of even width, about `scale` apart."""
    field = noise(shape, rng, scale)
    steep = np.hypot(*np.gradient(field))
    return np.asarray(np.abs(field) < np.maximum(steep, 1e-3) * width / 2)


def soften(mask: Mask, sigma: float) -> Picture:
    """Give a mask the edge that the scanner's blur gives."""
    return np.asarray(ndimage.gaussian_filter(mask.astype(np.float32), sigma))


def pick(mask: Mask, rng: Rng) -> tuple[int, int] | None:
    """Choose a pixel of a mask."""
    places = np.flatnonzero(mask)
    if not places.size:
        return None
    row, column = np.unravel_index(int(rng.choice(places)), mask.shape)
    return int(row), int(column)


def log_uniform(low: float, high: float, rng: Rng) -> float:
    """Draw a size: each factor of two is as likely as the next."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def inward(scene: Scene, at: tuple[int, int]) -> tuple[float, float]:
    """Return the unit vector from the skull toward the brain at a point of the rim."""
    reach = 6
    low_r, low_c = max(at[0] - reach, 0), max(at[1] - reach, 0)
    near = ndimage.gaussian_filter(scene.depth[low_r : at[0] + reach + 1, low_c : at[1] + reach + 1], 2)
    rows, columns = np.gradient(near)
    row, column = at[0] - low_r, at[1] - low_c
    gradient = float(rows[row, column]), float(columns[row, column])
    length = max(float(np.hypot(*gradient)), 1e-6)
    return gradient[0] / length, gradient[1] / length
