"""Every data set keeps one contract, in the layout that was published; those that are here are read for real."""

from __future__ import annotations

import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dataset_files
from dataset_files import WRITERS, rsna_name
from hemolens.errors import ConfigError, InputError
from hemolens.sources.datasets.cases import (
    EDEMA,
    UNKNOWN,
    UNKNOWN_SUBTYPE,
    Case,
    DataSet,
    SliceRecord,
    findings_of_labels,
    fingerprint,
    merged_findings,
    single_subtype,
)
from hemolens.sources.datasets.ct_ich import open_ct_ich
from hemolens.sources.datasets.opening import NAMES, open_datasets

NAN = math.nan
REAL = ("bhsd", "ct_ich", "phe_sich")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSet]:
    """Each small data set, opened."""
    top = tmp_path_factory.mktemp("datasets")
    for name, write in WRITERS.items():
        write(top / f"any name {name}")
    return {dataset.name: dataset for dataset in open_datasets(top)}


@pytest.fixture(scope="module")
def real(data: Path) -> dict[str, DataSet]:
    return {dataset.name: dataset for dataset in open_datasets(data)}


def case_of(dataset: DataSet, case_id: str) -> Case:
    return next(case for case in dataset.cases if case.id == f"{dataset.name}/{case_id}")


def assert_contract(dataset: DataSet, cases: list[Case]) -> None:
    ids = [case.id for case in dataset.cases]
    assert len(set(ids)) == len(ids) > 0
    assert dataset.license
    for case in cases:
        assert case.id.startswith(f"{dataset.name}/")
        assert "#" not in case.id
        names = [record.name for record in case.slices]
        assert len(set(names)) == len(names) > 0
        volume, labels = dataset.volume(case), dataset.labels(case)
        assert labels.dtype == np.uint8
        assert labels.shape == volume.shape
        assert len(volume) == len(case.slices)
        files = dataset.files(case)
        assert files
        assert all(path.is_file() for path in files)
        for record, plane in zip(case.slices, labels, strict=True):
            assert_slice(record, plane)
        assert len(case.findings) == 6


def assert_slice(record: SliceRecord, plane: np.ndarray) -> None:
    assert all(value in (0.0, 1.0) or math.isnan(value) for value in record.findings)
    here = set(np.unique(plane))
    blood = here & {1, 2, 3, 4, 5, UNKNOWN_SUBTYPE}
    match record.mask_state:
        case "unknown":
            assert here == {UNKNOWN}
        case "empty":
            assert here == {0}
            assert record.findings == (0.0,) * 6
        case "drawn":
            assert blood
            assert UNKNOWN not in here
            assert record.findings[0] == 1.0
        case "pseudo":
            assert blood == {UNKNOWN_SUBTYPE}
            assert here <= {0, UNKNOWN_SUBTYPE, EDEMA}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_layout_keeps_the_contract(written: dict[str, DataSet], name: str) -> None:
    assert_contract(written[name], list(written[name].cases))


@pytest.mark.parametrize("name", REAL)
def test_the_real_data_keep_the_contract(real: dict[str, DataSet], name: str) -> None:
    dataset = real[name]
    assert dataset.notes == ()
    assert_contract(dataset, list(dataset.cases[:: max(len(dataset.cases) // 6, 1)]))


def test_data_sets_can_be_handed_to_other_processes(written: dict[str, DataSet]) -> None:
    for dataset in written.values():
        copy = pickle.loads(pickle.dumps(dataset))
        assert fingerprint(copy) == fingerprint(dataset)
        assert [(note, note.kind) for note in copy.notes] == [(note, note.kind) for note in dataset.notes]
        np.testing.assert_array_equal(copy.labels(copy.cases[0]), dataset.labels(dataset.cases[0]))


def test_odd_file_names_survive_the_index(tmp_path: Path) -> None:
    dataset_files.write_folder(tmp_path)
    for kind in ("images", "masks"):
        (tmp_path / kind / "bob.nii.gz").rename(tmp_path / kind / 'b "o", #b.nii.gz')
    first, second = (open_datasets(tmp_path)[0] for _ in range(2))
    assert fingerprint(first) == fingerprint(second)
    assert 'b "o", -b' in [case.patient for case in second.cases]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_what_systems_leave_behind_is_not_taken_for_data(tmp_path: Path, name: str) -> None:
    """macOS writes ._1.jpg beside 1.jpg on foreign disks, and .DS_Store everywhere."""
    WRITERS[name](tmp_path)
    (clean,) = open_datasets(tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith("hemolens-")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        path.with_name(".DS_Store").write_bytes(b"\0")
    (littered,) = open_datasets(tmp_path)
    assert fingerprint(littered) == fingerprint(clean)
    assert littered.notes == clean.notes


def test_each_is_recognized_by_layout_whatever_its_folder_is_called(written: dict[str, DataSet]) -> None:
    assert sorted(written) == sorted(WRITERS)
    assert set(WRITERS) | {"phe_sich"} == set(NAMES)


@pytest.mark.parametrize("name", ["ct_ich", "ct_ich_nifti", "rsna", "bhsd"])
def test_one_more_folder_level_is_taken(tmp_path: Path, name: str) -> None:
    """As archives unpack: everything inside one folder."""
    inner = "label_192" if name == "bhsd" else "inner"
    WRITERS[name](tmp_path / "download" / inner)
    (dataset,) = open_datasets(tmp_path / "download")
    assert (dataset.name, dataset.root) == (name, tmp_path / "download" / inner)


def test_the_real_data_are_what_their_readme_says(real: dict[str, DataSet]) -> None:
    counts = {n: (len({c.patient for c in d.cases}), sum(len(c.slices) for c in d.cases)) for n, d in real.items()}
    assert counts == {"bhsd": (20, 33), "ct_ich": (63, 1904), "phe_sich": (119, 1838)}
    states = {n: [r.mask_state for c in d.cases for r in c.slices] for n, d in real.items()}
    assert [states["ct_ich"].count(s) for s in ("drawn", "empty", "unknown", "pseudo")] == [13, 1656, 235, 0]
    assert [states["phe_sich"].count(s) for s in ("drawn", "empty", "unknown", "pseudo")] == [0, 1119, 108, 611]
    assert [real[n].trainable for n in REAL] == [False, True, True]
    assert sum(c.findings[0] == 1.0 for c in real["ct_ich"].cases) == 27


def test_a_drawn_ct_ich_mask_has_the_subtype_of_its_row(real: dict[str, DataSet]) -> None:
    case = case_of(real["ct_ich"], "078")
    assert [record.name for record in case.slices] == [str(n) for n in range(1, 32)]
    labels = real["ct_ich"].labels(case)
    drawn = [i for i, r in enumerate(case.slices) if r.mask_state == "drawn"]
    assert [case.slices[i].name for i in drawn] == [*map(str, range(11, 18)), "19", "20", "22"]
    assert {int(v) for i in drawn for v in np.unique(labels[i])} == {0, 1}
    assert case.slice_id(drawn[0]) == "ct_ich/078#11"


def test_ages_are_those_of_the_published_table(real: dict[str, DataSet]) -> None:
    ages = {case.patient: case.age_years for case in real["ct_ich"].cases}
    assert (ages["050"], ages["059"], ages["092"]) == (pytest.approx(0.583333333), 6.0, 70.0)
    assert {case.age_years for case in real["bhsd"].cases} == {None}


def test_ages_are_not_needed_but_never_guessed(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    assert {case.age_years for case in open_ct_ich(tmp_path).cases} == {None}
    (tmp_path / "patient_demographics.csv").write_text(
        "\ufeffPatient Number,Age (years),Gender\n49,0,Male\n51,unknown,Male\n,,\n", encoding="utf-8"
    )
    ages = {case.patient: case.age_years for case in open_ct_ich(tmp_path).cases}
    assert ages == {patient: 0.0 if patient == "049" else None for patient in ages}
    (tmp_path / "patient_demographics.csv").write_text("Patient,Age\n49,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"patient_demographics\.csv: has no column Patient Number"):
        open_ct_ich(tmp_path)


def test_several_subtypes_in_a_row_leave_the_pixels_open(written: dict[str, DataSet]) -> None:
    case = case_of(written["ct_ich"], "051")
    assert case.slices[1].findings == (1.0, 1.0, 0.0, 0.0, 1.0, 0.0)
    assert set(np.unique(written["ct_ich"].labels(case)[1])) == {0, UNKNOWN_SUBTYPE}


def test_phe_sich_slices_say_what_is_known(real: dict[str, DataSet]) -> None:
    case = case_of(real["phe_sich"], "0001")
    by_state = {record.mask_state: record.findings for record in case.slices}
    np.testing.assert_array_equal(by_state["pseudo"], (1.0, 0.0, 0.0, NAN, 1.0, NAN))
    np.testing.assert_array_equal(by_state["unknown"], (NAN,) * 6)
    assert by_state["empty"] == (0.0,) * 6
    volume, labels = real["phe_sich"].volume(case), real["phe_sich"].labels(case)
    assert set(np.unique(labels)) == {0, UNKNOWN_SUBTYPE, EDEMA, UNKNOWN}
    assert volume.source.slice_names == tuple(record.name for record in case.slices)
    assert volume.source.slice_numbers[:3] == (0, 3, 6)
    assert (labels[labels != UNKNOWN] == EDEMA).sum() > 0
    brain = volume.hu[len(volume) // 2, 200:312, 200:312]
    assert 25 < np.median(brain) < 42  # scaled to the brightness of brain under the window


def test_bhsd_pictures_are_single_slices_of_known_kind(real: dict[str, DataSet]) -> None:
    case = case_of(real["bhsd"], "120/018")
    assert case.group == "bhsd/120"
    assert case.findings == (1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    assert set(np.unique(real["bhsd"].labels(case))) == {0, 4, 5}


def test_bhsd_nifti_codes_are_those_of_its_dataset_json(written: dict[str, DataSet]) -> None:
    dataset = written["bhsd"]
    shown = {case.id: [set(np.unique(p)) - {0} for p in dataset.labels(case)] for case in dataset.cases}
    assert shown == {
        "bhsd/ID_0237f3c9/ID_40015688b9": [{1}, {4}, set(), set()],
        "bhsd/ID_0237f3c9/ID_50015688b9": [set(), {5}, {3}, set()],
        "bhsd/ID_029ebbea/ID_563afa0901": [set(), set(), set(), {2}],
    }


def test_nifti_slices_are_named_by_the_file_and_follow_the_volume(written: dict[str, DataSet]) -> None:
    dataset = written["ct_ich_nifti"]
    case = case_of(dataset, "050")
    assert [record.name for record in case.slices] == ["4", "3", "2", "1"]
    assert [record.mask_state for record in case.slices] == ["empty", "drawn", "drawn", "empty"]
    volume, labels = dataset.volume(case), dataset.labels(case)
    sums = dataset_files.nifti_scan(seed=50).sum(axis=(0, 1))
    np.testing.assert_array_equal(volume.hu.sum(axis=(1, 2)), sums[::-1])
    assert set(np.unique(labels[1])) == {0, 2}
    assert (labels[2] > 0).sum() == 64  # the interpolated edge of 60 is no blood


def test_masks_are_turned_as_their_scans_are(tmp_path: Path) -> None:
    """Voxel by voxel, whatever the file's axes: the mask marks exactly the bright voxels."""
    write = dataset_files
    hu = np.full((20, 24, 4), 20, np.int16)
    hu[:2] = -1000
    hu[5:9, 3:6, 2] = 70
    for name, down in (("001", False), ("002", True)):
        write.save_nifti(tmp_path / "data" / f"{name}.nii.gz", hu, down=down)
        write.save_nifti(tmp_path / "label" / f"{name}.nii.gz", (hu == 70).astype(np.uint8), down=down)
    (dataset,) = open_datasets(tmp_path)
    for case in dataset.cases:
        np.testing.assert_array_equal(dataset.labels(case) > 0, dataset.volume(case).hu == 70)
        assert [r.name for r in case.slices if r.mask_state == "drawn"] == ["3"]


def test_rsna_studies_are_rebuilt_from_their_headers(written: dict[str, DataSet]) -> None:
    dataset = written["rsna"]
    assert [case.id for case in dataset.cases] == [
        "rsna/ID_aaa/ID_s1", "rsna/ID_aaa/ID_s2", "rsna/ID_bbb/ID_s3", "rsna/ID_ccc/ID_s4",
    ]  # fmt: skip
    case = dataset.cases[0]
    assert [record.name for record in case.slices] == [rsna_name("ID_s1", n) for n in (4, 3, 2, 1)]
    assert [record.findings[0] for record in case.slices] == [0.0, 1.0, 1.0, 0.0]
    assert case.findings == (1.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    volume = dataset.volume(case)
    assert volume.stack is not None
    assert (np.diff(volume.stack.offsets_mm) > 0).all()
    assert volume.source.sop_instance_uids == tuple(record.name for record in case.slices)
    assert dataset.notes == ("ID_6431af929.dcm was published with its pixels cut short and is left out",)
    assert not dataset.trainable


def test_rsna_reads_its_real_slices(data: Path, tmp_path: Path) -> None:
    """The real files, with all their oddities, under a table of their own."""
    shutil.copytree(data / "rsna_slices", tmp_path / "stage_2_train")
    names = sorted(path.stem for path in (tmp_path / "stage_2_train").glob("*.dcm"))
    kinds = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    rows = [f"{name}_{kind},0" for name in names for kind in kinds]
    (tmp_path / "stage_2_train.csv").write_text("ID,Label\n" + "\n".join(rows) + "\n")
    (dataset,) = open_datasets(tmp_path)
    assert dataset.notes == ()
    assert sorted(record.name for case in dataset.cases for record in case.slices) == names
    assert len({case.patient for case in dataset.cases}) == 12
    assert_contract(dataset, list(dataset.cases))


def test_cq500_takes_what_two_of_three_readers_say(written: dict[str, DataSet]) -> None:
    dataset = written["cq500"]
    found = {case.patient: case.findings for case in dataset.cases}
    assert found == {
        "CQ500-CT-0": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "CQ500-CT-1": (0.0,) * 6,
        "CQ500-CT-2": (1.0, 0.0, 0.0, 1.0, 0.0, 1.0),
    }
    by_name = {case.patient: case for case in dataset.cases}
    assert {r.mask_state for r in by_name["CQ500-CT-1"].slices} == {"empty"}
    np.testing.assert_array_equal(by_name["CQ500-CT-0"].slices[5].findings, (NAN, 0.0, 0.0, 0.0, NAN, 0.0))
    assert all("CT Plain" in str(path) for path in dataset.files(by_name["CQ500-CT-0"]))  # not the bone kernel


def test_a_plain_folder_knows_patients_and_never_takes_a_missing_mask_for_empty(written: dict[str, DataSet]) -> None:
    dataset = written["folder"]
    assert [case.patient for case in dataset.cases] == ["anna", "bob", "carl", "dora"]
    anna = dataset.cases[0]
    assert [record.name for record in anna.slices] == ["1.png", "2.png", "10.png"]
    assert [record.mask_state for record in anna.slices] == ["drawn", "empty", "unknown"]
    assert dataset.cases[2].slices[0].mask_state == "empty"  # the table says so
    assert dataset.cases[3].slices[0].findings[2] == 1.0


def test_a_plain_folder_may_hold_subtypes(tmp_path: Path) -> None:
    from PIL import Image

    for name, code in (("a", 2), ("b", 5), ("c", 1)):
        dataset_files.save_gray(tmp_path / "images" / f"{name}.png", seed=code)
        mask = np.zeros(dataset_files.SHAPE, np.uint8)
        mask[3:6, 3:6] = code
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    (dataset,) = open_datasets(tmp_path)
    assert [int(dataset.labels(case).max()) for case in dataset.cases] == [2, 5, 1]
    assert [case.findings.index(1.0, 1) for case in dataset.cases] == [2, 5, 1]


@pytest.mark.parametrize("name", ["bhsd", "rsna", "cq500"])
def test_a_second_opening_reads_no_pixels_and_says_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path)
    (first,) = open_datasets(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    for where in ("nifti_pairs.read_codes", "rsna._header", "cq500.scan_entries"):
        monkeypatch.setattr(f"hemolens.sources.datasets.{where}", refuse)
    (second,) = open_datasets(tmp_path)
    assert fingerprint(first) == fingerprint(second)
    assert first.notes == second.notes
    assert [first.files(c) for c in first.cases] == [second.files(c) for c in second.cases]


def test_a_changed_mask_is_read_again(tmp_path: Path) -> None:
    dataset_files.write_instance(tmp_path)
    before = {c.patient: c.slices[3].mask_state for c in open_datasets(tmp_path)[0].cases}
    path = tmp_path / "train_2" / "label" / "001.nii.gz"
    dataset_files.save_nifti(path, dataset_files.nifti_mask({3: 1, 2: 1, 0: 1}))
    after = {c.patient: c.slices[3].mask_state for c in open_datasets(tmp_path)[0].cases}
    assert (before["001"], after["001"]) == ("empty", "drawn")


def test_new_files_make_the_index_stale(tmp_path: Path) -> None:
    dataset_files.write_rsna(tmp_path)
    assert len(open_datasets(tmp_path)[0].cases) == 4
    for path in sorted((tmp_path / "stage_2_train").glob("ID_s4*.dcm")):
        path.unlink()
    (dataset,) = open_datasets(tmp_path)
    assert len(dataset.cases) == 3
    assert [note.kind for note in dataset.notes] == ["known", "missing"]


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe\x00", b"hemolens-masks-1\nx,y\n", b'hemolens-series-1,abc\n"a\n'])
def test_a_damaged_index_is_made_anew(tmp_path: Path, junk: bytes) -> None:
    dataset_files.write_bhsd(tmp_path / "b")
    dataset_files.write_rsna(tmp_path / "r")
    clean = [fingerprint(dataset) for dataset in open_datasets(tmp_path)]
    (tmp_path / "b" / "hemolens-masks.csv").write_bytes(junk)
    (tmp_path / "r" / "hemolens-series.csv").write_bytes(junk)
    assert [fingerprint(dataset) for dataset in open_datasets(tmp_path)] == clean


def test_a_read_only_data_set_opens_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_files.write_rsna(tmp_path / "r")
    dataset_files.write_instance(tmp_path / "i")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: refuse() if "w" in mode else original(self, mode, *a, **k)
    )
    for dataset in open_datasets(tmp_path):
        assert "cannot be written" in dataset.notes[-1]
        assert dataset.notes[-1].kind == "known"
        assert not list(dataset.root.glob("hemolens-*"))


def test_nothing_known_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Looked for: .*bhsd.*stage_2_train"):
        open_datasets(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        open_datasets(tmp_path / "absent")


def test_names_choose_and_wrong_ones_are_told(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path / "a")
    dataset_files.write_folder(tmp_path / "b")
    assert [d.name for d in open_datasets(tmp_path, ["folder"])] == ["folder"]
    with pytest.raises(ConfigError, match="Did you mean 'ct_ich'"):
        open_datasets(tmp_path, ["ct_isch"])
    with pytest.raises(InputError, match=r"holds no rsna. Here are: ct_ich, folder"):
        open_datasets(tmp_path, ["rsna"])
    dataset_files.write_ct_ich(tmp_path / "c")
    with pytest.raises(InputError, match="holds ct_ich twice: a and c"):
        open_datasets(tmp_path)


def test_findings_of_slices_and_scans() -> None:
    assert merged_findings([(0.0, 1.0), (0.0, 0.0)]) == (0.0, 1.0)
    np.testing.assert_array_equal(merged_findings([(0.0, NAN), (NAN, 1.0)]), (NAN, 1.0))
    plane = np.array([[0, 2], [5, 0]], np.uint8)
    assert findings_of_labels(plane) == (1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    mixed = np.array([[4, 6], [0, 0]], np.uint8)  # blood of unknown subtype may be any
    np.testing.assert_array_equal(findings_of_labels(mixed), (1.0, NAN, NAN, NAN, 1.0, NAN))
    assert findings_of_labels(np.full((2, 2), EDEMA, np.uint8)) == (0.0,) * 6
    np.testing.assert_array_equal(findings_of_labels(np.full((2, 2), UNKNOWN, np.uint8)), (NAN,) * 6)
    assert single_subtype((1.0, 0.0, 0.0, 1.0, 0.0, 0.0)) == 3
    assert single_subtype((1.0, 0.0, NAN, 1.0, 0.0, 0.0)) == UNKNOWN_SUBTYPE
    assert single_subtype((1.0, 1.0, 0.0, 1.0, 0.0, 0.0)) == UNKNOWN_SUBTYPE


def test_opening_needs_no_torch_and_reads_the_real_data_in_seconds(data: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from hemolens.sources.datasets.opening import open_datasets\n"
        "start = time.process_time(); found = open_datasets(Path(sys.argv[1]))\n"
        "assert len(found) == 3 and 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "assert time.process_time() - start < 20"
    )
    subprocess.run([sys.executable, "-c", script, str(data)], check=True)
