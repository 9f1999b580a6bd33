"""How large each network is and how long it takes, as its preset builds it.

Parameters and multiply-accumulates are counted; times are the fastest of several rounds on one thread, in torch and in
ONNX Runtime. In a round every network runs once after the other, so that whatever else the machine does hits all of
them alike, and the ratio to effunet2d is of the same run.

Run:  python benchmarks/bench_networks.py [--rounds 7]
Writes benchmarks/results/networks.json with a description of the machine, and prints the table that
docs/reference/networks.md shows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
YARDSTICK = "effunet2d"
SLICES = 4
"""In a batch of slices, as an analysis runs them."""
SCAN = 32
"""Slices of the scan that a network of scans reads."""
PACKAGES = ("hemolens", "torch", "onnxruntime")
HEAD = "| preset | network | input | parameters | MACs per slice | torch | ONNX Runtime | to effunet2d |"


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    results = {
        "machine": machine(),
        "threads": 1,
        "rounds": rounds,
        "batch": {"slice": f"{SLICES} slices", "volume": "one window", "scan": f"one scan of {SCAN} slices"},
        "presets": measure(rounds),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "networks.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Return what is told of each preset."""
    import onnxruntime
    import torch

    from hemolens.models.export import export_onnx
    from hemolens.models.registry import build_network
    from hemolens.training.config import load_preset, preset_names

    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    told: dict[str, dict[str, Any]] = {}
    runs: dict[str, tuple[Any, Any, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in preset_names():
            config = load_preset(name)
            told[name] = counts(config)
            network = build_network(config.network, pretrained=False).eval()
            path = Path(folder) / f"{name}.onnx"
            export_onnx(network, config.preprocess, path)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            runs[name] = (network, session, torch.rand(told[name]["shape"]) * 255)
        seconds = time_all(runs, rounds)
    for name, row in told.items():
        for runtime, values in seconds[name].items():
            row[f"{runtime}_ms_per_slice"] = round(1000 * min(values) / row["slices"], 2)
    for row in told.values():
        for runtime in ("torch", "onnxruntime"):
            key = f"{runtime}_ms_per_slice"
            row[f"{runtime}_to_{YARDSTICK}"] = round(row[key] / told[YARDSTICK][key], 2)
    return told


def counts(config: Any) -> dict[str, Any]:
    """Return kind, shape, parameters and multiply-accumulates per slice of a preset's network."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hemolens.models.registry import build_network

    with torch.device("meta"):
        network = build_network(config.network, pretrained=False).eval()
    size, slices = config.preprocess.size, {"slice": SLICES, "volume": network.depth, "scan": SCAN}[network.sample]
    shape = {
        "slice": (slices, network.channels, size, size),
        "volume": (1, 1, slices, size, size),
        "scan": (1, slices, network.channels, size, size),
    }[network.sample]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(shape, device="meta"))
    return {
        "kind": config.network.kind,
        "sample": network.sample,
        "shape": list(shape),
        "slices": slices,
        "parameters": sum(p.numel() for p in network.parameters()),
        "learning": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "mega_macs_per_slice": round(counter.get_total_flops() / 2 / slices / 1e6, 1),
    }


def time_all(runs: dict[str, tuple[Any, Any, Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each round, after one that does not count."""
    import torch

    seconds: dict[str, dict[str, list[float]]] = {name: {"torch": [], "onnxruntime": []} for name in runs}
    for number in range(rounds + 1):
        for name, (network, session, images) in runs.items():
            given = images.numpy()
            begun = time.perf_counter()
            with torch.inference_mode():
                network(images)
            between = time.perf_counter()
            session.run(None, {"images": given})
            if number:
                seconds[name]["torch"].append(between - begun)
                seconds[name]["onnxruntime"].append(time.perf_counter() - between)
    return seconds


def table(results: dict[str, Any]) -> str:
    """Return the results as the table of docs/reference/networks.md."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for name, row in results["presets"].items():
        cells = [
            f"`{name}`",
            f"`{row['kind']}`",
            " × ".join(str(n) for n in row["shape"][1:]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['mega_macs_per_slice']:.0f} M",
            f"{row['torch_ms_per_slice']:.1f} ms",
            f"{row['onnxruntime_ms_per_slice']:.1f} ms",
            f"{row[f'onnxruntime_to_{YARDSTICK}']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Describe what it ran on, without names."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
