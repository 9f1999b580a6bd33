"""The bleeds: where they are, how they look and how they press on the brain.

Each is an implicit function of atlas points, so its volume can be integrated as finely as one likes. The head is
mirrored on no axis: x > 0 is the patient's right.
"""

from __future__ import annotations

import numpy as np

from demo_head.anatomy import Anatomy, Place
from demo_head.fields import Field, Point, blend, bump, capsule, ellipsoid, step

CLOT_CENTER: Point = (-30.0, -5.0, 7.0)
CLOT_AXES: Point = (15.4, 26.5, 19.8)
CLOT_TURN_DEG = -8.0
CLOT_PUSH = 0.55
"""Share of the clot's own volume by which it pushes tissue aside; the rest it destroys."""
CRESCENT_CENTER: Point = (0.0, -18.0, 12.0)
CRESCENT_TOWARD: Point = (0.86, 0.22, 0.40)
CRESCENT_REACH_DEG = (46.0, 29.0)
CRESCENT_MM = 10.5
HORNS: tuple[Point, Point] = ((-27.0, -46.0, 8.0), (27.0, -46.0, 8.0))
LEVEL_MM = -37.0
"""Blood in the ventricle has sunk to below this height (atlas y: the patient lies on the back)."""

NAMES = ("subdural", "intraparenchymal", "intraventricular")


def distances(
    anatomy: Anatomy, head: Field, inner: Field, brain: Field, noise: dict[str, Field] | None = None
) -> dict[str, Field]:
    """Return the signed distance to the surface of each bleed, negative inside.

    Parameters
    ----------
    head, inner
        Atlas points and their signed distance to the inner table.
    brain
        Those points after `pressed`.
    noise
        `Place.noise`, where it is at hand.
    """
    middle, fine = (noise[n] if noise else anatomy.noises[n](head) for n in ("middle", "fine"))
    depth = -inner
    crescent = np.maximum(0.3 - depth, depth - _crescent_thickness(head) * (1 + 0.10 * middle))
    clot = ellipsoid(_turned(head), (0, 0, 0), CLOT_AXES) + 3.0 * middle + 1.2 * fine
    horn = np.maximum(3.5 * (0.5 - _fluid(anatomy, brain)), capsule(brain, (-18, -34, 14), (-30, -66, 4), 15.0))
    left_of_cistern = brain[..., 0] + 12.0 - 0.3 * (brain[..., 2] - 4.0)
    horn = np.maximum(np.maximum(horn, left_of_cistern), head[..., 1] - LEVEL_MM)
    return {"subdural": crescent, "intraparenchymal": clot, "intraventricular": horn}


def pressed(anatomy: Anatomy, head: Field, inner: Field) -> Field:
    """Return the atlas points whose tissue the bleeds have moved to `head`."""
    brain = head.copy()
    for center in HORNS:
        away = head - np.float32(center)
        brain -= np.float32(0.26) * away * bump(head, center, (17, 24, 17))[..., None]
    local = _turned(head)
    radius = np.sqrt(((local / np.float32(CLOT_AXES)) ** 2).sum(axis=-1))
    shrunk = np.cbrt(np.maximum(radius**3 - CLOT_PUSH, 0.02)) / np.maximum(radius, 1e-3)
    brain += (head - np.float32(CLOT_CENTER)) * (np.maximum(shrunk, 0.3) - 1)[..., None]
    thickness = _crescent_thickness(head)
    near = thickness > 0.05
    if near.any():
        shift = thickness[near] - 1.8 * np.minimum(thickness[near] / 3.0, 1.0)
        shift = shift * np.exp(-np.maximum(-inner[near] - thickness[near], 0) / 24.0)
        brain[near] += _outward(anatomy, head[near]) * shift[:, None]
    return brain


def bleed_hu(anatomy: Anatomy, under: Field, at: Place, brain: Field) -> Field:
    """Paint swelling, then blood."""
    middle, fine = at.noise["middle"], at.noise["fine"]
    distance = distances(anatomy, at.head, at.inner, brain, at.noise)
    rim = np.clip(1.25 - distance["intraparenchymal"] / (8.0 + 2.5 * middle), 0.0, 1.0)
    hu = under - 12.5 * rim * (0.35 + 0.65 * anatomy.white(brain)) * (1 - _fluid(anatomy, brain))
    clotted = np.clip(-distance["intraparenchymal"] / 6.0, 0, 1)
    hu = blend(hu, 61.0 + 6.0 * clotted + 3.0 * middle + 2.0 * fine, step(distance["intraparenchymal"], 1.0))
    hu = blend(hu, 64.0 + 3.5 * middle + 2.0 * fine, step(distance["subdural"], 0.6))
    sunk = np.clip((LEVEL_MM - at.head[..., 1]) / 20.0, 0, 1)
    return blend(hu, 55.0 + 9.0 * sunk + 2.0 * fine, step(distance["intraventricular"], 0.9))


def _turned(head: Field) -> Field:
    angle = np.radians(CLOT_TURN_DEG)
    away = head - np.float32(CLOT_CENTER)
    x = np.cos(angle) * away[..., 0] + np.sin(angle) * away[..., 1]
    y = np.cos(angle) * away[..., 1] - np.sin(angle) * away[..., 0]
    return np.stack([x, y, away[..., 2]], axis=-1)


def _crescent_thickness(head: Field) -> Field:
    """Return how thick the subdural bleed is under each point, from its direction seen from the middle of the head."""
    toward = np.float32(CRESCENT_TOWARD) / np.float32(np.linalg.norm(CRESCENT_TOWARD))
    along = np.cross((0.0, 0.0, 1.0), toward)
    along = np.float32(along / np.linalg.norm(along))
    up = np.cross(toward, along).astype(np.float32)
    away = head - np.float32(CRESCENT_CENTER)
    front = away @ toward
    azimuth = np.degrees(np.arctan2(away @ along, front)) / CRESCENT_REACH_DEG[0]
    height = np.degrees(np.arctan2(away @ up, np.hypot(front, away @ along))) / CRESCENT_REACH_DEG[1]
    share = np.clip(1.0 - azimuth**2 - height**2, 0.0, 1.0)
    return np.float32(CRESCENT_MM) * share**0.75 * (front > 0)


def _outward(anatomy: Anatomy, head: Field) -> Field:
    steps = 2.0 * np.eye(3, dtype=np.float32)
    slope = [anatomy.inner(head + step_mm) - anatomy.inner(head - step_mm) for step_mm in steps]
    gradient = np.stack(slope, axis=-1)
    return gradient / np.maximum(np.linalg.norm(gradient, axis=-1, keepdims=True), 1e-3)


def _fluid(anatomy: Anatomy, brain: Field) -> Field:
    return np.clip((1.0 - anatomy.gray(brain) - anatomy.white(brain) - 0.04) * 1.5, 0.0, 1.0)
