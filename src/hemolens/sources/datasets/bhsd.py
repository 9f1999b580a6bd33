"""BHSD slices (RSNA scans with drawn five-class masks; research use only): to measure on, never to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemolens.errors import InputError
from hemolens.sources.datasets.cases import Case, Note, SliceRecord, findings_of_labels
from hemolens.sources.files import file_entry
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
    volume, labels = _read_image(image), read_colors(mask)
    if labels.shape != volume.shape[1:]:
        problem = f"is {labels.shape}, its image {volume.shape[1:]}"
        raise InputError(mask, problem, "Use the mask of this very slice.")
    return BhsdSlice(image.stem, image.stem[:-3], volume, labels)


def _read_image(image: Path) -> Volume:
    gray = _picture(image, "L").astype(np.float32)
    return Volume(_air(gray)[None], None, SourceInfo("images", image.name, (image.name,)))


def _picture(path: Path, mode: str) -> NDArray[np.uint8]:
    file_entry(path)
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert(mode))
    except OSError as error:
        raise InputError(path, "is damaged or no picture", "Copy the data set again.") from error


def read_colors(mask: Path) -> NDArray[np.uint8]:
    """Read a mask in BHSD's colors: 0 or subtype, shape ``(rows, columns)``.

    Raises
    ------
    InputError
        If it cannot be read or holds a color that is no class.
    """
    colors = _picture(mask, "RGB")
    packed = colors @ np.array([65536, 256, 1], dtype=np.uint32)
    labels = np.zeros(packed.shape, dtype=np.uint8)
    for label, (red, green, blue) in MASK_COLORS:
        labels[packed == (red << 16 | green << 8 | blue)] = label
    if (((packed & 0x808080) > 0) != (labels > 0)).any():
        raise InputError(mask, "holds a color that is no class", "Use the masks as they were published.")
    return labels


def _air(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clipping turned air and fat into 0 HU, the value of water; what is 0 and reaches the border is air again."""
    regions, _ = ndimage.label(gray == 0)
    border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    outside = np.isin(regions, border[border > 0])
    return np.where(outside, np.float32(AIR_HU), gray).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BhsdPictures:
    """BHSD's slices as pictures, as a `hemolens.sources.datasets.cases.DataSet`: each a case of one slice."""

    root: Path
    cases: tuple[Case, ...]
    notes: tuple[Note, ...]
    name: str = "bhsd"
    license: str = "research use only"
    trainable: bool = False

    def volume(self, case: Case) -> Volume:
        """See `DataSet.volume`."""
        return _read_image(self.root / "images" / f"{case.slices[0].name}.png")

    def labels(self, case: Case) -> NDArray[np.uint8]:
        """See `DataSet.labels`."""
        name = f"{case.slices[0].name}.png"
        return _read(self.root / "images" / name, self.root / "masks" / name).labels[None]

    def files(self, case: Case) -> tuple[Path, ...]:
        """See `DataSet.files`."""
        name = f"{case.slices[0].name}.png"
        return self.root / "images" / name, self.root / "masks" / name


def open_bhsd_pictures(root: Path) -> BhsdPictures:
    """Open BHSD's slices; the masks are read too, because nothing else says what a slice shows.

    Raises
    ------
    InputError
        As `read_slices`.
    """
    images = sorted(path for path in (root / "images").glob("*.png") if not path.name.startswith("."))
    if not images:
        raise InputError(root, "no images/*.png", "Point at the folder that holds images/ and masks/.")
    cases = []
    for image in images:
        mask = root / "masks" / image.name
        if not mask.is_file():
            raise InputError(image, "has no mask of that name", "Every slice needs its mask in masks/.")
        record = SliceRecord(image.stem, findings_of_labels(read_colors(mask)), "drawn")
        cases.append(Case("bhsd", image.stem[:-3], image.stem[-3:], (record,)))
    return BhsdPictures(root, tuple(cases), ())
