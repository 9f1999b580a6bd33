"""Pictures of slices for reports: windowed, cropped to the head, turned as radiologists look at them, outlined.

Display convention: axial slices are seen from the feet with the face up, so the patient's right is on the left of the
image; coronal slices from the front; sagittal slices with the face to the left. Which way a stored image must be
turned is read off its direction cosines, never off a name. A source without geometry is shown as it is given, without
letters.

Outlines are vectors in the pixels of the picture, so that a page can show or hide them and print them sharply.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemolens.geometry import Stack, unit
from hemolens.labels import Subtype, subtype_at
from hemolens.measurements.lesions import Lesion, number_lesions
from hemolens.preprocessing.head import head_masks
from hemolens.preprocessing.window import to_gray
from hemolens.volume import DisplayWindow, LabelMap

BLOOD_WINDOW = DisplayWindow(level_hu=40.0, width_hu=80.0)
"""The usual brain window: acute blood near white, brain mid-gray."""
JPEG_QUALITY = 88
MARGIN = 0.04
"""Room around the head, as a share of its size."""
SMOOTHING_PX = 0.5
"""Blur of a mask before its outline is drawn, in source pixels: rounds the stairs, keeps lines one pixel wide."""
HEAD_STRIDE = 4

LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
"""Toward negative and positive x, y and z (LPS): right, left, anterior, posterior, foot, head."""

Plane = tuple[slice, slice]


@dataclass(frozen=True)
class View:
    """How one stored slice is turned for display."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    left: str = ""
    """What lies on the left of the picture: a letter of `LETTERS`, or nothing where it is not known."""
    right: str = ""
    top: str = ""
    bottom: str = ""
    row_mm: float = 1.0
    """Between the rows of the picture."""
    column_mm: float = 1.0

    @classmethod
    def of(cls, stack: Stack | None, index: int) -> View:
        """Read off the direction cosines how slice `index` is to be turned."""
        if stack is None:
            return cls()
        along_row, along_column = stack.row_directions[index], stack.column_directions[index]
        wanted_right, wanted_down = _convention(stack)
        row_mm, column_mm = (float(v) for v in stack.spacings_mm[index])
        transpose = abs(along_column @ wanted_right) > abs(along_row @ wanted_right)
        if transpose:
            along_row, along_column = along_column, along_row
            row_mm, column_mm = column_mm, row_mm
        flip_columns, flip_rows = bool(along_row @ wanted_right < 0), bool(along_column @ wanted_down < 0)
        left, right = _letters(-along_row if flip_columns else along_row)
        top, bottom = _letters(-along_column if flip_rows else along_column)
        return cls(bool(transpose), flip_rows, flip_columns, left, right, top, bottom, row_mm, column_mm)

    def turn(self, plane: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn a stored slice, shape ``(rows, columns)``, into what is shown; a view."""
        turned = plane.T if self.transpose else plane
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class Outline:
    """The border of one lesion in a picture."""

    lesion: int
    """`Lesion.id`."""
    subtype: Subtype
    path: str
    """SVG path data in pixels of the picture."""
    tag: tuple[float, float]
    """Its upper right end: beside it, its number may stand."""


@dataclass(frozen=True, eq=False)
class SlicePicture:
    """One slice as it is shown."""

    index: int
    jpeg: bytes
    width: int
    height: int
    view: View
    outlines: tuple[Outline, ...]
    true_path: str = ""
    """SVG path data around true blood, where it is known."""
    edema_path: str = ""
    """SVG path data around edema."""


class Illustrator:
    """Draws slices of one scan, all of them cropped and turned alike.

    Parameters
    ----------
    label_map
        The lesions, and with them the scan.
    lesions
        Named in the outlines.
    window
        Default: `BLOOD_WINDOW`, or for 8-bit images the window that they came in.
    truth
        True label map, to be outlined as well; uint8, shape of the scan.
    """

    def __init__(
        self,
        label_map: LabelMap,
        lesions: tuple[Lesion, ...],
        window: DisplayWindow | None = None,
        truth: NDArray[np.uint8] | None = None,
    ) -> None:
        self.volume = label_map.volume
        self.window = window or self.volume.source.window or BLOOD_WINDOW
        self.lesions = lesions
        self.numbers = number_lesions(label_map)
        """The lesion of each voxel, as `number_lesions`."""
        self._labels = label_map.labels
        self._edema = label_map.edema
        self._truth = truth
        self._views = [View.of(self.volume.stack, k) for k in range(len(self.volume))]
        self._crop = self._find_crop()

    def picture(self, index: int, height: int) -> SlicePicture:
        """Draw slice `index` `height` pixels high; the width follows from the pixel spacing."""
        view = self._views[index]
        gray = view.turn(to_gray(self.volume.hu[index], self.window))[self._crop]
        width = max(1, round(height * gray.shape[1] * view.column_mm / (gray.shape[0] * view.row_mm)))
        image = Image.fromarray(np.ascontiguousarray(gray)).resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        scale = (width / gray.shape[1], height / gray.shape[0])
        outlines, edema = self._outlines(index, scale), self._border(self._edema, index, scale)
        truth = self._border(self._truth, index, scale)
        return SlicePicture(index, buffer.getvalue(), width, height, view, outlines, truth, edema)

    def _border(self, mask: NDArray[Any] | None, index: int, scale: tuple[float, float]) -> str:
        """Return the path around everything above 0 in a slice."""
        if mask is None or not mask[index].any():
            return ""
        shown = np.asarray(self._views[index].turn(mask[index] > 0)[self._crop], dtype=bool)
        return _trace(shown, scale)[0] if shown.any() else ""

    def _outlines(self, index: int, scale: tuple[float, float]) -> tuple[Outline, ...]:
        if not self.numbers[index].any():
            return ()
        numbers = self._views[index].turn(self.numbers[index])[self._crop]
        labels = self._views[index].turn(self._labels[index])[self._crop]
        outlines = []
        for number in (int(n) for n in np.unique(numbers) if n):
            mask = numbers == number
            path, tag = _trace(mask, scale)
            outlines.append(Outline(number, subtype_at(int(labels[mask][0])), path, tag))
        return tuple(outlines)

    def _find_crop(self) -> Plane:
        """Return the box around the head and every lesion, in turned slices.

        Where slices are turned differently, it is the whole image.
        """
        everything = (slice(None), slice(None))
        if len({(v.transpose, v.flip_rows, v.flip_columns) for v in self._views}) > 1:
            return everything
        heads = head_masks(to_gray(self.volume.hu[:, ::HEAD_STRIDE, ::HEAD_STRIDE]), 1)
        sizes = heads.mean(axis=(1, 2))
        shown = heads[sizes >= 0.1 * sizes.max()] if sizes.max() > 0 else heads
        coarse = self._views[0].turn(np.asarray(shown.any(axis=0)))
        lesions = self._views[0].turn(np.asarray(self._labels.any(axis=0)))
        if not coarse.any():
            return everything
        edges = []
        for axis in (0, 1):
            head = np.flatnonzero(coarse.any(axis=1 - axis)) * HEAD_STRIDE
            low, high = int(head[0]), int(head[-1]) + HEAD_STRIDE
            margin = round(MARGIN * (high - low))
            inside = np.flatnonzero(lesions.any(axis=1 - axis))
            low, high = min([low, *inside[:1]]) - margin, max([high, *inside[-1:]]) + margin
            edges.append(slice(max(int(low), 0), min(int(high), lesions.shape[axis])))
        return edges[0], edges[1]


def key_slices(
    numbers: NDArray[np.uint16], lesions: tuple[Lesion, ...], scores: NDArray[np.floating], most: int = 6
) -> list[int]:
    """Choose the slices that show a scan best, in their order.

    First the largest cross-section of each lesion, largest lesion first; then the slices with most blood that are not
    next to one already chosen. Without lesions: the three with the highest scores that are not next to each other.

    Parameters
    ----------
    numbers
        The lesion of each voxel, as `number_lesions`.
    lesions
        As in the findings.
    scores
        One per slice.
    most
        How many at most.
    """
    chosen: list[int] = []
    for lesion in lesions:
        sizes = [np.count_nonzero(numbers[k] == lesion.id) for k in lesion.slices]
        best = lesion.slices[int(np.argmax(sizes))]
        if best not in chosen:
            chosen.append(best)
    worth = np.count_nonzero(numbers, axis=(1, 2)) if lesions else np.asarray(scores)
    for k in (int(k) for k in np.argsort(-worth.astype(np.float64), kind="stable")):
        if (worth[k] > 0 or not lesions) and all(abs(k - other) > 1 for other in chosen):
            chosen.append(k)
    return sorted(chosen[: most if lesions else min(3, most)])


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices below `count`, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _convention(stack: Stack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the patient directions that belong on the right and at the bottom of the picture."""
    axis = int(np.argmax(np.abs(stack.normal)))
    right = np.array([0.0, 1.0, 0.0]) if axis == 0 else np.array([1.0, 0.0, 0.0])
    down = np.array([0.0, 1.0, 0.0]) if axis == 2 else np.array([0.0, 0.0, -1.0])
    return right, down


def _letters(direction: NDArray[np.float64]) -> tuple[str, str]:
    """Return the letters at the start and the end of `direction`."""
    axis = int(np.argmax(np.abs(unit(direction))))
    negative, positive = LETTERS[axis]
    return (negative, positive) if direction[axis] > 0 else (positive, negative)


def _trace(mask: NDArray[np.bool_], scale: tuple[float, float]) -> tuple[str, tuple[float, float]]:
    """Return the border of `mask` as SVG path data, pixel centers at + 0.5, and its upper right end."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    pad = 2
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = ndimage.gaussian_filter(np.pad(box, pad).astype(np.float64), SMOOTHING_PX)
    offset = np.array([columns[0] - pad + 0.5, rows[0] - pad + 0.5])
    pieces, best = [], np.array([0.0, np.inf])
    for line in contour_generator(z=height).lines(0.5):
        points = (np.asarray(line)[:, :2] + offset) * scale
        pieces.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points[:-1]) + "Z")
        corner = points[np.argmax(points[:, 0] - points[:, 1])]
        if corner[0] - corner[1] > best[0] - best[1]:
            best = corner
    return "".join(pieces), (float(best[0]), float(best[1]))
