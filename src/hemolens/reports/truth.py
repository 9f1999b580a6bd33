"""Found against true: what a report shows where the lesions of a scan are known, as those of the demo are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hemolens.measurements.lesions import Lesion
from hemolens.volume import LabelMap

MATCH_MM = 10.0
"""A found lesion may be a true one if their centroids are no farther apart than this and the larger one's radius
together."""


class TrueLesion(Protocol):
    """A lesion that is known to be there."""

    @property
    def subtype(self) -> str:
        """One of `hemolens.labels.SUBTYPE_NAMES`."""

    @property
    def volume_ml(self) -> float:
        """Its true volume."""

    @property
    def centroid_mm(self) -> tuple[float, float, float]:
        """LPS."""


class Truth(Protocol):
    """Every lesion of a scan."""

    @property
    def lesions(self) -> Sequence[TrueLesion]:
        """All of them."""

    @property
    def labels(self) -> NDArray[np.uint8] | None:
        """True label map on the grid of the scan, or None."""


@dataclass(frozen=True)
class Pair:
    """A true lesion and the found one that it was matched with, or one of the two alone."""

    true: TrueLesion | None
    found: Lesion | None
    distance_mm: float | None
    """Between the centroids."""


def match(found: Sequence[Lesion], truth: Truth) -> tuple[Pair, ...]:
    """Pair found with true lesions by the distance of their centroids, the nearest first, each at most once.

    Returns
    -------
    tuple
        Every true lesion in its order, then found ones that are not true.
    """
    candidates = []
    for t, true in enumerate(truth.lesions):
        for f, lesion in enumerate(found):
            if lesion.centroid_mm is None or lesion.volume_ml is None:
                continue
            distance = float(np.linalg.norm(np.subtract(true.centroid_mm, lesion.centroid_mm)))
            if distance <= MATCH_MM + _radius_mm(max(true.volume_ml, lesion.volume_ml)):
                candidates.append((distance, t, f))
    partner: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    for distance, t, f in sorted(candidates):
        if t not in partner and f not in taken:
            partner[t] = (f, distance)
            taken.add(f)
    pairs = []
    for t, true in enumerate(truth.lesions):
        if t in partner:
            f, distance = partner[t]
            pairs.append(Pair(true, found[f], distance))
        else:
            pairs.append(Pair(true, None, None))
    return (*pairs, *(Pair(None, lesion, None) for f, lesion in enumerate(found) if f not in taken))


def dice(label_map: LabelMap, truth: Truth) -> float | None:
    """Return the Dice coefficient of all blood; None without a true label map, or where neither holds any blood."""
    if truth.labels is None or truth.labels.shape != label_map.labels.shape:
        return None
    found, true = label_map.labels > 0, truth.labels > 0
    total = np.count_nonzero(found) + np.count_nonzero(true)
    return 2.0 * np.count_nonzero(found & true) / total if total else None


def _radius_mm(volume_ml: float) -> float:
    return float((3000.0 * volume_ml / (4.0 * np.pi)) ** (1.0 / 3.0))
