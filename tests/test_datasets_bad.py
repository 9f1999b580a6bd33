"""Bad input: one clear line that names the file, what is wrong and what to do; and nothing taken for what it is not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_files
from dataset_files import WRITERS, nifti_mask, nifti_scan, save_gray, save_nifti
from hemolens.errors import DecodeError, HemolensError, InputError
from hemolens.sources.datasets.cases import UNKNOWN, DataSet
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.datasets.rsna import read_labels


def opened(root: Path) -> DataSet:
    (dataset,) = open_datasets(root)
    return dataset


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text("utf-8-sig")), encoding="utf-8-sig")


TABLES = {
    "ct_ich": "hemorrhage_diagnosis.csv",
    "ct_ich_nifti": "hemorrhage_diagnosis_raw_ct.csv",
    "cq500": "reads.csv",
    "rsna": "stage_2_train.csv",
}


@pytest.mark.parametrize("name", ["ct_ich", "ct_ich_nifti"])
def test_no_table(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / TABLES[name]).unlink()
    with pytest.raises(InputError, match=rf"{TABLES[name]}: cannot be read \(No such file"):
        open_datasets(tmp_path)


@pytest.mark.parametrize(
    ("name", "column", "told"),
    [
        ("ct_ich", "No_Hemorrhage", "has no column No_Hemorrhage"),
        ("ct_ich_nifti", "SliceNumber", "has no column SliceNumber"),
        ("cq500", "R3:SDH", "has no column R3:SDH"),
        ("rsna", "Label", "has no columns ID and Label"),
    ],
)
def test_a_table_without_a_column(tmp_path: Path, name: str, column: str, told: str) -> None:
    WRITERS[name](tmp_path)
    edit(tmp_path / TABLES[name], lambda text: text.replace(column, "Other", 1))
    with pytest.raises(InputError, match=rf"{TABLES[name]}: {told}\. Download the data set's table again"):
        open_datasets(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("ct_ich", lambda t: t.replace("49,1,0", "49,x,0"), "line 2 has no whole number for SliceNumber"),
        ("ct_ich", lambda t: t.splitlines()[0], "has no rows"),
        ("ct_ich", lambda t: t + "49,4\n", "is cut short"),
        ("rsna", lambda t: t.replace("_epidural,0", "_epidural,2", 1), "line 2 is no label of a slice"),
        ("rsna", lambda t: t.replace("_epidural", "_other", 1), "line 2 is no label of a slice"),
        ("cq500", lambda t: t.replace("B1,1", "B1,yes", 1), "line 2 holds 'yes', not 0 or 1"),
    ],
)
def test_a_table_that_makes_no_sense(tmp_path: Path, name: str, change: Callable[[str], str], told: str) -> None:
    WRITERS[name](tmp_path)
    edit(tmp_path / TABLES[name], change)
    with pytest.raises(InputError, match=rf"{TABLES[name]}: .*{told}"):
        open_datasets(tmp_path)


def test_a_binary_table_is_no_table(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    (tmp_path / TABLES["ct_ich"]).write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(InputError, match="is no CSV table"):
        open_datasets(tmp_path)


def test_phe_sich_refuses_a_state_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "blood_pseudo").mkdir()
    save_gray(tmp_path / "images" / "0001_00.jpg")
    (tmp_path / "slices.csv").write_text("file,patient,slice,blood\n0001_00.jpg,0001,0,maybe\n")
    with pytest.raises(InputError, match=r"slices.csv: line 2 has no slice number or no known state"):
        open_datasets(tmp_path)
    (tmp_path / "slices.csv").write_text("file,patient,slice\n0001_00.jpg,0001,0\n")
    with pytest.raises(InputError, match=r"slices.csv: has no column blood"):
        open_datasets(tmp_path)


def test_a_wrong_folder_level_is_told(tmp_path: Path) -> None:
    """One too deep: the patient's folder is no data set."""
    dataset_files.write_ct_ich(tmp_path)
    for level in ("Patients_CT/050", "Patients_CT/050/brain"):
        with pytest.raises(InputError, match="holds no data set that hemolens knows"):
            open_datasets(tmp_path / level)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("ct_ich", lambda r: (r / "Patients_CT/050/brain/2.jpg").write_bytes(b"\xff\xd8\xff junk")),
        ("instance", lambda r: _cut(r / "train_2/data/001.nii.gz")),
        ("rsna", lambda r: _cut(r / "stage_2_train/ID_s10000002.dcm")),
        ("folder", lambda r: _cut(r / "images/anna/10.png")),
    ],
)
def test_an_unreadable_image_is_named(tmp_path: Path, name: str, spoil: Callable[[Path], object]) -> None:
    WRITERS[name](tmp_path)
    dataset = opened(tmp_path)
    spoil(dataset.root if name != "instance" else tmp_path)
    told = []
    for case in dataset.cases:
        try:
            dataset.volume(case)
        except DecodeError as error:
            told.append(str(error))
    assert len(told) == 1
    assert re.search(r"2\.jpg|001\.nii|ID_s10000002|10\.png", told[0])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def test_an_unreadable_mask_is_named(tmp_path: Path) -> None:
    dataset_files.write_instance(tmp_path)
    _cut(tmp_path / "train_2" / "label" / "002.nii.gz")
    with pytest.raises(DecodeError, match=r"label/002\.nii\.gz: is cut short, damaged or no NIfTI"):
        open_datasets(tmp_path)


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path / "c")
    save_gray(tmp_path / "c/Patients_CT/050/brain/2_HGE_Seg.jpg", blood=True, shape=(30, 20))
    dataset = opened(tmp_path / "c")
    with pytest.raises(InputError, match=r"2_HGE_Seg\.jpg: is \(30, 20\), its slice \(24, 20\)"):
        dataset.labels(dataset.cases[1])
    dataset_files.write_instance(tmp_path / "i")
    save_nifti(tmp_path / "i/train_2/label/002.nii.gz", nifti_mask({1: 1}, slices=5))
    with pytest.raises(InputError, match=r"002\.nii\.gz: is \(5, 24, 20\), its scan \(4, 24, 20\)"):
        open_datasets(tmp_path / "i")
    dataset_files.write_folder(tmp_path / "f")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "f/masks/x.png")
    with pytest.raises(InputError, match=r"x\.png: is \(9, 9\), its image \(24, 20\)"):
        open_datasets(tmp_path / "f")


def test_slices_of_several_sizes(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    save_gray(tmp_path / "Patients_CT/049/brain/3.jpg", shape=(30, 20))
    dataset = opened(tmp_path)
    with pytest.raises(InputError, match="slices differ in size"):
        dataset.volume(dataset.cases[0])


def test_a_mask_for_another_patient(tmp_path: Path) -> None:
    """In a folder of one's own the headers must agree: the mask of another scan lies elsewhere."""
    dataset_files.write_folder(tmp_path)
    save_nifti(tmp_path / "masks" / "bob.nii.gz", nifti_mask({2: 1}), shift=15.0)
    with pytest.raises(InputError, match=r"bob\.nii\.gz: lies elsewhere than its scan"):
        open_datasets(tmp_path)


def test_a_mask_with_a_value_that_is_no_class(tmp_path: Path) -> None:
    dataset_files.write_bhsd(tmp_path)
    name = "ID_029ebbea_ID_563afa0901.nii.gz"
    save_nifti(tmp_path / "ground truths" / name, nifti_mask({0: 9}))
    with pytest.raises(InputError, match=rf"{re.escape(name)}: holds values that are no labels: 9"):
        open_datasets(tmp_path)


def test_bhsd_pictures_want_their_colors(data: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        shutil.copy(data / "bhsd" / folder / "120018.png", tmp_path / folder)
    mask = Image.new("RGB", (512, 512))
    mask.paste((250, 128, 10), (100, 100, 120, 120))
    mask.save(tmp_path / "masks" / "120018.png")
    with pytest.raises(InputError, match=r"120018\.png: holds a color that is no class"):
        open_datasets(tmp_path)


def test_masks_without_slices_are_noted_and_left_out(tmp_path: Path) -> None:
    for name, spare in (
        ("ct_ich", "Patients_CT/049/brain/9_HGE_Seg.jpg"),
        ("folder", "masks/nobody.png"),
    ):
        WRITERS[name](tmp_path / name)
        save_gray(tmp_path / name / spare, blood=True)
        notes = opened(tmp_path / name).notes
        assert [note.kind for note in notes] == ["spare_mask"]
        assert Path(spare).stem.removesuffix("_HGE_Seg") in notes[0]
    dataset_files.write_instance(tmp_path / "i")
    save_nifti(tmp_path / "i/train_2/label/999.nii.gz", nifti_mask({1: 1}))
    assert [(n.kind, str(n)) for n in opened(tmp_path / "i").notes] == [
        ("spare_mask", "masks without a scan, left out: 999")
    ]


def test_a_mask_that_contradicts_its_row_settles_nothing(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path / "c")
    save_gray(tmp_path / "c/Patients_CT/049/brain/1_HGE_Seg.jpg", blood=True)
    dataset = opened(tmp_path / "c")
    assert dataset.cases[0].slices[0].mask_state == "unknown"
    assert (dataset.labels(dataset.cases[0])[0] == UNKNOWN).all()
    assert dataset.notes[0].kind == "disagreement"
    dataset_files.write_ct_ich_nifti(tmp_path / "n")
    edit(tmp_path / "n" / TABLES["ct_ich_nifti"], lambda t: t.replace("50,1,0,0,0,0,0,1,0", "50,1,0,0,0,0,1,0,0"))
    dataset = opened(tmp_path / "n")
    states = {r.name: r.mask_state for r in dataset.cases[1].slices}
    assert states["1"] == "unknown"  # the row says hemorrhage, the mask shows none: never empty
    assert dataset.notes[0].kind == "disagreement"
    dataset_files.write_folder(tmp_path / "f")
    edit(tmp_path / "f/labels.csv", lambda t: t.replace("x.png,dora,1,1", "x.png,dora,0,0"))
    dataset = opened(tmp_path / "f")
    assert dataset.cases[-1].slices[0].mask_state == "unknown"
    assert dataset.notes[0].kind == "disagreement"


def test_images_without_labels_are_unknown(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    save_gray(tmp_path / "Patients_CT/049/brain/4.jpg")
    edit(tmp_path / TABLES["ct_ich"], lambda t: "".join(line for line in t.splitlines(True) if "51,3" not in line))
    dataset = opened(tmp_path)
    assert [n.kind for n in dataset.notes] == ["unlabeled", "unlabeled"]
    assert {dataset.cases[0].slices[3].mask_state, dataset.cases[2].slices[2].mask_state} == {"unknown"}
    np.testing.assert_array_equal(dataset.cases[0].slices[3].findings, (np.nan,) * 6)


def test_missing_slices_are_noted(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    (tmp_path / "Patients_CT/049/brain/3.jpg").unlink()
    shutil.rmtree(tmp_path / "Patients_CT/051")
    notes = opened(tmp_path).notes
    assert [n.kind for n in notes] == ["missing", "missing"]
    assert "051" in notes[1]


def test_rsna_labels_that_contradict_each_other_are_unknown(tmp_path: Path) -> None:
    table = tmp_path / "stage_2_train.csv"
    table.write_text("ID,Label\nID_a_epidural,0\nID_a_any,1\nID_a_epidural,1\nID_b_any,0\n")
    labels, doubtful = read_labels(table)
    np.testing.assert_array_equal(labels["ID_a"], (1.0, np.nan, np.nan, np.nan, np.nan, np.nan))
    np.testing.assert_array_equal(labels["ID_b"], (0.0, np.nan, np.nan, np.nan, np.nan, np.nan))
    assert doubtful == ["ID_a"]


def test_rsna_slices_without_a_place_are_left_out_and_counted(tmp_path: Path) -> None:
    from pydicom import dcmread

    dataset_files.write_rsna(tmp_path)
    path = tmp_path / "stage_2_train" / "ID_s10000003.dcm"
    header = dcmread(path, force=True)
    del header.ImagePositionPatient
    header.save_as(path)
    (tmp_path / "stage_2_train" / "ID_zzz.dcm").write_bytes(b"no DICOM at all" * 20)
    dataset = opened(tmp_path)
    assert len(dataset.cases[0].slices) == 3
    assert [n.kind for n in dataset.notes] == ["known", "left_out"]
    assert "2 slices without position" in dataset.notes[1]
    assert "ID_s10000003, ID_zzz" in dataset.notes[1]


def test_a_folder_laid_out_right_but_empty(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match="holds no PNG, JPEG or NIfTI"):
        open_datasets(tmp_path)
    (tmp_path / "r" / "stage_2_train").mkdir(parents=True)
    (tmp_path / "r" / "stage_2_train.csv").write_text("ID,Label\nID_a_any,1\n")
    with pytest.raises(InputError, match=r"holds no \.dcm files"):
        open_datasets(tmp_path / "r")
    (tmp_path / "c" / "Patients_CT" / "049" / "brain").mkdir(parents=True)
    shutil.copy(dataset_files.write_ct_ich(tmp_path / "w") / TABLES["ct_ich"], tmp_path / "c")
    with pytest.raises(InputError, match="is laid out as ct_ich but holds no scan"):
        open_datasets(tmp_path / "c")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("file,any\nabsent.png,1\n", r"line 2: images/absent\.png is not there"),
        ("file,any\nx.png,yes\n", "line 2 has a finding other than 0, 1 or blank"),
        ("file,age\nx.png,44\n", "has a column 'age' of unknown meaning"),
        ("name,any\nx.png,1\n", "has no column file"),
    ],
)
def test_a_plain_folders_own_table(tmp_path: Path, rows: str, told: str) -> None:
    dataset_files.write_folder(tmp_path)
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(InputError, match=rf"labels\.csv: {told}\. Columns may be file, patient, any"):
        open_datasets(tmp_path)


def test_a_file_that_vanished_since_opening_is_one_clear_line(tmp_path: Path) -> None:
    for name in ("ct_ich", "bhsd", "rsna", "folder"):
        WRITERS[name](tmp_path / name)
        dataset = opened(tmp_path / name)
        case = dataset.cases[0]
        dataset.files(case)[0].unlink()
        with pytest.raises(HemolensError) as told:
            dataset.volume(case)
        assert "\n" not in str(told.value)
        assert str(told.value).endswith(".")


def test_a_sagittal_stack_is_refused(tmp_path: Path) -> None:
    import nibabel as nib

    dataset_files.write_instance(tmp_path)
    turned = np.array([[0, 0, 5.0, 0], [9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(nifti_scan(), turned), tmp_path / "train_2" / "data" / "001.nii.gz")
    with pytest.raises(InputError, match=r"001\.nii\.gz: is no stack of axial slices|001\.nii\.gz: is \("):
        open_datasets(tmp_path)
