from __future__ import annotations

import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemolens.errors import OutputError
from hemolens.reports import folder
from hemolens.reports.as_json import read_findings
from hemolens.reports.folder import check_target, write_folder, write_reports
from hemolens.volume import DisplayWindow, SourceInfo
from predictions import analyzed, bleeding_head, phantom_head

OLD = {
    "findings.json": b'{"hemolens_version": "0"}',
    "report.html": b"old",
    "masks/1.png": b"old",
    "mask.nii.gz": b"old",
}
NEW = {"mask.nii.gz": b"new", "report.html": b"new", "findings.json": b'{"hemolens_version": "1"}'}


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def result() -> tuple[Any, ...]:
    volume, labels = bleeding_head(phantom_head(size=96, pixel_mm=2.6, slices=20, gap_mm=8.0))
    return volume, *analyzed(volume, labels)


def test_a_result_is_written_as_the_contract_says(result, tmp_path: Path) -> None:
    volume, prediction, label_map, findings = result
    out = tmp_path / "deep" / "er" / "out"
    written = write_reports(out, volume, prediction, label_map, findings, probability=True)
    assert set(tree(out)) == {"findings.json", "report.html", "mask.nii.gz", "probability.nii.gz"}
    assert written == {
        "findings": out / "findings.json", "report": out / "report.html", "mask": out / "mask.nii.gz",
        "probability": out / "probability.nii.gz",
    }  # fmt: skip
    back = read_findings(out / "findings.json")
    assert back.timing_s["report"] > 0
    assert replace(back, timing_s={}).lesions[0].subtype == findings.lesions[0].subtype
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()


def test_slice_images_get_a_folder_of_masks(result, tmp_path: Path) -> None:
    volume, prediction, _, _ = result
    names = tuple(f"{k + 1}.jpg" for k in range(len(volume)))
    images = replace(volume, stack=None, source=SourceInfo("images", "folder", names, window=DisplayWindow()))
    _, label_map, findings = analyzed(images, prediction.subtype)
    written = write_reports(tmp_path / "out", images, prediction, label_map, findings)
    assert written["masks"] == tmp_path / "out" / "masks"
    assert len(list(written["masks"].iterdir())) == len(volume)
    write_reports(tmp_path / "out", images, prediction, label_map, findings, overwrite=True)


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    monkeypatch.chdir(out)
    write_folder(Path(), NEW)
    assert tree(out) == NEW
    assert out.stat().st_ino == before


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", OLD)
    with pytest.raises(OutputError, match="--overwrite"):
        check_target(tmp_path / "out", overwrite=False)
    check_target(tmp_path / "out", overwrite=True)
    write_folder(tmp_path / "out", NEW)
    assert tree(tmp_path / "out") == NEW


@pytest.mark.parametrize(
    ("foreign", "named"),
    [("thesis.docx", "thesis.docx"), ("masks/notes.txt", "masks"), ("data/1.png", "data"), ("seg.dcm/x", "seg.dcm")],
)
def test_files_of_others_are_never_touched(foreign: str, named: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, {k: v for k, v in OLD.items() if not k.startswith("masks")})
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    before = tree(out)
    with pytest.raises(OutputError, match=named):
        check_target(out, overwrite=True)
    assert tree(out) == before


def test_a_folder_of_our_names_without_our_findings_is_not_ours(tmp_path: Path) -> None:
    for name in ("report.html", "findings.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(OutputError, match="no earlier result"):
            check_target(tmp_path, overwrite=True)


def test_what_desktops_leave_in_folders_is_overlooked_and_left(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("x")
    check_target(tmp_path, overwrite=False)
    write_folder(tmp_path, OLD)
    write_folder(tmp_path, NEW)
    assert set(tree(tmp_path)) == {".DS_Store", *NEW}


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="this is a file"):
        check_target(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        write_folder(tmp_path / "out" / "below", NEW)


@pytest.mark.parametrize("existing", [None, {}, OLD])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_full_disk_or_an_interrupt_leaves_everything_as_it_was(
    existing: dict[str, bytes] | None,
    error: BaseException,
    moment: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "a" / "out"
    if existing is not None:
        out.mkdir(parents=True)
    if existing:
        write_folder(out, existing)
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > moment:
            raise error

    monkeypatch.setattr(folder.os, "fsync", fsync)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_folder(out, NEW)
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"{out}: cannot be written (No space left on device). Free some space, or name another folder with -o."
        )
    if existing is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert tree(out) == existing
        assert not [p for p in out.iterdir() if p.name.startswith(folder.STAGING)]


@pytest.mark.parametrize("moment", range(8))
def test_an_interrupt_between_two_renames_is_undone(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, OLD)
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == moment + 1:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    if moment < 7:
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path, NEW)
    else:
        write_folder(tmp_path, NEW)
    monkeypatch.undo()
    assert tree(tmp_path) == (OLD if moment < 7 else NEW)


def test_findings_go_first_and_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that holds findings.json is complete at every moment."""
    write_folder(tmp_path, OLD)
    rename, seen = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        seen.append({n: b for n, b in tree(tmp_path).items() if not n.startswith(folder.STAGING)})
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    write_folder(tmp_path, NEW)
    assert all("findings.json" not in state for state in seen[:-1])
    assert seen[-1] == NEW


def test_a_race_for_the_same_new_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, flush = tmp_path / "out", folder._flush_folder

    def somebody_else(path: Path) -> None:
        out.mkdir(exist_ok=True)
        (out / "theirs").write_text("x")
        flush(path)

    monkeypatch.setattr(folder, "_flush_folder", somebody_else)
    with pytest.raises(OutputError, match="cannot be written"):
        write_folder(out, NEW)
    assert tree(out) == {"theirs": b"x"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_is_told(small_disk: Path, result) -> None:
    volume, prediction, label_map, findings = result
    for out in (small_disk, small_disk / "out"):
        with pytest.raises(OutputError, match="No space left on device"):
            write_reports(out, volume, prediction, label_map, findings)
        assert list(small_disk.iterdir()) == []


def test_a_disk_that_is_really_read_only_is_told(small_disk: Path, result) -> None:
    volume, prediction, label_map, findings = result
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for out in (small_disk, small_disk / "out"):
        with pytest.raises(OutputError, match="Read-only file system"):
            write_reports(out, volume, prediction, label_map, findings)


def test_a_mount_point_can_be_filled(small_disk: Path) -> None:
    write_folder(small_disk, OLD)
    write_folder(small_disk, NEW)
    assert tree(small_disk) == NEW


def test_the_findings_are_plain_json(result, tmp_path: Path) -> None:
    volume, prediction, label_map, findings = result
    write_reports(tmp_path / "out", volume, prediction, label_map, findings)
    text = (tmp_path / "out" / "findings.json").read_text("utf-8")
    assert json.loads(text)["study"]["decision"] == "positive"
    assert not np.isnan(json.loads(text)["total"]["volume_ml"])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
