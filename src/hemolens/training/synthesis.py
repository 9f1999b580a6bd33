"""Bleeds painted into bleed-free slices, with exact masks: the training signal that drawn masks are too scarce to give.

Everything works on gray head crops (level 40, width 120: one gray value is 0.47 HU) of neighboring slices. A bleed is
planned once (`hemolens.training.synthesis_bleeds`) and rendered on each slice that it spans as a weight per pixel, 0 to
1, with soft edges, less where it fills only part of the slice: the picture becomes
``image + weight * (target - low-passed tissue)``, which keeps the noise of the scan. The mask is where the weight is
above one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.labels import SUBTYPE_NAMES
from hemolens.preprocessing.head import AIR_GRAY
from hemolens.preprocessing.morphology import dilated
from hemolens.sources.datasets.cases import EDEMA
from hemolens.training.synthesis_bleeds import PLANNERS, plan_old_subdural
from hemolens.training.synthesis_negatives import NEGATIVES
from hemolens.training.synthesis_shapes import Mask, Picture, Plan, Scene, lines, noise

TISSUE_GRAY = 160
"""About 55 HU, in bleed-free slices: brighter pixels are in part bone."""
MOSTLY_BONE = 200
AIR_EDGE = 2
"""Pixels around air that are neither air nor tissue."""
SMALLEST_INSIDE = 0.05
"""Share of the crop below which the inside of the skull is not reliably told.

Above it a closed skull is well told at the vertex and in the posterior fossa, too; a network that is shown no bleed
there finds none.
"""
FAINTEST = 0.02
"""A share of blood below which a pixel shows none."""
SMALLEST_MM2 = 8.0
SUBDURAL, INTRAPARENCHYMAL = 1, 3
"""Places in `SUBTYPE_NAMES`."""
Box = tuple[slice, slice]


@dataclass(frozen=True)
class SynthesisConfig:
    """How often and how strongly bleeds are painted.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    subtype_weights: tuple[float, float, float, float, float] = (0.22, 0.30, 0.20, 0.18, 0.10)
    """In `SUBTYPE_NAMES` order: thin extra-axial and subarachnoid blood is what networks miss."""
    second_bleed: float = 0.25
    """Chance of another bleed in the same slices."""
    beside: float = 0.0
    """Chance that bleeds are painted beside the real one of a slice with a mask: else a network learns that a head with
    a hematoma has no other bleed."""
    negative_beside: float = 0.0
    """Chance that what is no blood is painted beside the real bleed of a slice with a mask that gets no painted one:
    else a network learns that what looks like blood beside a hematoma always is."""
    faint: float = 0.25
    """Chance that a bleed is hardly brighter than the brain."""
    mixed: float = 0.3
    """Chance that blood is uneven: a level where it has settled, or streaks of what has not clotted."""
    chronic: float = 0.08
    """Chance that subdural blood is old: a broad collection that is darker than the brain, at times on both sides."""
    edema: float = 0.5
    """Chance of a dark rim around intraparenchymal blood."""
    hard_negative: float = 0.2
    """Chance of what looks like blood and is none, painted into bleeding and clean samples alike."""

    def __post_init__(self) -> None:
        if len(self.subtype_weights) != len(SUBTYPE_NAMES) or min(self.subtype_weights) < 0:
            raise ValueError("subtype_weights needs five values of at least 0")
        if not sum(self.subtype_weights) > 0:
            raise ValueError("subtype_weights must not all be 0")
        chances = (
            self.second_bleed,
            self.beside,
            self.negative_beside,
            self.faint,
            self.mixed,
            self.chronic,
            self.edema,
            self.hard_negative,
        )
        if not all(0 <= chance <= 1 for chance in chances):
            raise ValueError("chances must be from 0 to 1")


@dataclass(frozen=True, eq=False)
class Painted:
    """Slices with bleeds, and their truth."""

    images: NDArray[np.uint8]
    """Shape ``(slices, h, w)``."""
    labels: NDArray[np.uint8]
    """0, the subtype (1 to 5) or 7 for edema, same shape."""

    @property
    def subtypes(self) -> NDArray[np.float32]:
        """1 for each subtype that is there, shape ``(5,)``."""
        return np.array([(self.labels == i + 1).any() for i in range(len(SUBTYPE_NAMES))], dtype=np.float32)


def paint(
    images: NDArray[np.uint8], skull: Mask, config: SynthesisConfig, rng: np.random.Generator, center: int = 1
) -> Painted | None:
    """Paint one or more bleeds.

    Parameters
    ----------
    images
        Bleed-free gray crops, shape ``(slices, h, w)``, lowest first.
    skull
        Inside of the skull: of each slice, or ``(h, w)`` for all of them.
    center
        The slice that the bleeds are planned on, and which they reach for certain.

    Returns
    -------
    Painted or None
        None where that slice offers no place (skull base, vertex).
    """
    canvas = _canvas(images, skull, center)
    if canvas is None:
        return None
    if rng.random() < config.hard_negative:
        canvas.add_negatives(rng)
    for _ in range(2 if rng.random() < config.second_bleed else 1):
        chosen = int(rng.choice(len(PLANNERS), p=np.array(config.subtype_weights) / sum(config.subtype_weights)))
        old = chosen == SUBDURAL and rng.random() < config.chronic
        plan = (plan_old_subdural if old else PLANNERS[chosen])(canvas.scene, rng)
        if plan is not None:
            canvas.add_bleed(plan, chosen, config, rng)
    return canvas.finished(len(images)) if canvas.labels.any() else None


def paint_negatives(
    images: NDArray[np.uint8], skull: Mask, config: SynthesisConfig, rng: np.random.Generator, center: int = 1
) -> Painted | None:
    """Paint what is no blood, by the chance `SynthesisConfig.hard_negative`; the labels of what comes back are 0."""
    canvas = _canvas(images, skull, center) if rng.random() < config.hard_negative else None
    if canvas is None:
        return None
    canvas.add_negatives(rng)
    return canvas.finished(len(images))


def _canvas(images: NDArray[np.uint8], skull: Mask, center: int) -> _Canvas | None:
    """Prepare slices; several copies of one slice are painted as one."""
    skulls = np.broadcast_to(skull, images.shape)  # one skull for all slices is one array in memory, too
    if skulls[center].all():
        return None
    skulls = _without_air(images, skulls)
    if skulls[center].mean() < SMALLEST_INSIDE:
        return None
    if (images == images[center]).all():
        images, skulls, center = images[center : center + 1], skulls[center : center + 1], 0
    return _Canvas(images, skulls, center)


def _without_air(images: NDArray[np.uint8], skulls: Mask) -> Mask:
    """Take air and its blurred edge out of the inside of the skull, where there is any on the slice itself."""
    air = (images <= AIR_GRAY) & skulls
    if not air.any():
        return skulls
    return skulls & ~np.stack([dilated(plane, AIR_EDGE) for plane in air])


class _Canvas:
    """Slices that are being painted."""

    def __init__(self, images: NDArray[np.uint8], skulls: Mask, center: int) -> None:
        self.pictures = images.astype(np.float32)
        self.labels = np.zeros(images.shape, dtype=np.uint8)
        self.skulls, self.center = skulls, center
        self.scenes = {center: Scene(self.pictures[center].copy(), skulls[center])}

    @property
    def scene(self) -> Scene:
        """The slice that all is planned on, as it was before."""
        return self.scenes[self.center]

    def scene_at(self, k: int) -> Scene:
        """Slice `k` as it is when it is first asked for."""
        if k not in self.scenes:
            shared = self.skulls.strides[0] == 0
            self.scenes[k] = Scene(self.pictures[k].copy(), self.skulls[k], self.scene if shared else None)
        return self.scenes[k]

    def finished(self, slices: int) -> Painted:
        """Return what was painted; one slice for as many as there were copies of it."""
        images = np.clip(np.rint(self.pictures), 0, 255).astype(np.uint8)
        shape = (slices, *images.shape[1:])
        return Painted(np.broadcast_to(images, shape), np.broadcast_to(self.labels, shape))

    def add_negatives(self, rng: np.random.Generator) -> None:
        """Paint one or two things that are no blood; the neighbors show less of them, or nothing."""
        shares = np.array([share for _, share in NEGATIVES])
        for _ in range(int(rng.integers(1, 3))):
            added = NEGATIVES[int(rng.choice(len(NEGATIVES), p=shares / shares.sum()))][0](self.scene, rng)
            for k, picture in enumerate(self.pictures):
                part = 1.0 if k == self.center else max(0.0, rng.uniform(-0.3, 1.0)) ** abs(k - self.center)
                if part > 0.02:
                    picture += added * np.float32(part)

    def add_bleed(self, plan: Plan, kind: int, config: SynthesisConfig, rng: np.random.Generator) -> None:
        """Paint one bleed on every slice that it reaches, if it is not too small."""
        half = max(plan.half_height, 0.5)
        middle = self.center + rng.uniform(-1, 1) * max(half - 0.3, 0.0)
        center = self._weight(plan, half, middle, self.center)
        if center is None or (center > 0.5).sum() < SMALLEST_MM2 * self.scene.mm**2:
            return
        look = _Look.of(plan, kind, config, self.scene, center, rng)
        for k in range(len(self.pictures)):
            weight = center if k == self.center else self._weight(plan, half, middle, k)
            if weight is not None:
                self._blend(k, weight, look)

    def _weight(self, plan: Plan, half: float, middle: float, k: int) -> Picture | None:
        """Render slice `k`; None where the bleed does not reach it."""
        off = abs(k - middle)
        cover = min(off + 0.5, half) - max(off - 0.5, -half)
        if cover <= 0.05:
            return None
        skull = self.skulls[k]
        if skull.mean() < SMALLEST_INSIDE:
            return None
        weight = plan.render(self.scene_at(k), float(np.sqrt(max(1 - (off / (half + 0.5)) ** 2, 0.0))))
        weight = weight * np.float32(min(cover, 1.0))
        return weight if (weight > FAINTEST).any() else None

    def _blend(self, k: int, weight: Picture, look: _Look) -> None:
        box = _box(weight, margin=int(12 * self.scene.mm) + 4)
        w, inside, slab, labels = weight[box], self.skulls[k][box], self.pictures[k][box], self.labels[k][box]
        low, room = _tissue(slab, self.scene.brain_gray)
        if look.edema_width:
            reach = look.edema_width * (1 + 0.35 * look.mottle[box])
            rim = ndimage.gaussian_filter((ndimage.distance_transform_edt(w < 0.5) < reach).astype(np.float32), 1.3)
            rim *= (1 - w) * inside * room
            slab -= rim * look.edema_depth
            labels[(rim > 0.5) & (labels == 0)] = EDEMA
        labels[(w > 0.5) & inside & (slab < MOSTLY_BONE)] = look.label
        slab += w * room * (look.target[box] - low)


@dataclass(frozen=True, eq=False)
class _Look:
    """What one bleed looks like, alike on all slices."""

    label: int
    target: Picture
    """Gray value of pure blood at each pixel."""
    mottle: Picture
    edema_width: float
    """In pixels; 0 for none."""
    edema_depth: float
    """How much darker edema is than brain, in gray values."""

    @classmethod
    def of(
        cls, plan: Plan, kind: int, config: SynthesisConfig, scene: Scene, weight: Picture, rng: np.random.Generator
    ) -> _Look:
        shape = scene.inside.shape
        low, high = plan.gray
        brighter = rng.uniform(min(10.0, low), low + 6) if rng.random() < config.faint else rng.uniform(low, high)
        mottle = noise(shape, rng, rng.uniform(3, 9) * scene.mm)
        target = scene.brain_gray + brighter + mottle * rng.uniform(3, 13)
        if plan.old:
            target = scene.brain_gray - rng.uniform(18, 50) + mottle * rng.uniform(1, 5)
            target = target + _layers(weight, shape, scene.mm, rng)
        elif rng.random() < config.mixed:
            if rng.random() < 0.5:
                target = target - (1 - _settled(weight, shape, rng)) * rng.uniform(0.4, 1.0) * brighter
            else:
                target = target - np.clip(noise(shape, rng, 8 * scene.mm), 0, 1.5) * rng.uniform(10, 38)
        else:  # clots differ from place to place
            target = target + noise(shape, rng, rng.uniform(8, 20) * scene.mm) * rng.uniform(0, 0.25) * brighter
        swollen = kind == INTRAPARENCHYMAL and rng.random() < config.edema
        radius = float(np.sqrt((weight > 0.5).sum() / np.pi))
        width = min(rng.uniform(2, 8) * scene.mm, 0.8 * radius + 1.5) if swollen else 0.0
        return cls(kind + 1, np.asarray(target, dtype=np.float32), mottle, width, rng.uniform(10, 24))


def _layers(weight: Picture, shape: tuple[int, ...], mm: float, rng: np.random.Generator) -> Picture:
    """Return how much brighter parts of old blood are: fresh blood that has settled, membranes, or nothing."""
    kind = rng.random()
    if kind < 0.4:
        return _settled(weight, shape, rng) * np.float32(rng.uniform(15, 75))
    if kind < 0.65:
        return np.asarray(lines(shape, rng, 14 * mm, 1.5 * mm) * np.float32(rng.uniform(15, 50)), dtype=np.float32)
    return np.zeros(shape, dtype=np.float32)


def _settled(weight: Picture, shape: tuple[int, ...], rng: np.random.Generator) -> Picture:
    """Return 1 below (behind) a level that blood has settled to, 0 above it."""
    rows = np.flatnonzero((weight > 0.3).any(axis=1))
    level = rows[0] + (rows[-1] - rows[0]) * rng.uniform(0.25, 0.75) if rows.size else shape[0] / 2
    ramp = np.clip((np.arange(shape[0])[:, None] - level) / rng.uniform(1.5, 6) + 0.5, 0, 1)
    return np.broadcast_to(ramp, shape).astype(np.float32)


def _tissue(slab: Picture, brain_gray: float) -> tuple[Picture, Picture]:
    """Return the low-passed tissue without the brightness of bone beside it, and how much of each pixel is tissue.

    A plain low-pass is bright along the skull, and blood painted against it there would come out as dark as brain.
    """
    soft = (slab < TISSUE_GRAY).astype(np.float32)
    amount = ndimage.gaussian_filter(soft, 1.5)
    low = np.where(amount > 0.05, ndimage.gaussian_filter(slab * soft, 1.5) / np.maximum(amount, 0.05), brain_gray)
    room = np.clip((255 - slab) / (255 - TISSUE_GRAY), 0, 1)
    return np.asarray(low, dtype=np.float32), np.asarray(room, dtype=np.float32)


def _box(weight: Picture, margin: int) -> Box:
    rows, columns = (np.flatnonzero((weight > FAINTEST).any(axis=a)) for a in (1, 0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )
