"""Taking a saved correction up again, and ranking earlier results: no browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="needs hemolens[web]")

from hemolens.errors import InputError
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
    path = tmp_path / "results" / "sure" / "findings.json"
    told = json.loads(path.read_text())
    told["input"]["path_or_uid"] = str(tmp_path)
    path.write_text(json.dumps(told))
    os.utime(path, (1, 1))  # written anew: read anew
    assert read_results([(path, "sure", None)])[0].scan == tmp_path
    assert read_results([(tmp_path / "gone", "gone", None)]) == []
