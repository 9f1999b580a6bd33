"""`hemolens data`: what it prints, writes and returns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import dataset_files
from dataset_files import save_gray, write_ct_ich_patients
from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.sources.splits import read_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two data sets, twelve patients of CT-ICH and a plain folder."""
    write_ct_ich_patients(tmp_path / "data" / "c", patients=12)
    dataset_files.write_folder(tmp_path / "data" / "f")
    return tmp_path / "data"


def run(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


def test_summary_prints_a_table_and_saves_a_picture(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plot.png"
    assert run("summary", folder, "--plot", picture) == exits.DONE
    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["ct_ich", "patients", "12", "6", "6", "0", "0", "0", "0"] in lines
    assert ["slices", "36", "6", "6", "0", "0", "0", "0", "6", "0", "30", "0"] in lines
    assert "ct_ich: 12 scans, license CC BY 4.0" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_summary_as_json(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("summary", folder, "--datasets", "ct_ich", "--json") == exits.DONE
    (summary,) = json.loads(capfd.readouterr().out)
    assert (summary["name"], summary["patients"]["total"], summary["masks"]["drawn"]) == ("ct_ich", 12, 6)


def test_check_finds_nothing_in_clean_data(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("check", folder) == exits.DONE
    told = capfd.readouterr()
    assert told.out == "0 problems in 45 slices of ct_ich, folder.\n"
    assert told.err == ""


def test_check_tells_what_it_found_and_returns_3(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    brain = folder / "c" / "Patients_CT"
    shutil.copy(brain / "001/brain/1.jpg", brain / "002/brain/1.jpg")
    save_gray(brain / "003/brain/9_HGE_Seg.jpg", blood=True)
    assert run("check", folder) == exits.PARTIAL
    out = capfd.readouterr().out
    assert "spare_mask    ct_ich    patient 003: masks without a slice, left out: 9" in out
    assert "leak          ct_ich    the same image in patients ct_ich/001, ct_ich/002" in out
    assert "2 problems" in out
    assert run("check", folder, "--json") == exits.PARTIAL
    found = json.loads(capfd.readouterr().out)
    assert [p["kind"] for p in found["problems"]] == ["spare_mask", "leak"]
    assert run("check", folder, "--quiet") == exits.PARTIAL
    assert capfd.readouterr().out == ""


def test_a_split_is_written_checked_and_kept(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "split.json"
    arguments = ("split", folder, "-o", path, "--folds", "3", "--train-only", "folder")
    assert run(*arguments) == exits.DONE
    out = capfd.readouterr().out
    assert "fold 0: train 8 patients (5 with hemorrhage)" in out
    assert "validation 4 patients (2 with hemorrhage), 12 slices; test 4 patients (2 with hemorrhage), 12 slices" in out
    split = read_split(path)
    assert (split.unit, len(split.folds)) == ("patient", 3)
    assert run(*arguments) == exits.FAILED
    assert "this file exists" in capfd.readouterr().err
    assert run(*arguments, "--overwrite", "--seed", "4", "--json") == exits.DONE
    rows = json.loads(capfd.readouterr().out)
    assert [row["test"]["patients"] for row in rows] == [4, 4, 4]
    assert read_split(path).seed == 4
    assert run("check", folder, "--split", path) == exits.DONE


def test_a_leaky_split_is_said_loudly(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "leaky.json"
    assert run("split", folder / "c", "-o", path, "--unit", "slice", "--folds", "3") == exits.DONE
    assert "must not be reported as performance" in capfd.readouterr().err
    assert run("check", folder / "c", "--split", path) == exits.PARTIAL
    told = capfd.readouterr()
    assert "the same person on several sides" in told.out
    assert "must not be reported as performance" in told.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ("split", "DIR", "-o", "OUT/s.json", "--folds", "10"),
            2,
            "10 folds need at least 10 patients with hemorrhage",
        ),
        (("split", "DIR", "-o", "OUT/s.txt"), 2, "--out must name a .json file"),
        (("split", "DIR", "-o", "OUT/s.json", "--test-only", "bhsd"), 2, "There is no data set 'bhsd' to put aside"),
        (("check", "DIR", "--datasets", "ctich"), 2, "No data set is called 'ctich'. Did you mean 'ct_ich'?"),
        (("check", "DIR/absent"), 1, "is no folder"),
        (("check", "OUT"), 1, "holds no data set that hemolens knows"),
        (("check", "DIR", "--split", "OUT/none.json"), 1, "cannot be read as a split"),
        (("summary", "DIR", "--plot", "DIR/c/hemorrhage_diagnosis.csv/x.png"), 1, "cannot be written"),
        (("fetch", "rnsa", "-o", "OUT"), 2, "these can be fetched: ct_ich, rsna, bhsd"),
        (("fetch", "rsna"), 2, "Missing option '--out'"),
    ],
)
def test_bad_usage_is_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, told: str
) -> None:
    (tmp_path / "out").mkdir()
    places = (("DIR", str(folder)), ("OUT", str(tmp_path / "out")))
    words = [next((a.replace(k, v) for k, v in places if a.startswith(k)), a) for a in arguments]
    assert run(*words) == code
    err = capfd.readouterr().err
    assert told in err
    assert err.startswith("hemolens:")
    assert err.count("\n") == 1


def test_a_split_of_other_data_is_refused(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "split.json"
    assert run("split", folder / "c", "-o", path, "--folds", "3", "-q") == exits.DONE
    dataset_files.write_bhsd(tmp_path / "bhsd")
    capfd.readouterr()
    assert run("check", tmp_path / "bhsd", "--split", path) == exits.WRONG_USAGE
    assert "The split was made for ct_ich, not for bhsd." in capfd.readouterr().err


def test_the_real_data_are_summed_up(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("summary", data) == exits.DONE
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["ct_ich", "patients", "63", "27", "17", "2", "4", "13", "3"] in lines
    assert ["slices", "33", "33", "3", "12", "10", "11", "17", "33", "0", "0", "0"] in lines
