"""Whether the loader keeps up: images per second that it delivers, and that a training step of effunet2d eats.

Both are measured on one core, in turns in the same run, in seconds of processor time, which other work on the machine
changes little: on the real slices of CT-ICH and PHE-SICH, with the mix of the ``effunet2d`` preset (bleeds painted on
the way, JPEG). Decoding without the cache is the yardstick; the clock's rates with all cores stand beside.

Run:  python benchmarks/bench_loader.py --data ../shared/data --cache FOLDER [--rounds 5]
Writes benchmarks/results/loader.json with a description of the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hemolens.models.registry import build_network
from hemolens.preprocessing.pipeline import prepare
from hemolens.sources.datasets.opening import open_datasets
from hemolens.training.augment import augment_batch
from hemolens.training.config import TrainConfig, load_preset
from hemolens.training.data import open_batches
from hemolens.training.losses import loss_parts, total_loss
from hemolens.training.schedule import build_optimizer
from hemolens.training.store import Store, build_store

RESULTS = Path(__file__).parent / "results"
FACTOR_WANTED = 3.0


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    config = load_preset("effunet2d")
    cores = len(os.sched_getaffinity(0))
    datasets = open_datasets(chosen.data, ("ct_ich", "phe_sich"))
    store = build_store(datasets, None, config.preprocess, chosen.cache, workers=cores)
    step = Step(config, store)
    torch.set_num_threads(1)
    tasks: dict[str, Callable[[], float]] = {
        "decode": lambda: decode_rate(datasets, config),
        "read from the cache": lambda: read_rate(store),
        "loader": lambda: loader_rate(store, config, 0, time.process_time),
        "training step": lambda: step.rate(time.process_time),
    }
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(chosen.rounds):
        for name, task in tasks.items():
            rates[name].append(task())
    factor = statistics.median(a / b for a, b in zip(rates["loader"], rates["training step"], strict=True))
    on_the_clock = {f"loader, {cores} workers": loader_rate(store, config, cores, time.perf_counter)}
    torch.set_num_threads(cores)
    on_the_clock[f"training step, {cores} threads"] = step.rate(time.perf_counter)
    results = {
        "slices": len(store),
        "size": config.preprocess.size,
        "batch": config.batch,
        "images_per_core_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "spread": {name: [round(min(v), 1), round(max(v), 1)] for name, v in rates.items()},
        "times_what_training_eats": round(factor, 2),
        "images_per_second_on_the_clock": {name: round(rate, 1) for name, rate in on_the_clock.items()},
        "cache_mb": round(sum(p.stat().st_size for p in chosen.cache.iterdir()) / 1e6),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load_average": [round(v, 1) for v in os.getloadavg()],
        "machine": {
            "processor": processor(),
            "cores": cores,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy")},
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loader.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))
    if factor < FACTOR_WANTED:
        raise SystemExit(f"the loader delivers less than {FACTOR_WANTED} times what training eats")


def decode_rate(datasets: Any, config: TrainConfig) -> float:
    """Read and prepare two cases as without a cache."""
    cases = [(d, case) for d in datasets for case in d.cases[:1]]
    started = time.process_time()
    slices = sum(len(prepare(dataset.volume(case), config.preprocess).crops) for dataset, case in cases)
    return slices / (time.process_time() - started)


def read_rate(store: Store) -> float:
    """Read slices in random order."""
    order = torch.randperm(len(store))[:400].tolist()
    started = time.process_time()
    for number in order:
        store.sample(number)
    return len(order) / (time.process_time() - started)


def loader_rate(store: Store, config: TrainConfig, workers: int, clock: Callable[[], float]) -> float:
    """Take batches as fast as they come, from when the workers have started."""
    stream = open_batches(
        store, replace(config.data, workers=workers), config.synthesis, config.augment,
        sample="slice", channels=3, batch=config.batch, seed=config.seed,
    )  # fmt: skip
    for _ in itertools.islice(stream, 4 * workers):
        pass  # what was put together before the clock starts
    started, images = clock(), 0
    for batch in itertools.islice(stream, 16):
        images += len(batch["images"])
    return images / (clock() - started)


class Step:
    """Training steps on a batch that is there already."""

    def __init__(self, config: TrainConfig, store: Store) -> None:
        self.config = config
        self.network = build_network(config.network).train()
        self.optimizer = build_optimizer(self.network, config.optimizer)
        self.batch = next(
            open_batches(
                store, config.data, config.synthesis, config.augment,
                sample="slice", channels=3, batch=config.batch, seed=config.seed,
            )
        )  # fmt: skip

    def rate(self, clock: Callable[[], float], steps: int = 3) -> float:
        """Return images per second of augmentation, forward and backward pass and update."""
        started = clock()
        for seed in range(steps):
            batch = augment_batch(self.batch, self.config.augment, seed)
            loss = total_loss(loss_parts(self.network(batch["images"]), batch, self.config.loss), self.config.loss)
            self.optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            self.optimizer.step()
        return steps * self.config.batch / (clock() - started)


def processor() -> str:
    """Return the model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
