"""Doubt blood that no neighboring slice supports: a bleed spans slices, most false ones at vertex and base do not.

The log-odds of a pixel fall by a share of how far the likeliest pixel near it, on the slices above and below, is from
even odds. A lone slice has no neighbors, and stays as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
REACH = 0.018
"""How far aside blood may go from one slice to the next, as a share of the head crop: about 4 mm."""
FLOOR = 1e-4
"""Probabilities closer to 0 or 1 than this count as this: no pixel is doubted without end."""


def doubt_unsupported(blood: Float, offsets_mm: NDArray[np.float64], context_mm: float, weight: float) -> Float:
    """Return the probability of blood, lower where the slices above and below show none.

    Parameters
    ----------
    blood
        Shape ``(slices, size, size)``, in the order of `offsets_mm`.
    offsets_mm
        Where each slice lies along the body, increasing.
    context_mm
        About how far away a neighbor is looked for.
    weight
        0 leaves all as it is; 1 takes a pixel's log-odds down by all that its best neighbor is below even odds.
    """
    if not weight or len(blood) < 2:
        return blood
    shown = np.clip(blood, FLOOR, 1 - FLOOR, dtype=np.float32)
    log_odds = np.log(shown / (1 - shown))
    side = 2 * max(1, round(REACH * blood.shape[-1])) + 1
    near = np.stack([ndimage.maximum_filter(plane, size=side) for plane in log_odds])
    doubted = blood.copy()
    for k in np.flatnonzero((blood > FLOOR).any(axis=(1, 2))):
        neighbors = neighbor_slices(offsets_mm, context_mm, int(k))
        if neighbors.size:
            lower = log_odds[k] + np.float32(weight) * np.minimum(near[neighbors].max(axis=0), 0)
            doubted[k] = np.minimum(blood[k], 0.5 * (1 + np.tanh(0.5 * lower)))
    return doubted


def neighbor_slices(offsets_mm: NDArray[np.float64], context_mm: float, index: int) -> NDArray[np.intp]:
    """Return the slices about one `context_mm` above and below slice `index`; the next one where slices are thicker.

    Slices more than twice as far apart are no neighbors.
    """
    away = offsets_mm - offsets_mm[index]
    near = np.abs(np.abs(away) - context_mm) < context_mm / 2
    for step in (-1, 1):
        other = index + step
        if 0 <= other < len(away) and 1.5 * context_mm <= abs(away[other]) <= 2 * context_mm:
            near[other] = True
    return np.flatnonzero(near)
