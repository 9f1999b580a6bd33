"""Confidence intervals by drawing patients, never slices, with replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 2000
CHUNK = 2_000_000
"""Weights held at a time, so that memory does not grow with the number of draws times rows."""


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


def bootstrap(groups: Sequence[str], score: Callable[[Array], Array], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return `score` on all rows, with its 95 % percentile interval over groups (Efron 1979).

    Parameters
    ----------
    groups
        Patient of each row.
    score
        Maps weights of the rows, shape ``(draws, rows)``, to one number per draw, NaN where undefined. A row's weight
        is how often its patient was drawn; `hemolens.evaluation.weighted` holds such scores.

    Returns
    -------
    Estimate
        The interval is NaN for fewer than two groups: one patient says nothing about others.
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rows = len(member)
    value = float(score(np.ones((1, rows)))[0]) if rows else float("nan")
    if len(names) < 2:
        return Estimate(value, float("nan"), float("nan"), len(names), 0)
    rng = np.random.default_rng(seed)
    drawn = []
    step = max(1, CHUNK // max(rows, len(names)))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        drawn.append(np.asarray(score(counts[:, member].astype(np.float64))))
    told = np.concatenate(drawn)
    told = told[np.isfinite(told)]
    low, high = np.percentile(told, [2.5, 97.5]) if told.size else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), len(names), int(draws - told.size))
