"""Blood that no neighboring slice supports."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemolens.config import from_mapping
from hemolens.errors import ConfigError
from hemolens.inference.support import doubt_unsupported, neighbor_slices
from hemolens.preprocessing.pipeline import PreprocessConfig

SIZE = 64


def stack(*patches: tuple[float, int] | None) -> np.ndarray:
    """Slices with one square of blood each: its probability and its first column; nothing where None."""
    blood = np.full((len(patches), SIZE, SIZE), 0.01, np.float32)
    for plane, patch in zip(blood, patches, strict=True):
        if patch:
            plane[20:30, patch[1] : patch[1] + 10] = patch[0]
    return blood


def offsets(n: int, gap: float = 5.0) -> np.ndarray:
    return np.arange(n) * gap


@pytest.mark.parametrize(
    ("patches", "kept"),
    [
        ((None, (0.8, 20), None), False),
        ((None, (0.8, 20), (0.6, 20)), True),
        (((0.6, 20), (0.8, 20), None), True),
        (((0.6, 29), (0.8, 20), None), True),  # moved aside, yet they touch
        (((0.6, 45), (0.8, 20), None), False),  # another place
        ((None, (0.999, 20), None), True),  # too sure to need a neighbor
    ],
)
def test_a_bleed_needs_a_neighbor_or_certainty(patches: tuple, kept: bool) -> None:
    found = doubt_unsupported(stack(*patches), offsets(3), 5.0, 1.0)
    assert (found[1, 20:30, 20:30].max() >= 0.5) == kept


def test_the_log_odds_fall_by_what_the_best_neighbor_lacks() -> None:
    found = doubt_unsupported(stack((0.3, 20), (0.8, 20), (0.2, 20)), offsets(3), 5.0, 0.5)
    expected = np.log(0.8 / 0.2) + 0.5 * np.log(0.3 / 0.7)
    assert found[1, 25, 25] == pytest.approx(1 / (1 + np.exp(-expected)), rel=1e-4)


@pytest.mark.parametrize(("blood", "weight"), [(stack((0.8, 20)), 1.0), (stack(None, (0.8, 20), None), 0.0)])
def test_lone_slices_and_no_weight_change_nothing(blood: np.ndarray, weight: float) -> None:
    np.testing.assert_array_equal(doubt_unsupported(blood, offsets(len(blood)), 5.0, weight), blood)


def test_a_gap_in_the_scan_is_no_evidence() -> None:
    blood = stack(None, (0.8, 20), None)
    np.testing.assert_array_equal(doubt_unsupported(blood, np.array([0.0, 20, 40]), 5.0, 1.0)[1], blood[1])


@pytest.mark.parametrize(
    ("at", "index", "expected"),
    [
        (offsets(5), 2, [1, 3]),
        (offsets(5), 0, [1]),
        (offsets(21, 1.0), 10, [3, 4, 5, 6, 7, 13, 14, 15, 16, 17]),
        (offsets(5, 2.5), 2, [0, 4]),  # 2.5 and 7.5 mm away are neither near nor far
        (offsets(5, 7.5), 2, [1, 3]),
        (offsets(5, 10.0), 2, [1, 3]),
        (offsets(5, 11.0), 2, []),
        (np.array([0.0, 4, 8, 15, 22]), 2, [1, 3]),  # two spacings in one scan
    ],
)
def test_neighbors_are_about_five_millimeters_away(at: np.ndarray, index: int, expected: list[int]) -> None:
    assert neighbor_slices(at, 5.0, index).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 2), st.integers(1, 7))
def test_it_only_ever_lowers_and_does_not_care_which_way_the_slices_run(seed: int, weight: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    blood = rng.uniform(0, 1, (n, 32, 32)).astype(np.float32) ** 4
    at = np.cumsum(rng.uniform(0.5, 9, n))
    found = doubt_unsupported(blood, at, 5.0, weight)
    assert (found <= blood).all()
    assert (found >= 0).all()
    turned = doubt_unsupported(blood[::-1], -at[::-1], 5.0, weight)[::-1]
    np.testing.assert_allclose(found, turned, atol=1e-6)
    mirrored = doubt_unsupported(np.ascontiguousarray(blood[..., ::-1]), at, 5.0, weight)[..., ::-1]
    np.testing.assert_allclose(found, mirrored, atol=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 2.5])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises((ConfigError, ValueError), match="neighbor_support"):
        from_mapping(PreprocessConfig, {"neighbor_support": weight}, "preprocess")
