"""What speaks for a finding on a slice, and how a calibration weighs it."""

from __future__ import annotations

import numpy as np
import pytest

from hemolens.inference.calibrate import SOURCES, Calibration, Logistic, logit
from hemolens.inference.evidence import as_told, gather_evidence, outline_scores
from hemolens.labels import FINDING_NAMES

NEIGHBORS, OUTLINE, HEAD = (SOURCES.index(name) for name in ("neighbors", "outline", "head"))
SUBDURAL = FINDING_NAMES.index("subdural")


def scores(*values: float) -> np.ndarray:
    """Return the same outline scores for all findings of some slices."""
    return np.repeat(np.array(values, float)[:, None], 6, axis=1)


def test_the_brightest_pixels_of_an_outline_count() -> None:
    blood = np.zeros((2, 20, 20), np.float32)
    blood[1, :5, :6] = 0.8
    subtypes = np.zeros((2, 5, 20, 20), np.float32)
    subtypes[:, SUBDURAL - 1] = 0.5
    found = outline_scores(blood, subtypes)
    assert found[:, 0] == pytest.approx(logit([0.0, 0.8]), abs=1e-5)
    assert found[:, SUBDURAL] == pytest.approx(logit([0.0, 0.4]), abs=1e-5)
    others = [k for k in range(1, 6) if k != SUBDURAL]
    assert found[:, others] == pytest.approx(np.full((2, 4), logit(0.0)), abs=1e-5)


def test_subtypes_that_are_not_told_are_not_known() -> None:
    found = outline_scores(np.full((1, 20, 20), 0.5, np.float32), None)
    assert found[0, 0] == pytest.approx(0, abs=1e-5)
    assert np.isnan(found[0, 1:]).all()


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ((0, 5, 10, 15), (2.0, 2.5, 5.0, 4.0)),  # the next slices; at the ends the only one
        ((0, 5, 30, 60), (2.0, 1.0, 4.0, 8.0)),  # too far apart to be neighbors: a slice stands in for its own
        ((0, 2.5, 5, 7.5), (4.0, 8.0, 1.0, 2.0)),  # thin slices: those about 5 mm away, not the next ones
    ],
)
def test_neighbors_are_the_slices_about_5_mm_away(offsets: tuple[float, ...], expected: tuple[float, ...]) -> None:
    outlines = scores(1, 2, 4, 8)
    found = gather_evidence(outlines, outlines * 0 - 3, np.array(offsets, float), 5.0)
    assert found.shape == (4, 6, 3)
    assert found[:, SUBDURAL, NEIGHBORS].tolist() == list(expected)
    assert found[:, 0, OUTLINE].tolist() == [1, 2, 4, 8]
    assert (found[..., HEAD] == -3).all()


def test_a_calibration_weighs_the_last_sources_where_it_has_fewer_weights() -> None:
    evidence = np.zeros((1, 6, 3))
    evidence[0, :, NEIGHBORS], evidence[0, :, OUTLINE], evidence[0, :, HEAD] = 100.0, 10.0, 1.0
    two = Calibration(Logistic((1.0, 1.0), 0.0), Logistic((1.0,), 0.0), Logistic((1.0,), 0.0))
    assert two.slices(evidence).tolist() == [[11.0, *[1.0] * 5]]
    three = Calibration(Logistic((1.0, 1.0, 1.0), 0.5), Logistic((0.5, 1.0, 1.0), 0.0), Logistic((1.0,), 0.0))
    assert three.slices(evidence).tolist() == [[111.5, *[61.0] * 5]]


def test_more_weights_than_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="3 weights at most"):
        Calibration(Logistic((1.0,) * 4, 0.0), Logistic((1.0,), 0.0), Logistic((1.0,), 0.0))


def test_what_is_not_told_has_no_say() -> None:
    evidence = np.full((2, 6, 3), np.nan)
    evidence[0, :, HEAD] = 2.0
    told = Calibration(Logistic((1.0, 1.0, 1.0), 0.0), Logistic((1.0, 1.0, 1.0), 0.0), Logistic((1.0,), 0.0))
    found = told.slices(evidence)
    assert found[0].tolist() == [2.0] * 6
    assert np.isnan(found[1]).all()
    assert as_told(evidence)[0].tolist() == [2.0] * 6
    assert np.isnan(as_told(evidence)[1]).all()


def test_without_a_calibration_outline_and_head_have_half_a_say_each() -> None:
    evidence = np.zeros((1, 3))
    evidence[0, NEIGHBORS], evidence[0, OUTLINE], evidence[0, HEAD] = 50.0, -1.0, 4.0
    assert as_told(evidence).tolist() == [1.5]
