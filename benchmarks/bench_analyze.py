"""Where the time and memory of one analysis go, on a series of 32 slices of 512 x 512.

Every measurement is made in a fresh process, so that imports, loading the network and peak memory count as they do for
a user; each process analyzes the series twice, and the second time ("warm") is what a service would see. Plain pydicom
decoding of the same files is timed in the same run as the yardstick.

Run:  python benchmarks/bench_analyze.py [--repeats 5] [--threads N]
Writes benchmarks/results/analyze.json with a description of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SLICES, SIZE = 32, 512
STAGES = ("read", "preprocess", "infer", "measure", "report")
BASELINE = "pydicom"
PACKAGES = ("hemolens", "numpy", "scipy", "pydicom", "onnxruntime", "openvino", "matplotlib")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        variant, folder = arguments.child
        measure = time_baseline if variant == BASELINE else time_analysis
        print(json.dumps(measure(Path(folder), variant, arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder))
        results = {
            "series": f"{SLICES} slices of {SIZE} x {SIZE}, uncompressed, the demo head on a finer grid",
            "machine": machine(),
            "threads": arguments.threads or "all cores",
            "repeats": arguments.repeats,
            "variants": run_all(Path(folder), arguments.repeats, arguments.threads),
        }
    add_ratios(results["variants"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "analyze.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results)


def write_series(folder: Path) -> None:
    """Write the demo head as 32 slices of 512 x 512 in explicit little endian."""
    import numpy as np
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    from scipy import ndimage

    from hemolens.demo import demo_source
    from hemolens.sources.study import read_volume

    volume = read_volume(demo_source())
    stack = volume.require_stack()
    zoom = np.array([SLICES, SIZE, SIZE]) / volume.shape
    hu = np.round(ndimage.zoom(volume.hu.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest"))
    height = float(np.ptp(stack.offsets_mm)) * SLICES / max(len(volume) - 1, 1) / zoom[0]
    rows, columns = stack.spacings_mm[0] * (np.array(volume.shape[1:]) / SIZE)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(SLICES):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = SIZE, SIZE, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
        ds.PixelSpacing = [round(float(rows), 6), round(float(columns), 6)]
        ds.SliceThickness = round(height / SLICES, 4)
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [0, 0, round(k * height / SLICES, 4)]
        ds.PixelData = hu[k].astype("<i2").tobytes()
        ds.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)


def time_analysis(folder: Path, runtime: str, threads: int | None) -> dict[str, Any]:
    """Analyze twice with one loaded network; seconds by stage and peak memory of this process."""
    started = time.perf_counter()
    from hemolens.analysis import AnalyzeOptions, analyze
    from hemolens.inference.predictor import Predictor
    from hemolens.inference.registry import load_model

    imported = time.perf_counter()
    predictor = Predictor(load_model(), runtime, threads)
    times: dict[str, Any] = {"import": imported - started, "load": time.perf_counter() - imported}
    for name in ("cold", "warm"):
        begun = time.perf_counter()
        result = analyze(folder, AnalyzeOptions(), predictor=predictor)
        written = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            result.save(Path(out) / "out")
            ended = time.perf_counter()
        times[name] = {**result.findings.timing_s, "report": ended - written, "total": ended - begun}
    return {**times, "peak_mib": peak_mib()}


def time_baseline(folder: Path, variant: str, threads: int | None) -> dict[str, Any]:
    """Only decode the files with pydicom, twice."""
    started = time.perf_counter()
    import numpy as np
    import pydicom

    times: dict[str, Any] = {"import": time.perf_counter() - started, "load": 0.0}
    for name in ("cold", "warm"):
        begun = time.perf_counter()
        np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir())])
        seconds = time.perf_counter() - begun
        times[name] = {"read": seconds, "total": seconds}
    return {**times, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """Peak resident memory of this process (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_all(folder: Path, repeats: int, threads: int | None) -> dict[str, Any]:
    """Take turns between the variants, so that a slow minute of the machine hits all of them."""
    variants = [BASELINE, *(name for name in ("onnxruntime", "openvino") if util.find_spec(name))]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for number in range(repeats):
        for name in variants:
            print(f"{number + 1}/{repeats} {name}", file=sys.stderr)
            command = [sys.executable, __file__, "--child", name, str(folder)]
            command += ["--threads", str(threads)] if threads else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {name: summarize(several) for name, several in runs.items()}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each number, and the range of the totals."""
    summary: dict[str, Any] = {f"{key}_s": median(r[key] for r in runs) for key in ("import", "load")}
    for name in ("cold", "warm"):
        stages = {stage: median(r[name][stage] for r in runs) for stage in STAGES if stage in runs[0][name]}
        totals = sorted(r[name]["total"] for r in runs)
        summary[name] = {
            "total_s": median(totals),
            "total_range_s": [round(totals[0], 4), round(totals[-1], 4)],
            "stages_s": stages,
            "share": {stage: round(seconds / sum(stages.values()), 3) for stage, seconds in stages.items()},
        }
    return {**summary, "peak_mib": median(r["peak_mib"] for r in runs)}


def median(values: Any) -> float:
    """Return the median, rounded to tenths of a millisecond."""
    return round(statistics.median(values), 4)


def add_ratios(variants: dict[str, Any]) -> None:
    """Set each variant's times against plain decoding by pydicom in the same run."""
    yardstick = variants[BASELINE]["warm"]["total_s"]
    for summary in variants.values():
        summary["warm"]["total_over_pydicom"] = round(summary["warm"]["total_s"] / yardstick, 2)
        summary["warm"]["read_over_pydicom"] = round(summary["warm"]["stages_s"]["read"] / yardstick, 2)


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    cpu, memory = platform.processor(), 0
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES if util.find_spec(name)},
    }


def show(results: dict[str, Any]) -> None:
    """Print one table."""
    where = results["machine"]
    print(f"{results['series']}; {where['cpu']}, {where['cores']} cores; median of {results['repeats']}")
    print(f"{'':>12} {'total':>8} {'x pydicom':>10} {'peak MiB':>9}  " + "  ".join(f"{s:>16}" for s in STAGES))
    for name, summary in results["variants"].items():
        for state in ("cold", "warm"):
            told = summary[state]
            cells = [
                f"{told['stages_s'][s]:7.3f} s ({told['share'][s]:4.0%})" if s in told["stages_s"] else ""
                for s in STAGES
            ]
            ratio = f"{told['total_over_pydicom']:.1f}" if state == "warm" else ""
            print(
                f"{name[:7] + ' ' + state:>12} {told['total_s']:7.3f}s {ratio:>10} {summary['peak_mib']:9.0f}  "
                + "  ".join(f"{c:>16}" for c in cells)
            )
        print(f"{'':>12} import {summary['import_s']:.2f} s, load {summary['load_s']:.2f} s")


if __name__ == "__main__":
    main()
