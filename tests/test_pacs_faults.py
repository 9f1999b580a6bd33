"""Faults with real processes. Acknowledged = kept; each complete series analyzed once; each result delivered once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread

from conftest import IN_CI
from dicom_files import Series, write_series
from hemolens.pacs.queue import Queue
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
    spool = running.spool
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
        check_references(queue, server, {job.study_uid for job in done})


def check_references(queue: Queue, server: Orthanc, studies: set[str]) -> None:
    """A result stands in the study of its images, and names no other: studies that came interleaved do not mix."""
    of_study: dict[str, set[str]] = {}
    for job in queue.worklist(1000):
        of_study.setdefault(job.study_uid, set()).update(i.sop_uid for i in queue.instances(job.series_uid))
    for modality in ("SR", "SEG"):
        for found in server.objects(modality):
            assert str(found.StudyInstanceUID) in studies
            if modality == "SEG":
                series = found.ReferencedSeriesSequence
                named = {str(i.ReferencedSOPInstanceUID) for s in series for i in s.ReferencedInstanceSequence}
                assert named
                assert named <= of_study[str(found.StudyInstanceUID)]


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
            # At times two at the same moment.
            for role in set(rng.choices(["listener", "worker-1", "sender"], [5, 2, 3], k=rng.choice([1, 1, 2]))):
                kills[role] += running.kill(role)
            time.sleep(rng.uniform(0.0, 0.8))
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


@dataclass(frozen=True)
class Host:
    """A host of its own in a network namespace, behind a cable that can be pulled."""

    name: str
    link: str
    """Its end of the cable."""
    gateway: str
    """This side's address."""
    address: str

    @property
    def prefix(self) -> list[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self.name]

    def cable(self, state: str) -> None:
        """Pull the cable (down), or put it back (up)."""
        ip("-n", self.name, "link", "set", self.link, state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def host(number: int) -> Iterator[Host]:
    need("ip")
    pid = os.getpid()
    net = f"10.{200 + pid % 50}.{pid // 50 % 250}"
    here, there = f"hla{pid}-{number}", f"hlb{pid}-{number}"
    made = Host(f"hl{pid}-{number}", there, f"{net}.{4 * number + 1}", f"{net}.{4 * number + 2}")
    ip("netns", "add", made.name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", made.name)
        ip("addr", "add", f"{made.gateway}/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", made.name, "addr", "add", f"{made.address}/30", "dev", there)
        ip("-n", made.name, "link", "set", there, "up")
        ip("-n", made.name, "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "link", "del", here], check=False, stderr=subprocess.DEVNULL)
        ip("netns", "del", made.name)


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
def test_a_cable_cut_in_mid_association(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", Series(rows=200, columns=200, slices=MANY))
    settings = "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 600\n"
    with host(0) as far:
        running = Service(tmp_path / "service", settings)
        listen_at(running, far.gateway, far.address, "timeout_s = 3\npdu_timeout_s = 3\nmax_associations = 1\n")
        command = [*far.prefix, sys.executable, "-c", CLIENT, far.gateway, str(running.port), *map(str, files)]
        try:
            running.start()
            client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            wait_for(lambda: running.counts()["instances"] >= 5, "some instances", 40)
            far.cable("down")
            acknowledged = set((client.communicate(timeout=120)[0] or "").split())
            assert 0 < len(acknowledged) < MANY
            kept = {str(dcmread(f).SOPInstanceUID) for f in (running.folder / "spool/incoming").rglob("*.dcm")}
            assert acknowledged <= kept
            assert len(kept) - len(acknowledged) <= 1, "at most the one whose answer was lost"
            far.cable("up")

            def all_sent() -> bool:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
                return len(done.stdout.split()) == MANY

            # Only one association is allowed: the dead one must have been ended for this to work.
            wait_for(all_sent, "the association to be given up")
            assert running.counts()["instances"] == MANY
        finally:
            running.stop()


def listen_at(running: Service, address: str, caller: str, more: str = "") -> None:
    """Have a service listen at an address, for one caller and itself."""
    allow = f'allow = {{ addresses = ["{caller}", "{address}"] }}\n'
    head = f'[listener]\nhost = "{address}"\n{allow}{more}'
    running.config.write_text(running.config.read_text().replace("[listener]\n", head, 1))


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
@ROOT_ONLY
def test_two_hosts_on_one_postgres_and_one_of_them_is_cut_off(tmp_path: Path) -> None:
    """Each is a network namespace with its own listener; spool and queue are shared.

    What the one behind the cut cable held goes to the other; when it comes back, its late results change nothing, and
    it takes part again.
    """
    server, heads = Postgres(), 4
    with ExitStack() as stack:
        stack.callback(server.remove)
        hosts = [stack.enter_context(host(number)) for number in (1, 2)]
        server.start(*(far.gateway for far in hosts))
        queue_url = server.fresh()
        archive = stack.enter_context(orthanc(tmp_path / "orthanc"))
        one, two = (on_host(tmp_path, far, archive, queue_url) for far in hosts)
        for running, far in zip((one, two), hosts, strict=True):
            stack.callback(running.stop)
            running.start(prefix=far.prefix)
        files = [small_head(tmp_path / f"h{n}", n) for n in range(heads)]
        ways = [(running.port, far.address) for running, far in zip((one, two), hosts, strict=True)]
        for number, head in enumerate(files):
            # Half of each series to each host.
            for half in (0, 1):
                port, address = ways[(number + half) % 2]
                assert set(send(head[half::2], port, host=address)) == {0}
        wait_for(lambda: one.counts()["jobs.running"] == 2, "both hosts to work")
        hosts[1].cable("down")
        wait_for(lambda: one.settled(heads), "every result", 300)
        hosts[1].cable("up")
        uids = {str(dcmread(f).SOPInstanceUID) for head in files for f in head}
        check_counts(one, archive, uids, heads)
        with closing(one.queue()) as queue:
            assert max(job.attempts for job in queue.worklist()) >= 2
        late = small_head(tmp_path / "late", heads)
        wait_for(lambda: set(send(late, ways[1][0], host=ways[1][1])) == {0}, "the second host to take scans again")
        wait_for(lambda: two.settled(heads + 1), "its result")
        check_counts(two, archive, uids | {str(dcmread(f).SOPInstanceUID) for f in late}, heads + 1)


def on_host(folder: Path, far: Host, archive: Orthanc, queue_url: str) -> Service:
    """Settings of a service on a host of its own, whose spool the hosts share."""
    url = queue_url.replace("127.0.0.1", far.gateway)
    settings = f'{FAST}[queue]\nurl = "{url}"\n{destination(archive, host=far.gateway)}'
    running = Service(folder / far.name, settings)
    listen_at(running, far.address, far.gateway)
    running.config.write_text(running.config.read_text().replace('path = "spool"', f'path = "{folder}/shared"'))
    running.spool = folder / "shared"
    return running


def test_tools_are_there() -> None:
    """In CI nothing of this may go missing quietly."""
    if IN_CI:
        for tool in ("Orthanc", "storescu", "ip"):
            assert shutil.which(tool)
