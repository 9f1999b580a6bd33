"""Figures of the PACS service: receive rate, time from the last image to the result in Orthanc, backlog drained.

    python benchmarks/bench_pacs.py [--part receive] [--part way] [--repeats 3] [--backlog 12] [--add]

Everything is real: dcmtk's storescu as the sender (about 1 ms of processor time an image, so that it is not what is
measured), `hemolens pacs serve`, and an Orthanc that takes the results. Studies are the demo head as 32 slices of
512 x 512 pixels, 16 bits, uncompressed, each under UIDs of its own. dcmtk's storescp and Orthanc itself receive the
same studies in turns with hemolens; the analysis alone, in a bare loop, is the yardstick for the way and the backlog.
Writes benchmarks/results/pacs.json with a description of the machine; a part that is not asked for keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import psutil
from bench_analyze import machine

from dicom_files import Series, write_series
from hemolens.analysis import AnalyzeOptions, analyze
from hemolens.demo import demo_source
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import load_model
from hemolens.sources.study import read_volume
from pacs_peers import Orthanc, Service, dcmtk, destination, free_port, orthanc, service, wait_for

SLICES = 32
SENDERS = (1, 4, 8)
STUDIES = {1: 16, 4: 32, 8: 32}
"""Of one run, by the number of senders."""
RESULTS = Path(__file__).resolve().parent / "results" / "pacs.json"
STABLE_AGE_S = 2.0


def head(folder: Path) -> list[str]:
    """Write the phantom head at full size."""
    volume = read_volume(demo_source())
    hu = np.asarray(volume.hu)[np.linspace(0, len(volume.hu) - 1, SLICES).round().astype(int)]
    series = Series(
        slices=SLICES, rows=512, columns=512, spacing_mm=(0.46875, 0.46875), patient="B0", study="2.25.9",
        series="2.25.9.1", extra={"StudyID": "1", "PatientName": "Bench^Mark"},
    )  # fmt: skip
    return [str(f) for f in write_series(folder, series, np.clip(hu + 1024, 0, 4095).astype(np.int64))]


def push(files: Sequence[str], port: int, studies: int, senders: int, called: str) -> tuple[float, float]:
    """Send studies under new UIDs, one association a sender; return seconds, and the senders' processor seconds.

    Of more than one study a sender, each has as many images as the original, but some of them several times.
    """
    command = [dcmtk("storescu"), "-aec", called, "--repeat", str(studies // senders), "+IR", str(SLICES), "+IS", "1"]
    command += ["--max-send-pdu", "131072", "127.0.0.1", str(port), *files]
    before, began = os.times(), time.perf_counter()
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(senders)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError("a sender failed")
    took, after = time.perf_counter() - began, os.times()
    return took, after.children_user + after.children_system - before.children_user - before.children_system


@contextmanager
def by_hemolens(folder: Path) -> Iterator[tuple[int, str, int, Callable[[], int]]]:
    """Port, AE title, process and count of what is kept."""
    idle = "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 99999\n"
    with service(folder, idle) as running:
        yield running.port, "HEMOLENS", running.pid("listener"), lambda: int(running.counts()["instances"])


@contextmanager
def by_orthanc(folder: Path) -> Iterator[tuple[int, str, int, Callable[[], int]]]:
    """Orthanc with its own defaults: it, too, flushes what it stores (SyncStorageArea)."""
    with orthanc(folder) as server:
        assert server.process is not None
        count = lambda: int(server.get("/statistics")["CountInstances"])  # noqa: E731
        yield server.dicom_port, "ORTHANC", server.process.pid, count


@contextmanager
def by_storescp(folder: Path) -> Iterator[tuple[int, str, int, Callable[[], int]]]:
    """Dcmtk's receiver, which writes files, flushes nothing and records nothing."""
    folder.mkdir(parents=True)
    port = free_port()
    command = [dcmtk("storescp"), "--fork", "-pdu", "131072", "+B", "+uf", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        echo = [dcmtk("echoscu"), "127.0.0.1", str(port)]
        wait_for(lambda: subprocess.run(echo, stderr=subprocess.DEVNULL, check=False).returncode == 0, "storescp")
        yield port, "ANY", process.pid, lambda: len(list(folder.iterdir()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


RECEIVERS = {"hemolens": by_hemolens, "orthanc": by_orthanc, "storescp": by_storescp}


def processor_s(pid: int) -> float:
    """Processor seconds of a process and the children that it has waited for."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def receive_once(folder: Path, name: str, files: Sequence[str], senders: int) -> dict[str, float]:
    """Let one receiver take the studies; nothing is analyzed meanwhile."""
    with tempfile.TemporaryDirectory(dir=folder) as place, RECEIVERS[name](Path(place) / "r") as at:
        port, called, pid, count = at
        before = processor_s(pid)
        took, sender_s = push(files, port, STUDIES[senders], senders, called)
        spent, kept = processor_s(pid) - before, count()
    sent = STUDIES[senders] // senders * senders * SLICES
    if kept != sent:
        raise RuntimeError(f"{name}: {sent} acknowledged, {kept} kept")
    told = {"studies_per_min": 60 * sent / SLICES / took, "sender_cpu_ms": 1000 * sender_s / sent}
    # The processes that storescp forks are gone before they could be asked.
    return told if name == "storescp" else told | {"receiver_cpu_ms": 1000 * spent / sent}


def receive(folder: Path, repeats: int, runs: list[dict[str, Any]], save: Callable[[], None]) -> None:
    """Add runs, the receivers in turns, so that a slow minute of the machine hits all of them."""
    files = head(folder / "head")
    for _ in range(repeats):
        for senders in SENDERS:
            for name in RECEIVERS:
                run = {"senders": senders, "receiver": name, "load": round(os.getloadavg()[0], 1)}
                run |= {key: round(value, 2) for key, value in receive_once(folder, name, files, senders).items()}
                print(run, file=sys.stderr)
                runs.append(run)
                save()


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return medians by number of senders and receiver, and the rate of hemolens over that of the others."""
    told: dict[str, Any] = {}
    for run in runs:
        told.setdefault(f"{run['senders']} senders", {}).setdefault(run["receiver"], []).append(run)
    for group in told.values():
        for name, found in group.items():
            keys = [key for key in found[0] if key.endswith(("_per_min", "_ms"))]
            group[name] = {"n": len(found)} | {key: round(statistics.median(r[key] for r in found), 2) for key in keys}
            rates = [run["studies_per_min"] for run in found]
            group[name]["studies_per_min_range"] = [min(rates), max(rates)]
        for name in group.keys() - {"hemolens"}:
            ratio = group["hemolens"]["studies_per_min"] / group[name]["studies_per_min"]
            group["hemolens"][f"rate_over_{name}"] = round(ratio, 2)
    return told


def bare(files: Sequence[str], repeats: int, threads: int | None) -> list[float]:
    """Seconds of reading and analyzing one study, the model loaded, without any service."""
    options = AnalyzeOptions(threads=threads)
    predictor = Predictor(load_model(None), "auto", threads)
    took = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        analyze(Path(files[0]).parent, options, predictor=predictor)
        took.append(time.perf_counter() - began)
    return took[1:]


def way(folder: Path, repeats: int, backlog: int) -> dict[str, Any]:
    """From the last image to the result in Orthanc, and how fast many waiting studies are worked off."""
    files = head(folder / "head")
    alone = bare(files, repeats, None)
    found: dict[str, Any] = {"stable_age_s": STABLE_AGE_S, "repeats": repeats, "analysis_alone_s": _spread(alone)}
    found["load"] = round(os.getloadavg()[0], 1)
    for workers, name in ((1, "1 worker"), (2, "2 workers, 1 thread each")):
        worker = f"[worker]\nprocesses = {workers}\nthreads = {0 if workers == 1 else 1}\n"
        settings = (
            f"[completion]\nstable_age_s = {STABLE_AGE_S}\ninterval_s = 0.2\n[sender]\ninterval_s = 0.2\n{worker}"
        )
        place = folder / name.replace(" ", "")
        with (
            orthanc(place / "orthanc") as server,
            service(place / "service", settings + destination(server)) as running,
        ):
            waits = [latency(files, running.port, server) for _ in range(repeats)]
            rate = drained(files, running, workers, server, backlog)
        waiting = statistics.median(waits)
        found[name] = {
            "last_image_to_orthanc_s": _spread(waits),
            "of_which_the_service_adds_s": round(waiting - STABLE_AGE_S - statistics.median(alone), 2),
            "backlog": backlog,
            "studies_per_hour": round(rate, 1),
            "rate_over_analysis_alone": round(rate * statistics.median(alone) / 3600, 2),
        }
    return found


def latency(files: Sequence[str], port: int, server: Orthanc) -> float:
    """Seconds from the acknowledgment of the last image to the report in Orthanc."""
    before = server.count("SR")
    push(files, port, 1, 1, "HEMOLENS")
    began = time.perf_counter()
    wait_for(lambda: server.count("SR") > before, "the result", 900)
    return time.perf_counter() - began


def drained(files: Sequence[str], running: Service, workers: int, server: Orthanc, backlog: int) -> float:
    """Studies an hour, from the first of them being taken up to the last report in Orthanc."""
    before = server.count("SR")
    resting = [psutil.Process(running.pid(f"worker-{number + 1}")) for number in range(workers)]
    for process in resting:
        process.suspend()
    for _ in range(backlog):  # whole studies: storescu repeats each image, not the set
        push(files, running.port, 1, 1, "HEMOLENS")
    wait_for(lambda: running.counts()["jobs.queued"] == backlog, "the backlog", 900)
    began = time.perf_counter()
    for process in resting:
        process.resume()
    wait_for(lambda: server.count("SR") == before + backlog, "all results", 3600)
    return 3600 * backlog / (time.perf_counter() - began)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 2),
        "range": [round(min(values), 2), round(max(values), 2)],
        "n": len(values),
    }


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("receive", "way"), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=12)
    parser.add_argument("--add", action="store_true", help="add runs to those of before")
    parser.add_argument("--json", type=Path, default=RESULTS)
    told = parser.parse_args()
    parts = told.part or ["receive", "way"]
    found = json.loads(told.json.read_text()) if told.json.exists() else {}
    found |= {"machine": machine(), "studies_a_run": {str(n): count for n, count in STUDIES.items()}}
    runs = found.setdefault("receive_runs", [])
    if "receive" in parts and not told.add:
        runs.clear()

    def save() -> None:
        found["receive"] = summarize(runs)
        told.json.write_text(json.dumps(found, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="hemolens-bench-") as name:
        if "receive" in parts:
            receive(Path(name) / "receive", told.repeats, runs, save)
        if "way" in parts:
            found["way"] = way(Path(name) / "way", told.repeats, told.backlog)
    save()
    print(json.dumps({key: value for key, value in found.items() if key != "receive_runs"}, indent=2))


if __name__ == "__main__":
    main()
