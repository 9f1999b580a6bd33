"""Doubt what a bright bleed's outline takes in of darker brain and fluid beside it, where the network is not sure.

Acute blood is brighter than brain; isodense and old blood is not, and is left alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.inference.outline import TOUCHING

Float = NDArray[np.float32]
SURE, UNSURE = 0.8, 0.5
"""A bleed is as bright as its pixels from the first on; only those below the second are doubted."""
POSSIBLE = 0.1
"""Pixels of this probability or more belong to the bleed that they are connected to."""
NO_BLOOD = 0.05
"""Brain is what is less likely blood than this."""
BRIGHT_GRAY = 17
"""How much brighter than brain a bleed must be: 8 HU."""
TISSUE_GRAY = (43, 170)
"""Gray values of brain, of 0 to 60 HU."""
SMOOTHING = 0.0022
"""Of gray values, as a share of the head crop: about half a millimeter."""


def doubt_dark(blood: Float, crops: NDArray[np.uint8], share: float) -> Float:
    """Return the probability of blood, `NO_BLOOD` where an unsure pixel of a bright bleed is dark.

    Parameters
    ----------
    blood
        Shape ``(slices, size, size)``.
    crops
        Gray values of the same pixels.
    share
        How far from brain to the bleed's sure pixels counts as dark; 0 leaves all as it is.
    """
    if not share:
        return blood
    doubted = blood.copy()
    for plane, crop in zip(doubted, crops, strict=True):
        if plane.max(initial=0) >= SURE:
            plane[_dark(plane, crop, share)] = np.float32(NO_BLOOD)
    return doubted


def _dark(plane: Float, crop: NDArray[np.uint8], share: float) -> NDArray[np.bool_]:
    gray = ndimage.gaussian_filter(crop.astype(np.float32), SMOOTHING * crop.shape[-1])
    brain = gray[(plane < NO_BLOOD) & (gray > TISSUE_GRAY[0]) & (gray < TISSUE_GRAY[1])]
    dark = np.zeros(plane.shape, dtype=bool)
    if not brain.size:
        return dark
    middle = float(np.median(brain))
    parts, _ = ndimage.label(plane >= POSSIBLE, TOUCHING)
    sure = plane >= SURE
    for number in np.unique(parts[sure]):
        part = parts == number
        above = float(np.median(gray[part & sure])) - middle
        if above >= BRIGHT_GRAY:
            dark |= part & (plane < UNSURE) & (gray < middle + share * above)
    return dark
