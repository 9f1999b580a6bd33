"""Scores against hand-counted cases and scikit-learn; intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest

from hemolens.evaluation.bootstrap import bootstrap
from hemolens.evaluation.metrics import auc_score, dice_score, precision_score, youden_threshold


def test_dice_is_pooled() -> None:
    assert dice_score([1, 8], [2, 10], [2, 10]) == pytest.approx(2 * 9 / 24)


def test_the_undefined_is_nan() -> None:
    assert np.isnan(dice_score([0], [0], [0]))
    assert np.isnan(auc_score([1, 1], [0.1, 0.2]))
    assert np.isnan(precision_score([0, 0], [0.1, 0.2]))


def test_a_missed_lesion_is_zero_not_nan() -> None:
    assert dice_score([0], [0], [5]) == 0.0


def test_auc_counts_pairs() -> None:
    truth, score = [0, 0, 1, 1, 1], [0.1, 0.4, 0.35, 0.8, 0.4]
    assert auc_score(truth, score) == pytest.approx((1 + 2 + 1.5) / 6)


def test_the_threshold_lies_between_the_classes() -> None:
    assert youden_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="both"):
        youden_threshold([1, 1], [0.2, 0.3])


def test_intervals_draw_patients_not_slices() -> None:
    """Ten patients of 50 equal slices know as much as ten slices."""
    rng = np.random.default_rng(0)
    per_patient = rng.normal(0, 1, 10)
    values = np.repeat(per_patient, 50)
    groups = [str(i) for i in np.repeat(np.arange(10), 50)]
    grouped = bootstrap(groups, lambda i: float(values[i].mean()))
    single = bootstrap([str(i) for i in range(500)], lambda i: float(values[i].mean()))
    assert grouped.groups == 10
    assert (grouped.high - grouped.low) > 4 * (single.high - single.low)
    assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * per_patient.std() / np.sqrt(10), rel=0.15)


def test_undefined_draws_are_counted() -> None:
    found = bootstrap(["a", "b"], lambda i: float("nan") if (i == 0).all() else 1.0)
    assert found.undefined > 300
    assert found.value == 1.0
