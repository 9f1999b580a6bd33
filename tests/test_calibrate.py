"""Probabilities that mean what they say, and intervals that own up to how few patients they rest on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from hemolens.config import from_mapping, to_mapping
from hemolens.inference.calibrate import (
    Calibration,
    Logistic,
    conformal_band,
    conformal_interval,
    held_left_out,
    logit,
    sigmoid,
    study_score,
    venn_abers,
    volume_interval,
    volume_log_ratio,
)


def test_a_fit_finds_the_probabilities_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(0, 2, 20_000)
    truth = rng.random(20_000) < sigmoid(0.7 * score - 1.0)
    found = Logistic.fit(score[:, None], truth, penalty=0.0)
    assert found.weights[0] == pytest.approx(0.7, abs=0.05)
    assert found.intercept == pytest.approx(-1.0, abs=0.05)


def test_a_fit_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5000, 2))
    y = (rng.random(5000) < sigmoid(x @ [1.5, -0.5] + 0.3)).astype(int)
    own = Logistic.fit(x, y, penalty=0.0)
    reference = LogisticRegression(C=1e9).fit(x, y)
    assert own.weights == pytest.approx(reference.coef_[0], abs=0.01)  # Platt's targets differ from 0 and 1 by 1/n
    assert own.intercept == pytest.approx(reference.intercept_[0], abs=0.01)


def test_separable_scores_stay_finite() -> None:
    found = Logistic.fit(np.array([[-3.0], [-2.0], [2.0], [3.0]]), [0, 0, 1, 1])
    assert 0.5 < sigmoid(found.log_odds([[3.0]]))[0] < 0.99


def test_one_class_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="both"):
        Logistic.fit(np.zeros((3, 1)), [1, 1, 1])


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30), st.integers(-6, 6))
def test_venn_abers_agrees_with_isotonic_regression(cases: list[tuple[int, bool]], score: int) -> None:
    scores, truth = [float(s) for s, _ in cases], [int(t) for _, t in cases]
    low, high = venn_abers(scores, truth, float(score))
    for assumed, own in ((0, low), (1, high)):
        reference = IsotonicRegression().fit([*scores, score], [*truth, assumed]).predict([score])[0]
        assert own == pytest.approx(reference, abs=1e-6)
    assert 0 <= low <= high <= 1


def test_more_patients_narrow_the_interval() -> None:
    def width(n: int) -> float:
        scores = np.linspace(-3, 3, n)
        truth = (np.arange(n) % 2 == 0) | (scores > 1)
        low, high = venn_abers(tuple(scores), tuple(truth.astype(int)), 0.0)
        return high - low

    assert width(400) < 0.3 * width(20)


def calibration(**changes: object) -> Calibration:
    values = {
        "slice_any": Logistic((0.5, 0.5), -1.0),
        "slice_subtype": Logistic((1.0,), 0.0),
        "study_any": Logistic((2.0,), 0.5),
        "study_scores": (-2.0, -1.0, 1.0, 2.0),
        "study_truth": (0, 0, 1, 1),
    }
    return Calibration(**{**values, **changes})  # type: ignore[arg-type]


def test_no_subtype_is_likelier_than_any_hemorrhage() -> None:
    rng = np.random.default_rng(2)
    values = calibration().slices(rng.normal(-1, 4, (50, 6, 3)))
    assert (values[:, 1:] <= values[:, :1]).all()
    probability, _ = calibration().study(values)
    assert (probability[1:] <= probability[0]).all()


def test_the_interval_holds_the_probability() -> None:
    for score in np.linspace(-4, 4, 17):
        probability, interval = calibration().study(np.full((3, 6), score))
        assert interval is not None
        assert interval[0] <= probability[0] <= interval[1]


def test_a_card_without_calibration_patients_gives_no_interval() -> None:
    assert calibration(study_scores=(), study_truth=()).study(np.zeros((2, 6)))[1] is None


@pytest.mark.parametrize("shift", [0.5, 2.0, 8.0])
def test_the_band_of_doubt_keeps_its_promise(shift: float) -> None:
    """Over many draws of 19 validation scans: new bleeding scans below, and bleed-free ones above, are 10 % at most."""
    rng = np.random.default_rng(3)
    missed, alarmed, inside = [], [], []
    for _ in range(600):
        scores = np.concatenate([rng.normal(shift, 1, 9), rng.normal(0, 1, 10)])
        band = conformal_band(scores.tolist(), [1] * 9 + [0] * 10)
        assert band is not None
        new = rng.normal(0, 1, 200)
        missed.append((new + shift < band[0]).mean())
        alarmed.append((new > band[1]).mean())
        inside.append(((new >= band[0]) & (new <= band[1])).mean())
    assert np.mean(missed) <= 0.1 + 0.01
    assert np.mean(alarmed) <= 0.1 + 0.01
    if shift == 0.5:  # hardly to be told apart: most scans must be left to a human
        assert np.mean(inside) > 0.5
        assert np.mean(missed) > 0.05, "a band that promises more than was asked abstains for nothing"


def test_too_few_scans_make_no_band() -> None:
    assert conformal_band([1.0] * 8 + [0.0] * 20, [1] * 8 + [0] * 20) is None
    assert conformal_band([1.0] * 9 + [0.0] * 9, [1] * 9 + [0] * 9) == (0.0, 1.0)
    assert calibration().band() is None
    assert conformal_band([], []) is None


def test_the_band_is_told_as_probabilities() -> None:
    scores = tuple(np.linspace(-3, 1, 12)) + tuple(np.linspace(-1, 3, 12))
    fitted = calibration(study_scores=scores, study_truth=(0,) * 12 + (1,) * 12)
    band = fitted.band()
    assert band is not None
    low, high = conformal_band(scores, fitted.study_truth) or (0, 0)
    assert (low, high) == (-1.0, 1.0)
    assert band == pytest.approx([float(sigmoid(2.0 * s + 0.5)) for s in (low, high)])


def test_the_interval_of_the_volume_keeps_its_promise() -> None:
    rng = np.random.default_rng(4)
    held = []
    for _ in range(800):
        true, found = rng.lognormal(2, 1, 19), rng.lognormal(0, 0.4, 19)
        ratios = [volume_log_ratio(t, t * f) for t, f in zip(true, found, strict=True)]
        pair = conformal_interval(ratios[:18], 0.2)
        assert pair is not None
        low, high = volume_interval(true[18] * found[18], pair)
        assert low <= true[18] * found[18] <= high
        held.append(low <= true[18] <= high)
    assert 0.76 <= np.mean(held) <= 0.93
    assert conformal_interval([0.1] * 8, 0.2) is None


def test_each_volume_is_held_against_the_interval_of_the_others() -> None:
    ratios = list(np.linspace(0, 1, 20))
    # Of 19 others the interval goes from the second to the last but one: the first two, seen from there, lie below it,
    # where an interval that knew them would go from the second of all and hold that one.
    assert held_left_out(ratios, 0.2) == [False] * 2 + [True] * 16 + [False] * 2
    assert held_left_out([*ratios[:-1], 0.5], 0.2)[-1], "an outlier that came into the middle is held"
    assert all(held_left_out([0.0, 9.0], 0.2)), "too few to say anything leave nothing out"


def test_an_interval_of_a_volume_never_turns_negative() -> None:
    assert volume_interval(0.1, (-3.0, 0.5))[0] == 0.0
    low, high = volume_interval(20.0, (-0.2, 0.3))
    assert (low, high) == pytest.approx((20.5 * np.exp(-0.2) - 0.5, 20.5 * np.exp(0.3) - 0.5))


def test_one_bright_slice_alone_weighs_less_than_two() -> None:
    quiet = np.full((20, 6), -5.0)
    one, two = quiet.copy(), quiet.copy()
    one[7] = 4.0
    two[7:9] = 4.0
    assert study_score(one)[0] < study_score(two)[0] == 4.0
    assert study_score(one[:1])[0] == -5.0  # a lone slice is its own score


def test_a_calibration_survives_its_card() -> None:
    assert from_mapping(Calibration, to_mapping(calibration())) == calibration()


@given(st.floats(0.001, 0.999))
def test_logit_and_sigmoid_are_inverse(p: float) -> None:
    assert float(sigmoid(logit(p))) == pytest.approx(p, abs=1e-9)


def test_extremes_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert sigmoid([-1e6, 1e6]).tolist() == [0.0, 1.0]
        assert np.isfinite(logit([0.0, 1.0])).all()
