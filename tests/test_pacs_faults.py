"""Faults with real processes. Acknowledged = kept; each complete series analyzed once; each result delivered once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydicom import dcmread

from conftest import IN_CI
from dicom_files import Series, write_series
from pacs_peers import (
    Orthanc,
    Postgres,
    Service,
    destination,
    free_port,
    need,
    orthanc,
    send,
    service,
    small_head,
    wait_for,
)

FAST = (
    "[completion]\nstable_age_s = 2.5\ninterval_s = 0.3\n[sender]\ninterval_s = 0.3\nbackoff_s = 0.5\n"
    "backoff_max_s = 2.0\nlease_s = 4.0\nattempts = 1000\n[worker]\nlease_s = 4.0\nbackoff_s = 0.5\nattempts = 1000\n"
)
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0 and not IN_CI, reason="needs root: mounts and network namespaces")


class Sender(threading.Thread):
    """Sends files in any order, again and again until each was acknowledged."""

    def __init__(self, files: list[Path], port: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.files, self.port, self.random = files, port, random.Random(seed)
        self.acknowledged: set[str] = set()
        self.sent = 0

    def run(self) -> None:
        waiting = list(self.files)
        while waiting:
            self.random.shuffle(waiting)
            part = waiting[:9]
            # One that was acknowledged before goes along: a duplicate is no second instance.
            doubled = [f for f in self.files if f not in waiting][:1]
            told = send([*part, *doubled], self.port)
            self.sent += len(told)
            for file, status in zip(part, told, strict=False):
                if status == 0:
                    self.acknowledged.add(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID))
                    waiting.remove(file)
            if None in told:
                time.sleep(0.1)


def check_counts(running: Service, server: Orthanc, acknowledged: set[str], series: int) -> None:
    """The three equations of the issue."""
    spool = running.folder / "spool"
    with closing(running.queue()) as queue:
        kept = {uid for uid in acknowledged if queue.instance_kept(uid)}
        assert kept == acknowledged
        assert queue.counts()["instances"] == len(acknowledged)
        on_disk = {str(dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in (spool / "incoming").rglob("*.dcm")}
        assert on_disk == acknowledged
        jobs = queue.worklist(1000)
        done = [job for job in jobs if str(job.state) == "done"]
        # A kill may keep a sender away for longer than the stable age: what was complete then was analyzed, too.
        complete = {job.series_uid: job for job in done if job.digest == digest_of(queue, job.series_uid)}
        assert len(complete) == series
        assert len({(job.series_uid, job.digest) for job in jobs}) == len(jobs), "each complete series once"
        deliveries = queue.deliveries()
        assert {str(d.state) for d in deliveries} == {"done"}
        assert len({d.sop_uid for d in deliveries}) == len(deliveries)
        assert server.count("SR") == len(done)
        assert server.count("SR") + server.count("SEG") == len(deliveries)
        for report in server.objects("SR"):
            assert str(report.StudyInstanceUID) in {job.study_uid for job in done}


def digest_of(queue, series_uid: str) -> str:
    import hashlib

    return hashlib.sha256("".join(sorted(i.sha256 for i in queue.instances(series_uid))).encode()).hexdigest()


@pytest.mark.slow
def test_a_hundred_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """`kill -9` of listener, worker and sender at random moments, while a duplicate-sending peer keeps sending."""
    rng, kills, heads = random.Random(2026), {"listener": 0, "worker-1": 0, "sender": 0}, 6
    files = [f for n in range(heads) for f in small_head(tmp_path / f"h{n}", n)]
    with orthanc(tmp_path / "orthanc") as server, service(tmp_path / "service", FAST + destination(server)) as running:
        peer = Sender(files, running.port, 1)
        peer.start()
        while sum(kills.values()) < 100:
            role = rng.choices(["listener", "worker-1", "sender"], [5, 2, 3])[0]
            if running.kill(role):
                kills[role] += 1
            time.sleep(rng.uniform(0.0, 1.0))
        peer.join(300)
        assert len(peer.acknowledged) == len(files)
        wait_for(lambda: running.settled(heads), "every result", 400)
        assert min(kills.values()) >= 10
        check_counts(running, server, peer.acknowledged, heads)
        restarts = [line for line in running.lines() if "it is started again" in line["message"]]
        assert len(restarts) >= 90


@pytest.mark.slow
def test_a_killed_supervisor_takes_its_parts_along_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as server, service(tmp_path / "service", FAST + destination(server)) as running:
        files = small_head(tmp_path / "h", 1)
        assert set(send(files, running.port)) == {0}
        wait_for(lambda: running.counts()["jobs.running"] or running.counts()["jobs.done"], "the analysis to begin")
        parts = [running.pid(role) for role in ("listener", "worker-1", "sender")]
        assert running.process is not None
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in parts), "its parts to end", 60)
        running.start()
        wait_for(lambda: running.settled(1), "the result", 200)
        uids = {str(dcmread(f).SOPInstanceUID) for f in files}
        check_counts(running, server, uids, 1)


@pytest.mark.slow
def test_orthanc_is_down_for_a_while(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as server, service(tmp_path / "service", FAST + destination(server)) as running:
        server.stop()
        files = small_head(tmp_path / "h", 1)
        assert set(send(files, running.port)) == {0}
        wait_for(lambda: any(d.attempts >= 2 and "no association" in d.error for d in letters(running)), "two tries")
        assert running.counts()["deliveries.done"] == 0
        server.start()
        wait_for(lambda: running.settled(1), "the delivery")
        check_counts(running, server, {str(dcmread(f).SOPInstanceUID) for f in files}, 1)


def letters(running: Service) -> list:
    with closing(running.queue()) as queue:
        return queue.deliveries()


def test_a_peer_that_never_comes_back_leaves_a_dead_letter(tmp_path: Path) -> None:
    """With a queue filled by hand: only the sender matters here."""
    from hemolens.pacs.sender import Courier
    from test_pacs_sender import one_delivery

    config, queue, spool = one_delivery(tmp_path, port=free_port(), attempts=2, backoff_s=0.01)
    courier = Courier(config, config.destinations[0], queue, spool)
    for _ in range(3):
        courier.send_due()
        time.sleep(0.1)
    (letter,) = queue.deliveries()
    assert (str(letter.state), letter.attempts) == ("dead", 2)
    assert "no association with PEER at 127.0.0.1" in letter.error
    assert queue.retry([letter.id]) == 1


@pytest.mark.slow
@ROOT_ONLY
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """The spool with its queue on a small file system: refused with 0xA700, and taken when there is room again."""
    spool = tmp_path / "service" / "spool"
    spool.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(spool)], check=True)
    try:
        files = write_series(tmp_path / "in", Series(rows=300, columns=300, slices=12))
        running = Service(tmp_path / "service", "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 600\n")
        running.config.write_text(running.config.read_text().replace("min_free_gb = 0.01", "min_free_gb = 0"))
        try:
            running.start()
            told = send(files, running.port)
            assert set(told) == {0, 0xA700}
            kept = told.count(0)
            assert len(list((spool / "incoming").rglob("*.dcm"))) == kept == running.counts()["instances"]
            assert list(spool.rglob("*.part")) == []
            subprocess.run(["mount", "-o", "remount,size=64m", str(spool)], check=True)
            assert set(send(files, running.port)) == {0}
            assert running.counts()["instances"] == 12
        finally:
            running.stop()
    finally:
        subprocess.run(["umount", "-l", str(spool)], check=True)


@pytest.fixture
def cut() -> Iterator[tuple[str, str]]:
    """A host of its own in a network namespace, behind a cable that can be cut: its name, this side's address."""
    need("ip")
    name, here, there = f"hl{os.getpid()}", f"hla{os.getpid()}"[:15], f"hlb{os.getpid()}"[:15]
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    run = lambda *words: subprocess.run(["ip", *words], check=True)  # noqa: E731
    run("netns", "add", name)
    try:
        run("link", "add", here, "type", "veth", "peer", "name", there)
        run("link", "set", there, "netns", name)
        run("addr", "add", f"{net}.1/24", "dev", here)
        run("link", "set", here, "up")
        run("-n", name, "addr", "add", f"{net}.2/24", "dev", there)
        run("-n", name, "link", "set", there, "up")
        yield name, f"{net}.1"
    finally:
        subprocess.run(["ip", "link", "del", here], check=False, stderr=subprocess.DEVNULL)
        run("netns", "del", name)


CLIENT = """
import sys, time
from pathlib import Path
from pydicom import dcmread
from pynetdicom import AE
host, port, *files = sys.argv[1:]
entity = AE(ae_title="REMOTE")
entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 4
entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
association = entity.associate(host, int(port), ae_title="HEMOLENS")
for file in files if association.is_established else ():
    status = association.send_c_store(file)
    if getattr(status, "Status", None) == 0:
        print(dcmread(file, stop_before_pixels=True).SOPInstanceUID, flush=True)
    time.sleep(0.1)
association.release()
"""


MANY = 200
"""Images: enough that the cable is cut before the last of them, on a fast machine too."""


@pytest.mark.slow
@ROOT_ONLY
def test_a_cable_cut_in_mid_association(tmp_path: Path, cut: tuple[str, str]) -> None:
    name, address = cut
    files = write_series(tmp_path / "in", Series(rows=200, columns=200, slices=MANY))
    net = address.rsplit(".", 1)[0]
    running = Service(tmp_path / "service", "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 600\n")
    text = running.config.read_text().replace(
        "[listener]\n",
        f'[listener]\nhost = "{address}"\ntimeout_s = 3\npdu_timeout_s = 3\nmax_associations = 1\n'
        f'allow = {{ addresses = ["{net}.0/24"] }}\n',
    )
    running.config.write_text(text)
    try:
        running.start()
        command = ["ip", "netns", "exec", name, sys.executable, "-c", CLIENT, address, str(running.port)]
        client = subprocess.Popen([*command, *map(str, files)], stdout=subprocess.PIPE, text=True)
        wait_for(lambda: running.counts()["instances"] >= 5, "some instances", 40)
        far = json.loads(subprocess.run(["ip", "-n", name, "-j", "link"], check=True, capture_output=True).stdout)
        link = next(entry["ifname"] for entry in far if entry["ifname"].startswith("hlb"))
        subprocess.run(["ip", "-n", name, "link", "set", link, "down"], check=True)
        acknowledged = set((client.communicate(timeout=120)[0] or "").split())
        assert 0 < len(acknowledged) < MANY
        kept = {str(dcmread(f).SOPInstanceUID) for f in (tmp_path / "service" / "spool/incoming").rglob("*.dcm")}
        assert acknowledged <= kept
        assert len(kept) - len(acknowledged) <= 1, "at most the one whose answer was lost"
        subprocess.run(["ip", "-n", name, "link", "set", link, "up"], check=True)

        def all_sent() -> bool:
            done = subprocess.run(
                [*command, *map(str, files)], capture_output=True, text=True, check=False, timeout=120
            )
            return len(done.stdout.split()) == MANY

        # Only one association is allowed: the dead one must have been ended for this to work.
        wait_for(all_sent, "the association to be given up")
        assert running.counts()["instances"] == MANY
    finally:
        running.stop()


@pytest.mark.slow
def test_a_series_that_never_completes_holds_up_no_other(tmp_path: Path) -> None:
    bad = {"ImagePositionPatient": None}  # soon judged: the analysis is not the point here
    endless = write_series(tmp_path / "a", Series(study="6.1", series="6.1.1", slices=60, extra=bad))
    other = write_series(tmp_path / "b", Series(study="6.2", series="6.2.1", extra=bad))
    with service(tmp_path / "service", FAST) as running:
        stop = threading.Event()

        def drip() -> None:
            for file in endless:
                send([file], running.port)
                if stop.wait(0.5):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert set(send(other, running.port)) == {0}
        try:
            wait_for(lambda: running.counts()["jobs.failed"] == 1, "the other series")
            with closing(running.queue()) as queue:
                assert [job.series_uid for job in queue.worklist()] == ["6.2.1"]
                assert [s.series_uid for s in queue.receiving()] == ["6.1.1"]
        finally:
            stop.set()
            thread.join()
        wait_for(lambda: running.settled(2), "the series to be taken as complete when nothing more comes")


@pytest.mark.slow
def test_two_hosts_on_one_postgres_and_one_of_them_dies(tmp_path: Path) -> None:
    """Each has its own listener; spool and queue are shared. What the dead one held goes to the other."""
    server, heads = Postgres(), 4
    server.start()
    try:
        url = server.fresh()
        with orthanc(tmp_path / "orthanc") as archive:
            settings = f'{FAST}[queue]\nurl = "{url}"\n{destination(archive)}'
            one, two = (Service(tmp_path / name, settings) for name in ("one", "two"))
            two.config.write_text(two.config.read_text().replace('path = "spool"', f'path = "{tmp_path}/one/spool"'))
            try:
                one.start()
                two.start()
                files = [small_head(tmp_path / f"h{n}", n) for n in range(heads)]
                for number, head in enumerate(files):
                    # Half of each series to each host.
                    assert set(send(head[::2], (one, two)[number % 2].port)) == {0}
                    assert set(send(head[1::2], (two, one)[number % 2].port)) == {0}
                wait_for(lambda: two.counts()["jobs.running"] == 2, "both hosts to work")
                assert two.process is not None
                doomed = [two.process.pid, *(two.pid(role) for role in ("listener", "worker-1", "sender"))]
                for pid in doomed:
                    os.kill(pid, signal.SIGKILL)
                wait_for(lambda: one.settled(heads), "every result", 300)
                uids = {str(dcmread(f).SOPInstanceUID) for head in files for f in head}
                check_counts(one, archive, uids, heads)
                with closing(one.queue()) as queue:
                    assert max(job.attempts for job in queue.worklist()) >= 2
            finally:
                one.stop()
                two.stop()
    finally:
        server.remove()


def test_tools_are_there() -> None:
    """In CI nothing of this may go missing quietly."""
    if IN_CI:
        for tool in ("Orthanc", "storescu", "ip"):
            assert shutil.which(tool)
