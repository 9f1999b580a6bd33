"""BHSD slices (RSNA scans with drawn five-class masks; research use only): to measure on, never to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemolens.errors import InputError
from hemolens.volume import AIR_HU, SourceInfo, Volume

MASK_COLORS: tuple[tuple[int, tuple[int, int, int]], ...] = (
    (1, (255, 0, 0)),
    (2, (0, 255, 0)),
    (3, (0, 255, 255)),
    (4, (0, 0, 255)),
    (5, (255, 255, 0)),
)
"""Label of `hemolens.labels.SUBTYPES` and its color in the published masks."""


@dataclass(frozen=True, eq=False)
class BhsdSlice:
    """One slice with its drawn mask."""

    name: str
    case: str
    """First digits of the name: the scan that it is from."""
    volume: Volume
    """One slice; 8-bit values are Hounsfield units clipped to 0..255."""
    labels: NDArray[np.uint8]
    """0 or subtype, shape ``(rows, columns)``."""


def read_slices(root: Path) -> tuple[BhsdSlice, ...]:
    """Read every slice below `root` that has an image and a mask.

    Raises
    ------
    InputError
        If there are none, sizes differ, or a mask holds a color that is no class.
    """
    images = sorted((root / "images").glob("*.png"))
    if not images:
        raise InputError(root, "no images/*.png", "Point at the folder that holds images/ and masks/.")
    return tuple(_read(path, root / "masks" / path.name) for path in images)


def _read(image: Path, mask: Path) -> BhsdSlice:
    if not mask.is_file():
        raise InputError(image, "has no mask of that name", "Every slice needs its mask in masks/.")
    with Image.open(image) as file:
        gray = np.asarray(file.convert("L")).astype(np.float32)
    with Image.open(mask) as file:
        colors = np.asarray(file.convert("RGB"))
    if colors.shape[:2] != gray.shape:
        raise InputError(mask, f"is {colors.shape[:2]}, its image {gray.shape}", "Use the mask of this very slice.")
    labels = np.zeros(gray.shape, dtype=np.uint8)
    for label, color in MASK_COLORS:
        labels[(colors == color).all(axis=-1)] = label
    if ((colors > 127).any(axis=-1) != (labels > 0)).any():
        raise InputError(mask, "holds a color that is no class", "Use the masks as they were published.")
    volume = Volume(_air(gray)[None], None, SourceInfo("images", image.name, (image.name,)))
    return BhsdSlice(image.stem, image.stem[:-3], volume, labels)


def _air(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clipping turned air and fat into 0 HU, the value of water; what is 0 and reaches the border is air again."""
    regions, _ = ndimage.label(gray == 0)
    border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    outside = np.isin(regions, border[border > 0])
    return np.where(outside, np.float32(AIR_HU), gray).astype(np.float32)
