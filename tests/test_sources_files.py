"""Folders, zips, DICOMDIR and single files: what is recognized, what is bounded, and each refusal's one line."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless

import dicom_files as df
from hemolens.errors import DecodeError, HemolensError, InputError, SelectionError
from hemolens.notes import Severity
from hemolens.sources import files
from hemolens.sources.dicom import decoders
from hemolens.sources.dicom.tags import read_tags
from hemolens.sources.files import file_entry, folder_entries, listing, short_names, zip_entries
from hemolens.sources.study import ReadOptions, read_volume

pytestmark = pytest.mark.filterwarnings("error")


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for item in sorted(folder.rglob("*")):
            archive.write(item, item.relative_to(folder))
    return path


# --- folders and files ------------------------------------------------------------------------------------------------


def test_nested_folders_hidden_files_and_loops(tmp_path: Path) -> None:
    df.write_series(tmp_path / "PT0" / "ST0" / "SE0")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.dcm").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    volume = read_volume(tmp_path)
    assert len(volume) == 6
    assert [n.code for n in volume.notes] == []


def test_folders_deeper_than_the_bound_are_not_followed(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (files.MAX_DEPTH + 1))
    df.write_series(deep)
    assert folder_entries(tmp_path) == ()
    assert len(folder_entries(deep)) == 6


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 5)
    df.write_series(tmp_path)
    with pytest.raises(InputError, match="more than 5 files"):
        read_volume(tmp_path)


def test_a_giant_file_beside_the_slices_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    df.write_series(tmp_path)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 5000)
    (tmp_path / "video.bin").write_bytes(bytes(6000))
    assert len(read_volume(tmp_path)) == 6


REFUSED = [
    ("empty", b"", DecodeError, "empty file"),
    ("text.txt", b"Dear colleague, please find enclosed", InputError, "no scan that hemolens knows"),
    ("text.dcm", b"Dear colleague, please find enclosed" * 9, DecodeError, "damaged"),
    ("data.csv", b"a,b\n1,2\n" * 100, InputError, "no scan that hemolens knows"),
    ("zeros.bin", bytes(5000), InputError, "no scan that hemolens knows"),
    ("broken.zip", b"PK\x03\x04" + bytes(300), InputError, "no readable zip"),
    ("text.zip", b"not a zip at all", InputError, "no readable zip"),
    ("broken.nii.gz", b"\x1f\x8b\x08" + bytes(40), DecodeError, "damaged"),
    ("broken.nii", b"abc" * 300, DecodeError, "damaged"),
    ("broken.png", b"\x89PNG\r\n\x1a\n" + bytes(40), HemolensError, "damaged|pixels"),
    ("broken.jpg", b"\xff\xd8\xff\xe0" + bytes(40), DecodeError, "damaged"),
    ("text.gz", zlib.compress(b"x" * 900, wbits=31), DecodeError, "damaged, or not what its name says"),
    ("bare.dcm", bytes(128) + b"DICM", DecodeError, "damaged"),
]


@pytest.mark.parametrize(("name", "content", "kind", "match"), REFUSED, ids=[r[0] for r in REFUSED])
def test_files_that_are_no_scan_get_one_clear_line(
    tmp_path: Path, name: str, content: bytes, kind: type[HemolensError], match: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(kind, match=match) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "a\0b", "x" * 5000):
        with pytest.raises(InputError):
            read_volume(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        read_volume(tmp_path / "pipe")


def test_folders_without_a_scan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty folder"):
        read_volume(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no scan among its 1 files"):
        read_volume(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = df.write_series(tmp_path, df.Series(slices=1))[0]
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_volume(path)


def test_dicom_wins_over_pictures_and_niftis_beside_it(tmp_path: Path) -> None:
    df.write_series(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "key.png")
    (tmp_path / "mask.nii.gz").write_bytes(b"x")
    volume = read_volume(tmp_path)
    assert volume.source.kind == "dicom"
    assert "2 of another kind" in volume.notes[0].message


# --- zip --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_the_same_volume_as_its_folder(tmp_path: Path, method: int) -> None:
    df.write_series(tmp_path / "study" / "PT0" / "SE0")
    (tmp_path / "study" / "__MACOSX").mkdir()
    (tmp_path / "study" / "__MACOSX" / "im000.dcm").write_bytes(b"x")
    volume = read_volume(zipped(tmp_path / "study", tmp_path / "x.zip", method))
    again = read_volume(tmp_path / "study" / "PT0")
    np.testing.assert_array_equal(volume.hu, again.hu)
    assert volume.source.slice_names == again.source.slice_names
    assert not volume.notes


def test_a_zip_under_another_name(tmp_path: Path) -> None:
    df.write_series(tmp_path / "study")
    assert len(read_volume(zipped(tmp_path / "study", tmp_path / "export.bin"))) == 6


def test_zipped_pictures_and_nifti(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number in (1, 2, 10):
        Image.fromarray(np.full((9, 9), number, np.uint8)).save(tmp_path / "p" / f"{number}.png")
    volume = read_volume(zipped(tmp_path / "p", tmp_path / "p.zip"))
    assert volume.source.slice_names == ("1.png", "2.png", "10.png")


def test_names_in_a_zip_cannot_climb(tmp_path: Path) -> None:
    paths = df.write_series(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"../../{path.name}")
        archive.write(paths[0], "/etc/../absolute.dcm")
        archive.write(paths[0], "C:\\windows\\im.dcm")
    before = sorted(tmp_path.rglob("*"))
    with zip_entries(tmp_path / "x.zip") as entries:
        assert all(".." not in e.name and not e.name.startswith("/") for e in entries)
    assert len(read_volume(tmp_path / "x.zip")) == 6
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.dcm", bytes(2**25))
    with pytest.raises(InputError, match="would unpack from") as caught:
        read_volume(tmp_path / "bomb.zip")
    assert "bombs" in str(caught.value)


def test_a_zip_that_lies_about_its_sizes_yields_no_more_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**24))
    raw = path.read_bytes().replace((2**24).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(raw)
    with zip_entries(path) as entries:
        assert entries[0].size == 1000
        with pytest.raises(DecodeError, match="damaged"):  # its checksum is that of the whole
            entries[0].open()


def test_a_nested_zip_is_not_followed(tmp_path: Path) -> None:
    df.write_series(tmp_path / "study")
    (tmp_path / "outer").mkdir()
    zipped(tmp_path / "study", tmp_path / "outer" / "inner.zip")
    with pytest.raises(InputError, match="no scan among its 1 files"):
        read_volume(zipped(tmp_path / "outer", tmp_path / "outer.zip"))


def test_other_zips_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    df.write_series(tmp_path / "study")
    with pytest.raises(InputError, match="unusual compression"):
        read_volume(zipped(tmp_path / "study", tmp_path / "lzma.zip", zipfile.ZIP_LZMA))
    plain = zipped(tmp_path / "study", tmp_path / "x.zip")
    raw = bytearray(plain.read_bytes())
    for magic, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = raw.index(magic)
        raw[at + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="password"):
        read_volume(tmp_path / "locked.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(InputError, match="empty zip"):
        read_volume(tmp_path / "none.zip")
    monkeypatch.setattr(files, "MAX_FILES", 5)
    with pytest.raises(InputError, match="more than 5 files"):
        read_volume(plain)


def test_a_damaged_member_costs_its_slice_only(tmp_path: Path) -> None:
    paths = df.write_series(tmp_path / "study")
    plain = zipped(tmp_path / "study", tmp_path / "x.zip", zipfile.ZIP_STORED)
    raw = bytearray(plain.read_bytes())
    at = raw.index(paths[3].read_bytes()[-200:])
    raw[at + 50] ^= 0xFF
    plain.write_bytes(bytes(raw))
    volume = read_volume(plain)
    assert len(volume) == 5
    note = next(n for n in volume.notes if n.code == "slices_unreadable")
    assert note.severity is Severity.PARTIAL
    assert paths[3].name in note.message


# --- DICOMDIR ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """Return a folder with a DICOMDIR of two series, as a CD has it."""
    ids = {"extra": {"StudyID": "1", "StudyTime": "120000", "AccessionNumber": "1"}}
    paths = df.write_series(tmp_path / "in", df.Series(**ids))
    paths += df.write_series(tmp_path / "in2", df.Series(kernel="BONE", series="1.2.3.4.6", number=3, **ids))
    return df.write_medium(tmp_path / "cd", paths)


def test_dicomdir_and_its_folder_agree(medium: Path) -> None:
    volume = read_volume(medium / "DICOMDIR")
    assert len(volume) == 6
    assert volume.source.series_uid == "1.2.3.4.5"
    np.testing.assert_array_equal(volume.hu, read_volume(medium).hu)


def test_dicomdir_reads_only_what_it_names(medium: Path) -> None:
    df.write_series(medium, df.Series(patient="OTHER", series="9.9"), prefix="stray")
    assert len(read_volume(medium / "DICOMDIR")) == 6
    with pytest.raises(SelectionError, match="2 patients"):
        read_volume(medium)


def test_files_that_a_dicomdir_names_and_that_are_not_there_are_partial(medium: Path) -> None:
    image = sorted(p for p in medium.rglob("*") if p.is_file() and p.name != "DICOMDIR")[-1]
    image.unlink()
    notes = read_volume(medium / "DICOMDIR").notes
    note = next(n for n in notes if n.code == "slices_missing")
    assert (note.severity, "1 files" in note.message) == (Severity.PARTIAL, True)


def test_dicomdir_alone(medium: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "DICOMDIR").write_bytes((medium / "DICOMDIR").read_bytes())
    with pytest.raises(InputError, match="names no file that is here"):
        read_volume(alone / "DICOMDIR")
    with pytest.raises(InputError, match="no DICOM images"):
        read_volume(alone)


def test_copied_in_lower_case(medium: Path) -> None:
    for path in sorted(medium.rglob("*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.lower()))
    assert len(read_volume(medium / "dicomdir")) == 6


def test_pydicoms_own_dicomdir() -> None:
    path = Path(str(get_testdata_file("DICOMDIR", download=False)))
    with pytest.raises(SelectionError, match="2 patients"):
        read_volume(path)
    volume = read_volume(path, ReadOptions(series_uid="1.3.6.1.4.1.5962.1.1.0.0.0.1194734704.16302.0.6"))
    assert volume.shape == (5, 16, 16)


# --- decoding processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """Return a folder of five JPEG-LS slices."""
    for path in df.write_series(tmp_path / "jls", df.Series(slices=5, stored=16)):
        df.transcode(path, JPEGLSLossless)
    return tmp_path / "jls"


def test_a_stuck_decoder_is_stopped_and_after_a_few_the_rest_is_given_up(
    compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker itself is made to hang: with a real decoder and no time at all, a fast machine may still be in time.
    stuck = "from hemolens.sources.dicom import worker; import time; worker._decode = lambda *_: time.sleep(600); "
    monkeypatch.setattr(decoders, "BOOT", decoders.BOOT.replace("from hemolens", stuck + "from hemolens", 1))
    monkeypatch.setattr(decoders, "FRAME_SECONDS", 0.3)
    monkeypatch.setattr(decoders, "MAX_LOST_WORKERS", 2)
    started: list[int] = []
    start = decoders.Worker.__init__

    def counted(self: decoders.Worker) -> None:
        started.append(1)
        start(self)

    monkeypatch.setattr(decoders.Worker, "__init__", counted)
    with pytest.raises(DecodeError, match="its decoder stopped"):
        read_volume(compressed)
    assert len(started) == 2


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
def test_a_decoder_that_does_not_start_is_an_error(
    compressed: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(DecodeError, match="does not start"):
        read_volume(compressed)


def test_no_process_is_left_behind(compressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def recorded(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", recorded)
    assert len(read_volume(compressed)) == 5
    assert len(made) == 1
    assert made[0].poll() is not None


# --- small parts ------------------------------------------------------------------------------------------------------


def test_short_names() -> None:
    assert short_names(["a/1.dcm", "b/2.dcm"]) == ("1.dcm", "2.dcm")
    assert short_names(["a/1.dcm", "b/1.dcm"]) == ("a/1.dcm", "b/1.dcm")


def test_listing() -> None:
    assert listing([]) == ""
    assert listing(["a", "b"]) == "a, b"
    assert listing(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_tags_are_parsed_from_bytes(tmp_path: Path) -> None:
    ds = df.slice_dataset(replace(df.Series(), description="Kopf"), 0, df.pattern(df.Series())[0])
    ds.WindowCenter = [40, 80]
    entry = file_entry(df.save(ds, tmp_path / "x.dcm"))
    _, tags = read_tags(entry, [0x0008103E, 0x00281050, 0x00280010, 0x00080008, 0x00200013])
    assert tags.text(0x0008103E) == "Kopf"
    assert tags.texts(0x00080008) == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert tags.decimals(0x00281050, 2) == (40.0, 80.0)
    assert tags.decimal(0x00281050) == 40.0
    assert tags.word(0x00280010) == 24
    assert tags.integer(0x00200013) == 1
    assert tags.text(0x00100010) == ""
    assert tags.decimals(0x00100010, 3) is None
    with pytest.raises(ValueError, match="does not hold 3"):
        tags.decimals(0x00281050, 3)
