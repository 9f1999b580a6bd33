"""Scores of weighted rows, for many weightings at once: what the bootstrap repeats two thousand times.

Every function takes `weights` of shape ``(draws, rows)`` (how often each row counts in each draw) and returns one
number per draw, NaN where it is undefined. With weights of one they equal scikit-learn's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def ratio(weights: Array, part: ArrayLike, whole: ArrayLike) -> Array:
    """Return ``Σ w·part / Σ w·whole``: a share pooled over rows."""
    return divide(weights @ np.asarray(part, float), weights @ np.asarray(whole, float))


def mean(weights: Array, values: ArrayLike) -> Array:
    """Return the mean of the values; rows that are NaN do not count."""
    x = np.asarray(values, float)
    known = np.isfinite(x)
    return ratio(weights[:, known], x[known], np.ones(int(known.sum())))


def mean_of_groups(weights: Array, values: ArrayLike, groups: ArrayLike) -> Array:
    """Return the mean over groups of the mean within each; a group counts as often as it was drawn.

    All rows of a group must have the same weight, as they have in a bootstrap over groups.
    """
    x, names = np.asarray(values, float), np.asarray(groups)
    known = np.isfinite(x)
    if not known.any():
        return np.full(len(weights), np.nan)
    _, first, member = np.unique(names[known], return_index=True, return_inverse=True)
    inner = np.bincount(member, x[known]) / np.bincount(member)
    return mean(weights[:, known][:, first], inner)


def auc(weights: Array, truth: ArrayLike, score: ArrayLike) -> Array:
    """Return the area under the ROC curve: the share of pairs that are ranked right, ties counting half."""
    positive, negative = _levels(weights, truth, score)
    below = np.cumsum(negative, axis=1) - negative
    return divide((positive * (below + negative / 2)).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def average_precision(weights: Array, truth: ArrayLike, score: ArrayLike) -> Array:
    """Return the average precision: precision at each level of score, weighted with the recall that it adds."""
    positive, negative = (levels[:, ::-1] for levels in _levels(weights, truth, score))
    true, false = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    both = (positive.sum(axis=1) > 0) & (negative.sum(axis=1) > 0)
    return np.where(both, divide((precision * positive).sum(axis=1), positive.sum(axis=1)), np.nan)


def called(weights: Array, truth: ArrayLike, positive: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Return the weighted true positives, false positives, false negatives and true negatives."""
    y, p = np.asarray(truth, float) > 0.5, np.asarray(positive, bool)
    true_positive, false_positive, false_negative, true_negative = (
        weights @ chosen.astype(float) for chosen in (y & p, ~y & p, y & ~p, ~y & ~p)
    )
    return true_positive, false_positive, false_negative, true_negative


def calibration_error(weights: Array, truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> Array:
    """Return the expected calibration error over equal-width bins (Naeini 2015, Guo 2017)."""
    y, p = np.asarray(truth, float), np.asarray(probability, float)
    member = np.clip((p * bins).astype(int), 0, bins - 1)
    gaps = weights @ ((p - y)[:, None] * (member[:, None] == np.arange(bins)))
    return divide(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def divide(part: Array, whole: Array) -> Array:
    """Return ``part / whole``, NaN where `whole` is 0."""
    out = np.full(np.broadcast(part, whole).shape, np.nan)
    return np.asarray(np.divide(part, whole, out=out, where=np.asarray(whole) > 0))


def _levels(weights: Array, truth: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    """Return the weight of positives and of negatives at each distinct score, lowest first, ``(draws, levels)``."""
    y, s = np.asarray(truth, float) > 0.5, np.asarray(score, float)
    order = np.argsort(s, kind="stable")
    if not len(order):
        return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    starts = np.flatnonzero(np.r_[True, np.diff(s[order]) > 0])
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * y[order], starts, axis=1)
    return positive, np.add.reduceat(ordered * ~y[order], starts, axis=1)
