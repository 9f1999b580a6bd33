"""Dark pixels that a bright bleed's outline takes in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemolens.config import from_mapping
from hemolens.errors import ConfigError
from hemolens.inference.darkness import NO_BLOOD, doubt_dark
from hemolens.preprocessing.pipeline import PreprocessConfig

SIZE, BRAIN, BLOOD, FLUID = 64, 117, 170, 60
SURE_PART, EDGE = np.s_[0, 20:30, 20:30], np.s_[0, 20:30, 30:36]


def bleed(sure: float = 0.9, edge: float = 0.3, core: int = BLOOD, rim: int = FLUID) -> tuple[np.ndarray, np.ndarray]:
    """A square of sure blood with an unsure edge, which has another gray value."""
    blood, gray = np.full((1, SIZE, SIZE), 0.01, np.float32), np.full((1, SIZE, SIZE), BRAIN, np.uint8)
    blood[SURE_PART], blood[EDGE] = sure, edge
    gray[SURE_PART], gray[EDGE] = core, rim
    return blood, gray


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"rim": BRAIN}, True),
        ({"rim": 160}, False),  # as bright as the bleed
        ({"edge": 0.6}, False),  # too sure to be doubted
        ({"sure": 0.7}, False),  # no bleed to compare with
        ({"core": BRAIN + 10}, False),  # isodense: its gray says nothing
        ({"core": 80}, False),  # old
    ],
)
def test_what_is_dark_and_unsure_beside_a_bright_bleed_is_doubted(change: dict, taken: bool) -> None:
    blood, gray = bleed(**change)
    found = doubt_dark(blood, gray, 0.35)
    assert bool((found[EDGE] <= NO_BLOOD).all()) == taken
    untouched = np.ones(blood.shape, bool)
    untouched[EDGE] = not taken
    np.testing.assert_array_equal(found[untouched], blood[untouched])


def test_a_dark_speck_elsewhere_is_not_compared_with_the_bleed() -> None:
    blood, gray = bleed()
    blood[0, 50:54, 50:54], gray[0, 50:54, 50:54] = 0.3, FLUID
    np.testing.assert_array_equal(doubt_dark(blood, gray, 0.35)[0, 50:54, 50:54], blood[0, 50:54, 50:54])


def test_without_a_share_nothing_is_doubted() -> None:
    blood, gray = bleed()
    assert doubt_dark(blood, gray, 0.0) is blood


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_it_only_ever_lowers_and_turns_with_the_picture(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    blood = rng.uniform(0, 1, (3, 32, 32)).astype(np.float32)
    gray = rng.integers(0, 256, (3, 32, 32)).astype(np.uint8)
    found = doubt_dark(blood, gray, share)
    assert (found <= blood).all()
    assert set(np.unique(found[found != blood])) <= {np.float32(NO_BLOOD)}
    np.testing.assert_array_equal(doubt_dark(blood[:, ::-1, ::-1], gray[:, ::-1, ::-1], share), found[:, ::-1, ::-1])
    np.testing.assert_array_equal(doubt_dark(blood[1:2], gray[1:2], share)[0], found[1])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises((ConfigError, ValueError), match="dark_doubt"):
        from_mapping(PreprocessConfig, {"dark_doubt": share}, "preprocess")
