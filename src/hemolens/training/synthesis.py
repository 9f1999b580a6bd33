"""Bleeds painted into bleed-free slices, with exact masks: the training signal that drawn masks are too scarce to give.

Everything works on a gray head crop (window level 40, width 120: one gray value is 0.47 HU) of three neighboring
slices. A bleed is a weight per pixel, 0 to 1, with soft edges: the picture becomes
``image + weight * (target - low-passed image)``, which keeps the noise of the scan. The mask is where the middle
slice's weight reaches one half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.labels import SUBTYPE_NAMES

Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]
Paint = Callable[["Scene", np.random.Generator], "Picture | None"]


TISSUE_GRAY = 160
"""About 55 HU, in bleed-free slices: brighter pixels are in part bone."""
SMALLEST_INSIDE = 0.2
"""Share of the crop below which the inside of the skull is not reliably told (skull base, vertex)."""


@dataclass(frozen=True)
class SynthesisConfig:
    """How often and how strongly bleeds are painted."""

    subtype_weights: tuple[float, float, float, float, float] = (0.22, 0.30, 0.20, 0.18, 0.10)
    """In `SUBTYPE_NAMES` order: thin extra-axial and subarachnoid blood is what networks miss."""
    second_bleed: float = 0.25
    """Chance of another bleed in the same slice."""
    faint: float = 0.3
    """Chance that a bleed is hardly brighter than the brain."""
    edema: float = 0.5
    """Chance of a dark rim around intraparenchymal blood."""
    hard_negative: float = 0.2
    """Chance of a calcification (pineal gland, choroid plexus) that is no bleed."""

    def __post_init__(self) -> None:
        if len(self.subtype_weights) != len(SUBTYPE_NAMES) or min(self.subtype_weights) < 0:
            raise ValueError("subtype_weights needs five values of at least 0")


@dataclass(frozen=True, eq=False)
class Scene:
    """What a painter needs to know of the middle slice."""

    smooth: Picture
    """Low-passed middle slice."""
    inside: Mask
    """Inside of the skull."""
    depth: Picture
    """Distance to the skull in pixels."""
    brain_gray: float
    """Median gray value of the brain."""


@dataclass(frozen=True, eq=False)
class Painted:
    """Three slices with bleeds, and their truth for the middle one."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    """0, or the subtype (1 to 5) of each pixel."""

    @property
    def subtypes(self) -> NDArray[np.float32]:
        """1 for each subtype that is there, shape ``(5,)``."""
        return np.array([(self.labels == i + 1).any() for i in range(len(SUBTYPE_NAMES))], dtype=np.float32)


def paint(images: NDArray[np.uint8], inside: Mask, config: SynthesisConfig, rng: np.random.Generator) -> Painted | None:
    """Paint one or more bleeds into three slices.

    Parameters
    ----------
    images
        Bleed-free gray crops, shape ``(3, h, w)``: below, middle, above.
    inside
        Inside of the skull on the middle slice.

    Returns
    -------
    Painted or None
        None where the slice offers no place (skull base, vertex).
    """
    scene = _scene(images, inside)
    if scene is None:
        return None
    canvas = images.astype(np.float32)
    labels = np.zeros(inside.shape, dtype=np.uint8)
    if rng.random() < config.hard_negative:
        _calcify(canvas, scene, rng)
    for _ in range(2 if rng.random() < config.second_bleed else 1):
        chosen = int(rng.choice(len(PAINTERS), p=np.array(config.subtype_weights) / sum(config.subtype_weights)))
        weight = PAINTERS[chosen](scene, rng)
        if weight is not None and (weight > 0.5).sum() >= 8:
            edema = chosen == 3 and rng.random() < config.edema
            _blend(canvas, weight, scene, config, edema, rng)
            labels[(weight > 0.5) & inside] = chosen + 1
    if not labels.any():
        return None
    return Painted(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), labels)


def _scene(images: NDArray[np.uint8], inside: Mask) -> Scene | None:
    if inside.mean() < SMALLEST_INSIDE or inside.all():
        return None
    smooth = ndimage.gaussian_filter(images[1].astype(np.float32), 1.2)
    brain = images[1][inside]
    return Scene(smooth, inside, ndimage.distance_transform_edt(inside).astype(np.float32), float(np.median(brain)))


def _blend(
    canvas: Picture, weight: Picture, scene: Scene, config: SynthesisConfig, edema: bool, rng: np.random.Generator
) -> None:
    """Paint `weight` into the three slices of `canvas`; the neighbors get a shrunken or grown version, or none."""
    box = _box(weight, margin=12)
    weight, inside = weight[box], scene.inside[box]
    brighter = rng.uniform(12, 32) if rng.random() < config.faint else rng.uniform(30, 85)
    target = scene.brain_gray + brighter + _noise(weight.shape, rng, rng.uniform(3, 9)) * rng.uniform(2, 14)
    if rng.random() < 0.15:  # layered or half-clotted blood
        target = target - np.maximum(_noise(weight.shape, rng, 10), 0) * rng.uniform(10, 35)
    reach = [float(rng.choice([0.0, rng.uniform(0.3, 1.0)], p=[0.2, 0.8])) for _ in range(2)]
    width, darker = rng.uniform(2, 7), rng.uniform(8, 26)
    for channel, strength in ((0, reach[0]), (1, 1.0), (2, reach[1])):
        slab = canvas[channel][box]
        w = weight if channel == 1 else _neighbor(weight, strength, rng)
        low, room = _tissue(slab, scene.brain_gray)
        if edema:
            slab -= ndimage.gaussian_filter(_grow(w, width), 1.5) * (1 - w) * inside * darker
        slab += w * room * (target - low)


def _tissue(slab: Picture, brain_gray: float) -> tuple[Picture, Picture]:
    """Return the low-passed tissue without the brightness of bone beside it, and how much of each pixel is tissue.

    A plain low-pass is bright along the skull, and blood painted against it there would come out as dark as brain.
    """
    soft = (slab < TISSUE_GRAY).astype(np.float32)
    amount = ndimage.gaussian_filter(soft, 1.5)
    low = np.where(amount > 0.05, ndimage.gaussian_filter(slab * soft, 1.5) / np.maximum(amount, 0.05), brain_gray)
    room = np.clip((255 - slab) / (255 - TISSUE_GRAY), 0, 1)
    return np.asarray(low, dtype=np.float32), np.asarray(room, dtype=np.float32)


def _box(weight: Picture, margin: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero((weight > 0.02).any(axis=a)) for a in (1, 0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )


def _neighbor(weight: Picture, strength: float, rng: np.random.Generator) -> Picture:
    if strength == 0.0:
        return np.zeros_like(weight)
    shift = rng.normal(0, 1.5, 2)
    moved = ndimage.shift(weight, shift, order=1)
    scaled = ndimage.gaussian_filter(moved, 1.0) * (0.6 + strength) - rng.uniform(0, 0.5)
    return np.asarray(np.clip(scaled, 0, 1), dtype=np.float32)


def _intraparenchymal(scene: Scene, rng: np.random.Generator) -> Picture | None:
    radius = float(np.exp(rng.uniform(np.log(2.5), np.log(30))))
    center = _pick(scene.depth > min(radius * 0.6 + 3, 0.8 * scene.depth.max()), rng)
    if center is None:
        return None
    return _soften(_blob(scene.inside.shape, center, radius, rng) & (scene.depth > 1.5), rng)


def _epidural(scene: Scene, rng: np.random.Generator) -> Picture | None:
    """Paint a lens: the part of an ellipse, centered on the inner table, that lies inside."""
    rim = _pick((scene.depth > 0) & (scene.depth < 2), rng)
    if rim is None:
        return None
    inward = _inward(scene, rim)
    along, across = rng.uniform(7, 34), rng.uniform(3, 20)
    y, x = np.ogrid[: scene.inside.shape[0], : scene.inside.shape[1]]
    dy, dx = y - rim[0], x - rim[1]
    u = dy * inward[0] + dx * inward[1]
    v = -dy * inward[1] + dx * inward[0]
    wobble = _noise(scene.inside.shape, rng, 8) * 0.08
    lens = (u / across) ** 2 + (v / along) ** 2 < 1 + wobble
    return _soften(lens & scene.inside & (scene.depth > 0.5), rng)


def _subdural(scene: Scene, rng: np.random.Generator) -> Picture | None:
    """Paint a crescent along the inner table, thickest in its middle."""
    center = ndimage.center_of_mass(scene.inside)
    y, x = np.ogrid[: scene.inside.shape[0], : scene.inside.shape[1]]
    angle = np.arctan2(y - center[0], x - center[1])
    middle, half = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(18, 80))
    away = np.abs((angle - middle + np.pi) % (2 * np.pi) - np.pi) / half
    profile = np.clip(1 - away**2, 0, 1) ** rng.uniform(0.4, 1.0)
    thickness = profile * float(np.exp(rng.uniform(np.log(2.5), np.log(22))))
    thickness = thickness * (1 + 0.15 * _noise(scene.inside.shape, rng, 12))
    if rng.random() < 0.15:  # along the falx
        return _soften(_falx_band(scene, rng), rng)
    return _soften((scene.depth < thickness) & (scene.depth > rng.uniform(0, 1)) & scene.inside, rng)


def _falx_band(scene: Scene, rng: np.random.Generator) -> Mask:
    center = ndimage.center_of_mass(scene.inside)
    y, x = np.ogrid[: scene.inside.shape[0], : scene.inside.shape[1]]
    lean = rng.normal(0, 0.08)
    off = (x - center[1]) - lean * (y - center[0])
    side = rng.choice([-1.0, 1.0])
    thick = rng.uniform(2, 6) * (1 + 0.3 * _noise(scene.inside.shape, rng, 10))
    half = rng.choice([-1.0, 1.0])
    long = ((y - center[0]) * half > rng.uniform(5, 35)) & (scene.depth > 1)
    return np.asarray((off * side > 0) & (off * side < thick) & long & scene.inside)


def _subarachnoid(scene: Scene, rng: np.random.Generator) -> Picture | None:
    """Blood in place of cerebrospinal fluid: dark furrows and cisterns of one region turn bright."""
    local = ndimage.gaussian_filter(scene.smooth, 6)
    dark = (scene.smooth < np.minimum(local - 3, scene.brain_gray - 5)) & scene.inside
    central = scene.depth > 0.75 * scene.depth.max()
    dark &= ~(ndimage.binary_opening(dark, iterations=3) & central)  # not the ventricles
    seed = _pick(dark, rng)
    if seed is None:
        return None
    region = _blob(dark.shape, seed, rng.uniform(8, 40), rng)
    fluid = dark & region
    if rng.random() < 0.5:
        fluid = ndimage.binary_dilation(fluid) & scene.inside
    return _soften(fluid, rng, sharp=True)


def _intraventricular(scene: Scene, rng: np.random.Generator) -> Picture | None:
    """Blood in the dark middle of the brain, deepest at the back, where it settles."""
    fluid = (scene.smooth < scene.brain_gray - 14) & (scene.depth > 0.35 * scene.depth.max())
    fluid = ndimage.binary_opening(fluid)
    labels, count = ndimage.label(fluid)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    chosen = labels == 1 + int(rng.choice(count, p=sizes / sizes.sum()))
    if chosen.sum() < 20:
        return None
    rows = np.flatnonzero(chosen.any(axis=1))
    level = rows[0] + (rows[-1] - rows[0]) * rng.choice([0.0, rng.uniform(0.2, 0.8)])
    filled = chosen & (np.arange(chosen.shape[0])[:, None] >= level + 2 * _noise(chosen.shape, rng, 6))
    return _soften(ndimage.binary_dilation(filled), rng)


PAINTERS: tuple[Paint, ...] = (_epidural, _subdural, _subarachnoid, _intraparenchymal, _intraventricular)
"""In the order of `SUBTYPE_NAMES`."""


def _calcify(canvas: Picture, scene: Scene, rng: np.random.Generator) -> None:
    """Paint one to three small, very bright spots deep in the brain, as the pineal gland and choroid plexus calcify."""
    for _ in range(int(rng.integers(1, 4))):
        spot = _pick(scene.depth > 0.5 * scene.depth.max(), rng)
        if spot is not None:
            weight = ndimage.gaussian_filter(
                _blob(scene.inside.shape, spot, rng.uniform(1.2, 3.5), rng).astype(float), 0.6
            )
            canvas += weight.astype(np.float32) * (rng.uniform(235, 330) - canvas)


def _blob(shape: tuple[int, ...], center: tuple[int, int], radius: float, rng: np.random.Generator) -> Mask:
    y, x = np.ogrid[: shape[0], : shape[1]]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.55, 1.0)
    dy, dx = y - center[0], x - center[1]
    u = dy * np.cos(turn) + dx * np.sin(turn)
    v = (-dy * np.sin(turn) + dx * np.cos(turn)) / stretch
    wobble = _noise(shape, rng, max(2.0, radius / 2.5)) * rng.uniform(0.05, 0.35)
    return np.asarray(np.hypot(u, v) < radius * (1 + wobble))


def _noise(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> Picture:
    """Smooth noise of standard deviation 1 whose features are about `scale` pixels wide."""
    coarse = rng.standard_normal((max(2, int(shape[0] / scale) + 2), max(2, int(shape[1] / scale) + 2)))
    rows = np.linspace(0, coarse.shape[0] - 1, shape[0])
    columns = np.linspace(0, coarse.shape[1] - 1, shape[1])
    fine = _linear(rows, coarse.shape[0]) @ coarse @ _linear(columns, coarse.shape[1]).T
    fine = ndimage.uniform_filter(fine, max(1, int(scale / 2)))
    return np.asarray(fine / max(float(fine.std()), 1e-6), dtype=np.float32)


def _linear(at: NDArray[np.float64], inputs: int) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(inputs)))


def _soften(mask: Mask, rng: np.random.Generator, sharp: bool = False) -> Picture:
    sigma = rng.uniform(0.4, 0.8) if sharp else rng.uniform(0.5, 1.4)
    return np.asarray(ndimage.gaussian_filter(mask.astype(np.float32), sigma))


def _grow(weight: Picture, by: float) -> Picture:
    return np.asarray(ndimage.distance_transform_edt(weight < 0.5) < by, dtype=np.float32)


def _pick(mask: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
    places = np.flatnonzero(mask)
    if not places.size:
        return None
    row, column = np.unravel_index(int(rng.choice(places)), mask.shape)
    return int(row), int(column)


def _inward(scene: Scene, at: tuple[int, int]) -> tuple[float, float]:
    """Return the unit vector from the skull toward the brain at a point of the rim."""
    near = ndimage.gaussian_filter(scene.depth, 3)
    row, column = at
    low_r, high_r = max(row - 2, 0), min(row + 2, near.shape[0] - 1)
    low_c, high_c = max(column - 2, 0), min(column + 2, near.shape[1] - 1)
    gradient = (float(near[high_r, column] - near[low_r, column]), float(near[row, high_c] - near[row, low_c]))
    length = max(float(np.hypot(*gradient)), 1e-6)
    return gradient[0] / length, gradient[1] / length
