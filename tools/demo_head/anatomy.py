"""The head from the skull upward, in Hounsfield units at any point: brain from the MNI152 maps, the rest around it.

Atlas points are MNI152 RAS millimeters (x to the right, y to the front, z to the top).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from demo_head.fields import Field, Grid, Point, blend, bump, capsule, ellipsoid, noise_grid, smooth_min, step

LOW: Point = (-100.0, -140.0, -95.0)
HIGH: Point = (100.0, 110.0, 121.0)

AIR_HU, FAT_HU, MUSCLE_HU, SKIN_HU = -1000.0, -92.0, 52.0, 35.0
GRAY_HU, WHITE_HU, CSF_HU = 37.5, 28.5, 5.0
DURA_HU, SINUS_HU, VESSEL_HU, CALCIFIED_HU = 62.0, 52.0, 43.0, 260.0
MNI_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Fields over atlas space, made once and read at every sample point."""

    gray: Grid
    white: Grid
    inner: Grid
    """Signed distance to the inner table of the skull; negative inside."""
    brain: Grid
    """Distance to the nearest brain tissue, below the level of the sella only."""
    noises: dict[str, Grid]
    """By the width of their bumps, and one for each axis of the warp."""


@dataclass(frozen=True, eq=False)
class Place:
    """Points and the distances that every tissue is placed by."""

    head: Field
    folded: Field
    """`head` with the left half folded onto the right: a shape given for the right side appears on both."""
    inner: Field
    thickness: Field
    """Of the skull."""
    skin: Field
    """Signed distance to the skin; negative inside."""
    noise: dict[str, Field]
    """`Anatomy.noises` here."""


def maps_folder() -> Path:
    """Return the folder of the MNI152 maps inside the installed nilearn."""
    import nilearn

    return Path(nilearn.__file__).parent / "datasets" / "data"


def load(seed: int) -> Anatomy:
    """Build every field; `seed` sets all that is random in the head."""
    maps = {}
    for name in ("gm", "wm", "t1"):
        image = nib.load(maps_folder() / MNI_FILE.format(name))
        maps[name] = _on_grid(np.asarray(image.dataobj, np.float32) / 255.0, image.affine[:3, 3])
    tissue = maps["gm"] + maps["wm"]
    low = np.s_[:, :, : int(8 - LOW[2])]
    brain = ndimage.distance_transform_edt(tissue[low][::2, ::2, ::2] < 0.4) * 2
    rng = np.random.default_rng([seed, 1])
    lengths = {"wide": 70.0, "broad": 35.0, "middle": 14.0, "fine": 6.0, "tiny": 3.2}
    noises = {name: noise_grid(rng, LOW, HIGH, length) for name, length in lengths.items()}
    noises |= {f"warp{axis}": noise_grid(rng, LOW, HIGH, 75.0) for axis in "xyz"}
    inner = Grid(_inner_table(((tissue > 0.35) | (maps["t1"] > 0.08))[::2, ::2, ::2]), LOW, 2.0)
    return Anatomy(Grid(maps["gm"], LOW), Grid(maps["wm"], LOW), inner, Grid(np.float32(brain), LOW, 2.0), noises)


def _on_grid(values: Field, origin: np.ndarray) -> Field:
    shape = tuple(int(b - a) + 1 for a, b in zip(LOW, HIGH, strict=True))
    grid = np.zeros(shape, np.float32)
    low = [round(o - a) for o, a in zip(origin, LOW, strict=True)]
    grid[tuple(slice(a, a + n) for a, n in zip(low, values.shape, strict=True))] = values
    return grid


def _inner_table(solid: np.ndarray) -> Field:
    """Return the signed distance to the inner table on a 2 mm grid.

    The brain is closed over its fissures, widely over the vault and less at the base with its three pits, given room
    for fluid, joined over the sella and carried on as the spinal canal.
    """
    base, vault = _closed(solid, 9.0, 1.6), _closed(solid, 24.0, 4.0)
    z = np.arange(solid.shape[2], dtype=np.float32) * 2 + LOW[2]
    share = np.clip((z + 26.0) / 24.0, 0, 1)
    signed = base + (vault - base) * share - 1.4 - 1.0 * share
    axes = [np.arange(n, dtype=np.float32) * 2 + a for n, a in zip(solid.shape, LOW, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    signed = smooth_min(signed, capsule(points, (0, -42, -55), (0, -50, -110), 13.0), 6.0)
    return np.float32(smooth_min(signed, ellipsoid(points, (0, 3, -20), (15, 15, 11)), 6.0))


def _closed(solid: np.ndarray, reach: float, smooth: float) -> Field:
    room = int(reach / 2) + 2
    padded = np.pad(solid, room)
    far = ndimage.distance_transform_edt(~padded, sampling=2.0) > reach
    closed = ndimage.binary_fill_holes((ndimage.distance_transform_edt(~far, sampling=2.0) > reach) | padded)
    outside = ndimage.distance_transform_edt(~closed, sampling=2.0)
    signed = outside - ndimage.distance_transform_edt(closed, sampling=2.0)
    inside = tuple(slice(room, -room) for _ in range(3))
    return ndimage.gaussian_filter(np.float32(signed), smooth / 2)[inside]


def warped(anatomy: Anatomy, points: Field) -> Field:
    """Move points by a few millimeters, smoothly, so that the head is not its own mirror image."""
    shift = np.stack([anatomy.noises[f"warp{axis}"](points) for axis in "xyz"], axis=-1)
    return points + np.float32(2.2) * shift


def mirrored(points: Field) -> Field:
    """Fold the left half onto the right."""
    folded = points.copy()
    folded[..., 0] = np.abs(folded[..., 0])
    return folded


def place(anatomy: Anatomy, head: Field) -> Place:
    """Measure where `head`, ``(…, 3)`` atlas points, lie."""
    folded, inner = mirrored(head), anatomy.inner(head)
    noise = {name: grid(head) for name, grid in anatomy.noises.items() if not name.startswith("warp")}
    thickness = _skull_thickness(noise, head, folded)
    return Place(head, folded, inner, thickness, _skin(noise, head, folded, inner - thickness), noise)


def _skull_thickness(noise: dict[str, Field], head: Field, folded: Field) -> Field:
    thickness = 6.0 + 0.7 * noise["broad"] + 0.25 * noise["middle"]
    thickness += 5.0 * bump(head, (0, -108, -22), (16, 14, 14)) + 1.6 * bump(folded, (24, 72, 12), (22, 20, 25))
    thickness += 3.0 * bump(head, (0, 78, -8), (12, 14, 26)) - 2.6 * bump(folded, (72, 0, -8), (18, 34, 22))
    thickness += 1.8 * np.exp(-((head[..., 0] / 12) ** 2)) * np.clip((head[..., 2] - 15) / 30, 0, 1)
    orbit_roof = 1 - 0.62 * bump(folded, (30, 38, -34), (24, 34, 16))
    return np.maximum(thickness, 2.2) * orbit_roof


def _skin(noise: dict[str, Field], head: Field, folded: Field, outer: Field) -> Field:
    scalp = 5.0 + 0.7 * noise["wide"] + 6.5 * bump(folded, (70, 28, -22), (16, 26, 30))
    scalp += 3.0 * bump(head, (0, -108, -10), (50, 30, 40))
    face = ellipsoid(head, (0, 24, -58), (70, 64, 62))
    cheek = ellipsoid(folded, (36, 52, -62), (34, 34, 34))
    nose = capsule(head, (0, 82, -34), (0, 100, -66), 7.0, 12.0)
    neck = ellipsoid(head, (0, -48, -100), (66, 62, 90))
    surface = smooth_min(smooth_min(outer - scalp, face, 14.0), smooth_min(neck, cheek, 8.0), 14.0)
    curled = folded.copy()
    curled[..., 0] += 0.42 * (folded[..., 1] + 30) - 1.5 * np.sin(folded[..., 2] / 7)
    ear = ellipsoid(curled, (80, -34, -34), (3.2, 14, 27)) + 0.5 * noise["fine"]
    return smooth_min(smooth_min(surface, nose, 8.0), ear, 4.0)


def soft_tissue_hu(at: Place) -> Field:
    """Return HU of the head without its bones: fat, the muscles in it, skin."""
    fine, middle = at.noise["fine"], at.noise["middle"]
    above_bone = at.inner - at.thickness
    hu = FAT_HU + 9.0 * fine + 5.0 * middle
    # The aponeurosis and the muscles of forehead and back of the head are a thin sheet on the skull.
    hu = blend(hu, np.float32(25.0), 0.8 * step(np.abs(above_bone - 1.2 - 0.4 * middle) - 0.8, 0.5))
    temporal = np.maximum(ellipsoid(at.folded, (71, 22, -26), (15, 36, 42)), above_bone - 9.0 - 1.5 * middle)
    deep = np.maximum(at.skin + 8.0 + 2.0 * middle, (at.head[..., 2] + 22.0) * 0.7)
    planes = 0.7 - np.minimum(np.abs(middle + 0.25 * fine) * 4.0, 3.0)
    muscle = np.minimum(temporal, np.maximum(deep, planes))
    hu = blend(hu, MUSCLE_HU + 4.0 * fine, step(muscle, 0.8))
    hu = blend(hu, np.float32(SKIN_HU), step(-at.skin - 1.7, 0.5))
    return hu


def skull_hu(under: Field, at: Place) -> Field:
    """Paint the skull: two dense tables and marrow between them where it is thick."""
    share = step(-at.inner) * step(at.inner - at.thickness)
    depth = at.inner / at.thickness
    marrow = np.clip((at.thickness - 3.0) / 2.5, 0, 1) * np.clip((0.30 - np.abs(depth - 0.5)) / 0.12, 0, 1)
    dense = 1480.0 + 90.0 * at.noise["broad"]
    spongy = 720.0 + 170.0 * at.noise["middle"] + 190.0 * at.noise["tiny"]
    return blend(under, blend(dense, spongy, marrow), share)


def brain_hu(anatomy: Anatomy, at: Place, brain: Field) -> Field:
    """Return HU inside the skull: brain, fluid, dura and venous sinuses.

    Parameters
    ----------
    at
        Where the points lie.
    brain
        The atlas points whose tissue has come to lie there; other than `at.head` where something presses.
    """
    gray, white, folded = anatomy.gray(brain), anatomy.white(brain), mirrored(brain)
    fluid = np.clip((1.0 - gray - white - 0.04) * 1.5, 0.0, 1.0)
    scale = (1.0 - fluid) / np.maximum(gray + white, 1e-3)
    hu = (gray * GRAY_HU + white * WHITE_HU) * scale + fluid * CSF_HU
    hu += (1 - fluid) * (0.9 * at.noise["broad"] + 0.8 * at.noise["middle"])
    # Aging white matter is a little dark around the ventricles.
    hu -= 3.0 * white * (bump(folded, (20, -32, 22), (16, 16, 14)) + bump(folded, (20, 30, 12), (12, 12, 12)))
    ragged = 0.4 * at.noise["tiny"]
    for center, radius in (((0, -32, 3), 1.9), ((22, -42, 9), 1.8)):
        calcified = ellipsoid(folded, center, (radius, radius * 1.4, radius)) - ragged
        hu = blend(hu, np.float32(CALCIFIED_HU), 0.8 * step(calcified, 0.6))
    if brain[..., 2].min() < 0:
        hu = blend(hu, np.float32(VESSEL_HU), step(_arteries(folded), 0.6))
    sway = 0.5 * at.noise["middle"]
    hu = blend(hu, np.float32(DURA_HU), 0.65 * step(_dura(brain, sway), 0.5))
    return blend(hu, np.float32(SINUS_HU), 0.85 * step(_veins(brain, at.inner), 0.8))


def tentorium_height(points: Field) -> Field:
    """Return the height of the tentorium over each point's x and y, fitted to the atlas by eye."""
    x, y = points[..., 0], points[..., 1]
    ridge = -8.5 + (y + 80) * 0.45
    drop = 21 + np.clip(y + 66, 0, None) * 0.62 - np.clip(-84 - y, 0, None) * 0.5
    return ridge - drop * (1 - np.exp(-((np.abs(x) / 29) ** 1.6)))


def _arteries(folded: Field) -> Field:
    """Return the signed distance to the optic chiasm, the basilar, carotid, middle and posterior cerebral arteries."""
    pieces = [
        ellipsoid(folded, (0, 4, -17), (9, 4, 2.5)),
        capsule(folded, (0, -12, -45), (0, -13, -19), 1.7),
        capsule(folded, (0, -14, -19), (20, -32, -16), 1.1),
        capsule(folded, (11, 5, -32), (8, 3, -16), 2.2),
        capsule(folded, (8, 3, -17), (32, 6, -19), 1.5, 1.1),
        capsule(folded, (7, 5, -17), (1, 26, -12), 1.1),
    ]
    return np.minimum.reduce(pieces)


def _dura(brain: Field, sway: Field) -> Field:
    """Return the signed distance to falx and tentorium."""
    x, y, z = (brain[..., i] for i in range(3))
    above = z - tentorium_height(brain)
    callosum = ellipsoid(brain * np.float32([0, 1, 1]), (0, -8, 2), (1e3, 46, 34))
    falx = np.maximum(np.abs(x - sway) - 0.55, np.maximum(6.0 - callosum, -above))
    falx = np.maximum(falx, 0.3 * (y - 60.0 - z))
    tent = np.maximum(np.abs(above - sway) * 0.8 - 0.5, 20.0 - np.hypot(x, y + 24.0))
    tent = np.maximum(tent, y + 30.0 - 0.9 * np.maximum(np.abs(x) - 20.0, 0))
    return np.minimum(falx, tent)


def _veins(brain: Field, inner: Field) -> Field:
    """Return the signed distance to the superior sagittal, straight and transverse sinuses."""
    x, y, z = (brain[..., i] for i in range(3))
    sagittal = np.maximum(np.abs(x) * 1.1 - (inner + 5.5) * 0.9 - 2.4, inner) + 0.3
    sagittal = np.maximum(sagittal, np.where(y < 30, -20.0 - z, 30.0 - z))
    straight = capsule(brain, (0, -46, 6), (0, -92, -14), 1.6, 2.2)
    transverse = capsule(mirrored(brain), (0, -100, -18), (48, -76, -30), 2.8, 3.2)
    return np.minimum(np.minimum(sagittal, straight), transverse)
