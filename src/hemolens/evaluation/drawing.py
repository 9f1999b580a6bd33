"""Slices with their masks as pictures: image, truth and prediction side by side, and montages of a scan."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from hemolens.evaluation.gallery import TILE_SIZE, Picture, Scan

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TRUE_RGB = (255, 92, 225)
FOUND_RGB = (255, 205, 40)
FILL = 0.22
GAP = 4
COLUMNS = 8
JPEG_QUALITY = 88


def panels(picture: Picture) -> Rgb:
    """Draw image, truth and prediction side by side, ``(height, width, 3)``; see `panel_names`."""
    image = _gray(picture.gray)
    drawn = {
        "image": image,
        "truth": _with(image, picture.true, TRUE_RGB, fill=True),
        "prediction": _with(image, picture.found, FOUND_RGB, fill=True),
    }
    return _joined([drawn[name] for name in panel_names(picture)])


def panel_names(picture: Picture) -> tuple[str, ...]:
    """Return what stands side by side: where the truth is not known, it is left out."""
    if picture.true is not None:
        return ("image", "truth", "prediction")
    return ("image", "prediction") if picture.found is not None else ("image",)


def overlay(picture: Picture) -> Rgb:
    """Draw the image with both outlines on it."""
    both = _with(_gray(picture.gray), picture.true, TRUE_RGB, fill=False)
    return _with(both, picture.found, FOUND_RGB, fill=False)


def montage(scan: Scan) -> Rgb:
    """Draw the slices of a scan in rows, both outlines on them, each with its name."""
    columns = min(COLUMNS, len(scan.tiles))
    rows = -(-len(scan.tiles) // columns)
    step = TILE_SIZE + GAP
    sheet = Image.new("RGB", (columns * step - GAP, rows * step - GAP))
    pen = ImageDraw.Draw(sheet)
    for number, picture in enumerate(scan.tiles):
        left, top = number % columns * step, number // columns * step
        sheet.paste(Image.fromarray(overlay(picture)), (left, top))
        name = picture.id.partition("#")[2] if scan.id else picture.id.partition("/")[2].replace("/", " ")
        pen.text((left + 5, top + 3), name[:28], fill=(255, 255, 255))
    return np.asarray(sheet)


def to_png(image: Rgb) -> bytes:
    """Encode without loss."""
    return _encoded(image, "PNG")


def to_jpeg(image: Rgb) -> bytes:
    """Encode small, for a page."""
    return _encoded(image, "JPEG", quality=JPEG_QUALITY)


def _encoded(image: Rgb, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **settings)
    return buffer.getvalue()


def _gray(gray: NDArray[np.uint8]) -> Rgb:
    return np.repeat(gray[:, :, None], 3, axis=2)


def _with(image: Rgb, mask: Mask | None, color: tuple[int, int, int], *, fill: bool) -> Rgb:
    if mask is None or not mask.any():
        return image.copy()
    out = image.astype(np.float32)
    if fill:
        out[mask] += FILL * (np.array(color, np.float32) - out[mask])
    edge = mask & ~ndimage.binary_erosion(mask)
    out[edge] = color
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _joined(images: list[Rgb]) -> Rgb:
    gap = np.full((images[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts = [part for image in images for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)
