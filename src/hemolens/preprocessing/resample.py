"""Resampling of slices between a pixel grid and a square crop, exact about pixel centers, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True)
class Crop:
    """A rectangle of a slice, seen as ``size x size`` samples.

    Coordinates are in pixels of the slice, pixel centers at whole numbers. Sample ``i`` lies at
    ``start + (i + 0.5) * length / size - 0.5``: the crop covers ``[start - 0.5, start + length - 0.5]``.
    """

    row_start: float
    column_start: float
    rows: float
    """Height of the rectangle in pixels."""
    columns: float
    """Width of the rectangle in pixels."""
    size: int

    def __post_init__(self) -> None:
        if self.size < 1 or not (self.rows > 0 and self.columns > 0):
            raise ValueError("a crop needs a size and an area")

    def to_source(self, row: float, column: float) -> tuple[float, float]:
        """Map crop coordinates to slice coordinates."""
        return (
            self.row_start + (row + 0.5) * self.rows / self.size - 0.5,
            self.column_start + (column + 0.5) * self.columns / self.size - 0.5,
        )

    def extract(self, slices: NDArray[np.generic]) -> NDArray[np.float32]:
        """Sample the crop from ``(…, rows, columns)``; low-pass filtered where it shrinks, 0 outside the image."""
        rows = _weights(self.row_start, self.rows / self.size, self.size, slices.shape[-2])
        columns = _weights(self.column_start, self.columns / self.size, self.size, slices.shape[-1])
        return _resampled(slices.astype(np.float32, copy=False), rows, columns)

    def restore(self, samples: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
        """Sample ``(…, size, size)`` back onto a slice of `shape`; 0 outside the crop."""
        return _resampled(samples, *self._weights_back(shape))

    def covered(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of a slice of `shape` whose centers lie in the crop: what `restore` fills."""
        filled = (np.flatnonzero(np.diff(weights.indptr)) for weights in self._weights_back(shape))
        rows, columns = (slice(int(f[0]), int(f[-1]) + 1) if len(f) else slice(0) for f in filled)
        return rows, columns

    def _weights_back(self, shape: tuple[int, int]) -> tuple[sparse.csr_array, sparse.csr_array]:
        row_step, column_step = self.size / self.rows, self.size / self.columns
        rows = _weights(-self.row_start * row_step, row_step, shape[0], self.size, hold=True)
        columns = _weights(-self.column_start * column_step, column_step, shape[1], self.size, hold=True)
        return rows, columns


def _resampled(slices: NDArray[np.float32], rows: sparse.csr_array, columns: sparse.csr_array) -> NDArray[np.float32]:
    """Return ``rows @ slice @ columns.T`` of each slice of ``(…, rows, columns)``."""
    found = np.empty((*slices.shape[:-2], rows.shape[0], columns.shape[0]), dtype=np.float32)
    for place in np.ndindex(slices.shape[:-2]):
        found[place] = rows @ (columns @ slices[place].T).T
    return found


@lru_cache(maxsize=16)  # a scan's slices are alike
def _weights(start: float, step: float, outputs: int, inputs: int, hold: bool = False) -> sparse.csr_array:
    """Return the sparse ``(outputs, inputs)`` matrix of a triangle filter as wide as the coarser of the two grids.

    Output ``i`` is centered at ``start + (i + 0.5) * step - 0.5``. Its weights sum to 1 over an endless grid, of which
    `inputs` are there and the rest is 0. With `hold`, the outermost input carries on for half a sample beyond its
    center, as pixels do.
    """
    centers = start + (np.arange(outputs) + 0.5) * step - 0.5
    support = max(1.0, step)
    outside = (centers < -0.5) | (centers > inputs - 0.5)
    if hold:
        centers = np.clip(centers, 0, inputs - 1)
    near = np.floor(centers).astype(np.intp)[:, None] + np.arange(-int(support), int(support) + 2)
    there = (near >= 0) & (near < inputs)
    weights = np.maximum(0.0, 1.0 - np.abs(centers[:, None] - near) / support)
    if hold:
        weights *= there
    weights /= weights.sum(axis=1, keepdims=True)
    if hold:
        weights[outside] = 0.0
    output, tap = np.nonzero(there & (weights > 0))
    entries = weights[output, tap].astype(np.float32), (output, near[output, tap])
    return sparse.csr_array(entries, shape=(outputs, inputs))
