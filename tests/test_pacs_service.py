"""The whole way with real processes: sent by dcmtk, pynetdicom and Orthanc's auto-route, analyzed, back in Orthanc."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from dicom_files import Series, write_series
from hemolens.cli.main import app
from hemolens.demo import demo_source
from hemolens.pacs.queue import Queue
from hemolens.sources.datasets import ct_ich
from hemolens.volume import DisplayWindow
from pacs_peers import (
    Orthanc,
    Service,
    destination,
    free_port,
    orthanc,
    send,
    service,
    small_head,
    storescu,
    wait_for,
    web_destination,
)

FAST = "[completion]\nstable_age_s = 1.5\ninterval_s = 0.3\n[sender]\ninterval_s = 0.3\nbackoff_s = 0.5\n"
ROUTE = """
function OnStableSeries(seriesId, tags, metadata)
   if tags["Modality"] == "CT" then
      RestApiPost("/modalities/hemolens/store", seriesId)
   end
end
"""


def results(server: Orthanc) -> tuple[int, int]:
    return server.count("SEG"), server.count("SR")


def check_results(server: Orthanc, study_uid: str, sources: list[Path]) -> None:
    """SEG and SR stand in the scan's own study and patient, and name its images."""
    original = dcmread(sources[0], stop_before_pixels=True)
    uids = {str(dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in sources}
    reports = [o for o in server.objects("SR") if study_uid == o.StudyInstanceUID]
    segments = [o for o in server.objects("SEG") if study_uid == o.StudyInstanceUID]
    assert len(reports) == 1
    assert len(segments) <= 1
    for found in (*reports, *segments):
        assert found.PatientID == original.PatientID
        assert str(found.PatientName) == str(original.PatientName)
    for found in segments:
        frames = [f.DerivationImageSequence[0] for f in found.PerFrameFunctionalGroupsSequence]
        assert {str(f.SourceImageSequence[0].ReferencedSOPInstanceUID) for f in frames} <= uids


@pytest.mark.slow
def test_real_scans_come_back_to_orthanc_by_every_road(tmp_path: Path, data: Path) -> None:
    """dicom_head_tilted by storescu, the demo scan by Orthanc's auto-route, CT-ICH slices by pynetdicom."""
    port = free_port()
    modalities = {"hemolens": ["HEMOLENS", "127.0.0.1", port]}
    with orthanc(tmp_path / "orthanc", modalities=modalities, lua=ROUTE) as server:
        settings = FAST + destination(server, commitment=True)
        running = Service(tmp_path / "service", settings, port=port)
        try:
            running.start()
            tilted = sorted((data / "dicom_head_tilted").glob("*.dcm"))
            assert storescu(tilted, port).returncode == 0
            for file in sorted(Path(demo_source()).glob("*.dcm")):
                server.call("POST", "/instances", file.read_bytes())
            ich = write_ct_ich(data, tmp_path / "ich")
            assert set(send(ich, port)) == {0}
            wait_for(lambda: running.settled(3), "three results", 300)
            with closing(running.queue()) as queue:
                check_jobs(queue)
                uncommitted = [d for d in queue.deliveries() if d.committed is None]
                if uncommitted:
                    wait_for(lambda: all(d.committed for d in queue.deliveries()), "storage commitment", 60)
            demo = sorted(Path(demo_source()).glob("*.dcm"))
            for sources in (tilted, demo, ich):
                check_results(server, str(dcmread(sources[0]).StudyInstanceUID), sources)
            assert server.count("SR") == 3
            outlined = {str(found.StudyInstanceUID) for found in server.objects("SEG")}
            assert {str(dcmread(sources[0]).StudyInstanceUID) for sources in (demo, ich)} <= outlined
            text = running.log.read_text()
            for secret in ("Doe", "Jane", str(dcmread(tilted[0]).PatientID)):
                assert not secret or secret not in text
        finally:
            running.stop()


def write_ct_ich(data: Path, folder: Path) -> list[Path]:
    """Patient 77 of CT-ICH as a DICOM series, in the window that was published: its bleed is found."""
    location = ct_ich.locate(data / "ct_ich")
    assert location is not None
    volume = ct_ich.read_patient(location, "77", DisplayWindow(40, 120), (0.4, 5.0), lambda fraction: None)
    hu = np.asarray(volume.hu)[:, ::2, ::2]
    series = Series(
        slices=len(hu), rows=hu.shape[1], columns=hu.shape[2], spacing_mm=(0.8, 0.8), patient="ICH-77",
        study="2.25.770", series="2.25.770.1", description="Head CT-ICH",
    )  # fmt: skip
    return write_series(folder, series, np.round(hu + 1024).astype(np.int64))


def check_jobs(queue: Queue) -> None:
    jobs = queue.worklist()
    assert len(jobs) == 3
    assert {str(job.state) for job in jobs} == {"done"}
    assert {job.attempts for job in jobs} == {1}


@pytest.mark.slow
def test_results_come_by_stow_and_a_resend_is_no_duplicate(tmp_path: Path) -> None:
    with (
        orthanc(tmp_path / "orthanc") as server,
        service(tmp_path / "service", FAST + web_destination(server)) as running,
    ):
        files = small_head(tmp_path / "head", 5)
        assert set(send(files, running.port)) == {0}
        wait_for(lambda: running.settled(1), "the result")
        assert results(server) == (1, 1)
        check_results(server, "2.25.77.5", files)
        assert set(send(files, running.port)) == {0}
        late = small_head(tmp_path / "more", 5, slices=7)
        assert 0xB007 in send(late, running.port)
        wait_for(lambda: running.settled(1), "nothing new")
        assert results(server)[1] == len([j for j in jobs_of(running) if j == "done"])
        status = CliRunner().invoke(app, ["pacs", "status", "--json", "--config", str(running.config)])
        assert status.exit_code == 0, status.output
        assert json.loads(status.output)["counts"]["deliveries.queued"] == 0
        purged = CliRunner().invoke(app, ["pacs", "purge", "--days", "0", "--config", str(running.config)])
        assert "1 series purged" in purged.output
        assert list((running.folder / "spool" / "incoming").rglob("*.dcm")) == []


def jobs_of(running: Service) -> list[str]:
    with closing(running.queue()) as queue:
        return [str(job.state) for job in queue.worklist()]


@pytest.mark.slow
def test_what_is_no_head_ct_is_kept_and_left_alone(tmp_path: Path) -> None:
    """A localizer, an MR series, and a CT of which nothing can be read: ignored, ignored, failed; the rest goes on."""
    with service(tmp_path / "service", FAST) as running:
        scout = Series(slices=1, study="4.1", series="4.1.1", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
        mr = Series(study="4.2", series="4.2.1", modality="MR", sop_class="1.2.840.10008.5.1.4.1.1.4")
        flat = Series(study="4.3", series="4.3.1", extra={"ImagePositionPatient": None})
        for number, series in enumerate((scout, mr, flat)):
            assert set(send(write_series(tmp_path / str(number), series), running.port)) == {0}
        wait_for(lambda: running.settled(1), "the three to be judged")
        with closing(running.queue()) as queue:
            told = {uid: queue.series(uid) for uid in ("4.1.1", "4.2.1", "4.3.1")}
            assert [s.reason for s in told.values() if s][:2] == ["localizers only", "no CT images (modality MR)"]
            (job,) = queue.worklist()
            assert (str(job.state), job.attempts, job.series_uid) == ("failed", 1, "4.3.1")
            assert job.error.endswith(".")
            assert queue.deliveries() == []
        shown = CliRunner().invoke(app, ["pacs", "status", "--config", str(running.config)])
        assert job.id in shown.output
        again = CliRunner().invoke(app, ["pacs", "retry", "--all", "--config", str(running.config)])
        assert "1 queued again" in again.output


@pytest.mark.slow
def test_the_archive_tells_how_many_instances_there_are(tmp_path: Path) -> None:
    """The series is complete when all are here, though the age that it would have to reach is an hour."""
    slow = '[completion]\nstable_age_s = 3600\ninterval_s = 0.3\nquery = "orthanc"\n'
    flat = Series(study="4.3", series="4.3.1", extra={"ImagePositionPatient": None})
    files = write_series(tmp_path / "in", flat)
    with orthanc(tmp_path / "orthanc") as server:
        for file in files:
            server.call("POST", "/instances", file.read_bytes())
        with service(tmp_path / "service", slow + destination(server)) as running:
            assert set(send(files[:4], running.port)) == {0}
            wait_for(lambda: asked(running) == 6, "the answer of the archive")
            assert running.counts()["series.receiving"] == 1
            assert set(send(files[4:], running.port)) == {0}
            wait_for(lambda: running.settled(1), "the series to be complete")


def asked(running: Service) -> int | None:
    with closing(running.queue()) as queue:
        series = queue.series("4.3.1")
        return series.expected if series else None


def test_settings_that_do_not_fit_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hemolens.cli.main import main

    file, quiet = tmp_path / "pacs.toml", "[api]\nenabled = false\n[listener]\nport = 0\n"
    for text, expected in (
        ("[listner]\nport = 1\n", "listner: no such setting. Did you mean 'listener'?"),
        ('[listener]\nhost = "0.0.0.0"\n', "beyond this computer"),
        ("[listener]\nport = 99999\n", "port must lie between"),
        ('[queue]\nurl = "mysql://x"\n[api]\nenabled = false\n[listener]\nport = 0\n', "no known kind"),
        ('[[destinations]]\nkind = "ftp"\n', "there is no 'ftp'"),
        ("no toml", "is no TOML file"),
        (f'{quiet}[webhook]\nurl = "http://x"\nsecret_file = "nowhere"\n', "nowhere"),
        (f'{quiet}[listener.tls]\ncertificate = "nowhere"\nkey = "nowhere"\n', "nowhere"),
        (f'{quiet}[[destinations]]\nkind = "dicom"\n[destinations.tls]\nca = "nowhere"\n', "nowhere"),
    ):
        file.write_text(text)
        assert main(["pacs", "serve", "--config", str(file)]) in {1, 2}
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert expected in lines[0]


@pytest.mark.slow
def test_two_listeners_share_the_port_and_one_may_die(tmp_path: Path) -> None:
    running = Service(tmp_path / "service", "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 9999\n")
    running.config.write_text(running.config.read_text().replace("[listener]\n", "[listener]\nprocesses = 2\n", 1))
    files = write_series(tmp_path / "in", Series(slices=24))
    try:
        running.start()
        parts = [psutil.Process(wait_for(lambda r=r: listening(running, r), r)) for r in ("listener", "listener-2")]
        with ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            wait_for(lambda: all(connected(part) for part in parts), "connections at both")
        parts[1].kill()
        told = dict.fromkeys(files)

        def all_kept() -> bool:
            for file, status in told.items():
                if status is None:
                    (told[file],) = send([file], running.port)
            return all(status == 0 for status in told.values())

        wait_for(all_kept, "every instance, each by an association of its own")
        wait_for(lambda: listening(running, "listener-2") not in {None, parts[1].pid}, "the second to be back")
        assert running.counts()["instances"] == len(files)
    finally:
        running.stop()


def listening(running: Service, role: str) -> int | None:
    """The process of a part, once it has the port."""
    pid = running.pid(role)
    try:
        ports = {c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return None
    return pid if running.port in ports else None


def connected(part: psutil.Process) -> int:
    return sum(c.status == psutil.CONN_ESTABLISHED for c in part.net_connections())
