"""Figures of the PACS service on this machine: receive rate, time from the last image to the result, backlog drained.

    python benchmarks/bench_pacs.py [--studies 60] [--senders 4] [--backlog 12] [--json FILE]

Everything is real: pynetdicom senders in processes of their own, `hemolens pacs serve`, and an Orthanc that takes the
results. Studies are 32 slices of 512 x 512 pixels, 16 bits, uncompressed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
from pydicom import dcmread

from dicom_files import Series, write_series
from hemolens.demo import demo_source
from hemolens.sources.study import read_volume
from pacs_peers import destination, orthanc, send, service, wait_for

SLICES = 32


def head(folder: Path, number: int) -> list[Path]:
    """Write the phantom head at full size as a study of its own."""
    volume = read_volume(demo_source())
    hu = np.asarray(volume.hu)[np.linspace(0, len(volume.hu) - 1, SLICES).round().astype(int)]
    noise = np.random.default_rng(number).integers(0, 2, hu.shape)
    series = Series(
        slices=SLICES, rows=512, columns=512, spacing_mm=(0.46875, 0.46875), patient=f"B{number}",
        study=f"2.25.9.{number}", series=f"2.25.9.{number}.1",
    )  # fmt: skip
    return write_series(folder, series, np.clip(hu + 1024 + noise, 0, 4095).astype(np.int64))


def _push(job: tuple[int, list[str], int]) -> int:
    """Send one study again and again under new UIDs, one association a study, as a scanner does."""
    port, files, studies = job
    from pynetdicom import AE

    sets = [dcmread(f) for f in files]
    done = 0
    for _ in range(studies):
        number = f"{os.getpid()}.{time.time_ns()}"
        for index, dataset in enumerate(sets):
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"2.25.{number}", f"2.25.{number}.1"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number}.1.{index}"
        entity = AE(ae_title="BENCH")
        entity.add_requested_context(sets[0].SOPClassUID, sets[0].file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", port, ae_title="HEMOLENS")
        for dataset in sets:
            status = association.send_c_store(dataset)
            if status.Status != 0:
                raise RuntimeError(f"0x{status.Status:04X}")
            done += 1
        association.release()
    return done


def receive(folder: Path, studies: int, senders: int) -> dict[str, Any]:
    """Receive rate with several scanners; nothing is analyzed meanwhile."""
    files = [str(f) for f in head(folder / "rate", 0)]
    idle = "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 99999\n"
    with service(folder / "receive", idle) as running:
        jobs = [(running.port, files, max(1, studies // senders))] * senders
        with multiprocessing.get_context("spawn").Pool(senders) as pool:
            pool.map(_push, [(running.port, files[:1], 1)] * senders)  # every process is up
            began = time.perf_counter()
            sent = sum(pool.map(_push, jobs, chunksize=1))
            took = time.perf_counter() - began
        kept = running.counts()["instances"] - senders
    if kept != sent:
        raise RuntimeError(f"{sent} acknowledged, {kept} kept")
    return {
        "senders": senders, "studies": sent // SLICES, "seconds": round(took, 2),
        "instances_per_s": round(sent / took, 1), "studies_per_min": round(60 * sent / SLICES / took, 1),
    }  # fmt: skip


def latency_and_backlog(folder: Path, backlog: int) -> dict[str, Any]:
    """From the last image to the result in Orthanc, and how fast many waiting studies are worked off."""
    age = 2.0
    settings = f"[completion]\nstable_age_s = {age}\ninterval_s = 0.2\n[sender]\ninterval_s = 0.2\n"
    with orthanc(folder / "orthanc") as server, service(folder / "full", settings + destination(server)) as running:
        waits = []
        for number in range(3):
            files = head(folder / f"one{number}", number + 1)
            send(files, running.port)
            began = time.perf_counter()
            wait_for(lambda count=number: server.count("SR") > count, "the result", 900)
            waits.append(time.perf_counter() - began)
        for number in range(backlog):
            send(head(folder / f"many{number}", number + 100), running.port)
        with closing(running.queue()) as queue:
            left = backlog + 3 - sum(str(job.state) == "done" for job in queue.worklist())
        began = time.perf_counter()
        wait_for(lambda: server.count("SR") == backlog + 3, "all results", 3600)
        took = time.perf_counter() - began
    return {
        "stable_age_s": age,
        "seconds_from_last_image_to_orthanc": [round(w, 2) for w in waits],
        "backlog": left,
        "studies_per_hour": round(3600 * left / took, 1),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--backlog", type=int, default=12)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hemolens-bench-") as name:
        folder = Path(name)
        load = os.getloadavg()[0]
        found = {
            "cores": os.cpu_count(),
            "load_before": round(load, 1),
            "receive": [receive(folder / str(n), told.studies, n) for n in sorted({1, told.senders})],
            **(latency_and_backlog(folder / "way", told.backlog) if told.backlog else {}),
        }
    print(json.dumps(found, indent=2))
    if told.json:
        told.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
