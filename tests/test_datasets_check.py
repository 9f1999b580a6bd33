"""What `hemolens data check` finds, each planted on purpose; and nothing in clean data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_files
from dataset_files import WRITERS, save_gray
from dicom_files import Series, write_series
from hemolens.errors import DependencyError, OutputError
from hemolens.sources.datasets.checking import Problem, check_datasets, image_keys
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.datasets.summary import plot_summaries, summarize
from hemolens.sources.splits import Fold, Split, make_split


def found(root: Path, split: Split | None = None) -> tuple[Problem, ...]:
    return check_datasets(open_datasets(root), split)


def kinds(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.kind for problem in problems]


@pytest.mark.parametrize("name", ["ct_ich", "ct_ich_nifti", "bhsd", "instance", "folder"])
def test_clean_data_have_no_problem(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    assert found(tmp_path) == ()


def test_the_same_slice_twice_in_a_patient(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    brain = tmp_path / "Patients_CT" / "049" / "brain"
    shutil.copy(brain / "1.jpg", brain / "3.jpg")
    (problem,) = found(tmp_path)
    assert (problem.kind, problem.where) == ("duplicate", ("ct_ich/049#1", "ct_ich/049#3"))


def test_the_same_image_in_two_patients_is_a_leak(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    folder = tmp_path / "Patients_CT"
    shutil.copy(folder / "049/brain/1.jpg", folder / "051/brain/3.jpg")
    (problem,) = found(tmp_path)
    assert problem.kind == "leak"
    assert "ct_ich/049, ct_ich/051" in problem.message


def test_a_whole_scan_under_two_names_is_told_in_one_line(tmp_path: Path) -> None:
    dataset_files.write_instance(tmp_path)
    for folder in ("data", "label"):
        shutil.copy(tmp_path / f"train_2/{folder}/001.nii.gz", tmp_path / f"train_2/{folder}/004.nii.gz")
    (problem,) = found(tmp_path)
    assert problem.kind == "leak"
    assert len(problem.where) == 8


def test_a_copy_is_found_across_data_sets_and_formats(tmp_path: Path) -> None:
    """A scan in INSTANCE's NIfTI, the same as RSNA's DICOM, and one slice of it as BHSD's clipped picture."""
    dataset_files.write_instance(tmp_path / "i")
    instance = open_datasets(tmp_path / "i")[0]
    hu = instance.volume(instance.cases[0]).hu
    plan = Series(slices=4, patient="ID_p", study="ID_s", series="ID_t", extra=dataset_files.RSNA_STRIPPED)
    write_series(tmp_path / "r" / "stage_2_train", plan, stored=hu.astype(int) + 1024)
    (tmp_path / "r" / "stage_2_train.csv").write_text("ID,Label\nim000_any,1\n")
    picture, mask = np.clip(hu[1], 0, 255).astype(np.uint8), np.zeros((*dataset_files.SHAPE, 3), np.uint8)
    mask[8:12, 8:12] = (255, 0, 0)
    for folder, pixels in (("images", picture), ("masks", mask)):
        (tmp_path / "b" / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "b" / folder / "120018.png")
    leaks = [p for p in found(tmp_path) if p.kind == "leak"]
    assert sorted((p.dataset, len(p.where)) for p in leaks) == [("bhsd+instance+rsna", 3), ("instance+rsna", 6)]


def test_air_is_no_duplicate() -> None:
    from hemolens.volume import SourceInfo, Volume

    hu = np.full((2, 32, 32), -1000, np.int16)
    hu[:, 10:12, 10:12] = 30
    assert list(image_keys(Volume(hu, None, SourceInfo("images", "x")))) == [None, None]


def test_wrong_sizes_and_unreadable_files(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    folder = tmp_path / "Patients_CT"
    save_gray(folder / "050/brain/2_HGE_Seg.jpg", blood=True, shape=(30, 20))
    (folder / "051/brain/1.jpg").write_bytes(b"\xff\xd8\xff junk")
    problems = found(tmp_path)
    assert [(p.kind, p.where) for p in problems] == [("mismatch", ("ct_ich/050",)), ("unreadable", ("ct_ich/051",))]
    assert "2_HGE_Seg.jpg: is (30, 20)" in problems[0].message


def test_masks_without_slices_and_other_notes(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    folder = tmp_path / "Patients_CT"
    save_gray(folder / "049/brain/9_HGE_Seg.jpg", blood=True)
    save_gray(folder / "049/brain/2_HGE_Seg.jpg", blood=True)  # its row says no hemorrhage
    (folder / "050/brain/1.jpg").unlink()
    save_gray(folder / "051/brain/4.jpg", seed=99)
    assert sorted(kinds(found(tmp_path))) == ["disagreement", "missing", "spare_mask", "unlabeled"]


def test_labels_and_masks_that_disagree(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    Image.fromarray(np.zeros(dataset_files.SHAPE, np.uint8)).save(tmp_path / "Patients_CT/050/brain/2_HGE_Seg.jpg")
    table = tmp_path / "hemorrhage_diagnosis.csv"
    text = table.read_text("utf-8-sig").replace("49,1,0,0,0,0,0,1", "49,1,1,0,0,0,0,1")
    table.write_text(text.replace("51,2,0,1,0,1,0,0", "51,2,0,0,0,0,0,0"), encoding="utf-8-sig")
    told = {p.where[0]: p.message.partition(": ")[2] for p in found(tmp_path)}
    assert told == {
        "ct_ich/050#2": "its mask is there and holds no blood",
        "ct_ich/051#2": "its label says hemorrhage and no subtype",
    }


def test_a_mask_of_a_subtype_that_the_label_denies(tmp_path: Path) -> None:
    for name, code in (("a", 2), ("b", 5)):
        save_gray(tmp_path / "images" / f"{name}.png", seed=code)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full(dataset_files.SHAPE, code, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("file,any,subdural\na.png,1,0\n")
    (problem,) = found(tmp_path)
    assert (problem.kind, "a.png" in problem.message) == ("disagreement", True)


def test_known_defects_are_no_problem(tmp_path: Path) -> None:
    dataset_files.write_rsna(tmp_path)
    problems = found(tmp_path)
    assert "known" not in kinds(problems)
    assert not any("ID_6431af929" in p.message for p in problems)


def test_the_same_people_in_two_data_sets(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path / "a")
    dataset_files.write_ct_ich_nifti(tmp_path / "b")
    problems = [p for p in found(tmp_path) if "same people" in p.message]
    assert [p.where for p in problems] == [("ct_ich/049", "ct_ich_nifti/049", "ct_ich/050", "ct_ich_nifti/050")]


def test_images_and_people_across_the_sides_of_a_split(tmp_path: Path) -> None:
    dataset_files.write_ct_ich(tmp_path)
    folder = tmp_path / "Patients_CT"
    shutil.copy(folder / "050/brain/1.jpg", folder / "051/brain/3.jpg")
    split = Split(
        "patient", 0, {"ct_ich": ("049", "050", "051")}, (Fold(("ct_ich/049",), ("ct_ich/050",), ("ct_ich/051",)),)
    )
    messages = [p.message for p in found(tmp_path, split)]
    assert any(m.startswith("fold 0: the same image on the sides test, validation") for m in messages)
    (dataset,) = open_datasets(tmp_path)
    leaky = make_split([dataset], folds=3, unit="slice")
    messages = [p.message for p in check_datasets([dataset], leaky)]
    assert any("the same person on several sides" in m for m in messages)


def test_a_slice_copied_between_real_patients_is_found(data: Path, tmp_path: Path) -> None:
    """PHE-SICH's gray values are scaled scan by scan: the file itself gives the copy away."""
    rows = ["file,patient,slice,blood"]
    for folder in ("images", "blood_pseudo", "oedema"):
        (tmp_path / folder).mkdir()
    for patient in ("0001", "0004"):
        for path in sorted((data / "phe_sich" / "images").glob(f"{patient}_*.jpg"))[:6]:
            shutil.copy(path, tmp_path / "images")
            rows.append(f"{path.name},{patient},{int(path.stem[-2:])},none")
    assert [p for p in _phe(tmp_path, rows) if p.kind == "leak"] == []
    first = sorted((tmp_path / "images").glob("0001_*"))[4]
    last = sorted((tmp_path / "images").glob("0004_*"))[5]
    shutil.copy(first, last)
    (problem,) = _phe(tmp_path, rows)
    assert problem.kind == "leak"
    assert problem.where == (f"phe_sich/0001#{first.name}", f"phe_sich/0004#{last.name}")


def _phe(root: Path, rows: list[str]) -> tuple[Problem, ...]:
    (root / "slices.csv").write_text("\n".join(rows) + "\n")
    return found(root)


@pytest.mark.slow
def test_the_real_data_are_clean(data: Path) -> None:
    """A part of them; all of them were looked through when this was written."""
    datasets = [replace(d, cases=d.cases[:: 1 if d.name == "bhsd" else 5]) for d in open_datasets(data)]
    split = make_split(datasets, train_only=["phe_sich"], test_only=["bhsd"], folds=3)
    assert check_datasets(datasets, split) == ()


def test_a_summary_counts_patients_slices_and_masks(data: Path) -> None:
    (dataset,) = open_datasets(data / "ct_ich")
    summary = summarize(dataset)
    assert (summary.patients.total, summary.patients.present["any"], summary.scans) == (63, 27, 63)
    assert summary.slices.present == {
        "any": 248, "epidural": 148, "subdural": 33, "subarachnoid": 12, "intraparenchymal": 64, "intraventricular": 9,
    }  # fmt: skip
    assert summary.masks == {"drawn": 13, "pseudo": 0, "empty": 1656, "unknown": 235}
    assert len(summary.fingerprint) == 64


def test_a_summary_keeps_unknown_apart_from_absent(tmp_path: Path) -> None:
    dataset_files.write_instance(tmp_path)
    summary = summarize(open_datasets(tmp_path)[0])
    assert (summary.patients.present["any"], summary.patients.present["subdural"]) == (3, 0)
    assert summary.patients.absent["subdural"] == 0  # blood of unknown subtype: nobody is known to be without
    assert summary.slices.absent["subdural"] == 8


def test_the_plot_is_drawn_without_pyplot(tmp_path: Path) -> None:
    import sys

    before = "matplotlib.pyplot" in sys.modules
    dataset_files.write_ct_ich(tmp_path / "d")
    summaries = [summarize(dataset) for dataset in open_datasets(tmp_path / "d")]
    plot_summaries(summaries, tmp_path / "made" / "plot.png")
    with Image.open(tmp_path / "made" / "plot.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    reds = (pixels == (0xC0, 0x39, 0x2B)).all(axis=-1)
    assert reds.sum() > 1000  # the bars of those present
    assert ("matplotlib.pyplot" in sys.modules) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        plot_summaries(summaries, tmp_path / "file" / "plot.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"hemolens\[data\]"):
        plot_summaries([], tmp_path / "x.png")
