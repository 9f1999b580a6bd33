"""A coarse look at a scan: where tissue, bone and the inside of the skull are, on a grid of about 2 mm.

Serves the quality checks only. Preprocessing's head crop works on 8-bit gray at a network's scale; here Hounsfield
units beyond the brain window count wherever the source has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.preprocessing.morphology import filled, grown, opened
from hemolens.volume import Volume

COARSE_SIZE = 128
"""Pixels along the shorter side of the coarse grid: about 2 mm in a head's field of view."""
ASSUMED_FIELD_MM = 250.0
"""Field of view along the shorter side where it is unknown; only scales the reach of closing."""
TISSUE_HU = -300.0
"""Above lung and foam, below fat."""
SOFT_HU = -8.0
"""Above fat: leaves out most of headrest and table. As `preprocessing.head`."""
BONE_HU = 250.0
"""Above enhanced vessels' usual partial volume, below skull seen through 2 mm pixels."""
CLOSE_MM = (5.0, 10.0, 20.0)
"""Gaps in the skull up to twice this are bridged, the smallest first: sutures, thin orbital roofs, a craniectomy's
edge."""
ENOUGH_SHARE = 0.5
"""What bone encloses is taken for the inside of the skull without wider bridges where it fills this share of the
head."""
RING_RADII = (0.6, 1.4)
"""Where around the head's center skull is looked for, in radii of a disk as large as the head."""
RING_SECTORS = 72

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Survey:
    """What the quality checks look at.

    Parameters
    ----------
    volume
        The scan.
    """

    volume: Volume

    @cached_property
    def stride(self) -> int:
        """Source pixels per coarse pixel."""
        return max(1, round(min(self.volume.shape[1:]) / COARSE_SIZE))

    @cached_property
    def pixel_mm(self) -> tuple[float, float] | None:
        """Coarse pixel size between rows and between columns; None without geometry."""
        if self.volume.stack is None:
            return None
        rows, columns = np.median(self.volume.stack.spacings_mm, axis=0) * self.stride
        return float(rows), float(columns)

    @cached_property
    def hu(self) -> NDArray[np.float32]:
        """Block means, shape ``(slices, rows // stride, columns // stride)``."""
        s, r, c = self.volume.shape
        n = self.stride
        blocks = self.volume.hu[:, : r // n * n, : c // n * n].reshape(s, r // n, n, c // n, n)
        return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32))

    @property
    def saturation_hu(self) -> float:
        """The highest value that the source can tell; infinite unless it is windowed."""
        window = self.volume.source.window
        return float("inf") if window is None else window.high_hu

    @property
    def floor_hu(self) -> float:
        """The lowest value that the source can tell."""
        window = self.volume.source.window
        return float("-inf") if window is None else window.low_hu

    @cached_property
    def bone(self) -> Mask:
        """Bone, or what nearly saturates a windowed image."""
        return np.asarray(self.hu >= min(BONE_HU, 0.9 * self.saturation_hu))

    @cached_property
    def head(self) -> Mask:
        """The largest connected soft tissue and bone of each slice, holes filled."""
        threshold = max(SOFT_HU, self.floor_hu + 5.0)
        return np.stack([_largest(opened(image > threshold)) for image in self.hu])

    @cached_property
    def body(self) -> Mask:
        """The same with fat: the outline of the patient, and of a table that touches."""
        return np.stack([_largest(opened(image > TISSUE_HU)) for image in self.hu])

    @cached_property
    def rings(self) -> NDArray[np.float64]:
        """Share of directions from the head's center in which each slice has bone at a skull's distance."""
        return np.array([self._ring(head, bone) for head, bone in zip(self.head, self.bone, strict=True)])

    @cached_property
    def inside(self) -> Mask:
        """The largest soft region of each slice that bone encloses."""
        pixel = min(self.pixel_mm) if self.pixel_mm else ASSUMED_FIELD_MM / min(self.hu.shape[1:])
        reaches = sorted({max(1, round(reach / pixel)) for reach in CLOSE_MM})
        return np.stack([_enclosed(b & h, h, reaches) for b, h in zip(self.bone, self.head, strict=True)])

    @cached_property
    def inside_areas(self) -> NDArray[np.float64]:
        """Area of `inside` in each slice: cm², or a share of the image without geometry."""
        return self.areas(self.inside)

    def areas(self, masks: Mask) -> NDArray[np.float64]:
        """Return the area of each slice's mask: cm², or a share of the image without geometry."""
        pixels = np.count_nonzero(masks, axis=(1, 2))
        if self.pixel_mm is None:
            return np.asarray(pixels / masks[0].size)
        return np.asarray(pixels * self.pixel_mm[0] * self.pixel_mm[1] / 100.0)

    def _ring(self, head: Mask, bone: Mask) -> float:
        if not head.any():
            return 0.0
        size = np.asarray(self.pixel_mm or (1.0, 1.0))
        center = np.argwhere(head).mean(axis=0)
        y, x = ((np.argwhere(bone & head) - center) * size).T
        radius = np.hypot(x, y) / np.sqrt(np.count_nonzero(head) * size.prod() / np.pi)
        angle = np.arctan2(y, x)[(radius >= RING_RADII[0]) & (radius < RING_RADII[1])]
        sectors = np.floor((angle / (2 * np.pi) % 1.0) * RING_SECTORS)
        return len(np.unique(sectors)) / RING_SECTORS


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if not count:
        return np.zeros_like(mask)
    return filled(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))


def _enclosed(bone: Mask, head: Mask, reaches: list[int]) -> Mask:
    enough = ENOUGH_SHARE * np.count_nonzero(head)
    inside = np.zeros_like(bone)
    for reach in reaches:
        padded = np.pad(bone, reach + 1)
        closed = ~grown(~grown(padded, reach), reach)
        within = filled(closed)[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
        inside = _largest(opened(within & head & ~bone))
        if np.count_nonzero(inside) >= enough:
            break
    return inside
