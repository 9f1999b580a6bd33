"""Scores as pure functions; what is undefined is NaN, never 0 or 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score


def dice_score(intersection: ArrayLike, found: ArrayLike, true: ArrayLike) -> float:
    """Return Dice pooled over cases, ``2 Σ|A∩B| / (Σ|A| + Σ|B|)`` (Dice 1945); NaN where both are empty."""
    total = float(np.sum(found) + np.sum(true))
    return 2 * float(np.sum(intersection)) / total if total else float("nan")


def auc_score(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve; NaN where only one class is there."""
    y = np.asarray(truth)
    return float(roc_auc_score(y, np.asarray(score))) if 0 < y.sum() < len(y) else float("nan")


def precision_score(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the average precision (area under the precision-recall steps); NaN where only one class is there."""
    y = np.asarray(truth)
    return float(average_precision_score(y, np.asarray(score))) if 0 < y.sum() < len(y) else float("nan")


def youden_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the threshold of the highest sensitivity + specificity, in the middle of the gap that it lies in.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    y, s = np.asarray(truth, float), np.asarray(score, float)
    if not 0 < y.sum() < len(y):
        raise ValueError("a threshold needs both positive and negative cases")
    levels = np.unique(s)
    candidates = np.concatenate([[levels[0]], (levels[1:] + levels[:-1]) / 2])
    gains = [
        ((s >= t) & (y == 1)).sum() / y.sum() - ((s >= t) & (y == 0)).sum() / (len(y) - y.sum()) for t in candidates
    ]
    return float(candidates[int(np.argmax(gains))])
