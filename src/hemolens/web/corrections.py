"""Changing a label map by hand: brush, eraser, and clicks on whole lesions. Pure functions on the grid of the scan.

Every change is an `Edit` that can be taken back and says what it was. A click means the whole lesion in three
dimensions, as the lesion table numbers them (`hemolens.measurements.lesions.number_lesions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.errors import InputError
from hemolens.inference.prediction import Prediction
from hemolens.labels import SUBTYPES, subtype_at
from hemolens.measurements.lesions import number_lesions
from hemolens.measurements.regions import Scale
from hemolens.volume import LabelMap, Volume

Kind = Literal["brush", "erase", "erase lesion", "relabel lesion", "add lesion", "take over"]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Place = tuple[int, int, int]
"""Slice, row and column."""

SNAP_PX = 3.0
"""A click this close to a lesion means it: outlines are thin and fingers are not."""
SURE_ENOUGH = 0.05
"""Where the network gives blood at least this probability, a click to add takes its own shape at half of that."""
GROW_HU = (12.0, 30.0)
"""Else it takes what is connected and at most so much darker or brighter than the clicked place."""
GROW_BOUNDS_HU = (38.0, 110.0)
"""And never what is darker than blood or as bright as bone."""
GROW_REACH_MM = 45.0
GROW_REACH_PX = 100
GROW_MOST_SHARE = 0.5
"""A region that fills more than this of its reach has leaked."""
HISTORY_MOST = 200
"""Changes that can be taken back."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of a label map."""

    kind: Kind
    label: int
    """What was painted: 1 to 5, or 0 where blood was taken away."""
    slices: tuple[int, ...]
    where: NDArray[np.int64]
    """Changed voxels, as flat indices."""
    before: Labels
    """What they held."""
    after: Labels
    source: str = ""
    """Where what was taken over comes from."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def told(self) -> str:
        """Say it in a few words, slices counted from 1: ``Relabeled a lesion as subdural (slices 4 to 9)``."""
        first, last = self.slices[0] + 1, self.slices[-1] + 1
        where = f"slice {first}" if first == last else f"slices {first} to {last}"
        name = subtype_at(self.label).name if self.label else ""
        verbs = {
            "brush": f"Painted {name}", "erase": "Erased with the brush", "erase lesion": "Erased a lesion",
            "relabel lesion": f"Relabeled a lesion as {name}", "add lesion": f"Added a lesion, {name}",
            "take over": f"Took over {self.source}",
        }  # fmt: skip
        return f"{verbs[self.kind]} ({where})"

    def to_mapping(self, volume: Volume) -> dict[str, Any]:
        """Return what ``correction.json`` says of it."""
        scale = Scale.of(volume)
        counts = np.bincount(self.where // (volume.shape[1] * volume.shape[2]), minlength=len(volume))
        size = float(counts @ scale.weights)
        return {
            "kind": self.kind,
            "label": subtype_at(self.label).name if self.label else None,
            "slices": list(self.slices),
            "voxels": len(self.where),
            **({"source": self.source} if self.source else {}),
            **({"changed_ml": round(size, 6)} if scale.in_ml else {}),
            "at": self.at.isoformat(timespec="seconds"),
        }


@dataclass(frozen=True, eq=False)
class Draft:
    """A label map on its way: where it began, what was changed, and what was taken back."""

    volume: Volume
    labels: Labels
    done: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()
    """The next to be done again comes last."""

    @classmethod
    def of(cls, label_map: LabelMap) -> Draft:
        """Begin with a label map."""
        return cls(label_map.volume, label_map.labels)

    @property
    def label_map(self) -> LabelMap:
        """As it stands."""
        return LabelMap(self.labels, self.volume)

    def paint(self, index: int, points: NDArray[np.float64], radius: tuple[float, float], label: int) -> Draft:
        """Draw with the brush, or with the eraser where `label` is 0.

        Parameters
        ----------
        index
            Slice.
        points
            Fractional rows and columns that the stroke goes through, shape ``(n, 2)``; 0, 0 is the first pixel's
            center.
        radius
            In rows and in columns.
        label
            1 to 5, or 0 to erase.

        Raises
        ------
        InputError
            If slice or label is not there.
        """
        self._check(index, label)
        touched = stroke_mask(self.volume.shape[1:], points, radius)
        mask = np.zeros(self.volume.shape, dtype=bool)
        mask[index] = touched
        return self._changed("brush" if label else "erase", mask, label)

    def erase_lesion(self, place: Place) -> Draft:
        """Take away the whole lesion at a place.

        Raises
        ------
        InputError
            If there is none.
        """
        return self._changed("erase lesion", lesion_at(self.label_map, place), 0)

    def relabel_lesion(self, place: Place, label: int) -> Draft:
        """Give the whole lesion at a place another subtype.

        Raises
        ------
        InputError
            If there is none, or the label is none.
        """
        self._check(place[0], label, erasing=False)
        return self._changed("relabel lesion", lesion_at(self.label_map, place), label)

    def add_lesion(self, place: Place, label: int, prediction: Prediction | None = None) -> Draft:
        """Outline what lies around a place, where nothing is outlined yet; see `region_at`.

        Raises
        ------
        InputError
            If no region can be told from what surrounds it, or the label is none.
        """
        self._check(place[0], label, erasing=False)
        region = region_at(self.volume, place, prediction)
        return self._changed("add lesion", region & (self.labels == 0), label)

    def take_over(self, labels: Labels, source: str) -> Draft:
        """Go on with another label map of the same scan, such as a saved correction.

        Parameters
        ----------
        labels
            Shape of the scan, 0 to 5.
        source
            Where it comes from, for people: ``the correction by Ada Reader of 2026-11-22``.

        Raises
        ------
        InputError
            If it cannot belong to this scan.
        """
        if labels.shape != self.volume.shape or int(labels.max(initial=0)) > len(SUBTYPES):
            raise InputError("the saved mask", "does not fit this scan", "Open the scan that it was made on.")
        where = np.flatnonzero(labels != self.labels)
        if not len(where):
            return self
        after = labels.reshape(-1)[where].astype(np.uint8)
        return self._done("take over", 0, where, after, source)

    def undo(self) -> Draft:
        """Take the last change back; the same draft if there is none."""
        if not self.done:
            return self
        edit = self.done[-1]
        return replace(
            self, labels=_with(self.labels, edit.where, edit.before), done=self.done[:-1], undone=(*self.undone, edit)
        )

    def redo(self) -> Draft:
        """Do again what was taken back last; the same draft if there is nothing."""
        if not self.undone:
            return self
        edit = self.undone[-1]
        return replace(
            self, labels=_with(self.labels, edit.where, edit.after), done=(*self.done, edit), undone=self.undone[:-1]
        )

    def _changed(self, kind: Kind, mask: Mask, label: int) -> Draft:
        where = np.flatnonzero(mask & (self.labels != label))
        return self._done(kind, label, where, np.full(len(where), label, dtype=np.uint8)) if len(where) else self

    def _done(self, kind: Kind, label: int, where: NDArray[np.int64], after: Labels, source: str = "") -> Draft:
        slices = tuple(int(k) for k in np.unique(where // (self.volume.shape[1] * self.volume.shape[2])))
        edit = Edit(kind, label, slices, where, self.labels.reshape(-1)[where], after, source)
        return replace(
            self, labels=_with(self.labels, where, after), done=(*self.done, edit)[-HISTORY_MOST:], undone=()
        )

    def _check(self, index: int, label: int, *, erasing: bool = True) -> None:
        if not 0 <= index < len(self.volume):
            raise InputError(f"slice {index}", "is not in this scan", f"Slices are 0 to {len(self.volume) - 1}.")
        if not (0 if erasing else 1) <= label <= len(SUBTYPES):
            raise InputError(f"label {label}", "is no subtype", "Choose a subtype first.")


def stroke_mask(shape: Sequence[int], points: NDArray[np.float64], radius: tuple[float, float]) -> Mask:
    """Return the pixels of a slice that a round brush touches on its way.

    Parameters
    ----------
    shape
        Rows and columns.
    points
        As `Draft.paint`. What lies outside the slice is cut off.
    radius
        In rows and in columns; the pixel under each point is always touched.
    """
    mask = np.zeros(tuple(shape), dtype=bool)
    path = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    path = path[np.isfinite(path).all(axis=1)]
    reach = np.maximum(np.asarray(radius, dtype=np.float64), 0.5)
    if not len(path) or not np.isfinite(reach).all():
        return mask
    for start, end in zip(path, path[1:] if len(path) > 1 else path, strict=False):
        low = np.maximum(np.floor(np.minimum(start, end) - reach).astype(int), 0)
        high = np.minimum(np.ceil(np.maximum(start, end) + reach).astype(int) + 1, mask.shape)
        if (low >= high).any():
            continue
        rows, columns = np.ogrid[low[0] : high[0], low[1] : high[1]]
        # In units of the radius the brush is a circle.
        step = (end - start) / reach
        r, c = (rows - start[0]) / reach[0], (columns - start[1]) / reach[1]
        length = float(step @ step)
        along = np.clip((r * step[0] + c * step[1]) / length, 0, 1) if length else 0.0
        near = (r - along * step[0]) ** 2 + (c - along * step[1]) ** 2 <= 1
        mask[low[0] : high[0], low[1] : high[1]] |= near
    inside = np.rint(path).astype(int)
    inside = inside[((inside >= 0) & (inside < mask.shape)).all(axis=1)]
    mask[inside[:, 0], inside[:, 1]] = True
    return mask


def is_outlined(label_map: LabelMap, place: Place) -> bool:
    """Whether a click at a place means a lesion that is outlined already."""
    return _nearest(label_map, place) is not None


def lesion_at(label_map: LabelMap, place: Place) -> Mask:
    """Return the voxels of the lesion at a place, or of the nearest one within `SNAP_PX` on the same slice.

    Raises
    ------
    InputError
        If there is none.
    """
    found = _nearest(label_map, place)
    if found is None:
        raise InputError(
            f"slice {place[0]}", "no lesion is outlined there", "Click inside an outline, or use the brush."
        )
    numbers = number_lesions(label_map)
    return np.asarray(numbers == numbers[found])


def _nearest(label_map: LabelMap, place: Place) -> Place | None:
    """Return the outlined voxel nearest to a place on its slice, if one lies within `SNAP_PX`."""
    index, row, column = place
    if not 0 <= index < len(label_map.volume):
        return None
    blood = np.argwhere(label_map.labels[index] > 0)
    away = np.hypot(*(blood - (row, column)).T) if len(blood) else np.array([np.inf])
    if away.min() > SNAP_PX:
        return None
    r, c = (int(n) for n in blood[int(away.argmin())])
    return index, r, c


def region_at(volume: Volume, place: Place, prediction: Prediction | None = None) -> Mask:
    """Return the region around a place that looks like it, in three dimensions.

    Where the network gives blood some probability, though too little to outline it, the region is what has at least
    half of the place's probability; else what is about as bright. Both are connected, at most `GROW_REACH_MM` away.

    Raises
    ------
    InputError
        If the place is outside the scan or too dark or bright for blood, or the region has no border of its own.
    """
    if not all(0 <= at < size for at, size in zip(place, volume.shape, strict=True)):
        raise InputError("the clicked place", "is outside the scan", "Click inside the head.")
    box = _box(volume, place)
    seed = tuple(at - part.start for at, part in zip(place, box, strict=True))
    region: Mask | None = None
    if prediction is not None and float(prediction.blood[place]) >= SURE_ENOUGH:
        region = _connected(prediction.blood[box] >= float(prediction.blood[place]) / 2, seed)
    if region is None or _leaks(region):
        region = _alike(volume, box, seed)
    if region is None or _leaks(region):
        raise InputError(
            f"slice {place[0]}", "what was clicked has no border that can be followed", "Draw it with the brush."
        )
    mask = np.zeros(volume.shape, dtype=bool)
    mask[box] = region
    return mask


def _box(volume: Volume, place: Place) -> tuple[slice, slice, slice]:
    reach = [GROW_REACH_PX, GROW_REACH_PX]
    depth = np.abs(np.arange(len(volume)) - place[0]) <= len(volume)
    if volume.stack is not None:
        reach = [int(np.ceil(GROW_REACH_MM / s)) for s in volume.stack.spacings_mm[place[0]]]
        depth = np.abs(volume.stack.offsets_mm - volume.stack.offsets_mm[place[0]]) <= GROW_REACH_MM
    near = np.flatnonzero(depth)
    sides = [
        slice(max(at - r, 0), min(at + r + 1, size))
        for at, r, size in zip(place[1:], reach, volume.shape[1:], strict=True)
    ]
    return slice(int(near[0]), int(near[-1]) + 1), sides[0], sides[1]


def _alike(volume: Volume, box: tuple[slice, slice, slice], seed: tuple[int, ...]) -> Mask | None:
    """Return what is connected with the seed and about as bright; None where the seed itself is no blood."""
    smooth = ndimage.median_filter(volume.hu[box].astype(np.float32), size=(1, 5, 5), mode="nearest")
    middle = float(smooth[seed])
    low, high = max(middle - GROW_HU[0], GROW_BOUNDS_HU[0]), min(middle + GROW_HU[1], GROW_BOUNDS_HU[1])
    if not low <= middle <= high:
        return None
    # Thin bridges are where such a region leaks into its surroundings.
    kept = ndimage.binary_opening((smooth >= low) & (smooth <= high), np.ones((1, 3, 3), dtype=bool))
    region = _connected(kept, seed)
    if region is None:
        return None
    filled = [ndimage.binary_fill_holes(plane) for plane in region]
    return np.stack(filled)


def _connected(mask: Mask, seed: tuple[int, ...]) -> Mask | None:
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3), dtype=bool))
    number = labels[seed]
    return np.asarray(labels == number) if number else None


def _leaks(region: Mask) -> bool:
    """Whether a region runs through the sides of its box in the plane, or fills most of it."""
    edges = region[:, [0, -1]].any() or region[:, :, [0, -1]].any()
    return bool(edges) or bool(region.mean() > GROW_MOST_SHARE)


def _with(labels: Labels, where: NDArray[np.int64], values: Labels) -> Labels:
    changed = labels.copy()
    changed.reshape(-1)[where] = values
    changed.setflags(write=False)
    return changed
