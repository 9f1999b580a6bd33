"""Overlays: each slice as radiologists look at it, plain and under its map, with the true outline where it is known."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hemolens.explain.run import Explanation
from hemolens.explain.truth import TrueMask
from hemolens.measurements.findings import NOTICE
from hemolens.preprocessing.window import to_gray
from hemolens.reports.figures import BLOOD_WINDOW, View

HEIGHT = 360
"""Of one panel in pixels."""
STRIP = 22
"""Height of the lines of text above and below."""
OPACITY = 0.75
"""Of the strongest evidence."""
OUTLINE = (0, 255, 255)
COLORS = "inferno"
MARGIN = 0.04
"""Room around the head, as a share of the picture."""

Rgb = NDArray[np.uint8]


class OverlayArtist:
    """Draws the slices of an explanation, all of them cropped and turned alike.

    Parameters
    ----------
    explanation
        What to draw.
    truth
        Outlined where it is known.
    """

    def __init__(self, explanation: Explanation, truth: TrueMask | None = None) -> None:
        from matplotlib import colormaps

        self.explanation = explanation
        self.truth = truth
        self.window = explanation.volume.source.window or BLOOD_WINDOW
        self._colors = np.asarray(colormaps[COLORS](np.arange(256), bytes=True))[:, :3]
        self._lesion = truth.lesion(explanation.config.finding) if truth is not None else None
        self._box = self._crop()

    def overlay(self, index: int) -> bytes:
        """Return the PNG of one slice: the image, and the image under its map."""
        plain, heated = self._panels(index, HEIGHT)
        width = plain.width + heated.width
        picture = Image.new("RGB", (width, HEIGHT + 2 * STRIP))
        picture.paste(plain, (0, STRIP))
        picture.paste(heated, (plain.width, STRIP))
        draw = ImageDraw.Draw(picture)
        _write(draw, (6, 3), self.caption(index))
        self._scale(picture, draw, width)
        return _png(picture)

    def overview(self, indices: Sequence[int], columns: int = 4, height: int = 240) -> bytes:
        """Return a PNG that shows the maps of several slices side by side."""
        panels = [self._panels(index, height)[1] for index in indices]
        widest = max(panel.width for panel in panels)
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        picture = Image.new("RGB", (columns * widest, rows * (height + STRIP) + 2 * STRIP))
        draw = ImageDraw.Draw(picture)
        config, subject = self.explanation.config, self.explanation.subject
        _write(draw, (6, 3), f"{subject.name}: {config.method} of '{config.finding}'")
        for place, (index, panel) in enumerate(zip(indices, panels, strict=True)):
            left, top = place % columns * widest, STRIP + place // columns * (height + STRIP)
            _write(draw, (left + 6, top + 3), self.caption(index, short=True))
            picture.paste(panel, (left, top + STRIP))
        self._scale(picture, draw, picture.width)
        return _png(picture)

    def caption(self, index: int, *, short: bool = False) -> str:
        """Return what stands above a slice."""
        explanation = self.explanation
        samples = [s for s in explanation.samples if index in s.slices]
        words = [f"slice {index}", f"{explanation.config.finding} {max(s.probability for s in samples):.2f}"]
        if not short and explanation.volume.source.slice_names:
            words[0] += f" ({explanation.volume.slice_label(index)})"
        if self.truth is not None:
            energy = explanation.energy(self.truth, index)
            if np.isfinite(energy.inside):
                words.append(f"energy inside {energy.inside:.2f} (chance {energy.chance:.2f})")
        return " · ".join(words[:2] if short else words)

    def _panels(self, index: int, height: int) -> tuple[Image.Image, Image.Image]:
        view = View.of(self.explanation.volume.stack, index)
        turned = view.turn(to_gray(self.explanation.volume.hu[index], self.window))[self._box]
        values = view.turn(self.explanation.values[index])[self._box]
        width = max(1, round(height * turned.shape[1] * view.column_mm / (turned.shape[0] * view.row_mm)))
        gray = _resized(np.asarray(turned), (width, height))
        heat = np.clip(_resized(np.ascontiguousarray(values, dtype=np.float32), (width, height)), 0, 1)
        share = (OPACITY * heat**0.7)[..., None]
        color = self._colors[np.rint(heat * 255).astype(int)]
        base = np.repeat(np.clip(gray, 0, 255)[..., None], 3, axis=2)
        plain, heated = Image.fromarray(base.astype(np.uint8)), Image.fromarray(_mix(base, color, share))
        if self._lesion is not None and self._lesion[index].any():
            mask = np.asarray(view.turn(self._lesion[index])[self._box], dtype=np.float64)
            for panel in (plain, heated):
                _outline(panel, mask)
        return plain, heated

    def _crop(self) -> tuple[slice, slice]:
        """Return the box around the head in turned slices; where slices are turned differently, the whole image."""
        views = [View.of(self.explanation.volume.stack, k) for k in range(len(self.explanation.volume))]
        if len({(v.transpose, v.flip_rows, v.flip_columns) for v in views}) > 1 or not self.explanation.head.any():
            return slice(None), slice(None)
        head = views[0].turn(np.asarray(self.explanation.head.any(axis=0)))
        box = []
        for axis in (0, 1):
            there = np.flatnonzero(head.any(axis=1 - axis))
            margin = round(MARGIN * (there[-1] - there[0] + 1))
            box.append(slice(max(int(there[0]) - margin, 0), min(int(there[-1]) + 1 + margin, head.shape[axis])))
        return box[0], box[1]

    def _scale(self, picture: Image.Image, draw: ImageDraw.ImageDraw, width: int) -> None:
        """Draw the scale of colors and the notice along the lower edge."""
        top = picture.height - STRIP
        _write(draw, (6, top + 3), NOTICE)
        ramp = Image.fromarray(np.repeat(self._colors[None, ::2], 8, axis=0))
        left = width - ramp.width - 30
        if left > 260:
            picture.paste(ramp, (left, top + 7))
            _write(draw, (left - 14, top + 3), "0")
            _write(draw, (left + ramp.width + 8, top + 3), "1")


def _mix(base: NDArray[np.float32], color: Rgb, share: NDArray[np.float32]) -> Rgb:
    return np.asarray(np.rint(base * (1 - share) + color * share).clip(0, 255), dtype=np.uint8)


def _resized(plane: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def _outline(panel: Image.Image, mask: NDArray[np.float64]) -> None:
    scale = (panel.width / mask.shape[1], panel.height / mask.shape[0])
    draw = ImageDraw.Draw(panel)
    for line in contour_generator(z=np.pad(mask, 1)).lines(0.5):
        points = (np.asarray(line)[:, :2] - 0.5) * scale
        draw.line([(float(x), float(y)) for x, y in points], fill=OUTLINE)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    draw.text(place, text, fill=(230, 230, 230), font=ImageFont.load_default(13))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
