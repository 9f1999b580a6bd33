"""Hounsfield units to 8-bit gray, the one intensity scale that every network here sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.volume import DisplayWindow

CUT_OFF_HU = 1.0
"""Images that were compressed after rendering come this close to the ends of their window."""
BRAIN_WINDOW = DisplayWindow(level_hu=40.0, width_hu=120.0)
BONE_HU, AIR_HU = 700.0, -1000.0
"""Stand in for what an 8-bit image cuts off; bone by the level of CT-ICH's own bone window (Hssayeni et al. 2020)."""


def to_gray(hu: NDArray[np.int16] | NDArray[np.float32], window: DisplayWindow = BRAIN_WINDOW) -> NDArray[np.uint8]:
    """Render Hounsfield units as gray values 0 to 255, clipped at the window's ends.

    The scale is that of CT-ICH's published images, ``HU = gray / 255 * 120 - 20`` (Hssayeni et al. 2020), without the
    half-value offsets of PS3.3 C.11.2.1.2, so that 8-bit images of that window pass through unchanged.
    """
    scaled = (hu.astype(np.float32) - np.float32(window.low_hu)) * np.float32(255.0 / window.width_hu)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def restore_ends(gray: NDArray[np.uint8], hu: NDArray[np.generic], window: DisplayWindow | None) -> NDArray[np.uint8]:
    """Show bone white and the air around the head black in images that were cut off at a narrower window.

    At a width of 60 bone ends at 70 HU, the gray of blood, and air at 10 HU, the gray of fluid: the head cannot be told
    from what surrounds it, and networks that never saw a gray skull take it for one large bleed. What reaches the
    window's upper end counts as bone where it is one piece with the most of it on its slice, what reaches the lower end
    as air where it is one piece with the image's edge. Blood that is cut off and touches bone is lost with it.

    Parameters
    ----------
    gray
        From `to_gray`, shape ``(slices, rows, columns)``.
    hu
        What `gray` was made of.
    window
        That the images were rendered with; None for those that were not.
    """
    if window is None:
        return gray
    shown = gray.copy()
    for plane, values in zip(shown, hu, strict=True):
        if window.low_hu > BRAIN_WINDOW.low_hu:
            plane[at_edge(values <= window.low_hu + CUT_OFF_HU)] = 0
        if window.high_hu < BRAIN_WINDOW.high_hu:
            plane[_largest(values >= window.high_hu - CUT_OFF_HU)] = 255
    return shown


def at_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pieces of a plane that reach its edge."""
    pieces, _ = ndimage.label(mask)
    edges = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    return np.asarray(np.isin(pieces, np.unique(edges[edges > 0])))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    return np.asarray(pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))) if count else mask


def to_hu(gray: NDArray[np.uint8], window: DisplayWindow = BRAIN_WINDOW) -> NDArray[np.float32]:
    """Undo `to_gray`, as far as clipping allows; float32."""
    return gray.astype(np.float32) * np.float32(window.width_hu / 255.0) + np.float32(window.low_hu)
