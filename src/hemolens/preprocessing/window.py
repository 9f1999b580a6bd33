"""Hounsfield units to 8-bit gray, the one intensity scale that every network here sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hemolens.volume import DisplayWindow

BRAIN_WINDOW = DisplayWindow(level_hu=40.0, width_hu=120.0)


def to_gray(hu: NDArray[np.int16] | NDArray[np.float32], window: DisplayWindow = BRAIN_WINDOW) -> NDArray[np.uint8]:
    """Render Hounsfield units as gray values 0 to 255, clipped at the window's ends.

    The scale is that of CT-ICH's published images, ``HU = gray / 255 * 120 - 20`` (Hssayeni et al. 2020), without the
    half-value offsets of PS3.3 C.11.2.1.2, so that 8-bit images of that window pass through unchanged.
    """
    scaled = (hu.astype(np.float32) - np.float32(window.low_hu)) * np.float32(255.0 / window.width_hu)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def to_hu(gray: NDArray[np.uint8], window: DisplayWindow = BRAIN_WINDOW) -> NDArray[np.float32]:
    """Undo `to_gray`, as far as clipping allows; float32."""
    return gray.astype(np.float32) * np.float32(window.width_hu / 255.0) + np.float32(window.low_hu)
