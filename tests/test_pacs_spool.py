"""The spool: durable, never overwriting, bounded; what dies midway is put right."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_files import Series, write_series
from hemolens.errors import DecodeError
from hemolens.pacs.incoming import read_file_header, read_header, salted
from hemolens.pacs.listener import adopt
from hemolens.pacs.queue import InstanceKind, Queue, open_queue
from hemolens.pacs.retention import purge, recover
from hemolens.pacs.spool import FullError, Spool, short_hash

SALT = b"salt"
PATH = "incoming/aa/bb/cc.dcm"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return open_queue(f"sqlite:///{tmp_path}/queue.db")


def test_contents_are_kept_byte_for_byte_and_never_replaced(spool: Spool) -> None:
    assert not spool.store(PATH, b"first").conflict
    assert not spool.store(PATH, b"first").conflict
    other = spool.store(PATH, b"other")
    assert other.conflict
    assert (spool.root / PATH).read_bytes() == b"first"
    assert (spool.root / other.path).read_bytes() == b"other"
    assert spool.store(PATH, b"other").path == other.path, "the same again takes no more room"
    assert [p.name for p in spool.root.rglob("*.part")] == []


def test_names_tell_nothing_of_uids(spool: Spool) -> None:
    path = spool.path_of("../../etc", "passwd/..", "ID_1")
    assert path.startswith("incoming/")
    assert ".." not in path
    assert path == f"incoming/{short_hash('../../etc')}/{short_hash('passwd/..')}/{short_hash('ID_1')}.dcm"


def test_the_quota_holds(tmp_path: Path) -> None:
    spool = Spool(tmp_path, quota_gb=3000 / 1024**3)
    spool.store(PATH, bytes(2000))
    with pytest.raises(FullError, match="quota"):
        spool.store("incoming/aa/bb/dd.dcm", bytes(2000))
    assert not (tmp_path / "incoming/aa/bb/dd.dcm").exists()
    assert not spool.store(PATH, bytes(2000)).conflict, "what is kept is confirmed even when full"


def test_the_disk_is_never_filled(tmp_path: Path) -> None:
    spool = Spool(tmp_path, min_free_gb=shutil.disk_usage(tmp_path).free / 1024**3 + 1)
    with pytest.raises(FullError, match="free"):
        spool.store(PATH, b"x")


def test_half_written_files_go_when_nobody_writes_them_any_more(spool: Spool) -> None:
    folder = spool.root / "incoming/aa"
    folder.mkdir()
    (folder / "old.part").write_bytes(b"x")
    (folder / "new.part").write_bytes(b"x")
    os.utime(folder / "old.part", (time.time() - 7200,) * 2)
    assert spool.tidy() == 1
    assert [p.name for p in folder.iterdir()] == ["new.part"]


def put(spool: Spool, files: list[Path]) -> list[str]:
    """As a listener does that dies before it can record a row."""
    paths = []
    for file in files:
        header = read_file_header(file.read_bytes(), SALT)
        paths.append(spool.path_of(header.study_uid, header.series_uid, header.sop_uid))
        spool.store(paths[-1], file.read_bytes())
    return paths


def test_files_without_a_row_are_recorded_and_damaged_ones_kept_aside(
    spool: Spool, queue: Queue, tmp_path: Path
) -> None:
    paths = put(spool, write_series(tmp_path / "in"))
    spool.store("incoming/aa/bb/damaged.dcm", b"no dicom")
    assert adopt(queue, spool) == len(paths)
    assert queue.known_paths() == set(paths)
    assert len(list((spool.root / "aside").iterdir())) == 1
    assert adopt(queue, spool) == 0


def test_a_purge_removes_files_and_keeps_the_numbers(spool: Spool, queue: Queue, tmp_path: Path) -> None:
    put(spool, write_series(tmp_path / "in"))
    adopt(queue, spool)
    queue.ignore("1.2.3.4.5", "a test")
    assert purge(queue, spool, 1) == 0, "too young"
    assert purge(queue, spool, -1) == 1
    assert [p for p in spool.root.rglob("*") if p.is_file()] == []
    assert queue.series("1.2.3.4.5") is not None
    assert queue.instances("1.2.3.4.5") == []


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_purge_that_died_midway_loses_nothing(spool: Spool, queue: Queue, tmp_path: Path, forgotten: bool) -> None:
    paths = put(spool, write_series(tmp_path / "in"))
    adopt(queue, spool)
    queue.ignore("1.2.3.4.5", "a test")
    folder = str(Path(paths[0]).parent)
    if forgotten:  # it died after the rows were gone
        queue.expire("1.2.3.4.5", len(paths), lambda: spool.bury(folder))
    else:
        spool.bury(folder)
    assert not spool.has(paths[0])
    recover(queue, spool)
    assert all(spool.has(path) is not forgotten for path in paths)
    assert list((spool.root / "trash").iterdir()) == []


def test_headers_are_read_without_their_identifiers(tmp_path: Path) -> None:
    file = write_series(tmp_path, Series(slices=1, extra={"AccessionNumber": "ACC-9", "AcquisitionTime": "101112"}))[0]
    header = read_file_header(file.read_bytes(), SALT)
    assert (header.kind, header.modality, header.series_uid) == (InstanceKind.CT, "CT", "1.2.3.4.5")
    assert "PATIENT-7" not in repr(header)
    assert "ACC-9" not in repr(header)
    assert header.patient_key == salted("PATIENT-7|", SALT) != salted("PATIENT-7|", b"other salt")
    assert header.acquired is not None
    data = file.read_bytes()
    raw = data[144 + int.from_bytes(data[140:144], "little") :]
    assert read_header(raw, dcmread(file).file_meta.TransferSyntaxUID, SALT) == header


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, InstanceKind.LOCALIZER),
        ({"modality": "MR", "sop_class": "1.2.840.10008.5.1.4.1.1.4"}, InstanceKind.OTHER),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.7"}, InstanceKind.OTHER),
    ],
)
def test_what_is_no_axial_ct_is_told_apart(tmp_path: Path, change: dict[str, object], kind: InstanceKind) -> None:
    file = write_series(tmp_path, Series(slices=1, **change))[0]  # type: ignore[arg-type]
    assert read_file_header(file.read_bytes(), SALT).kind is kind


@pytest.mark.parametrize("name", ["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_an_instance_without_a_uid_is_refused(tmp_path: Path, name: str) -> None:
    file = write_series(tmp_path, Series(slices=1, extra={name: None}))[0]
    with pytest.raises(DecodeError, match=name):
        read_file_header(file.read_bytes(), SALT)
