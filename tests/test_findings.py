from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from hemolens.geometry import Stack
from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES
from hemolens.measurements.findings import (
    NOTICE,
    Total,
    build_findings,
    format_amount,
    summary_sentence,
    volume_told,
)
from hemolens.measurements.lesions import MIN_LESION_ML
from hemolens.volume import SourceInfo, Volume
from phantom import build_stack
from predictions import analyzed, bleeding_head, predict, volume_of


def test_findings_add_up() -> None:
    volume, labels = bleeding_head()
    _, label_map, findings = analyzed(volume, labels)
    assert findings.total.volume_ml == pytest.approx(label_map.volume_ml())
    assert findings.total.volume_ml == pytest.approx(sum(lesion.volume_ml for lesion in findings.lesions))
    for name in SUBTYPE_NAMES:
        expected = sum(lesion.volume_ml for lesion in findings.lesions if lesion.subtype == name)
        assert findings.total.by_subtype[name] == pytest.approx(expected)
    areas = np.array([s.blood_area_mm2 for s in findings.slices])
    assert areas @ volume.stack.extents_mm / 1000 == pytest.approx(findings.total.volume_ml)
    assert findings.total.left_out_ml == 0
    assert findings.notice == NOTICE


def test_each_slice_tells_its_name_place_and_scores() -> None:
    volume, labels = bleeding_head()
    named = replace(volume, source=SourceInfo("dicom", "1.2.3", tuple(f"IM{k}" for k in range(len(volume)))))
    prediction, _, findings = analyzed(named, labels)
    assert [s.index for s in findings.slices] == list(range(len(volume)))
    assert findings.slices[3].source == "IM3"
    assert findings.slices[3].position_mm == pytest.approx(tuple(volume.stack.positions_mm[3]))
    assert list(findings.slices[3].probability) == list(FINDING_NAMES)
    assert findings.slices[17].probability["any"] == pytest.approx(float(prediction.slice_probability[17, 0]), abs=1e-6)


def test_input_tells_spacing_and_regularity() -> None:
    labels = np.zeros((5, 8, 8), np.uint8)
    even = analyzed(volume_of(labels.shape, Stack.regular(5, spacing_mm=(0.4, 0.5), step_mm=(0, 0, 3))), labels)[2]
    assert even.input.spacing_mm == pytest.approx((3, 0.4, 0.5))
    assert even.input.regular is True
    uneven = analyzed(volume_of(labels.shape, build_stack(np.eye(3), [5, 5, 4, 9], (0.4, 0.5))), labels)[2]
    assert uneven.input.spacing_mm == pytest.approx((5, 0.4, 0.5))
    assert uneven.input.regular is False
    one = analyzed(volume_of((1, 8, 8), Stack.regular(1, spacing_mm=(0.4, 0.5))), labels[:1])[2]
    assert one.input.spacing_mm == (None, 0.4, 0.5)
    none = analyzed(volume_of(labels.shape, None), labels)[2]
    assert (none.input.spacing_mm, none.input.regular, none.slices[0].position_mm) == (None, None, None)


def test_without_geometry_everything_is_in_pixels() -> None:
    volume, labels = bleeding_head()
    _, _, findings = analyzed(replace(volume, stack=None), labels)
    assert (findings.total.volume_ml, findings.total.left_out_ml, findings.total.unit) == (None, None, "px")
    assert findings.total.area_px == np.count_nonzero(labels)
    assert sum(findings.total.by_subtype.values()) == findings.total.area_px
    assert all(s.blood_area_mm2 is None for s in findings.slices)
    assert sum(s.blood_area_px for s in findings.slices) == findings.total.area_px


def test_what_is_too_small_to_count_is_told() -> None:
    volume, labels = bleeding_head()
    speck = labels.copy()
    speck[20, 100, 40:43] = 4
    _, label_map, findings = analyzed(volume, speck)
    assert findings.total.left_out_ml == pytest.approx(3 * 0.02)
    assert findings.total.left_out_ml < MIN_LESION_ML
    assert not label_map.labels[20, 100].any()


def test_the_decision_is_the_predictions() -> None:
    labels = np.zeros((4, 8, 8), np.uint8)
    volume = volume_of(labels.shape, None)
    for value, decision in ((0.5, "positive"), (0.49, "negative")):
        prediction = predict(labels)
        prediction.study_probability[0] = value
        findings = build_findings(volume, prediction, *_lesions(volume, prediction), (), {}, _now())
        assert findings.study.decision == decision
        assert findings.positive is (decision == "positive")


def test_what_lies_in_the_band_of_doubt_is_uncertain() -> None:
    volume, labels = bleeding_head()
    for value, uncertain in ((0.29, False), (0.3, True), (0.6, True), (0.61, False)):
        prediction = predict(labels, study_band=(0.3, 0.6), sensitive_threshold=0.2)
        prediction.study_probability[0] = value
        findings = build_findings(volume, prediction, *_lesions(volume, prediction), (), {}, _now())
        assert findings.study.uncertain is uncertain
        assert (findings.study.uncertain_band, findings.study.sensitive_threshold) == ((0.3, 0.6), 0.2)
        first = f"Uncertain ({value:.2f}), a human should look first: "
        assert summary_sentence(findings).startswith(first) is uncertain
        assert findings.study.decision == ("positive" if value >= 0.5 else "negative"), "doubt changes no decision"
    assert not analyzed(volume, labels)[2].study.uncertain, "a card without a band leaves nothing uncertain"


def test_the_volume_has_an_interval_where_its_error_is_known() -> None:
    volume, labels = bleeding_head()
    ratio = (np.log(0.5), np.log(2.0))

    def total(prediction: Any, volume: Volume = volume) -> Total:
        return build_findings(volume, prediction, *_lesions(volume, prediction), (), {}, _now()).total

    told = total(predict(labels, volume_log_ratio=ratio))
    assert told.volume_ml is not None
    expected = (max(0.0, (told.volume_ml + 0.5) / 2 - 0.5), (told.volume_ml + 0.5) * 2 - 0.5)
    assert told.volume_interval_ml == pytest.approx(expected)
    assert volume_told(told) == f"{told.volume_ml:.1f} ml (80 % interval {expected[0]:.1f} to {expected[1]:.1f} ml)"
    assert volume_told(total(predict(labels))) == f"{told.volume_ml:.1f} ml"
    assert total(predict(labels)).volume_interval_ml is None
    assert total(predict(np.zeros_like(labels), volume_log_ratio=ratio)).volume_interval_ml is None
    pixels = total(predict(labels, volume_log_ratio=ratio), replace(volume, stack=None))
    assert pixels.volume_interval_ml is None


def test_lesions_and_what_is_left_out_keep_to_the_outline() -> None:
    """A faint patch far from any sure pixel is neither a lesion nor blood that was left out."""
    volume, labels = bleeding_head()
    free = int(np.flatnonzero(~labels.any(axis=(1, 2)))[0])
    prediction = predict(labels)
    blood, subtype = prediction.blood.copy(), prediction.subtype.copy()
    for patch in ((slice(60, 70), slice(60, 70)), (slice(60, 61), slice(90, 91))):  # a lesion's size, and a speck
        blood[free][patch], subtype[free][patch] = 0.3, 4

    def told(seed: float | None) -> tuple[int, float]:
        seen = replace(prediction, blood=blood, subtype=subtype, mask_threshold=0.2, mask_seed=seed)
        found = build_findings(volume, seen, *_lesions(volume, seen), (), {}, _now())
        return len(found.lesions), found.total.left_out_ml or 0.0

    lesions, left_out = told(0.7)
    assert (lesions, left_out) == (len(_lesions(volume, prediction)[1]), 0.0)
    assert told(None)[0] == lesions + 1
    assert told(None)[1] > 0


def test_probabilities_are_clipped_into_their_range() -> None:
    labels = np.zeros((4, 8, 8), np.uint8)
    volume, prediction = volume_of(labels.shape, None), predict(labels)
    prediction.slice_probability[0, 0] = 1.0000001
    findings = build_findings(volume, prediction, *_lesions(volume, prediction), (), {}, _now())
    assert findings.slices[0].probability["any"] == 1.0


def test_a_time_without_a_zone_is_refused() -> None:
    labels = np.zeros((4, 8, 8), np.uint8)
    volume, prediction = volume_of(labels.shape, None), predict(labels)
    with pytest.raises(ValueError, match="time zone"):
        build_findings(volume, prediction, *_lesions(volume, prediction), (), {}, datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("subtypes", "expected"),
    [
        ({4: 1.0}, "Hemorrhage likely (0.95): 12.0 ml in 1 lesion, intraparenchymal."),
        ({4: 0.7, 2: 0.3}, "Hemorrhage likely (0.95): 12.0 ml in 2 lesions, mostly intraparenchymal."),
        ({4: 0.4, 2: 0.3, 3: 0.3}, "Hemorrhage likely (0.95): 12.0 ml in 3 lesions, of several subtypes."),
    ],
)
def test_the_sentence_tells_amount_and_kind(subtypes: dict[int, float], expected: str) -> None:
    labels = np.zeros((3, 60, 100), np.uint8)
    for place, (subtype, share) in enumerate(subtypes.items()):
        labels[1, place * 20 : place * 20 + 10, : round(share * 80)] = subtype
    volume = volume_of(labels.shape, Stack.regular(3, spacing_mm=(2, 1.5), step_mm=(0, 0, 5)))
    assert summary_sentence(analyzed(volume, labels)[2]) == expected


def test_the_sentence_is_honest_where_decision_and_outline_disagree() -> None:
    volume, labels = bleeding_head()
    _, _, findings = analyzed(volume, labels)
    unlikely = replace(findings, study=replace(findings.study, decision="negative"))
    assert summary_sentence(unlikely).startswith("Hemorrhage unlikely (0.95), yet ")
    _, _, empty = analyzed(volume, np.zeros_like(labels))
    assert summary_sentence(empty) == "Hemorrhage unlikely (0.05); no lesion outlined."
    likely = replace(empty, study=replace(empty.study, decision="positive"))
    assert summary_sentence(likely) == "Hemorrhage likely (0.05), but no lesion could be outlined."


def test_amounts_are_written_for_people() -> None:
    assert [format_amount(v, "ml") for v in (0, 0.123, 0.99, 1, 28.44)] == [
        "0.0 ml",
        "0.12 ml",
        "0.99 ml",
        "1.0 ml",
        "28.4 ml",
    ]
    assert format_amount(10243, "px") == "10,243 px"
    assert Total(None, 7, {}, None, 0).size == 7


def _lesions(volume, prediction):
    from hemolens.measurements.lesions import find_lesions

    return find_lesions(volume, prediction)


def _now() -> datetime:
    from datetime import UTC

    return datetime(2026, 1, 1, tzinfo=UTC)
