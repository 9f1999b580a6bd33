"""Perihematomal edema: what lies around outlined blood, and nothing that stands alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.inference.prediction import Prediction
from hemolens.measurements.regions import Scale
from hemolens.volume import LabelMap

Mask = NDArray[np.bool_]
EDEMA_THRESHOLD = 0.5
"""A voxel at or above this probability is outlined, if it hangs together with blood."""


@dataclass(frozen=True)
class Edema:
    """All edema of a scan. Exactly one of `volume_ml` and `area_px` is set."""

    volume_ml: float | None
    area_px: int | None
    slices: tuple[int, ...]
    """Where it is outlined."""


def add_edema(label_map: LabelMap, prediction: Prediction) -> LabelMap:
    """Return the label map with edema, where the network tells it.

    Dark tissue is edema of a bleed only where it hangs together with outlined blood (voxels that touch, by a corner or
    on neighboring slices, too): an old infarct elsewhere is none.
    """
    if prediction.edema is None:
        return label_map
    return replace(label_map, edema=around(prediction.edema >= EDEMA_THRESHOLD, label_map.labels > 0))


def around(swollen: Mask, blood: Mask) -> Mask:
    """Return the part of `swollen` that hangs together with blood and is none itself; shapes ``(slices, h, w)``."""
    swollen = swollen & ~blood
    if not blood.any() or not swollen.any():
        return np.zeros(blood.shape, dtype=bool)
    regions, count = ndimage.label(swollen | blood, structure=np.ones((3, 3, 3)))
    bleeding = np.zeros(count + 1, dtype=bool)
    bleeding[np.unique(regions[blood])] = True
    return np.asarray(swollen & bleeding[regions])


def measure_edema(label_map: LabelMap) -> Edema | None:
    """Return how much edema there is; None where nobody looked for it."""
    if label_map.edema is None:
        return None
    scale = Scale.of(label_map.volume)
    pixels = np.count_nonzero(label_map.edema, axis=(1, 2))
    size = float(pixels @ scale.weights)
    where = tuple(int(k) for k in np.flatnonzero(pixels))
    return Edema(size if scale.in_ml else None, None if scale.in_ml else round(size), where)
