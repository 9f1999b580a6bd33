"""Real peers for tests of the PACS service: Orthanc, dcmtk, PostgreSQL, and hemolens itself as processes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE

from conftest import IN_CI
from dicom_files import Series, write_series
from hemolens.demo import demo_source
from hemolens.pacs.queue import Queue, open_queue
from hemolens.sources.study import read_volume

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
WAIT_S = 240.0 if IN_CI else 120.0
"""Machines are slow at times; every wait ends as soon as what it waits for is there."""


def need(*tools: str) -> None:
    """Skip a test where a program is missing; in CI, where tools/install_system.sh has run, fail."""
    missing = [tool for tool in tools if installed(tool) is None and not Path(tool).exists()]
    if missing:
        message = f"needs {', '.join(missing)}: run sh tools/install_system.sh"
        pytest.fail(message) if IN_CI else pytest.skip(message)


def installed(tool: str) -> str | None:
    """Return where a program is that is no Python script: pynetdicom has some that are named as DCMTK's are."""
    for folder in os.get_exec_path():
        found = shutil.which(tool, path=folder)
        if found and b"python" not in Path(found).read_bytes()[:200]:
            return found
    return None


def dcmtk(tool: str) -> str:
    """Return where DCMTK's program is, or skip the test."""
    need(tool)
    return str(installed(tool))


def free_port() -> int:
    with closing(socket.socket()) as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def wait_for(what: Callable[[], Any], why: str, timeout_s: float = WAIT_S) -> Any:
    """Return the first true answer of `what`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {timeout_s:g} s for {why}")


class Orthanc:
    """A real Orthanc with DICOMweb, on ports of its own."""

    def __init__(self, folder: Path, modalities: dict[str, Any] | None = None, lua: str = "", **more: Any) -> None:
        need("Orthanc", str(PLUGIN))
        folder.mkdir(parents=True, exist_ok=True)
        self.http_port, self.dicom_port = free_port(), free_port()
        self.folder = folder
        settings = {
            "HttpPort": self.http_port, "DicomPort": self.dicom_port, "DicomAet": "ORTHANC", "StableAge": 1,
            "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "OverwriteInstances": False,
            "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [str(PLUGIN)],
            "DicomModalities": modalities or {}, **more,
        }  # fmt: skip
        if lua:
            (folder / "route.lua").write_text(lua)
            settings["LuaScripts"] = [str(folder / "route.lua")]
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
            )
        wait_for(lambda: self.dead() or self._answers(), "Orthanc to start")
        assert not self.dead(), (self.folder / "orthanc.log").read_text()[-2000:]

    def dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def call(self, method: str, path: str, body: bytes | None = None) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, (method, path, answer.status, content[:300])
            return json.loads(content) if "json" in answer.getheader("Content-Type", "") else content

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def count(self, modality: str) -> int:
        """How many instances of a modality there are."""
        series = self.get("/series?expand")
        return sum(len(s["Instances"]) for s in series if s["MainDicomTags"].get("Modality") == modality)

    def objects(self, modality: str) -> list[Dataset]:
        """Instances of a modality, read back."""
        found = []
        for series in self.get("/series?expand"):
            if series["MainDicomTags"].get("Modality") == modality:
                for name in series["Instances"]:
                    path = self.folder / f"{name}.dcm"
                    path.write_bytes(self.get(f"/instances/{name}/file"))
                    found.append(dcmread(path))
        return found


@contextmanager
def orthanc(folder: Path, **options: Any) -> Iterator[Orthanc]:
    server = Orthanc(folder, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Service:
    """`hemolens pacs serve` in processes of its own."""

    def __init__(self, folder: Path, settings: str, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port()
        self.spool = folder / "spool"
        self.config = folder / "pacs.toml"
        head = f'[listener]\nport = {self.port}\n[api]\nenabled = false\n[spool]\npath = "spool"\nmin_free_gb = 0.01\n'
        self.config.write_text(head + settings)
        self.log, self.out = folder / "log.jsonl", folder / "out.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, prefix: Sequence[str] = (), preexec: Callable[[], None] | None = None) -> None:
        self.out.write_text("")
        with self.log.open("ab") as log, self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "hemolens", "pacs", "serve", "--config", str(self.config)],
                stdout=out, stderr=log, preexec_fn=preexec, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        wait_for(lambda: "Taking head CTs" in self.out.read_text() or self.dead(), "the service to start")
        assert not self.dead(), self.log.read_text()[-2000:]

    def dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().split("\n")[:-1]:  # the last one may be half-written
            if line.startswith("{"):
                found.append(json.loads(line))
        return found

    def pid(self, role: str) -> int:
        """The process that a part is now."""
        told = [line["message"] for line in self.lines() if line["message"].startswith(f"{role} started as process")]
        return int(told[-1].split()[-1])

    def kill(self, role: str) -> bool:
        """End a part as a power cut would; False if it is just being started."""
        try:
            os.kill(self.pid(role), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def queue(self) -> Queue:
        from hemolens.pacs.config import load_pacs_config

        return open_queue(load_pacs_config(self.config).queue_url)

    def counts(self) -> dict[str, float]:
        with closing(self.queue()) as queue:
            return dict(queue.counts())

    def settled(self, jobs: int) -> bool:
        """Whether so many analyses are over and all their deliveries made."""
        told = self.counts()
        over = told["jobs.done"] + told["jobs.failed"] + told["jobs.dead"]
        waiting = told["deliveries.queued"] + told["deliveries.sending"] + told["series.receiving"]
        return over >= jobs and not waiting and not told["jobs.queued"] and not told["jobs.running"]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None


@contextmanager
def service(folder: Path, settings: str, **options: Any) -> Iterator[Service]:
    running = Service(folder, settings)
    try:
        running.start(**options)
        yield running
    finally:
        running.stop()


def destination(server: Orthanc, **more: Any) -> str:
    lines = {"kind": "dicom", "name": "orthanc", "ae_title": "ORTHANC", "port": server.dicom_port, **more}
    return "[[destinations]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def web_destination(server: Orthanc) -> str:
    url = f"http://127.0.0.1:{server.http_port}/dicom-web"
    return f'[[destinations]]\nkind = "dicomweb"\nname = "web"\nurl = "{url}"\n'


def storescu(files: Sequence[Path], port: int, *options: str, called: str = "HEMOLENS") -> subprocess.CompletedProcess:
    command = [dcmtk("storescu"), "-aec", called, *options, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)


def send(files: Sequence[Path], port: int, calling: str = "SENDER", host: str = "127.0.0.1") -> list[int | None]:
    """Send files over one association by pynetdicom; the status of each, None without an answer."""
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    for pair in {(dcmread(f, stop_before_pixels=True).SOPClassUID, dcmread(f).file_meta.TransferSyntaxUID)
                 for f in files}:  # fmt: skip
        entity.add_requested_context(*pair)
    association = entity.associate(host, port, ae_title="HEMOLENS")
    if not association.is_established:
        return [None] * len(files)
    told: list[int | None] = []
    for file in files:
        try:
            told.append(getattr(association.send_c_store(file), "Status", None))
        except (RuntimeError, ValueError):
            told.append(None)
    association.release()
    return told


def small_head(folder: Path, number: int, slices: int = 6, patient: str = "") -> list[Path]:
    """The phantom head, coarse, as a series of its own: enough for the whole way, and soon analyzed."""
    volume = read_volume(demo_source())
    step = len(volume.hu) // slices
    hu = np.asarray(volume.hu)[step // 2 :: step, ::4, ::4][:slices]
    series = Series(
        slices=len(hu), rows=hu.shape[1], columns=hu.shape[2], spacing_mm=(1.875, 1.875), thickness_mm=5.0 * step,
        offsets_mm=tuple(5.0 * step * k for k in range(len(hu))), patient=patient or f"ID-{number}",
        study=f"2.25.77.{number}", series=f"2.25.77.{number}.1",
    )  # fmt: skip
    rng = np.random.default_rng(number)
    stored = np.clip(hu + 1024 + rng.integers(0, 2, hu.shape), 0, 4095).astype(np.int64)
    return write_series(folder, series, stored)


class Postgres:
    """A real PostgreSQL server of its own; it refuses to run as root, so it gets the system's user for it."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        need(str(found[-1]) if found else "postgres (Debian's postgresql)")
        self.programs, self.port, self.made = found[-1].parent, free_port(), 0
        self.folder = Path("/tmp") / f"hemolens-pg-{os.getpid()}-{self.port}"
        self.folder.mkdir(mode=0o755)
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._user:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", str(self.folder / "db"), "-U", "hemolens", "-A", "trust", "-N")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._user, str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=120,
            cwd="/tmp",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()[-500:]

    def start(self, *addresses: str) -> None:
        """Listen on this computer, and where told for hosts of a private network."""
        with (self.folder / "db" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 trust\n")
        listen = ",".join(("127.0.0.1", *addresses))
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={listen} -c fsync=off"
        log = str(self.folder / "log")
        # Its output must not hang on to our pipes.
        with Path(os.devnull).open("wb") as nothing:
            subprocess.run(
                [*self._user, str(self.programs / "pg_ctl"), "-D", str(self.folder / "db"), "-o", options, "-l", log,
                 "-w", "start"],
                stdin=subprocess.DEVNULL, stdout=nothing, stderr=nothing, check=True, timeout=120, cwd="/tmp",
            )  # fmt: skip

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "db"), "-m", "immediate", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fresh(self) -> str:
        """URL of an empty database."""
        self.made += 1
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "hemolens", f"queue{self.made}")
        return f"postgresql://hemolens@127.0.0.1:{self.port}/queue{self.made}"
