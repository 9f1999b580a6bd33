"""Pulling from a real Orthanc by C-GET, C-MOVE and DICOMweb: byte for byte, once, and on from where it was cut off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.config import from_mapping
from hemolens.demo import demo_source
from hemolens.errors import ConfigError
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.listener import Listener
from hemolens.pacs.pull import PullError, days, parse_since, pull
from hemolens.pacs.pull_web import parts_of
from hemolens.pacs.queue import Queue, open_queue
from hemolens.pacs.spool import FullError, Spool
from pacs_peers import Orthanc, free_port, orthanc

NOW = datetime(2026, 3, 10, 12, 0)
DAYS = {"20260301": 3, "20260308": 2}
"""Day of the study → CT series in the archive."""


def make(number: int, day: str, modality: str = "CT") -> list[Dataset]:
    """Three slices of a scan."""
    made = []
    for k, path in enumerate(sorted(demo_source().iterdir())[:3]):
        dataset = dcmread(path)
        dataset.PatientID, dataset.StudyDate, dataset.Modality = f"P{number}", day, modality
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.{number}.1", f"1.2.3.{number}.2"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}.3.{k}"
        made.append(dataset)
    return made


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc with five CT series of two days, and one that is no CT; it knows a port that a listener may take."""
    folder, port = tmp_path_factory.mktemp("archive"), free_port()
    with orthanc(folder / "orthanc", modalities={"hemolens": ["HEMOLENS", "127.0.0.1", port]}) as server:
        server.listener_port = port  # type: ignore[attr-defined]
        wanted = [day for day, count in DAYS.items() for _ in range(count)]
        for number, day in enumerate([*wanted, "20260308"], 1):
            for dataset in make(number, day, "CT" if number <= len(wanted) else "MR"):
                path = folder / "one.dcm"
                dataset.save_as(path)
                server.call("POST", "/instances", path.read_bytes())
        yield server


def settings(server: Orthanc, folder: Path, **spool: float) -> PacsConfig:
    values = {
        "listener": {"port": server.listener_port},  # type: ignore[attr-defined]
        "spool": {"path": str(folder / "spool"), "min_free_gb": 0.001, **spool},
        "destinations": [
            {"kind": "dicom", "name": "pacs", "ae_title": "ORTHANC", "port": server.dicom_port},
            {"kind": "dicomweb", "name": "web", "url": f"http://127.0.0.1:{server.http_port}/dicom-web"},
        ],
    }
    return from_mapping(PacsConfig, values)


@pytest.fixture
def queue(archive: Orthanc, tmp_path: Path) -> Iterator[Queue]:
    with closing(open_queue(settings(archive, tmp_path).queue_url)) as opened:
        yield opened


SPAN = (date(2026, 3, 1), date(2026, 3, 10))


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "method"), [("pacs", None), ("web", None), ("pacs", "move")])
def test_every_ct_series_comes_once_and_unchanged(
    archive: Orthanc, queue: Queue, tmp_path: Path, source: str, method: str | None
) -> None:
    config, spool = settings(archive, tmp_path), Spool(tmp_path / "spool")
    listener = Listener(config, queue, spool) if method == "move" else None
    if listener is not None:
        listener.start()
    try:
        told = pull(config, queue, spool, source, SPAN, method)
        again = pull(config, queue, spool, source, SPAN, method)
    finally:
        if listener is not None:
            listener.stop()
    assert (told.studies, told.series, told.known, told.pulled, told.failed) == (5, 5, 0, 5, {})
    assert told.instances == (0 if method == "move" else 15)  # with C-MOVE the listener counts them
    assert (again.series, again.known, again.pulled, again.instances) == (5, 5, 0, 0)
    assert queue.counts()["instances"] == 15
    assert queue.series("1.2.3.6.2") is None  # no CT
    for number in range(1, 6):
        series = queue.series(f"1.2.3.{number}.2")
        assert (series.instances, series.expected, series.conflicts) == (3, 3, 0)
        for instance in queue.instances(series.series_uid):
            name = archive.call("POST", "/tools/lookup", instance.sop_uid.encode())[-1]["ID"]
            original = tmp_path / "original.dcm"
            original.write_bytes(archive.get(f"/instances/{name}/file"))
            assert data_of(tmp_path / "spool" / instance.path) == data_of(original)
            assert instance.sha256 == hashlib.sha256(data_of(original)).hexdigest()


def test_the_three_ways_bring_the_same(archive: Orthanc, queue: Queue, tmp_path: Path) -> None:
    """What came by DICOMweb is not taken for something else when C-GET brings it again."""
    config, spool = settings(archive, tmp_path), Spool(tmp_path / "spool")
    pull(config, queue, spool, "web", SPAN)
    from hemolens.pacs.pull import FoundSeries, Keeper, open_archive

    keeper = Keeper(queue, spool, ("pacs", ""))
    open_archive(config, "pacs", "get").fetch(FoundSeries("1.2.3.1.1", "1.2.3.1.2", 3), keeper)
    assert keeper.new == 0
    assert queue.counts()["conflicts"] == 0


@pytest.mark.parametrize("source", ["pacs", "web"])
def test_only_the_days_that_were_asked_for(archive: Orthanc, queue: Queue, tmp_path: Path, source: str) -> None:
    told = pull(settings(archive, tmp_path), queue, Spool(tmp_path / "spool"), source, (date(2026, 3, 8), SPAN[1]))
    assert told.series == DAYS["20260308"]
    told = pull(settings(archive, tmp_path), queue, Spool(tmp_path / "spool"), source, (date(2026, 3, 9), SPAN[1]))
    assert told.series == 0


def test_a_pull_with_a_limit_goes_on_where_it_ended(archive: Orthanc, queue: Queue, tmp_path: Path) -> None:
    config, spool = settings(archive, tmp_path), Spool(tmp_path / "spool")
    first = pull(config, queue, spool, "web", SPAN, limit=2)
    assert (first.pulled, first.instances) == (2, 6)
    assert {queue.series(f"1.2.3.{n}.2") is not None for n in (4, 5)} == {True}  # the newest day first
    second = pull(config, queue, spool, "web", SPAN)
    assert (second.known, second.pulled, second.instances) == (2, 3, 9)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pacs", "web"])
def test_a_full_spool_stops_the_pull_and_keeps_what_came(
    archive: Orthanc, queue: Queue, tmp_path: Path, source: str
) -> None:
    config = settings(archive, tmp_path)
    size = len((demo_source() / "01.dcm").read_bytes())
    full = Spool(tmp_path / "spool", quota_gb=6.5 * size / 1024**3)
    with pytest.raises(FullError, match="quota"):
        pull(config, queue, full, source, SPAN)
    kept = queue.counts()["instances"]
    assert 0 < kept < 15
    told = pull(config, queue, Spool(tmp_path / "spool"), source, SPAN)
    assert told.instances == 15 - kept


def test_an_archive_that_is_not_there(archive: Orthanc, queue: Queue, tmp_path: Path) -> None:
    values = {
        "spool": {"path": str(tmp_path / "spool")},
        "sender": {"timeout_s": 3.0},
        "destinations": [
            {"kind": "dicom", "name": "pacs", "port": free_port()},
            {"kind": "dicomweb", "name": "web", "url": f"http://127.0.0.1:{free_port()}/dicom-web"},
            {"kind": "dicomweb", "name": "wrong", "url": f"http://127.0.0.1:{archive.http_port}/elsewhere"},
        ],
    }
    config = from_mapping(PacsConfig, values)
    for name, line in (("pacs", "cannot be reached"), ("web", "cannot be reached"), ("wrong", "answered 404")):
        with pytest.raises(PullError, match=line):
            pull(config, queue, Spool(tmp_path / "spool"), name, SPAN)
    with pytest.raises(ConfigError, match="There are: pacs, web, wrong"):
        pull(config, queue, Spool(tmp_path / "spool"), "pax", SPAN)
    with pytest.raises(ConfigError, match="does not fit"):
        pull(config, queue, Spool(tmp_path / "spool"), "web", SPAN, "get")


def test_the_command_line(archive: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pacs.toml").write_text(
        f'[spool]\npath = "spool"\nmin_free_gb = 0.001\n[[destinations]]\nkind = "dicom"\nname = "pacs"\n'
        f'ae_title = "ORTHANC"\nport = {archive.dicom_port}\n'
    )
    options = ["pacs", "pull", "--config", str(tmp_path / "pacs.toml"), "--since"]
    assert main([*options, "2026-03-01", "--until", "2026-03-08"]) == exits.DONE
    told = capsys.readouterr()
    assert "5 CT series of 5 studies found, 0 of them kept before" in told.out
    assert "5 series fetched, 15 new images" in told.out
    assert "P1" not in told.out + told.err
    assert main([*options, "soon"]) == exits.WRONG_USAGE
    assert "no date such as" in capsys.readouterr().err
    assert main([*options, "2026-03-08", "--until", "2026-03-01"]) == exits.WRONG_USAGE


@pytest.mark.parametrize(
    ("text", "day"),
    [("2026-03-01", date(2026, 3, 1)), ("36h", date(2026, 3, 9)), ("7d", date(2026, 3, 3)), ("0h", date(2026, 3, 10))],
)
def test_since(text: str, day: date) -> None:
    assert parse_since(text, NOW) == day


@pytest.mark.parametrize("text", ["", "yesterday", "2026-3-1", "7", "-7d", "2026-13-01", "99999999999d"])
def test_since_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="no date such as"):
        parse_since(text, NOW)


def test_since_in_the_future_is_refused() -> None:
    with pytest.raises(ConfigError, match="future"):
        parse_since("2026-03-11", NOW)


def test_days_run_from_the_newest() -> None:
    assert list(days(date(2026, 2, 27), date(2026, 3, 1))) == [date(2026, 3, 1), date(2026, 2, 28), date(2026, 2, 27)]
    assert list(days(date(2026, 3, 2), date(2026, 3, 1))) == []


def test_parts_of_an_answer() -> None:
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\nfirst\r\n\r\n\r\n--b\r\n\r\nsecond\r\n--b--\r\n"
    assert list(parts_of('multipart/related; boundary="b"', body)) == [b"first\r\n\r\n", b"second"]
    assert list(parts_of("application/dicom", body)) == [body]
    with pytest.raises(PullError, match="cut off"):
        list(parts_of("multipart/related; boundary=b", body[:-6]))
    with pytest.raises(PullError, match="parts them"):
        list(parts_of("multipart/related", body))
