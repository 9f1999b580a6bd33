"""How much of a map lies inside the lesion: the energy-based pointing game, against what chance would give.

The share of a map's sum that falls into the true region is the score of Wang et al. 2020 ("Score-CAM",
arXiv 1910.01279). A map that knows nothing spreads over the head, so chance is the lesion's share of the head's area;
energy outside the head counts against the map all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Energy:
    """How a map fits a lesion; NaN where there is no lesion, or the map is 0 everywhere."""

    inside: float
    """Share of the map's sum inside the lesion, 0 to 1."""
    chance: float
    """The lesion's share of the head: what a map gets that is even over the head."""
    peak_inside: bool | None
    """Whether the map's highest value lies in the lesion; None where `inside` is NaN."""

    @property
    def ratio(self) -> float:
        """`inside` over `chance`: above 1 the map is better than chance."""
        return self.inside / self.chance if self.chance > 0 else float("nan")


def energy_inside(values: Map, lesion: Mask, head: Mask, weights: NDArray[np.float64] | None = None) -> Energy:
    """Score a map of a slice or a scan.

    Parameters
    ----------
    values
        The map, not negative; shape ``(slices, rows, columns)`` or ``(rows, columns)``.
    lesion, head
        Same shape. What of the lesion lies outside the head counts as head too.
    weights
        Size of a pixel of each slice, shape ``(slices,)``, where slices differ in size; only for three dimensions.

    Raises
    ------
    ValueError
        If shapes differ or the map is negative somewhere.
    """
    if not values.shape == lesion.shape == head.shape:
        raise ValueError(f"map {values.shape}, lesion {lesion.shape} and head {head.shape} differ in shape")
    if values.size and float(values.min()) < 0:
        raise ValueError("a map of evidence cannot be negative")
    size = np.ones(1) if weights is None else np.asarray(weights, dtype=np.float64)[:, None, None]
    total = float((values * size).sum())
    area = float((lesion * size).sum())
    if not lesion.any() or total <= 0:
        return Energy(float("nan"), area / max(float(((head | lesion) * size).sum()), 1e-12), None)
    peak = np.unravel_index(int(values.argmax()), values.shape)
    return Energy(
        inside=float((np.where(lesion, values, 0) * size).sum()) / total,
        chance=area / float(((head | lesion) * size).sum()),
        peak_inside=bool(lesion[peak]),
    )
