"""`hemolens analyze` on real input, good and bad: what it writes, its exit code, and nothing half-written."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.demo import demo_source, demo_truth
from hemolens.reports.as_json import schema

COMMAND = [sys.executable, "-m", "hemolens", "analyze"]


def analyze(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **more)


def valid_findings(folder: Path) -> dict[str, Any]:
    findings: dict[str, Any] = json.loads((folder / "findings.json").read_text("utf-8"))
    jsonschema.validate(findings, schema())
    page = (folder / "report.html").read_text("utf-8")
    assert "Research use only" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page), "the report is not self-contained"
    return findings


def codes(findings: dict[str, Any]) -> set[str]:
    return {note["code"] for note in findings["quality"]}


# -- good input -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_shows_found_against_true(tmp_path: Path) -> None:
    done = analyze("--demo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (exits.DONE, "")
    findings = valid_findings(tmp_path / "hemolens-demo")
    assert findings["study"]["decision"] == "positive"
    assert "found against true" in done.stdout
    assert f"{demo_truth().total_ml:.1f} ml" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "Research use only. Not a medical device.",
        f"Report: {Path('hemolens-demo') / 'report.html'}",
    ]
    mask = nib.load(tmp_path / "hemolens-demo" / "mask.nii.gz")
    assert sorted(mask.shape) == sorted(demo_truth().labels().shape)
    assert np.asarray(mask.dataobj).max() <= 5


@pytest.mark.slow
def test_the_tilted_series(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    done = analyze(data / "dicom_head_tilted", "-o", out, "--probability")
    assert (done.returncode, done.stderr) == (exits.DONE, "")
    findings = valid_findings(out)
    assert {"gantry_tilt", "uneven_spacing", "padding_replaced"} <= codes(findings)
    assert findings["input"]["slices"] == 28
    assert findings["input"]["regular"] is False
    assert (out / "mask.nii.gz").is_file()
    assert (out / "probability.nii.gz").is_file()


@pytest.mark.slow
def test_the_three_ways_to_a_patient_of_ct_ich(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = data / "ct_ich"
    brain = root / "Patients_CT" / "078" / "brain"
    done = analyze(brain, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (exits.DONE, "")
    findings = valid_findings(tmp_path / "out")
    assert {"unknown_window", "no_spacing", "orientation_assumed"} <= codes(findings)
    assert "volume_ml" not in findings["total"]

    masks = sorted((tmp_path / "out" / "masks").iterdir())
    assert {p.stem for p in masks} == {p.stem for p in brain.glob("*.jpg") if "HGE" not in p.stem}
    pixels = np.asarray(Image.open(masks[0]))
    assert pixels.shape == (650, 650)
    assert set(np.unique(pixels)) <= {0, 255}

    for way in ([brain.parent], [root, "--patient", "78"]):
        assert main(["analyze", *map(str, way), "--json"]) == exits.DONE
        same = json.loads(capfd.readouterr().out)
        for key in ("study", "slices", "lesions", "total"):
            assert same[key] == findings[key]


# -- input with a flaw that does not stop the work ---------------------------------------------------------------------

Change = Callable[[Any, int], bool | None]


def altered_demo(folder: Path, change: Change, prefix: str = "") -> Path:
    """Copy the demo series slice by slice; `change(dataset, number)` edits each and drops it by returning False."""
    folder.mkdir(exist_ok=True)
    files = [p for p in demo_source().rglob("*") if p.is_file()]
    read = sorted((pydicom.dcmread(p) for p in files), key=lambda ds: ds.ImagePositionPatient[2])
    for number, dataset in enumerate(read):
        if change(dataset, number) is not False:
            dataset.save_as(folder / f"{prefix}{number:02d}.dcm")
    return folder


def test_a_missing_slice_makes_the_result_partial(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scan = altered_demo(tmp_path / "scan", lambda ds, k: 5 < k < 14 and k != 9)
    assert main(["analyze", str(scan), "-q", "-o", str(tmp_path / "out")]) == exits.PARTIAL
    assert capfd.readouterr() == ("", "")
    assert "slices_missing" in codes(valid_findings(tmp_path / "out"))


def test_a_field_of_view_as_of_a_chest_is_flagged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def wide(dataset: Any, number: int) -> bool:
        dataset.PixelSpacing = [float(v) * 2.2 for v in dataset.PixelSpacing]
        return 5 < number < 14

    scan = altered_demo(tmp_path / "scan", wide)
    assert main(["analyze", str(scan), "--json"]) in {exits.DONE, exits.PARTIAL}
    assert codes(json.loads(capfd.readouterr().out)) & {"field_of_view", "not_a_head"}


# -- input that cannot be used ----------------------------------------------------------------------------------------


def empty_folder(tmp: Path) -> Path:
    (tmp / "scan").mkdir()
    return tmp / "scan"


def text_file(tmp: Path) -> Path:
    (tmp / "scan.txt").write_text("Dear radiologist,\n")
    return tmp / "scan.txt"


def folder_of_text(tmp: Path) -> Path:
    (tmp / "scan").mkdir()
    text_file(tmp / "scan")
    return tmp / "scan"


def truncated_dicom(tmp: Path) -> Path:
    first = next(p for p in sorted(demo_source().rglob("*")) if p.is_file())
    content = first.read_bytes()
    (tmp / "1.dcm").write_bytes(content[: len(content) * 2 // 3])
    return tmp / "1.dcm"


def two_patients(tmp: Path) -> Path:
    def other(dataset: Any, _: int) -> None:
        dataset.PatientID, dataset.PatientName = "SECRET-2", "SECRET^NAME"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = pydicom.uid.generate_uid(), "1.2.3.4.5"

    altered_demo(tmp / "scan", lambda ds, k: None)
    return altered_demo(tmp / "scan", other, prefix="b")


def mr_series(tmp: Path) -> Path:
    def mr(dataset: Any, _: int) -> None:
        dataset.Modality = "MR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage

    return altered_demo(tmp / "scan", mr)


def nifti(tmp: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(array, None)
    image.header.set_sform(affine, code=1)
    image.header["pixdim"][1:4] = 0.0 if not affine[:3, :3].any() else 1.0
    nib.save(image, tmp / "scan.nii.gz")
    return tmp / "scan.nii.gz"


def zero_affine(tmp: Path) -> Path:
    return nifti(tmp, np.zeros((16, 16, 8), np.float32), np.diag([0.0, 0, 0, 1]))


def four_dimensions(tmp: Path) -> Path:
    return nifti(tmp, np.zeros((16, 16, 8, 2), np.float32), np.eye(4))


def broken_zip(tmp: Path) -> Path:
    (tmp / "scan.zip").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 8)
    return tmp / "scan.zip"


def zip_bomb(tmp: Path) -> Path:
    """Half a gigabyte of zeros, packed to half a megabyte."""
    archive = zipfile.ZipFile(tmp / "scan.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("1.dcm", "w") as member:
        for _ in range(512):
            member.write(bytes(1 << 20))
    return tmp / "scan.zip"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (empty_folder, "empty folder"),
        (text_file, "no scan"),
        (folder_of_text, "no scan"),
        (truncated_dicom, "1.dcm"),
        (two_patients, "patients"),
        (mr_series, "MR"),
        (zero_affine, "scan.nii.gz"),
        (four_dimensions, "scan.nii.gz"),
        (broken_zip, "no readable zip"),
        (zip_bomb, "zip bomb"),
        (lambda tmp: tmp / "nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    make: Callable[[Path], Path], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["analyze", str(source), "-o", str(tmp_path / "out")]) == exits.FAILED
    told = capfd.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("hemolens: ")
    assert says in line
    assert "SECRET" not in line
    assert "internal error" not in line
    assert told.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_flagged_or_refused(
    value: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    array = np.full((48, 48, 12), 30.0, np.float32)
    array[:, :, 3] = value
    code = main(["analyze", str(nifti(tmp_path, array, np.diag([-4.0, -4, 10, 1]))), "--json"])
    told = capfd.readouterr()
    if code == exits.FAILED:
        assert len(told.err.splitlines()) == 1
    else:
        assert "non_finite" in codes(json.loads(told.out))


# -- output that cannot be written ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few coarse slices of the demo head as NIfTI: quick to analyze."""
    from hemolens.sources.study import read_volume

    volume = read_volume(demo_source())
    step = max(volume.shape[1] // 96, 1)
    hu = np.asarray(volume.hu[8:16, ::step, ::step], np.float32).transpose(2, 1, 0)
    rows, columns = volume.require_stack().spacings_mm[0] * step
    path = tmp_path_factory.mktemp("small") / "small.nii.gz"
    nib.save(nib.Nifti1Image(hu, np.diag([-columns, -rows, 5.0, 1.0])), path)
    return path


Refused = Callable[[str | Path], str]


@pytest.fixture
def refused(small_scan: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Analyze into a folder that cannot be written, and return the line that says so."""

    def attempt(out: str | Path) -> str:
        assert main(["analyze", str(small_scan), "-o", str(out)]) == exits.FAILED
        told = capfd.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        assert "internal error" not in line
        return line

    return attempt


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_an_output_path_that_cannot_be_made(out: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small disk with the given options; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("needs the right to mount a small disk")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
            pytest.skip("needs the right to mount a small disk")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_disk(refused: Refused, mounted: Callable[[str], Path]) -> None:
    disk = mounted("ro,size=8m")
    assert "cannot be written" in refused(disk / "out")
    assert list(disk.iterdir()) == []


def test_a_full_disk(refused: Refused, mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=40k")
    assert "Free some space" in refused(disk / "out")
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_while_old_results_are_replaced(small_scan: Path, tmp_path: Path) -> None:
    """Files may not grow past 30 kB here, which fails as a full disk does, without the right to mount one."""
    out = tmp_path / "out"
    assert main(["analyze", str(small_scan), "-q", "-o", str(out)]) in {exits.DONE, exits.PARTIAL}
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        code = main(["analyze", str(small_scan), "-q", "-o", str(out), "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == exits.FAILED
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_existing_results_are_kept_or_replaced_as_told(
    small_scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", str(small_scan), "-q", "-o", str(tmp_path / "out")]
    first = main(arguments)
    stamp = (tmp_path / "out" / "findings.json").stat().st_mtime_ns
    assert main(arguments) == exits.FAILED
    assert "--overwrite" in capfd.readouterr().err
    assert (tmp_path / "out" / "findings.json").stat().st_mtime_ns == stamp
    assert main([*arguments, "--overwrite"]) == first
    assert (tmp_path / "out" / "findings.json").stat().st_mtime_ns > stamp
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_spares_a_folder_that_hemolens_did_not_write(
    small_scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["analyze", str(small_scan), "-q", "-o", str(tmp_path), "--overwrite"]) == exits.FAILED
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# -- interruption and progress ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_one_line_and_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    """Standard error is a terminal here, so progress shows when the work has begun."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--demo", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, start_new_session=True
    )
    os.close(theirs)
    shown = io.BytesIO()
    deadline = time.monotonic() + 120
    sent = False
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                shown.write(os.read(ours, 4096))
            except OSError:  # the other end is closed
                break
        if not sent and b"Reading" in shown.getvalue():
            if how is signal.SIGINT:
                os.killpg(process.pid, how)  # a terminal tells the whole group, decoders too
            else:
                process.send_signal(how)
            sent = True
    os.close(ours)
    output, _ = process.communicate(timeout=60)
    assert sent
    assert process.returncode == exits.INTERRUPTED
    assert output == b""
    last = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown.getvalue()).replace(b"\r", b"\n").split(b"\n")
    assert b"hemolens: interrupted; nothing half-written was left." in last
    assert b"Traceback" not in shown.getvalue()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interruption_that_python_drops_comes_again(how: str, small_scan: Path, tmp_path: Path) -> None:
    """What a weak reference's callback raises is dropped, and the import system has one after every module."""
    script = f"""
import signal, sys, weakref
from hemolens import analysis
from hemolens.cli.main import main

run = analysis.analyze

def analyze(*args, **kwargs):
    lost = set()
    watched = weakref.ref(lost, lambda _: signal.raise_signal(signal.{how}))
    del lost
    return run(*args, **kwargs)

analysis.analyze = analyze
sys.exit(main(["analyze", sys.argv[1], "-o", sys.argv[2]]))
"""
    command = [sys.executable, "-c", script, str(small_scan), str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (process.returncode, process.stderr) == (
        exits.INTERRUPTED,
        "hemolens: interrupted; nothing half-written was left.\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_bug(small_scan: Path) -> None:
    """As in `hemolens analyze ... --json | head -0`."""
    process = subprocess.Popen(
        [*COMMAND, str(small_scan), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read().decode()
    process.stderr.close()
    process.wait(timeout=120)
    assert "Traceback" not in told
    assert "internal error" not in told
