"""Workers as real processes: a scan that takes too long, a lost lease, a kill, no head, and damaged images."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread

from dicom_files import Series, write_series
from hemolens.pacs.queue import Job, Queue
from pacs_peers import Service, send, service, small_head, wait_for

pytestmark = pytest.mark.slow

FAST = "[completion]\nstable_age_s = 1.5\ninterval_s = 0.2\n"


def ask(running: Service, what: Callable[[Queue], object]) -> object:
    with closing(running.queue()) as queue:
        return what(queue)


def job_of(running: Service, series_uid: str) -> Job | None:
    jobs = ask(running, lambda queue: [job for job in queue.worklist() if job.series_uid == series_uid])
    assert isinstance(jobs, list)
    assert len(jobs) <= 1
    return jobs[0] if jobs else None


def reached(running: Service, series_uid: str, *states: str) -> Job | None:
    job = job_of(running, series_uid)
    return job if job is not None and str(job.state) in states else None


def test_a_scan_that_takes_too_long_is_given_up_and_can_be_tried_again(tmp_path: Path) -> None:
    """Its worker is ended and started again; after the last try the job is dead, until somebody retries it."""
    strict = "[worker]\ntimeout_s = 0.05\nattempts = 2\nbackoff_s = 0.2\n"
    running = Service(tmp_path / "service", FAST + strict)
    try:
        running.start()
        assert set(send(small_head(tmp_path / "in", 1), running.port)) == {0}
        job = wait_for(lambda: reached(running, "2.25.77.1.1", "dead"), "the job to be given up")
        assert (job.attempts, job.error) == (2, "took longer than 0.05 s")
        assert ask(running, lambda queue: queue.deliveries()) == []
        assert not list((running.folder / "spool" / "results").rglob("findings.json"))

        def endings() -> int:
            return sum("worker-1 ended (-9)" in line["message"] for line in running.lines())

        wait_for(lambda: endings() >= 2, "the service to notice that its worker ended twice")
        running.stop()
        assert endings() == 2
        running.config.write_text(running.config.read_text().replace("timeout_s = 0.05", "timeout_s = 600"))
        running.start()
        assert ask(running, lambda queue: queue.retry()) == 1
        job = wait_for(lambda: reached(running, "2.25.77.1.1", "done"), "the second chance")
        assert job.error == ""
    finally:
        running.stop()


def test_a_lease_that_is_lost_is_lost_and_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """One worker hangs, the other takes its scan; when the first wakes up, its result is thrown away."""
    settings = FAST + "[worker]\nprocesses = 2\nlease_s = 3.0\nattempts = 50\nbackoff_s = 0.2\n"
    with service(tmp_path / "service", settings) as running:
        files = small_head(tmp_path / "in", 1, slices=20)
        assert set(send(files, running.port)) == {0}
        job = wait_for(lambda: reached(running, "2.25.77.1.1", "running"), "the analysis to begin")
        hung = psutil.Process(worker_process(job))
        hung.suspend()
        try:
            still = job_of(running, "2.25.77.1.1")
            assert still is not None
            assert str(still.state) == "running", "it was caught in the middle of it"
            wait_for(lambda: taken_over(running, job), "the other worker to take it")
            other = job_of(running, "2.25.77.1.1")
            assert other is not None
            if str(other.state) == "running":  # the second one dies of it: then a third try is made
                os.kill(worker_process(other), signal.SIGKILL)
            job = wait_for(lambda: reached(running, "2.25.77.1.1", "done"), "the result")
        finally:
            hung.resume()
        assert worker_process(job) != hung.pid
        wait_for(
            lambda: any("the lease was lost" in line["message"] for line in running.lines()), "the first to notice"
        )
        results = running.folder / "spool" / "results" / job.id
        wait_for(lambda: [entry.name for entry in results.iterdir()] == [str(job.attempts)], "its result to be removed")
        assert job_of(running, "2.25.77.1.1") == job, "the late result changed nothing"
        events = ask(running, lambda queue: [event.kind for event in queue.events()])
        assert isinstance(events, list)
        assert events.count("job.done") == 1


def worker_process(job: Job) -> int:
    """A worker's name ends with its process and something random."""
    return int(job.worker.split("-")[-2])


def taken_over(running: Service, before: Job) -> bool:
    now = job_of(running, before.series_uid)
    return now is not None and now.worker != before.worker


def neck(folder: Path) -> list[Path]:
    """A CT of soft tissue around a small ring of bone."""
    y, x = np.indices((128, 128)) * 2.0 - 127.0
    hu = np.full((12, 128, 128), -1000)
    hu[:, np.hypot(y, x) < 65] = 40
    hu[:, (np.hypot(y - 10, x) < 20) & (np.hypot(y - 10, x) > 10)] = 700
    series = Series(
        slices=12, rows=128, columns=128, spacing_mm=(2.0, 2.0), study="5.1", series="5.1.1", description="Neck",
        patient="NECK",
    )  # fmt: skip
    return write_series(folder, series, hu + 1024)


def damage(files: Sequence[Path], how: str) -> None:
    """Leave the header as it is and spoil the pixels."""
    for file in files:
        dataset = dcmread(file)
        if how == "cut off":
            dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 3 // 2 * 2]
        else:
            dataset.Rows = 7
        dataset.save_as(file)


def test_no_head_and_damaged_images_are_kept_and_told_plainly(tmp_path: Path) -> None:
    """Acknowledged is kept, whatever is in it; the analysis says what it could not use, or fails with one line."""
    with service(tmp_path / "service", FAST) as running:
        heads = {number: small_head(tmp_path / str(number), number, slices=12) for number in (1, 2, 3)}
        damage(heads[1][5:6], "cut off")
        damage(heads[2], "cut off")
        damage(heads[3][5:6], "other size")
        for files in (neck(tmp_path / "neck"), *heads.values()):
            assert set(send(files, running.port)) == {0}
        wait_for(lambda: running.settled(4), "all to be judged")
        kept = {str(dcmread(f).SOPInstanceUID) for f in (running.folder / "spool/incoming").rglob("*.dcm")}
        assert kept == {str(dcmread(f).SOPInstanceUID) for files in heads.values() for f in files} | {
            str(dcmread(f).SOPInstanceUID) for f in (tmp_path / "neck").glob("*.dcm")
        }
        other = ask(running, lambda queue: queue.series("5.1.1"))
        assert (str(other.state), other.reason) == ("ignored", "no head was found in it")  # type: ignore[attr-defined]
        jobs = {number: job_of(running, f"2.25.77.{number}.1") for number in heads}
        for number in (1, 3):
            job = jobs[number]
            assert job is not None
            assert (str(job.state), job.partial) == ("done", True), number
        failed = jobs[2]
        assert failed is not None
        assert (str(failed.state), failed.attempts) == ("failed", 1)
        assert failed.error.endswith(".")
        assert "\n" not in failed.error
        assert str(tmp_path) not in failed.error, "a line for people, not a path of this machine"
        assert ask(running, lambda queue: {d.job_id for d in queue.deliveries()}) == set()
