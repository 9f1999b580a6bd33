"""The recorded, invertible way from a volume to network input and from network output back onto the source grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import GeometryError
from hemolens.geometry import Stack
from hemolens.preprocessing.head import bone, find_crop, gate, whole_slice
from hemolens.preprocessing.resample import Crop
from hemolens.preprocessing.window import BONE_HU, BRAIN_WINDOW, restore_ends, to_gray
from hemolens.volume import Volume

Scalar = TypeVar("Scalar", bound=np.generic)
AXIAL_LIMIT_DEG = 45.0
"""Beyond this angle between the slice normal and the body axis a stack is not axial in any sense."""
BONE_UNCUT = (BONE_HU - BRAIN_WINDOW.low_hu) * 255.0 / BRAIN_WINDOW.width_hu
"""Gray value that bone would have if gray did not end at 255."""


@dataclass(frozen=True)
class PreprocessConfig:
    """What a network was trained to see; saved in its card.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    size: int = 224
    """Samples along each side of the head crop."""
    context_mm: float = 5.0
    """Distance of the slices shown above and below; thinner slices are averaged to about this thickness."""
    crop: Literal["head", "none"] = "head"
    """``"none"``: the whole slice, padded to a square."""
    gate: bool = True
    """Take blood outside the skull for what it is: outside."""
    mirror: bool = True
    """Average the network's answer with that to the mirror image."""
    neighbor_support: float = 0.0
    """How much blood is doubted that the slices above and below do not show, see `hemolens.inference.support`; 0 for
    not at all."""
    dark_doubt: float = 0.0
    """How far from brain to a bright bleed its unsure pixels are doubted as dark, see `hemolens.inference.darkness`; 0
    for not at all."""

    enlarge_below: float = 0.0
    """Where the head needs less than this share of the crop's side (near the vertex, below the skull base), the second
    view of a slice is enlarged, see `hemolens.inference.views`; 0 for nowhere. For networks that read single slices."""

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError("size must be a positive multiple of 32")
        if not self.context_mm > 0:
            raise ValueError("context_mm must be positive")
        if not 0 <= self.neighbor_support <= 2:
            raise ValueError("neighbor_support must be from 0 to 2")
        if not 0 <= self.dark_doubt <= 1:
            raise ValueError("dark_doubt must be from 0 to 1")
        if not 0 <= self.enlarge_below <= 1:
            raise ValueError("enlarge_below must be from 0 to 1")


@dataclass(frozen=True)
class Orientation:
    """In-plane and through-plane moves that bring a stack to rows toward P, columns toward L, slices toward S."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    flip_slices: bool = False

    @classmethod
    def of(cls, stack: Stack | None) -> Orientation:
        """Read the moves off the direction cosines; a source without geometry is taken as it is shown.

        Raises
        ------
        GeometryError
            If the slices are not axial.
        """
        if stack is None:
            return cls()
        down, right, normal = stack.column_directions[0], stack.row_directions[0], stack.normal
        if abs(normal[2]) < np.cos(np.radians(AXIAL_LIMIT_DEG)):
            raise GeometryError(
                "geometry",
                "the slices are not axial",
                "Choose the axial series (--series), or give the scan as NIfTI, which is turned as needed.",
            )
        transpose = abs(down[0]) > abs(down[1])
        if transpose:
            down, right = right, down
        return cls(bool(transpose), bool(down[1] < 0), bool(right[0] < 0), bool(normal[2] < 0))

    def apply(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn ``(slices, rows, columns)`` from the source's order to the network's; a view."""
        turned = array.swapaxes(1, 2) if self.transpose else array
        return turned[_flip(self.flip_slices), _flip(self.flip_rows), _flip(self.flip_columns)]

    def undo(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn ``(slices, rows, columns)`` from the network's order back to the source's; a view."""
        turned = array[_flip(self.flip_slices), _flip(self.flip_rows), _flip(self.flip_columns)]
        return turned.swapaxes(1, 2) if self.transpose else turned


@dataclass(frozen=True, eq=False)
class Prepared:
    """Network input together with the way back.

    Parameters
    ----------
    crops
        Gray head crops, uint8, shape ``(slices, size, size)``, in the network's order.
    gates
        Where blood may be, bool, same shape.
    contexts
        What the network sees for each slice: below, the slice, above; uint8, shape ``(slices, 3, size, size)``.
    orientation, crop, shape
        The steps taken, and the source's shape.
    offsets_mm
        Where each slice lies along the body, in the network's order.
    step
        Every how many slices lie about ``context_mm`` apart: 1 for thick slices, 5 for slices of 1 mm.
    """

    crops: NDArray[np.uint8]
    gates: NDArray[np.bool_]
    contexts: NDArray[np.uint8]
    orientation: Orientation
    crop: Crop
    shape: tuple[int, int, int]
    offsets_mm: NDArray[np.float64]
    step: int = 1

    def restore(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring ``(slices, size, size)`` from the network's grid onto the source grid; 0 outside the crop.

        Some of the slices do as well: in the network's order they come, in the source's order they go.
        """
        plane = (self.shape[2], self.shape[1]) if self.orientation.transpose else (self.shape[1], self.shape[2])
        return np.ascontiguousarray(self.orientation.undo(self.crop.restore(samples, plane)), dtype=np.float32)

    def restore_slices(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Bring one row per slice, shape ``(slices, …)``, back to the source's slice order."""
        return np.ascontiguousarray(values[_flip(self.orientation.flip_slices)])


def prepare(volume: Volume, config: PreprocessConfig) -> Prepared:
    """Turn, window and crop a volume for a network.

    Raises
    ------
    GeometryError
        If the slices are not axial.
    """
    orientation = Orientation.of(volume.stack)
    turned = orientation.apply(volume.hu)
    gray = restore_ends(to_gray(turned), turned, volume.source.window)  # type: ignore[arg-type]
    crop = choose_crop(gray, _pixel_aspect(volume.stack, orientation), config)
    crops = np.stack([np.clip(np.rint(crop.extract(g)), 0, 255).astype(np.uint8) for g in gray])
    gates = np.stack([gate(image) for image in crops]) if config.gate else np.ones(crops.shape, dtype=bool)
    offsets = _offsets(volume.stack, len(volume), orientation, config.context_mm)
    seen = contexts(crops, offsets, config.context_mm)
    step = slice_step(offsets, config.context_mm)
    return Prepared(crops, gates, seen, orientation, crop, volume.shape, offsets, step)


def choose_crop(gray: NDArray[np.uint8], pixel_aspect: float, config: PreprocessConfig) -> Crop:
    """Return the square that the network is shown of every slice, as `config` asks.

    Parameters
    ----------
    gray
        uint8, shape ``(slices, rows, columns)``.
    pixel_aspect
        Row spacing divided by column spacing (1 where unknown).
    """
    if config.crop == "none":
        return whole_slice((gray.shape[1], gray.shape[2]), pixel_aspect, config.size)
    return find_crop(gray, pixel_aspect, config.size)


def contexts(crops: NDArray[np.uint8], offsets_mm: NDArray[np.float64], context_mm: float) -> NDArray[np.uint8]:
    """Return for each slice the image one `context_mm` below, at, and above it, ``(slices, 3, size, size)``.

    Each is the mean of all slices nearer than half of `context_mm`, so that thin slices look like the thick ones that
    networks are trained on; where there is none, the nearest slice stands in.
    """
    seen = np.empty((len(crops), 3, *crops.shape[1:]), dtype=np.uint8)
    merged: dict[bytes, NDArray[np.uint8]] = {}  # what lies above one slice is another
    for k in range(len(crops)):
        for channel, members in enumerate(context_members(offsets_mm, context_mm, k)):
            key = members.tobytes()
            if key not in merged:
                merged[key] = merge_slices(crops[members])
            seen[k, channel] = merged[key]
    return seen


def context_members(
    offsets_mm: NDArray[np.float64], context_mm: float, index: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return which slices make up each of the three images of slice `index` (see `contexts`)."""

    def near(at: float) -> NDArray[np.intp]:
        distance = np.abs(offsets_mm - at)
        found = np.flatnonzero(distance < context_mm / 2)
        return found if found.size else np.array([distance.argmin()])

    offset = offsets_mm[index]
    return near(offset - context_mm), near(offset), near(offset + context_mm)


def slice_step(offsets_mm: NDArray[np.float64], context_mm: float) -> int:
    """Return every how many slices lie about `context_mm` apart, at least 1.

    Networks that read across slices are shown every that many of them, however thin the slices are.
    """
    gap = float(np.median(np.abs(np.diff(offsets_mm)))) if len(offsets_mm) > 1 else context_mm
    return max(1, min(round(context_mm / gap), len(offsets_mm))) if gap > 0 else 1


def merge_slices(crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what one slice as thick as all of ``(slices, size, size)`` would show: their mean, rounded.

    Gray ends at 100 HU, bone does not. A thick slice is white where a tenth of it is bone; the mean of gray would show
    half bone and half brain as bright as blood. So bone counts with the gray that it would have.
    """
    if len(crops) == 1:
        return np.asarray(crops[0])
    whole = np.where(np.stack([bone(plane) for plane in crops]), np.float32(BONE_UNCUT), crops)
    return np.asarray(np.minimum(np.rint(whole.mean(axis=0)), 255).astype(np.uint8))


def slice_offsets(volume: Volume, context_mm: float) -> NDArray[np.float64]:
    """Return where each slice lies along the body, in mm and in the network's order; `context_mm` apart if unknown."""
    return _offsets(volume.stack, len(volume), Orientation.of(volume.stack), context_mm)


def _offsets(stack: Stack | None, slices: int, orientation: Orientation, context_mm: float) -> NDArray[np.float64]:
    if stack is None:
        return np.asarray(np.arange(slices) * context_mm, dtype=np.float64)
    return np.asarray(stack.offsets_mm[::-1] * -1.0 if orientation.flip_slices else stack.offsets_mm)


def _pixel_aspect(stack: Stack | None, orientation: Orientation) -> float:
    if stack is None:
        return 1.0
    rows_mm, columns_mm = np.median(stack.spacings_mm, axis=0)
    return float(columns_mm / rows_mm if orientation.transpose else rows_mm / columns_mm)


def _flip(reverse: bool) -> slice:
    return slice(None, None, -1 if reverse else 1)
