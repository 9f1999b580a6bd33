"""Outlines begin at a low probability, around what the network is sure of, each slice by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hemolens.evaluation.card import chosen_thresholds
from hemolens.inference.calibrate import UNCALIBRATED
from hemolens.inference.outline import outline_blood
from hemolens.inference.registry import Thresholds
from predictions import predict

PICTURE = np.array(
    [
        [0.9, 0.3, 0.0, 0.3, 0.3],
        [0.0, 0.0, 0.2, 0.0, 0.0],
        [0.3, 0.0, 0.0, 0.0, 0.1],
        [0.3, 0.0, 0.0, 0.0, 0.7],
    ]
)


@pytest.mark.parametrize(
    ("threshold", "seed", "expected"),
    [
        (0.2, 0.8, ["11.11", "..1..", ".....", "....."]),  # corners touch; a sure pixel elsewhere seeds only its own
        (0.2, 0.7, ["11.11", "..1..", ".....", "....1"]),
        (0.3, 0.7, ["11...", ".....", ".....", "....1"]),  # the bridge of 0.2 is gone
        (0.2, None, ["11.11", "..1..", "1....", "1...1"]),
        (0.5, 0.2, ["1....", ".....", ".....", "....1"]),  # a seed below the threshold asks for nothing
        (0.2, 0.95, [".....", ".....", ".....", "....."]),
    ],
)
def test_what_is_connected_to_a_sure_pixel_is_outlined(
    threshold: float, seed: float | None, expected: list[str]
) -> None:
    found = outline_blood(PICTURE[None], threshold, seed)[0]
    assert ["".join(".1"[v] for v in row.astype(int)) for row in found] == expected


def test_a_sure_pixel_of_another_slice_seeds_nothing() -> None:
    faint = np.full((2, 3, 3), 0.3)
    faint[1, 1, 1] = 0.9
    assert outline_blood(faint, 0.2, 0.7).any(axis=(1, 2)).tolist() == [False, True]


@given(arrays(np.float32, (2, 6, 6), elements=st.floats(0, 1, width=32)), st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_it_lies_between_both_thresholds(blood: np.ndarray, threshold: float, seed: float) -> None:
    found = outline_blood(blood, threshold, seed)
    assert not (found & (blood < threshold)).any()
    assert found[blood >= max(threshold, seed)].all()
    turned = outline_blood(blood[:, ::-1], threshold, seed)[:, ::-1]
    np.testing.assert_array_equal(found, turned)


def test_a_prediction_outlines_by_the_thresholds_of_its_card() -> None:
    labels = np.zeros((2, 20, 20), dtype=np.uint8)
    labels[0, 5:9, 5:9] = 3
    prediction = predict(labels)
    blood = np.where(labels > 0, 0.4, 0).astype(np.float16)
    blood[0, 6, 6] = 0.8
    blood[1, 2:5, 2:5] = 0.4
    told = replace(prediction, blood=blood, mask_threshold=0.3, mask_seed=0.7)
    np.testing.assert_array_equal(told.outlined, labels > 0)
    assert replace(told, mask_seed=None).outlined[1].any()
    assert replace(told, mask_threshold=0.5, mask_seed=None).outlined.sum() == 1


def test_calibration_leaves_where_outlines_begin_alone() -> None:
    calibration = replace(UNCALIBRATED, study_scores=(-1.0, 0.5, 2.0), study_truth=(0, 0, 1))
    chosen = chosen_thresholds(calibration, Thresholds(0.2, 0.5, seed=0.7))
    assert (chosen.mask, chosen.seed) == (0.2, 0.7)
    assert chosen.study != 0.5
    assert chosen.sensitive is not None


def test_it_is_told_in_words() -> None:
    assert Thresholds(0.5, 0.5).mask_told == "where its probability is 0.5 or more"
    told = Thresholds(0.2, 0.5, seed=0.7).mask_told
    assert told == "where its probability is 0.2 or more, connected in its slice to 0.7 or more"
