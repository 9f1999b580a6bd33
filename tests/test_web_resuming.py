"""Taking a saved correction up again, and ranking earlier results: no browser."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="needs hemolens[web]")

from hemolens.errors import InputError
from hemolens.sources.study import ReadOptions
from hemolens.volume import DisplayWindow
from hemolens.web.corrections_page import draft_of, keep_correction, put
from hemolens.web.earlier import find_results, read_results
from hemolens.web.reports import correction
from hemolens.web.resuming import kept_corrections, read_kept, read_saved
from hemolens.web.saving import zipped
from hemolens.web.session import Study
from hemolens.web.uncertain import doubt
from web_cases import dicom_volume, scored, study_of


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_of(dicom_volume(tmp_path))


def corrected(study: Study) -> bytes:
    """Erase a lesion, and return the zip of it."""
    put(study, draft_of(study).erase_lesion((4, 22, 40)))
    return zipped(correction(study, "Ada Reader").files())


def test_a_saved_correction_is_gone_on_with_and_taken_back(study: Study) -> None:
    content, wanted = corrected(study), study.labels.copy()
    again = Study("Again", study.result)
    labels, source = read_saved(again.volume, "correction.zip", content)
    assert np.array_equal(labels, wanted)
    draft = draft_of(again).take_over(labels, source)
    assert put(again, draft)
    assert np.array_equal(again.labels, wanted)
    told = draft_of(again).done[-1].told()
    assert told.startswith("Took over the correction by Ada Reader, saved 20")
    record = correction(again, "Grace Reader").record()
    assert record["edits"][0]["source"] == source
    put(again, draft_of(again).undo())
    assert np.array_equal(again.labels, study.result.label_map.labels)
    assert draft_of(again).take_over(study.result.label_map.labels, "the same").done == ()


def test_the_mask_alone_will_do(study: Study) -> None:
    files = correction(study, "Ada Reader").files()
    labels, source = read_saved(study.volume, "mask.nii.gz", files["mask.nii.gz"])
    assert np.array_equal(labels, study.labels)
    assert source == "the mask mask.nii.gz"


def test_what_is_no_correction_of_this_scan_is_refused(study: Study, tmp_path: Path) -> None:
    content = corrected(study)
    other = study_of(dicom_volume(tmp_path, 1))
    with pytest.raises(InputError, match="another series"):
        read_saved(other.volume, "correction.zip", content)
    with pytest.raises(InputError, match="no readable zip"):
        read_saved(study.volume, "correction.zip", content[:200])
    with pytest.raises(InputError, match="holds no mask"):
        read_saved(study.volume, "correction.zip", zipped({"note.txt": b"x"}))
    with pytest.raises(InputError, match="cannot be read"):
        read_saved(study.volume, "correction.zip", zipped({"correction.json": b"[1]", "mask.nii.gz": b""}))
    with pytest.raises(InputError, match="does not fit"):
        draft_of(study).take_over(np.zeros((2, 3, 3), np.uint8), "elsewhere")


def test_corrections_on_the_server_are_offered_for_their_own_scan(study: Study, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    corrected(study)
    keep_correction(study, keep, "Ada Reader", False)
    ((told, folder),) = kept_corrections(keep, study.volume)
    assert told.startswith("Ada Reader, 20")
    labels, source = read_kept(study.volume, folder)
    assert np.array_equal(labels, study.labels)
    assert "Ada Reader" in source
    (folder / "correction.json").write_text("{half")
    assert kept_corrections(keep, study.volume) == []
    assert kept_corrections(keep, dicom_volume(tmp_path, 1)) == []


def test_earlier_results_are_ranked_by_their_doubt(study: Study, tmp_path: Path) -> None:
    sure, unsure = scored(study, 0.999), scored(study, 0.5, interval=(0.2, 0.8))
    for name, one in (("sure", sure), ("deep/unsure", unsure)):
        one.result.save(tmp_path / "results" / name)
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / "findings.json").write_text("{")
    found = find_results(tmp_path / "results")
    assert [one.name for one in found] == ["deep/unsure", "sure"]
    assert found[0].doubt == doubt(unsure.findings)
    assert found[0].scan is None  # DICOM results name a UID
    assert found[0].path_or_uid in found[0].remedy
    assert found[0].is_open({found[0].path_or_uid}, set(), set())
    path = tmp_path / "results" / "sure" / "findings.json"
    told = json.loads(path.read_text())
    told["input"].update(kind="nifti", path_or_uid=str(tmp_path))
    path.write_text(json.dumps(told))
    os.utime(path, (1, 1))  # written anew: read anew
    assert read_results([(path, "sure", None)])[0].scan == tmp_path
    assert read_results([(tmp_path / "gone", "gone", None)]) == []


@pytest.mark.parametrize(
    ("told", "lies", "found"),
    [
        ("scans/a.nii.gz", "scans/a.nii.gz", True),  # `hemolens analyze scans/* -o results` beside the results
        ("a.nii.gz", "results/a/a.nii.gz", True),
        ("a.nii.gz", "results/a.nii.gz", True),
        ("a.nii.gz", "../a.nii.gz", False),  # farther out it may be any scan of that name
        ("scans/a.nii.gz", "elsewhere/a.nii.gz", False),
        ("", "a.nii.gz", False),
    ],
)
def test_a_relative_path_is_looked_for_around_the_results(
    study: Study, tmp_path: Path, told: str, lies: str, found: bool
) -> None:
    home = tmp_path / "home"
    findings = result_of(study, home / "results" / "a", told)
    scan = home / lies
    scan.parent.mkdir(parents=True, exist_ok=True)
    scan.touch()
    (one,) = find_results(home / "results")
    assert one.scan == (scan.resolve() if found else None)
    assert findings.parent.name == one.name
    if not found:
        assert one.remedy.count(". ") == 0
        assert "drop the scan on the page **Open**" in one.remedy
    else:
        assert one.is_open(set(), {scan.resolve()}, set())
        assert not one.is_open({told}, set(), set()), "names of files are no UIDs: many scans have the same"


def test_where_the_app_was_started_comes_first(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result_of(study, tmp_path / "results" / "a", "a.nii.gz")
    for place in ("here", "results"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "a.nii.gz").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert find_results(tmp_path / "results")[0].scan == tmp_path / "here" / "a.nii.gz"


def test_slice_images_are_read_again_as_they_were(study: Study, tmp_path: Path) -> None:
    window = {"level_hu": 50.0, "width_hu": 130.0}
    result_of(study, tmp_path / "a", "a", kind="images", window=window, spacing_mm=[5.0, 0.4, 0.4])
    result_of(study, tmp_path / "b", "b", kind="images", window=window, spacing_mm=None)
    by_name = {one.name: one.options for one in find_results(tmp_path)}
    assert by_name["a"] == ReadOptions(window=DisplayWindow(50, 130), pixel_spacing_mm=0.4, slice_spacing_mm=5.0)
    assert by_name["b"] == ReadOptions(window=DisplayWindow(50, 130))


def result_of(study: Study, folder: Path, told: str, **more: Any) -> Path:
    """Write a result that names its scan by a path."""
    study.result.save(folder)
    path = folder / "findings.json"
    findings = json.loads(path.read_text())
    findings["input"].update({"kind": "nifti", "path_or_uid": told, **more})
    path.write_text(json.dumps(findings))
    return path


def test_the_page_opens_what_it_finds_and_says_what_to_do_else(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each result can be chosen; none is left out without a word."""
    from streamlit.testing.v1 import AppTest

    from hemolens.web import uncertain
    from hemolens.web.house import House, WebSettings

    results, ordered = tmp_path / "home" / "results", []
    study.result.save(results / "by-uid")
    result_of(study, results / "by-path", "scans/a.nii.gz")
    (tmp_path / "home" / "scans").mkdir()
    (tmp_path / "home" / "scans" / "a.nii.gz").touch()
    here = House(WebSettings(results=results))
    monkeypatch.setattr("hemolens.web.session.house", lambda: here)
    monkeypatch.setattr(uncertain, "analyze_there", lambda scan, name, **_: ordered.append((scan, name)))

    def page() -> None:
        import streamlit

        from hemolens.web.uncertain import show

        show(streamlit)

    app = AppTest.from_function(page).run(timeout=30)
    assert not app.exception
    box = app.selectbox[0]
    assert sorted(box.options) == ["by-path", "by-uid"]
    box.select("by-uid").run()
    assert [one.value for one in app.info] == [
        f"This result names its scan by its series, {study.findings.input.path_or_uid}, and not by where it lies: "
        "drop the scan on the page **Open**, and it is analyzed again."
    ]
    assert [one.label for one in app.button] == ["Go to the page Open"]
    app.selectbox[0].select("by-path").run()
    assert not app.info
    app.button[0].click().run()
    assert ordered == [(tmp_path / "home" / "scans" / "a.nii.gz", "by-path")]
