"""Between the stored slices and the picture: the turn that puts the patient's right on the left, and its way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hemolens.reports.figures import View
from hemolens.volume import AIR_HU, Volume

if TYPE_CHECKING:
    from hemolens.web.session import Study

CACHE = "viewer-turned"


@dataclass(frozen=True, eq=False)
class Turned:
    """How every slice of one scan is turned for display (see `hemolens.reports.figures.View`)."""

    views: tuple[View, ...]
    shapes: tuple[tuple[int, int], ...]
    """Rows and columns of each turned slice."""
    slope: float
    intercept: float
    """Hounsfield units are ``stored * slope + intercept``, where `stored` is what `scan_bytes` sends."""

    @classmethod
    def of(cls, volume: Volume) -> Turned:
        """Read it off the scan's geometry."""
        views = tuple(View.of(volume.stack, k) for k in range(len(volume)))
        rows, columns = volume.shape[1:]
        shapes = tuple((columns, rows) if v.transpose else (rows, columns) for v in views)
        slope, intercept = 1.0, 0.0
        if volume.hu.dtype != np.int16:
            low, high = float(volume.hu.min()), float(volume.hu.max())
            slope, intercept = max((high - low) / 65000.0, 1e-6), (high + low) / 2
        return cls(views, shapes, slope, intercept)

    @property
    def height(self) -> int:
        """Rows that every picture has; a smaller slice is padded below."""
        return max(rows for rows, _ in self.shapes)

    @property
    def width(self) -> int:
        """Columns that every picture has; a smaller slice is padded on the right."""
        return max(columns for _, columns in self.shapes)

    def turn(self, values: NDArray[Any], first: int, last: int, fill: float) -> NDArray[Any]:
        """Return slices first to last (the last not included) as they are shown; contiguous, a copy."""
        shown = np.full((last - first, self.height, self.width), fill, dtype=values.dtype)
        for k in range(first, last):
            rows, columns = self.shapes[k]
            shown[k - first, :rows, :columns] = self.views[k].turn(values[k])
        return shown

    def to_source(self, index: int, points_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points of the picture to the stored slice.

        Parameters
        ----------
        index
            The slice.
        points_xy
            Shape ``(n, 2)``: x to the right, y down, in pixels of the turned slice; 0, 0 is the center of its first.

        Returns
        -------
        NDArray
            Shape ``(n, 2)``: row and column.
        """
        view, (rows, columns) = self.views[index], self.shapes[index]
        x, y = points_xy[:, 0], points_xy[:, 1]
        down = rows - 1 - y if view.flip_rows else y
        across = columns - 1 - x if view.flip_columns else x
        return np.stack([across, down] if view.transpose else [down, across], axis=1)

    def radius_to_source(self, index: int, radius_xy: tuple[float, float]) -> tuple[float, float]:
        """Map the half axes of a brush in the picture to source rows and columns."""
        x, y = radius_xy
        return (x, y) if self.views[index].transpose else (y, x)


def turned(study: Study) -> Turned:
    """Return how the scan of a study is turned; found once."""
    if CACHE not in study.extras:
        study.extras[CACHE] = Turned.of(study.volume)
    found: Turned = study.extras[CACHE]
    return found


def slices_as_bytes(study: Study, first: int, last: int) -> bytes:
    """Return slices as the viewer reads them: little-endian int16, turned."""
    how, hu = turned(study), study.volume.hu
    if hu.dtype == np.int16:
        return how.turn(hu, first, last, AIR_HU).astype("<i2", copy=False).tobytes()
    shown = how.turn(hu, first, last, float(hu.min()))
    return np.round((shown - how.intercept) / how.slope).astype("<i2").tobytes()
