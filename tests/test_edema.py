"""Perihematomal edema, from the network's answer to every report."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import jsonschema
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dicom_files import Series, write_series
from hemolens.errors import InputError
from hemolens.geometry import Stack
from hemolens.inference.predictor import _probabilities
from hemolens.labels import EDEMA
from hemolens.measurements.edema import add_edema, measure_edema
from hemolens.measurements.findings import Findings, build_findings
from hemolens.measurements.lesions import find_lesions
from hemolens.reports.as_json import read_findings, schema
from hemolens.reports.folder import write_reports
from hemolens.sources.study import read_volume
from hemolens.volume import LabelMap, Volume
from predictions import predict, volume_of

STACK = Stack.regular(4, (0.0, 0, 0), spacing_mm=(1.0, 2.0), step_mm=(0, 0, 5.0))
SHAPE = (4, 40, 40)


def labels() -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[1:3, 10:16, 10:16] = 4
    return found


def swollen() -> np.ndarray:
    """A rim around the bleed and its next slice, and dark tissue far away."""
    values = np.zeros(SHAPE, np.float16)
    values[1:4, 8:18, 8:18] = 0.8
    values[1:3, 30:36, 30:36] = 0.9
    return values


def analyzed(volume: Volume, edema: np.ndarray | None) -> tuple[LabelMap, Findings, object]:
    prediction = replace(predict(labels()), edema=edema)
    label_map, lesions = find_lesions(volume, prediction)
    label_map = add_edema(label_map, prediction)
    findings = build_findings(volume, prediction, label_map, lesions, (), {}, datetime(2026, 1, 2, tzinfo=UTC))
    return label_map, findings, prediction


def test_edema_hangs_together_with_blood_and_is_none_itself() -> None:
    label_map, findings, _ = analyzed(volume_of(SHAPE, STACK), swollen())
    expected = np.zeros(SHAPE, bool)
    expected[1:4, 8:18, 8:18] = True
    expected &= labels() == 0
    np.testing.assert_array_equal(label_map.edema, expected)
    # 2 slices of 100 - 36 pixels and one of 100, each 2 mm² by 5 mm.
    assert findings.edema.volume_ml == pytest.approx((2 * 64 + 100) * 10 / 1000)
    assert findings.edema.slices == (1, 2, 3)
    assert findings.edema.area_px is None
    assert findings.total.volume_ml == pytest.approx(72 * 10 / 1000)
    assert findings.slices[3].blood_area_mm2 == 0


def test_without_millimeters_pixels_are_counted() -> None:
    label_map, findings, _ = analyzed(volume_of(SHAPE, None), swollen())
    assert findings.edema == measure_edema(label_map)
    assert (findings.edema.volume_ml, findings.edema.area_px) == (None, 228)


def test_edema_without_outlined_blood_is_not_perihematomal() -> None:
    volume = volume_of(SHAPE, STACK)
    prediction = replace(predict(np.zeros(SHAPE, np.uint8)), edema=swollen())
    label_map = add_edema(find_lesions(volume, prediction)[0], prediction)
    assert label_map.edema is not None
    assert not label_map.edema.any()
    assert measure_edema(label_map).volume_ml == 0


def test_a_network_that_does_not_look_for_edema_says_nothing_of_it() -> None:
    label_map, findings, _ = analyzed(volume_of(SHAPE, STACK), None)
    assert label_map.edema is None
    assert findings.edema is None


def test_masks_of_other_shapes_are_refused() -> None:
    volume = volume_of(SHAPE, STACK)
    with pytest.raises(InputError, match="cannot belong"):
        LabelMap(labels(), volume, np.zeros((4, 40, 41), bool))
    with pytest.raises(ValueError, match="edema has shape"):
        replace(predict(labels()), edema=np.zeros((3, 40, 40), np.float16))


def test_the_seventh_channel_is_edema_and_the_subtypes_stay_shares_of_blood() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (2, 7, 3, 3)).astype(np.float32)
    found = _probabilities({"mask": logits})["mask"]
    np.testing.assert_allclose(found[:, 6], 1 / (1 + np.exp(-logits[:, 6])), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1:6].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[:, :6], _probabilities({"mask": logits[:, :6]})["mask"], rtol=1e-6)


def test_every_report_of_a_dicom_scan_tells_it(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", Series(slices=4, rows=40, columns=40))
    volume = read_volume(tmp_path / "scan")
    label_map, findings, prediction = analyzed(volume, swollen())
    files = write_reports(tmp_path / "out", volume, prediction, label_map, findings)
    values = json.loads(files["findings"].read_text())
    jsonschema.validate(values, schema())
    assert values["edema"]["volume_ml"] == pytest.approx(findings.edema.volume_ml, abs=1e-6)
    assert read_findings(files["findings"]).edema.slices == (1, 2, 3)
    mask = np.asarray(nib.load(files["edema"]).dataobj)
    np.testing.assert_array_equal(mask.transpose(2, 1, 0) > 0, label_map.edema)
    assert EDEMA.title in files["report"].read_text()
    assert "line-PHE" in files["report"].read_text()
    seg = highdicom.seg.segread(io.BytesIO(files["seg"].read_bytes()))
    told = {s.SegmentLabel: s.SegmentNumber for s in seg.SegmentSequence}
    assert list(told) == ["Intraparenchymal hemorrhage", "Perihematomal edema"]
    by_image = seg.get_pixels_by_source_instance(
        list(volume.source.sop_instance_uids),
        segment_numbers=[2],
        assert_missing_frames_are_empty=True,
    )[..., 0]
    np.testing.assert_array_equal(by_image > 0, label_map.edema)
    assert "Volume of perihematomal edema" in str(highdicom.sr.srread(io.BytesIO(files["sr"].read_bytes())))


def test_slice_images_get_a_folder_of_edema_masks(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for k in range(4):
        Image.fromarray(np.full((40, 40), 90 + k, np.uint8)).save(folder / f"{k}.png")
    volume = read_volume(folder)
    label_map, findings, prediction = analyzed(volume, swollen())
    files = write_reports(tmp_path / "out", volume, prediction, label_map, findings)
    for k in range(4):
        mask = np.asarray(Image.open(files["edema"] / f"{k}.png"))
        np.testing.assert_array_equal(mask, np.where(label_map.edema[k], 255, 0))
    assert json.loads(files["findings"].read_text())["edema"]["area_px"] == 228
    # The folder is ours, and may be replaced when asked.
    write_reports(tmp_path / "out", volume, prediction, label_map, findings, overwrite=True)
