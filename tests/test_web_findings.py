"""The findings panel, the ranking by uncertainty and the comparison: what they say, and that Streamlit can draw it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("streamlit", reason="needs hemolens[web]")

from streamlit.testing.v1 import AppTest

from hemolens.errors import InputError
from hemolens.geometry import Stack
from hemolens.notes import QualityNote, Severity
from hemolens.reports.nifti import mask_files
from hemolens.volume import LabelMap, SourceInfo, Volume
from hemolens.web import compare as comparing
from hemolens.web import findings as panel
from hemolens.web import session
from hemolens.web.session import Study
from hemolens.web.uncertain import doubt, entropy, ranked
from web_cases import dicom_volume, head, scored, study_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(dicom_volume(tmp_path_factory.mktemp("dicom")))


def drawn(study: Study, module: str, **state: Any) -> AppTest:
    def script() -> None:
        from importlib import import_module

        import streamlit as st

        import_module(st.session_state["module"]).show(st.session_state["study"], st)

    app = AppTest.from_function(script, default_timeout=60)
    app.session_state["study"], app.session_state["module"] = study, module
    for name, value in state.items():
        app.session_state[name] = value
    return app.run()


def text_of(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.success)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


# --- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chance", "threshold", "interval", "tone"),
    [
        (0.97, 0.4, (0.9, 0.99), "positive"),
        (0.03, 0.4, (0.01, 0.08), "negative"),
        (0.97, 0.4, (0.3, 0.99), "uncertain"),  # the interval spans the threshold
        (0.03, 0.4, (0.01, 0.4), "uncertain"),
        (0.45, 0.4, None, "uncertain"),  # close to it
        (0.35, 0.4, (0.33, 0.38), "uncertain"),
        (0.9, 0.4, None, "positive"),
    ],
)
def test_what_is_uncertain_is_called_that(
    study: Study, chance: float, threshold: float, interval: tuple[float, float] | None, tone: str
) -> None:
    told = panel.answer(scored(study, chance, threshold, interval).findings)
    assert told.tone == tone
    assert told.headline.startswith("Uncertain") == (tone == "uncertain")
    assert ("look at the scan yourself" in told.explained) == (tone == "uncertain")
    if tone == "uncertain":
        assert ("leaning to no" in told.headline) == (chance < threshold)


@pytest.mark.parametrize(
    ("chance", "tone"), [(0.29, "negative"), (0.3, "uncertain"), (0.6, "uncertain"), (0.61, "positive")]
)
def test_a_band_of_doubt_alone_decides_where_the_model_has_one(study: Study, chance: float, tone: str) -> None:
    """As in the report: neither a wide interval nor a near threshold makes another answer here."""
    plain = scored(study, chance, 0.4, (0.1, 0.9)).findings
    score = replace(plain.study, uncertain_band=(0.3, 0.6), uncertain=0.3 <= chance <= 0.6)
    findings = replace(plain, study=score)
    told = panel.answer(findings)
    assert told.tone == tone
    assert ("From 0.30 to 0.60 neither answer is safe" in told.explained) == (tone == "uncertain")
    assert any("in the band of doubt" in reason for reason in doubt(findings).reasons) == (tone == "uncertain")


def test_lesions_and_subtypes_are_told_with_their_abc2(study: Study) -> None:
    estimates = panel._estimates(study)
    rows = panel.lesion_rows(study, study.findings, estimates)
    assert [row.id for row in rows] == [1, 2]
    assert rows[0].title.startswith("1 · Intraparenchymal · ")
    assert rows[0].slice in {1, 2, 3}
    assert rows[1].slice == 4
    assert "slices 2–4" in rows[0].details
    assert f"ABC/2 {estimates[1].volume_ml:.1f} ml" in rows[0].details
    assert "ABC/2 ~" in rows[1].details, "rough for a subdural one"
    by_subtype = {row.title: row for row in panel.subtype_rows(study.findings, estimates)}
    assert by_subtype["Intraparenchymal"].amount == f"{study.findings.lesions[0].volume_ml:.1f} ml"
    assert by_subtype["Intraparenchymal"].estimate == f"{estimates[1].volume_ml:.1f} ml"
    assert by_subtype["Epidural"].estimate == by_subtype["Epidural"].amount == "–"


def test_blood_in_furrows_gets_no_abc2(study: Study) -> None:
    labels = np.where(head()[1] == 4, 3, 0).astype(np.uint8)
    other = study_of(study.volume, labels=labels)
    estimates = panel._estimates(other)
    assert estimates
    assert {row.estimate for row in panel.subtype_rows(other.findings, estimates)} == {"–"}
    assert "ABC/2" not in panel.lesion_rows(other, other.findings, estimates)[0].details


def test_pictures_without_spacing_are_told_in_pixels() -> None:
    hu, labels = head()
    source = SourceInfo("images", "pictures", tuple(f"{k}.png" for k in range(len(hu))))
    found = study_of(Volume(np.clip(hu, -20, 100).astype(np.float32), None, source), labels=labels)
    rows = panel.lesion_rows(found, found.findings, panel._estimates(found))
    assert rows[0].title.endswith("360 px")
    app = drawn(found, "hemolens.web.findings")
    assert not app.exception
    assert "360 px" in "".join(button.label for button in app.button)


@pytest.mark.parametrize(
    ("slices", "told"), [((3,), "slice 4"), ((1, 2, 3, 7), "slices 2–4, 8"), ((0, 2), "slices 1, 3")]
)
def test_slices_are_told_short(slices: tuple[int, ...], told: str) -> None:
    assert panel.slices_told(slices) == told


def test_after_a_correction_the_panel_measures_again(study: Study) -> None:
    mine = study_of(study.volume)
    labels = np.where(mine.labels == 2, 0, mine.labels).astype(np.uint8)
    mine.correct(labels)
    told = panel.findings_now(mine)
    assert len(told.lesions) == 1
    assert told.study == mine.findings.study
    assert panel.findings_now(mine) is told, "measured once"
    mine.correct(mine.result.label_map.labels)
    assert panel.findings_now(mine) is mine.findings


def test_the_panel_is_drawn_and_its_buttons_jump(study: Study) -> None:
    notes = (
        QualityNote("metal_suspected", Severity.WARNING, "metal at the skull base", (1, 2)),
        QualityNote("gantry_tilt", Severity.INFO, "tilted by 18 degrees."),
    )
    mine = study_of(study.volume, notes=notes)
    app = drawn(mine, "hemolens.web.findings")
    assert not app.exception
    told = text_of(app)
    assert "**Hemorrhage likely.**" in told
    assert "**Caution:** Metal at the skull base (slices 2–3)." in told
    assert "**Note:** Tilted by 18 degrees." in told
    assert "| Intraparenchymal |" in told
    assert len(app.button) == 2
    app.button[1].click().run()
    asked = app.session_state[session.GO_TO]
    assert (asked["study"], asked["slice"]) == (mine.id, 4)
    app.button[0].click().run()
    again = app.session_state[session.GO_TO]
    assert again["number"] > asked["number"]
    assert again["slice"] in {1, 2, 3}


def test_without_lesions_it_says_what_to_do(study: Study) -> None:
    app = drawn(study_of(study.volume, labels=np.zeros_like(head()[1])), "hemolens.web.findings")
    assert not app.exception
    assert "outline it on the page **Correct**" in text_of(app)


# --- most uncertain first --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_entropy_is_highest_at_the_threshold(threshold: float) -> None:
    assert entropy(threshold, threshold) == pytest.approx(1.0)
    values = [entropy(p, threshold) for p in (0.001, threshold / 2, threshold, (1 + threshold) / 2, 0.999)]
    assert values[0] < values[1] < values[2] > values[3] > values[4] >= 0
    assert entropy(0.0, threshold) == pytest.approx(0, abs=0.01)
    assert entropy(1.0, threshold) == pytest.approx(0, abs=0.01)


def with_slices(study: Study, chances: list[float]) -> Study:
    scores = tuple(
        replace(s, probability={**s.probability, "any": p}) for s, p in zip(study.findings.slices, chances, strict=True)
    )
    return Study(study.name, replace(study.result, findings=replace(study.findings, slices=scores)))


def test_the_least_certain_scan_comes_first_and_says_why(study: Study) -> None:
    sure = with_slices(scored(study, 0.99, interval=(0.95, 1.0)), [0.01] * 3 + [0.99] * 3)
    near = with_slices(scored(study, 0.55), [0.01] * 6)
    odd = with_slices(scored(study, 0.01), [0.01] * 6)  # negative, yet blood is outlined
    slices = with_slices(scored(study, 0.99), [0.01, 0.45, 0.6, 0.3, 0.99, 0.99])
    wide = with_slices(scored(study, 0.8, interval=(0.2, 0.9)), [0.01] * 6)
    for name, one in (("sure", sure), ("near", near), ("odd", odd), ("slices", slices), ("wide", wide)):
        one.name = name
    order = [one.name for one, _ in ranked([sure, slices, near, wide, odd])]
    assert order[-1] == "sure"
    assert set(order[:2]) == {"wide", "odd"}
    assert doubt(sure.findings).reasons == ()
    assert "spans the threshold" in doubt(wide.findings).reasons[0]
    assert "called negative, yet blood is outlined" in doubt(odd.findings).reasons
    assert "unsure on slices 2–4" in doubt(slices.findings).reasons[0]
    assert doubt(slices.findings).slices[0] == 1
    wide.correct(np.zeros_like(wide.labels))
    assert ranked([sure, wide])[-1][0] is wide, "what was corrected comes last"


# --- compare ---------------------------------------------------------------------------------------------------------


def test_dice_and_counts_are_those_of_the_masks(study: Study) -> None:
    truth = head()[1].copy()
    truth[1] = 0  # 120 voxels less
    truth[4] = 0  # the subdural is made up
    truth[0, 50:56, 30:40] = 1  # and an epidural one was missed
    told = comparing.compare(study.label_map, truth)
    assert told.dice == pytest.approx(2 * 240 / (400 + 300))
    assert told.dice_by_subtype["intraparenchymal"] == pytest.approx(2 * 240 / (360 + 240))
    assert told.dice_by_subtype["subdural"] == 0
    assert np.isnan(told.dice_by_subtype["subarachnoid"])
    assert (told.detected, told.true_lesions, told.false_lesions, told.found_lesions) == (1, 2, 1, 2)
    voxel = 2.8 * 2.8 * 5 / 1000
    assert told.found == pytest.approx(400 * voxel)
    assert told.true == pytest.approx(300 * voxel)
    made_up = comparing.false_lesions(study.label_map, truth)
    assert np.array_equal(made_up > 0, study.labels == 2)
    missed = comparing.missed_lesions(study.label_map, truth)
    assert np.array_equal(missed > 0, truth == 1)


def test_a_mask_of_one_value_says_nothing_of_subtypes(study: Study) -> None:
    told = comparing.compare(study.label_map, (study.labels > 0).astype(np.uint8))
    assert told.dice == 1
    assert all(np.isnan(value) for value in told.dice_by_subtype.values())


def test_unknown_slices_are_left_out(study: Study) -> None:
    truth = study.labels.copy()
    truth[2] = 0
    known = np.arange(len(truth)) != 2
    assert comparing.compare(study.label_map, truth, known).dice == 1
    assert comparing.compare(study.label_map, truth).dice < 1


def test_what_is_outlined_is_what_is_counted(study: Study) -> None:
    """A speck is no lesion, and a slice that nobody judged holds no false one."""
    truth = study.labels.copy()
    truth[0, 2, 2] = 4  # far less than a lesion
    assert not comparing.missed_lesions(study.label_map, truth).any()
    assert comparing.compare(study.label_map, truth).true_lesions == 2
    nothing, known = np.zeros_like(truth), np.arange(len(truth)) < 4
    assert comparing.slices_of_lesions(study.volume, comparing.false_lesions(study.label_map, nothing)) == [1, 4]
    made_up = comparing.false_lesions(study.label_map, nothing, known)
    assert comparing.slices_of_lesions(study.volume, made_up) == [1]
    assert comparing.compare(study.label_map, nothing, known).false_lesions == 1


def test_nothing_against_nothing_is_undefined(study: Study) -> None:
    empty = LabelMap(np.zeros_like(study.labels), study.volume)
    assert np.isnan(comparing.compare(empty, empty.labels).dice)


def test_an_uploaded_nifti_is_read_on_the_grid_of_the_scan(study: Study) -> None:
    content = mask_files(study.label_map)["mask.nii.gz"]
    labels, known = comparing.truth_from_upload(study.volume, {"some/where/mask.nii.gz": content})
    assert np.array_equal(labels, study.labels)
    assert known.all()


def test_uploaded_pictures_are_matched_by_name() -> None:
    hu, labels = head()
    source = SourceInfo("images", "pictures", tuple(f"{k}.png" for k in range(len(hu))))
    volume = Volume(np.clip(hu, -20, 100).astype(np.float32), None, source)
    files = {}
    for k in (2, 4):
        buffer = io.BytesIO()
        Image.fromarray(np.where(labels[k] > 0, 255, 0).astype(np.uint8)).save(buffer, "PNG")
        files[f"{k}.png"] = buffer.getvalue()
    read, known = comparing.truth_from_upload(volume, files)
    assert np.array_equal(read[[2, 4]] > 0, labels[[2, 4]] > 0)
    assert known.tolist() == [False, False, True, False, True, False]


@pytest.mark.parametrize("name", ["../../etc/mask.nii.gz", "..\\..\\mask.nii.gz", "mask.nii.gz"])
def test_a_wrong_mask_is_refused_by_its_name_alone(study: Study, name: str, tmp_path: Path) -> None:
    other = Volume(np.zeros((3, 8, 8), np.float32), Stack.regular(3), SourceInfo("dicom", "x"))
    content = mask_files(LabelMap(np.zeros((3, 8, 8), np.uint8), other))["mask.nii.gz"]
    with pytest.raises(InputError) as caught:
        comparing.truth_from_upload(study.volume, {name: content})
    assert str(caught.value).startswith("mask.nii.gz: ")
    assert "/" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        comparing.truth_from_upload(study.volume, {name: b"no nifti"})


def test_the_comparison_page_shows_numbers_and_overlays(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(comparing, "show_viewer", lambda s, overlays, **k: shown.append(overlays))
    mine = study_of(study.volume)
    app = drawn(mine, "hemolens.web.compare")
    assert not app.exception
    assert "Give the mask of this scan" in text_of(app)
    assert not shown
    mine.truth = np.where(mine.labels == 2, 0, mine.labels).astype(np.uint8)
    app = drawn(mine, "hemolens.web.compare")
    assert not app.exception
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Lesions detected"] == "1 of 1"
    assert float(values["Dice of all blood"]) == pytest.approx(2 * 360 / 760, abs=0.01)
    assert "**1** of 2 outlined lesions touch no blood" in text_of(app)
    named = {overlay.name: overlay for overlay in shown[-1]}
    assert np.array_equal(named["false"].values > 0, mine.labels == 2)
    assert not named["missed"].values.any()
    assert [button.label for button in app.button] == ["Found where there is none, 1: slice 5"]
    app.button[0].click().run()
    assert app.session_state[session.GO_TO]["slice"] == 4
