"""One planner for each kind of bleed: where it may be, what it looks like there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from hemolens.training.synthesis_shapes import (
    Mask,
    Picture,
    Plan,
    Rng,
    Scene,
    blob,
    inward,
    lines,
    log_uniform,
    noise,
    pick,
    soften,
)

Planner = Callable[[Scene, Rng], Plan | None]
BONES_DEG = ((4.0, 48.0), (52.0, 132.0), (136.0, 176.0))
"""Frontal, parietal and temporal, occipital bone, as bearings on either side; between them run the sutures."""
BONE_SHARES = (0.2, 0.7, 0.1)
SLICE_MM = 5.0


def plan_intraparenchymal(scene: Scene, rng: Rng) -> Plan | None:
    """One to three uneven ellipses, most often deep; small ones may lie anywhere."""
    radius_mm = log_uniform(2.5 if rng.random() < 0.5 else 9, 30, rng)
    radius, deepest = radius_mm * scene.mm, float(scene.depth.max())
    low = max(min(radius * 0.6 + 3, 0.8 * deepest), 0.4 * deepest if rng.random() < 0.5 else 0.0)
    center = pick((scene.depth > low) & (scene.smooth > scene.brain_gray - 20), rng)
    if center is None:
        return None
    parts = [blob(scene.inside.shape, center, radius, rng, narrowest=0.35)]
    for _ in range(int(rng.choice([0, 1, 2], p=[0.55, 0.3, 0.15])) if radius_mm > 5 else 0):
        turn, part = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.4, 0.8)
        at = (int(center[0] + radius * 0.8 * np.sin(turn)), int(center[1] + radius * 0.8 * np.cos(turn)))
        parts.append(blob(scene.inside.shape, at, part, rng))
    sigma = rng.uniform(0.5, 1.1)

    def render(at: Scene, grow: float) -> Picture:
        mask = np.logical_or.reduce([part(grow) for part in parts])
        return soften(mask & (at.depth > 1.5), sigma)

    return Plan(render, radius_mm / SLICE_MM * rng.uniform(0.7, 1.4) + 0.3, (38, 92))


def plan_epidural(scene: Scene, rng: Rng) -> Plan | None:
    """Plan a lens: the part of an ellipse around a point of the inner table that lies inside, within one bone."""
    low, high = BONES_DEG[int(rng.choice(len(BONES_DEG), p=BONE_SHARES))]
    side = float(rng.choice([-1.0, 1.0]))
    bearing = scene.bearing_deg * side
    rim = pick((scene.depth > 0) & (scene.depth < 2) & (bearing > low + 6) & (bearing < high - 6), rng)
    if rim is None:
        return None
    down, right = inward(scene, rim)
    along, thick = log_uniform(8, 36, rng) * scene.mm, log_uniform(3, 20, rng) * scene.mm
    thick = min(thick, along)
    y, x = np.ogrid[: scene.inside.shape[0], : scene.inside.shape[1]]
    u = (y - rim[0]) * down + (x - rim[1]) * right
    v = -(y - rim[0]) * right + (x - rim[1]) * down
    reach = np.hypot(u / thick, v / along) - 0.04 * noise(scene.inside.shape, rng, 8)
    within = (bearing > low) & (bearing < high)
    sigma, gap = rng.uniform(0.4, 0.9), rng.uniform(0, 0.6)

    def render(at: Scene, grow: float) -> Picture:
        return soften((reach < grow) & within & (at.depth > gap), sigma) * at.inside

    return Plan(render, along / scene.mm / SLICE_MM * rng.uniform(0.5, 1.0) + 0.3, (14, 80))


def plan_subdural(scene: Scene, rng: Rng) -> Plan | None:
    """Plan a crescent along the convexity, or a band along the falx or the tentorium."""
    where = rng.random()
    if where < 0.12:
        return _falx(scene, rng)
    if where < 0.2:
        return _tentorium(scene, rng)
    side = float(rng.choice([-1.0, 1.0]))
    middle, half = rng.uniform(25, 155), rng.uniform(20, 85)
    away = np.abs(scene.bearing_deg * side - middle) / half
    profile = np.clip(1 - away**2, 0, 1) ** rng.uniform(0.35, 0.9)
    thick = log_uniform(1.8, 18, rng) * scene.mm
    limit = profile * thick * (1 + 0.13 * noise(scene.inside.shape, rng, 12))
    limit[scene.across * side < 1] = 0  # the falx holds it on its side
    gap, sigma = rng.uniform(0, 0.8), rng.uniform(0.5, 1.1)

    def render(at: Scene, grow: float) -> Picture:
        return soften((at.depth < limit * grow) & (at.depth > gap), sigma) * at.inside

    return Plan(render, rng.uniform(2, 10), (18, 88))


def plan_old_subdural(scene: Scene, rng: Rng) -> Plan | None:
    """Plan a broad collection over most of one or both sides: what a subdural bleed becomes within weeks."""
    sides = (-1.0, 1.0) if rng.random() < 0.3 else (float(rng.choice([-1.0, 1.0])),)
    limit = np.zeros(scene.inside.shape, dtype=np.float32)
    for side in sides:
        middle, half = rng.uniform(45, 110), rng.uniform(45, 95)
        away = np.abs(scene.bearing_deg * side - middle) / half
        profile = np.clip(1 - away**2, 0, 1) ** rng.uniform(0.3, 0.7)
        thick = log_uniform(4.5, 24, rng) * scene.mm
        part = profile * thick * (1 + 0.15 * noise(scene.inside.shape, rng, 14))
        limit = np.where(scene.across * side >= 1, part, limit)
    gap, sigma = rng.uniform(0, 0.8), rng.uniform(0.5, 1.1)

    def render(at: Scene, grow: float) -> Picture:
        return soften((at.depth < limit * grow) & (at.depth > gap), sigma) * at.inside

    return Plan(render, rng.uniform(4, 10), (18, 88), old=True)


def _falx(scene: Scene, rng: Rng) -> Plan:
    side, thick = float(rng.choice([-1.0, 1.0])), rng.uniform(2, 6) * scene.mm
    lean, off = rng.normal(0, 0.03), rng.normal(0, 1.0)
    start, length = rng.uniform(-85, 40) * scene.mm, rng.uniform(25, 90) * scene.mm
    taper = np.clip(1 - (2 * (scene.along - start) / length - 1) ** 2, 0, 1) ** 0.4
    width = thick * taper * (1 + 0.25 * noise(scene.inside.shape, rng, 10))
    beside = (scene.across - lean * scene.along - off) * side
    sigma = rng.uniform(0.5, 0.9)

    def render(at: Scene, grow: float) -> Picture:
        return soften((beside > 0) & (beside < width * grow) & (at.depth > 1), sigma) * at.inside

    return Plan(render, rng.uniform(1.5, 6), (18, 75))


def _tentorium(scene: Scene, rng: Rng) -> Plan:
    """Plan a band beside the edge of the tentorium: sharp toward the midline, blurred outward, where it slopes down."""
    edge, leaf = tentorium(scene, rng)
    thick = rng.uniform(2.5, 9) * scene.mm * (1 + 0.25 * noise(scene.inside.shape, rng, 10))
    fade = np.clip(1.4 - edge / thick, 0, 1) * (edge > 0) * leaf
    weight = ndimage.gaussian_filter(fade.astype(np.float32), rng.uniform(0.6, 0.9))

    def render(at: Scene, grow: float) -> Picture:
        return np.asarray(weight * np.float32(0.4 + 0.6 * grow) * (at.depth > 0.5), dtype=np.float32)

    return Plan(render, rng.uniform(0.6, 2.0), (18, 68))


def tentorium(scene: Scene, rng: Rng) -> tuple[Picture, Mask]:
    """Return the distance in pixels outward of the edge of one leaf of the tentorium, and where that leaf is.

    The edge runs from the back of the head, at the midline, forward and outward, bent like a bow.
    """
    side = float(rng.choice([-1.0, 1.0]))
    back, length = rng.uniform(45, 75) * scene.mm, rng.uniform(25, 55) * scene.mm
    slope, bend = rng.uniform(0.25, 0.7), rng.uniform(-0.004, 0.008) / scene.mm
    ahead = back - scene.along
    start = rng.uniform(0, 4) * scene.mm
    edge = (scene.across * side - start - slope * ahead - bend * ahead**2) / np.hypot(1, slope)
    return np.asarray(edge, dtype=np.float32), np.asarray((ahead > 0) & (ahead < length) & scene.inside)


def plan_subarachnoid(scene: Scene, rng: Rng) -> Plan | None:
    """Blood in place of cerebrospinal fluid: furrows and cisterns of a region turn bright.

    Where there are none to be seen, as in the young, narrow furrows are made up below the convexity.
    """
    seen = scene.furrows
    seed = pick(seen, rng)
    sigma, widen = rng.uniform(0.4, 0.7), rng.random() < 0.5
    reach = rng.uniform(14, 110) * scene.mm
    if seed is None or seen.sum() < 40 * scene.mm**2 or rng.random() < 0.25:
        return _made_up_furrows(scene, rng, sigma)
    region = blob(scene.inside.shape, seed, reach, rng)

    def render(at: Scene, grow: float) -> Picture:
        fluid = at.furrows & region(grow)
        if widen:
            fluid = ndimage.binary_dilation(fluid)
        return soften(fluid & at.inside, sigma)

    return Plan(render, rng.uniform(0.8, 5), (18, 72))


def _made_up_furrows(scene: Scene, rng: Rng, sigma: float) -> Plan | None:
    seed = pick((scene.depth > 2) & (scene.depth < 12 * scene.mm), rng)
    if seed is None:
        return None
    region = blob(scene.inside.shape, seed, rng.uniform(10, 45) * scene.mm, rng)
    folds = lines(scene.inside.shape, rng, rng.uniform(8, 13) * scene.mm, rng.uniform(1.4, 2.6) * scene.mm)
    deepest = rng.uniform(8, 22) * scene.mm

    def render(at: Scene, grow: float) -> Picture:
        shell = (at.depth > 0.5) & (at.depth < deepest) & folds
        return soften(shell & region(grow), sigma) * at.inside

    return Plan(render, rng.uniform(0.6, 2.5), (14, 62))


def plan_intraventricular(scene: Scene, rng: Rng) -> Plan | None:
    """Blood in the dark middle of the brain: a level in what lies lowest (the back), or a cast of one ventricle."""
    fluid = scene.ventricles
    labels, count = ndimage.label(fluid)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    chosen = labels == 1 + int(rng.choice(count, p=sizes / sizes.sum()))
    if chosen.sum() < 20 * scene.mm**2:
        return None
    layered = rng.random() < 0.55
    reach = fluid if rng.random() < (0.6 if layered else 0.4) else chosen
    rows = np.flatnonzero(reach.any(axis=1))
    level = rows[0] + (rows[-1] - rows[0]) * (rng.uniform(0.1, 0.9) if layered else 0.0)
    wave = (0.6 if layered else 2.0) * noise(scene.inside.shape, rng, 8)
    near = ndimage.binary_dilation(reach, iterations=3)
    sigma, cast = rng.uniform(0.5, 0.9), not layered
    below = np.arange(scene.inside.shape[0])[:, None] >= level + wave

    def render(at: Scene, grow: float) -> Picture:
        filled = at.ventricles & near & below
        if cast:
            filled = ndimage.binary_dilation(filled)
        return soften(np.asarray(filled & at.inside), sigma)

    return Plan(render, rng.uniform(0.6, 3), (18, 82))


PLANNERS: tuple[Planner, ...] = (
    plan_epidural,
    plan_subdural,
    plan_subarachnoid,
    plan_intraparenchymal,
    plan_intraventricular,
)
"""In the order of `hemolens.labels.SUBTYPE_NAMES`."""
