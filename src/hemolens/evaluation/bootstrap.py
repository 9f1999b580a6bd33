"""Confidence intervals by drawing patients, never slices, with replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A score with its interval and what it rests on."""

    value: float
    low: float
    high: float
    groups: int
    """Patients (or cases) drawn."""
    undefined: int
    """Draws in which the score was undefined; they do not count."""


def bootstrap(
    groups: Sequence[str], score: Callable[[NDArray[np.intp]], float], draws: int = 2000, seed: int = 0
) -> Estimate:
    """Return `score` on all rows, with its 95 % percentile interval over groups (Efron 1979).

    Parameters
    ----------
    groups
        Patient of each row.
    score
        Maps row indices to a number, NaN where undefined.
    """
    names = np.asarray(groups)
    rows_of = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            score(np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))]))
            for _ in range(draws)
        ]
    )
    told = drawn[np.isfinite(drawn)]
    low, high = np.percentile(told, [2.5, 97.5]) if told.size else (np.nan, np.nan)
    value = score(np.arange(len(names)))
    return Estimate(float(value), float(low), float(high), len(rows_of), int(draws - told.size))
