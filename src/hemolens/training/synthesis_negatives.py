"""What looks like blood and is none: calcifications, dense membranes, artifacts, blood outside the skull."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from hemolens.training.synthesis_bleeds import tentorium
from hemolens.training.synthesis_shapes import (
    BONE_GRAY,
    Picture,
    Rng,
    Scene,
    blob,
    lines,
    log_uniform,
    noise,
    pick,
    soften,
)

Negative = Callable[[Scene, Rng], Picture]
"""Returns what it adds to the gray values of a slice."""


def pineal(scene: Scene, rng: Rng) -> Picture:
    """Plan a calcified pineal gland: a very bright spot on the midline, a little behind the middle."""
    at = scene.point(rng.normal(0, 1.5) * scene.mm, rng.uniform(2, 25) * scene.mm)
    spot = blob(scene.inside.shape, at, rng.uniform(1.2, 3.5) * scene.mm, rng)(1.0)
    return _toward(scene, soften(spot, 0.6), rng.uniform(200, 330))


def choroid(scene: Scene, rng: Rng) -> Picture:
    """Calcified choroid plexus: a pair of speckled spots, behind and beside the middle; at times one."""
    out, back = rng.uniform(16, 32) * scene.mm, rng.uniform(8, 34) * scene.mm
    mask = np.zeros(scene.inside.shape, dtype=bool)
    for side in (-1, 1) if rng.random() < 0.75 else (rng.choice([-1, 1]),):
        at = scene.point(side * out * rng.uniform(0.9, 1.1), back * rng.uniform(0.9, 1.1))
        mask |= blob(mask.shape, at, rng.uniform(1.5, 4.5) * scene.mm, rng)(1.0)
    mask &= noise(mask.shape, rng, 2.5) > -0.8
    return _toward(scene, soften(mask, 0.6), rng.uniform(170, 320))


def basal_ganglia(scene: Scene, rng: Rng) -> Picture:
    """Plan mineral in the pallidum: two faint, alike spots beside the middle."""
    out, front = rng.uniform(14, 24) * scene.mm, rng.uniform(-14, 8) * scene.mm
    radius = rng.uniform(2, 5.5) * scene.mm
    mask = np.zeros(scene.inside.shape, dtype=bool)
    for side in (-1, 1):
        mask |= blob(mask.shape, scene.point(side * out, front), radius * rng.uniform(0.8, 1.2), rng)(1.0)
    speckle = np.clip(0.7 + 0.4 * noise(mask.shape, rng, 2.0), 0, 1)
    return _toward(scene, soften(mask, 0.8) * speckle, scene.brain_gray + rng.uniform(20, 75))


def falx(scene: Scene, rng: Rng) -> Picture:
    """Plan the falx, dense or in part calcified: thin, straight, on the midline, on both sides alike."""
    start, length = rng.uniform(-90, 30) * scene.mm, rng.uniform(20, 80) * scene.mm
    half = rng.uniform(0.4, 1.1) * scene.mm
    line = np.abs(scene.across - rng.normal(0, 0.02) * scene.along - rng.normal(0, 1)) < half
    mask = line & (scene.along > start) & (scene.along < start + length) & scene.inside
    above = rng.uniform(15, 55) if rng.random() < 0.75 else rng.uniform(80, 200)
    return _toward(scene, soften(mask, 0.6), scene.brain_gray + above)


def dense_tentorium(scene: Scene, rng: Rng) -> Picture:
    """Plan the tentorium as it mostly is: a thin band, hardly brighter than the brain."""
    edge, leaf = tentorium(scene, rng)
    mask = leaf & (np.abs(edge) < rng.uniform(0.6, 1.5) * scene.mm) & (scene.depth > 1)
    return _toward(scene, soften(mask, rng.uniform(0.7, 1.2)), scene.brain_gray + rng.uniform(10, 40))


def sinus(scene: Scene, rng: Rng) -> Picture:
    """Plan a dense venous sinus: a small triangle at the inner table, behind on the midline or beside it."""
    beside = 0.0 if rng.random() < 0.6 else rng.uniform(-40, 40)
    wanted = np.abs(np.abs(scene.bearing_deg) - 180 + abs(beside)) < 6
    at = pick(wanted & (scene.depth > 0) & (scene.depth < 4 * scene.mm), rng)
    mask = np.zeros(scene.inside.shape, dtype=bool)
    if at is not None:
        mask = blob(mask.shape, at, rng.uniform(2.5, 6) * scene.mm, rng)(1.0) & scene.inside
    return _toward(scene, soften(mask, 0.8) * scene.inside, scene.brain_gray + rng.uniform(12, 42))


def partial_volume(scene: Scene, rng: Rng) -> Picture:
    """Bone of the next slice shining in along a part of the rim, as at the vertex and over the orbits."""
    reach = log_uniform(2, 9, rng) * scene.mm
    at, half = rng.uniform(-180, 180), rng.uniform(20, 120)
    turned = np.abs((scene.bearing_deg - at + 180) % 360 - 180)
    fade = np.clip(1 - scene.depth / reach, 0, 1) * np.clip(1.5 - turned / half, 0, 1)
    uneven = np.clip(0.8 + 0.25 * noise(scene.inside.shape, rng, 10), 0, 1)
    weight = np.asarray(fade * uneven * (scene.depth > 0) * rng.uniform(0.2, 0.7), dtype=np.float32)
    return _toward(scene, weight, 255.0)


def beam_hardening(scene: Scene, rng: Rng) -> Picture:
    """Plan one to three straight streaks across the brain, bright or dark."""
    y, x = np.ogrid[: scene.inside.shape[0], : scene.inside.shape[1]]
    total = np.zeros(scene.inside.shape, dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        at = pick(scene.inside, rng) or (0, 0)
        turn, wide = rng.uniform(0, np.pi), rng.uniform(1.2, 5) * scene.mm
        off = (y - at[0]) * np.cos(turn) + (x - at[1]) * np.sin(turn)
        total += (np.exp(-0.5 * (off / wide) ** 2) * rng.choice([-1.0, 1.0]) * rng.uniform(8, 30)).astype(np.float32)
    return total * scene.inside


def scalp_hematoma(scene: Scene, rng: Rng) -> Picture:
    """Blood and swelling between skull and skin, over bone that is whole."""
    bone = (scene.image > BONE_GRAY) & ~scene.inside
    head = ndimage.binary_fill_holes(bone | scene.inside)
    out = ndimage.distance_transform_edt(~head)
    at, half = rng.uniform(-180, 180), rng.uniform(12, 45)
    away = np.abs((scene.bearing_deg - at + 180) % 360 - 180) / half
    thick = np.clip(1 - away**2, 0, 1) * rng.uniform(5, 16) * scene.mm
    mask = (out > 0) & (out < thick * (1 + 0.1 * noise(head.shape, rng, 10)))
    mottle = noise(head.shape, rng, 5) * rng.uniform(4, 14)
    return _toward(scene, soften(mask, 0.8) * ~head, scene.brain_gray + rng.uniform(-15, 60) + mottle)


def wide_furrows(scene: Scene, rng: Rng) -> Picture:
    """Widen the furrows of both sides, and the rim before the brain, as in an old brain: dark fluid between crowns."""
    reach, rim = rng.uniform(8, 24) * scene.mm, rng.uniform(0, 4) * scene.mm
    winding = lines(scene.inside.shape, rng, rng.uniform(9, 16) * scene.mm, rng.uniform(1.5, 4.5) * scene.mm)
    at, half = rng.uniform(0, 180), rng.uniform(30, 120)
    shown = np.clip(1.5 - np.abs(np.abs(scene.bearing_deg) - at) / half, 0, 1)
    shallow = (scene.depth > 0) & (scene.depth < reach)
    fluid = shallow & (winding | (scene.depth < rim))
    weight = soften(fluid, rng.uniform(0.6, 1.0)) * shown * scene.inside
    darker = weight * (scene.brain_gray - rng.uniform(30, 60) - np.minimum(scene.smooth, scene.brain_gray + 15))
    crowns = soften(shallow & ~fluid, 0.8) * shown * scene.inside * rng.uniform(0, 10)
    return np.asarray(np.minimum(darker, 0) + crowns, dtype=np.float32)


def _toward(scene: Scene, weight: Picture, gray: Picture | float) -> Picture:
    """Pull toward a gray value, by a weight, without taking off the noise of the scan."""
    return np.asarray(weight * (gray - scene.smooth), dtype=np.float32)


NEGATIVES: tuple[tuple[Negative, float], ...] = (
    (pineal, 0.14),
    (choroid, 0.16),
    (basal_ganglia, 0.06),
    (falx, 0.16),
    (dense_tentorium, 0.1),
    (sinus, 0.1),
    (partial_volume, 0.12),
    (beam_hardening, 0.08),
    (scalp_hematoma, 0.08),
    (wide_furrows, 0.12),
)
"""Each with its share."""
