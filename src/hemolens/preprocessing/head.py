"""Where the head and the inside of the skull are, told from 8-bit brain-window slices alone.

Works on gray values (`hemolens.preprocessing.window.to_gray`) rather than on Hounsfield units, because published slice
images are clipped to that window and a network must see the same crop for both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.preprocessing.morphology import dilated, filled, grown, opened
from hemolens.preprocessing.resample import Crop

SOFT_TISSUE_GRAY = 26
"""About -8 HU: above fat and air, below cerebrospinal fluid."""
BONE_GRAY = 250
"""About 98 HU: above acute blood, below the thinnest skull."""
CROP_MARGIN = 1.08
SMALLEST_HEAD_SHARE = 0.02
"""Slices whose largest soft-tissue part is smaller than this share of the image say nothing about the head's box."""
SMALLEST_OWN_SHARE = 0.2
"""A head that takes less of the crop's side (about 4 cm) is scalp, or none: enlarging it shows nothing."""
GATE_SHARE = 0.225
"""The inside of the skull is trusted as a gate where it fills at least this share of the crop.

Measured: gated so were 302 of 306 slices of PHE-SICH (every second pseudo-mask), and at least 95 % of each mask lay
inside; and 12 of CT-ICH's 13 slices with a drawn mask, all of which lay wholly inside.
"""
BONE_OPENING = 1
"""White that is thinner than three pixels is not told from the specks of dense, noisy blood."""
CLOSING_SHARES = (1 / 60, 1 / 30, 1 / 15)
"""Reach of the closing of the skull, as shares of the crop's side (about 4, 8 and 17 mm)."""

AIR_GRAY = 8
"""About -16 HU: no fluid is as dark, so what is counts as air (in the mastoid, or after an operation), as fat may."""
NECK_SHARE = 1 / 30
"""What hangs on the inside of the skull by less than twice this share of the crop's side (about 16 mm) is an orbit or
a sinus; see `brain_inside`."""

Mask = NDArray[np.bool_]


def head_masks(gray: NDArray[np.uint8], stride: int = 4) -> Mask:
    """Return the head of each slice, filled, on a grid coarser by `stride`.

    Parameters
    ----------
    gray
        uint8, shape ``(slices, rows, columns)``.

    Returns
    -------
    Mask
        Shape ``(slices, rows // stride, columns // stride)``: the largest connected soft tissue and bone, holes filled.
        The table is left out as long as air parts it from the head.
    """
    s, r, c = gray.shape
    rows, columns = max(r // stride, 1), max(c // stride, 1)
    blocks = gray[:, : rows * stride, : columns * stride].reshape(s, rows, min(stride, r), columns, min(stride, c))
    coarse = blocks.mean(axis=(2, 4), dtype=np.float32)
    return np.stack([_largest_filled(image > SOFT_TISSUE_GRAY) for image in coarse])


def find_crop(gray: NDArray[np.uint8], pixel_aspect: float, size: int) -> Crop:
    """Return one square (in millimeters) around the head for the whole scan.

    The box runs from the 15th percentile of the slices' lower edges to the 85th of their upper edges, times
    `CROP_MARGIN`, so that neither the shoulders nor a vertex slice decide. Without any head the whole image is taken.

    Parameters
    ----------
    gray
        uint8, shape ``(slices, rows, columns)``.
    pixel_aspect
        Row spacing divided by column spacing (1 where unknown).
    size
        Samples along each side of the crop.
    """
    stride = 4
    boxes = []
    for mask in head_masks(gray, stride):
        if mask.mean() >= SMALLEST_HEAD_SHARE:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes.append((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    if not boxes:
        r0, r1, c0, c1 = 0.0, float(gray.shape[1]), 0.0, float(gray.shape[2])
    else:
        edges = np.array(boxes, dtype=np.float64) * stride
        r0, c0 = np.percentile(edges[:, [0, 2]], 15, axis=0)
        r1, c1 = np.percentile(edges[:, [1, 3]], 85, axis=0)
    columns_side = max((r1 - r0) * pixel_aspect, c1 - c0) * CROP_MARGIN
    rows_side = columns_side / pixel_aspect
    return Crop((r0 + r1 - rows_side) / 2, (c0 + c1 - columns_side) / 2, rows_side, columns_side, size)


def own_crop(crop: NDArray[np.uint8], below: float) -> Crop | None:
    """Return the square around the head of one cropped slice, in pixels of that crop, where the head is small there.

    Parameters
    ----------
    crop
        uint8, shape ``(size, size)``: a slice in the crop of its scan (`find_crop`).
    below
        Share of the side of `crop` that the square must be smaller than.

    Returns
    -------
    Crop or None
        None where the head is as large as on other slices, too small to be one, or not there.
    """
    stride, size = 2, crop.shape[0]
    head = head_masks(crop[None], stride)[0]
    if head.mean() < SMALLEST_HEAD_SHARE:
        return None
    rows, columns = np.flatnonzero(head.any(axis=1)) * stride, np.flatnonzero(head.any(axis=0)) * stride
    r0, r1, c0, c1 = rows[0], rows[-1] + stride, columns[0], columns[-1] + stride
    side = float(max(r1 - r0, c1 - c0)) * CROP_MARGIN
    if not SMALLEST_OWN_SHARE * size <= side < below * size:
        return None
    return Crop(float(r0 + r1 - side) / 2, float(c0 + c1 - side) / 2, side, side, size)


def whole_slice(shape: tuple[int, int], pixel_aspect: float, size: int) -> Crop:
    """Return the smallest crop, square in millimeters, that holds a whole slice of `shape`; the slice is its middle."""
    columns_side = max(shape[0] * pixel_aspect, float(shape[1]))
    rows_side = columns_side / pixel_aspect
    return Crop((shape[0] - rows_side) / 2, (shape[1] - columns_side) / 2, rows_side, columns_side, size)


def skull_inside(crop: NDArray[np.uint8], closing_shares: tuple[float, ...] = CLOSING_SHARES) -> Mask:
    """Return the inside of the skull on one cropped slice, shape ``(size, size)``.

    Gaps in the bone are closed by ever more, up to a craniectomy's width, until what they enclose fills `GATE_SHARE` of
    the crop. Where even that encloses less (skull base, vertex), the last attempt is returned, and `gate` does
    not trust it.
    """
    inside = np.zeros(crop.shape, dtype=bool)
    for share in closing_shares:
        inside = _enclosed(crop >= BONE_GRAY, max(2, round(crop.shape[0] * share)))
        if inside.mean() >= GATE_SHARE:
            break
    return inside


def brain_inside(crop: NDArray[np.uint8]) -> Mask:
    """Return the inside of the skull without what lies before and below it, shape ``(size, size)``.

    `skull_inside` of the narrowest closing, unless that is less than `GATE_SHARE` and a wider one reaches it. At the
    skull base, which is bone in part only, that takes air cells and orbits in as well, so air and fat are taken out,
    and of the rest only the largest part is kept that no neck of `NECK_SHARE` leads to.
    """
    narrow = skull_inside(crop, CLOSING_SHARES[:1])
    if narrow.mean() >= GATE_SHARE:
        return narrow
    neck, tissue = round(crop.shape[0] * NECK_SHARE), ~bone(crop) & ~dilated(crop <= AIR_GRAY, 1)
    for share in CLOSING_SHARES[1:]:
        inside = skull_inside(crop, (share,))
        brain = dilated(_largest(_open_wide(inside & tissue, neck)), 2) & inside
        if brain.mean() >= GATE_SHARE:
            return brain
    return narrow


def gate(crop: NDArray[np.uint8]) -> Mask:
    """Return where blood may be on one cropped slice: inside the skull, or where that is not known wherever no bone is.

    At the vertex and the skull base a slice may be bone for the most part.
    """
    inside = skull_inside(crop)
    return inside if inside.mean() >= GATE_SHARE else ~bone(crop)


def bone(crop: NDArray[np.uint8]) -> Mask:
    """Return the bone of one slice: what is white, but for specks (the noise of dense blood in thin slices)."""
    white = crop >= BONE_GRAY
    return white & dilated(opened(white, BONE_OPENING), BONE_OPENING)


def _enclosed(bone: Mask, reach: int) -> Mask:
    within = filled(_close(bone, reach))
    return dilated(_largest(opened(within & ~bone, 2)), 2) & within


def _open_wide(mask: Mask, reach: int) -> Mask:
    """Shrink, then grow by a disk."""
    padded = np.pad(mask, reach)
    return grown(~grown(~padded, reach), reach)[reach:-reach, reach:-reach]


def _close(mask: Mask, reach: int) -> Mask:
    """Close gaps up to twice `reach` pixels wide, without losing what touches the border."""
    padded = np.pad(mask, reach)
    closed = ~grown(~grown(padded, reach), reach)
    return closed[reach:-reach, reach:-reach]


def _largest_filled(mask: NDArray[np.bool_]) -> Mask:
    return filled(_largest(opened(mask)))


def _largest(mask: Mask) -> Mask:
    """Return the largest connected part."""
    labels, count = ndimage.label(mask)
    if not count:
        return np.zeros_like(mask)
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))
