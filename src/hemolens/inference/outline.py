"""Where blood is outlined: from a low probability on, around what the network is sure of.

Two thresholds do what one cannot. The edge and the faint part of a bleed are less likely than its core, and a single
threshold that takes them in takes in every faint speck of the scan as well (hysteresis; Canny 1986, section VIII).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

TOUCHING = np.ones((3, 3), dtype=bool)
"""In a slice a pixel touches its eight neighbors."""


def outline_blood(blood: NDArray[np.floating], threshold: float, seed: float | None = None) -> NDArray[np.bool_]:
    """Return where blood is outlined, each slice by itself.

    Parameters
    ----------
    blood
        Probability, shape ``(slices, rows, columns)``.
    threshold
        Pixels of this probability or more are outlined ...
    seed
        ... where they are connected, within the slice, to a pixel of this one or more. None: wherever they are.
    """
    outlined = np.asarray(blood >= threshold)
    if seed is None or seed <= threshold:
        return outlined
    for plane, shown in zip(outlined, blood, strict=True):
        if not plane.any():
            continue
        parts, number = ndimage.label(plane, TOUCHING)
        kept = np.zeros(number + 1, dtype=bool)
        kept[parts[shown >= seed]] = True
        kept[0] = False
        plane[:] = kept[parts]
    return outlined
