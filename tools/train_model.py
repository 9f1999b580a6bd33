"""Train a model that ships, calibrate and measure it, and write its ONNX file and card into the package.

    python tools/train_model.py configs/ich-effunet2d-12.toml --data ../shared/data --run runs/ich-effunet2d-12

A run that was cut off goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens import __version__
from hemolens.config import dotted, to_mapping
from hemolens.evaluation.card import calibrate_and_measure, uncalibrated, write_card
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import Model, Thresholds, load_model
from hemolens.models.average import average_onnx
from hemolens.models.export import export_onnx
from hemolens.models.quantize import quantize_onnx
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.datasets.pseudo import INDEX, PseudoFolder, read_pseudo, with_pseudo
from hemolens.sources.splits import SIDES, Fold, Split, read_split
from hemolens.training.config import load_preset
from hemolens.training.loop import Progress
from hemolens.training.provenance import commit
from hemolens.training.pseudo_folder import write_pseudo
from hemolens.training.run import PROVENANCE, RunResult, run_training
from hemolens.training.self_training import SelfTrainingConfig

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "hemolens" / "models" / "weights"
EIGHT_BITS = "-int8"
RANGES = ("ct_ich", "phe_sich")
"""Data sets that the split deals."""
SCANS, SLICES = 20, 8
"""Of each data set, and of each scan, that the ranges of the 8-bit copy are read off."""
BEGINS_ANEW = ""
AVERAGED = "average_with_start"
"""Key of an experiment that ships the mean of the weights it ended with and of those it began with."""
BRANCHES = "branches"
"""Key of an experiment whose stages all go on from where it began, each by itself; their mean ships."""
PSEUDO = "pseudo"
"""Key of a stage that learns from what the stage before outlines, too."""
MEND = "mend"
"""Key of a stage with `PSEUDO` that learns from published derived masks as the stage before completes them."""


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    chosen = parser.parse_args()
    experiment = tomllib.loads(chosen.experiment.read_text(encoding="utf-8"))
    split = read_split(chosen.experiment.parent / experiment["split"])
    stages, results = train_stages(experiment, split, chosen.data, chosen.run)
    ship(experiment, split, stages, results, chosen.data)


def ship(experiment: dict[str, Any], split: Split, stages: list[Any], results: list[RunResult], data: Path) -> None:
    """Write the mean of trained networks in 32 bits and in 8, calibrate and measure both, and write their cards."""
    result = results[0]
    preprocess = replace(result.config.preprocess, **experiment.get("inference", {}))
    whole = WEIGHTS / f"{experiment['name']}.onnx"
    difference, averaged = joined(experiment, results, preprocess, whole)
    told = {
        **{key: experiment[key] for key in ("title", "intended_use", "license", "limits")},
        "network": {
            "preset": experiment["preset"],
            "parameters": sum(p.numel() for p in result.network.parameters()),
            "export_difference": float(f"{difference:.2g}"),
            "config": to_mapping(result.network.config),
        },
        "interface": to_mapping(result.network.interface),
        "preprocess": to_mapping(preprocess),
        "training": {"data": experiment["data"], "stages": stages, **averaged},
        "split": sides_told(split.fold(0)),
    }
    thresholds = Thresholds(study=0.5, **experiment["outline"])
    measure(whole, told, preprocess, thresholds, split, experiment["drawn"], data)
    small = whole.with_name(f"{whole.stem}{EIGHT_BITS}.onnx")
    quantize_onnx(whole, small, shown(load_model(str(whole)), open_datasets(data, RANGES), split))
    told = {
        **told,
        "title": f"{told['title']}, in 8 bits",
        "network": {**told["network"], "quantized_from": whole.stem},
    }
    measure(small, told, preprocess, thresholds, split, experiment["drawn"], data)


def joined(
    experiment: dict[str, Any], results: list[RunResult], preprocess: PreprocessConfig, target: Path
) -> tuple[float, dict[str, Any]]:
    """Write the mean of what was trained, and of what it began with where that is asked for.

    Returns
    -------
    tuple
        The largest difference that exporting made, and what the card says of the mean.
    """
    start = [load_model(experiment["start"]).path] if experiment.get(AVERAGED) else []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.onnx" for number in range(len(results))]
        difference = max(export_onnx(r.network, preprocess, file) for r, file in zip(results, files, strict=True))
        average_onnx([*files, *start], target)
    averaged = {"averaged": f"the {len(files)} stages, each from {experiment['start']}"} if len(files) > 1 else {}
    return difference, {**averaged, **({"averaged_with": experiment["start"]} if start else {})}


def measure(
    onnx: Path,
    told: dict[str, Any],
    preprocess: PreprocessConfig,
    thresholds: Thresholds,
    split: Split,
    drawn: list[str],
    data: Path,
) -> None:
    """Calibrate a network file on the validation patients, measure it, and write its card beside it."""
    sha256 = hashlib.sha256(onnx.read_bytes()).hexdigest()
    patients = split.fold(0).validation
    named = {
        dataset: [p.removeprefix(f"{dataset}/") for p in patients if p.startswith(f"{dataset}/")] for dataset in RANGES
    }
    measured = calibrate_and_measure(
        uncalibrated(onnx.stem, onnx, sha256, preprocess, thresholds), data, named["ct_ich"], drawn, named["phe_sich"]
    )
    identity = {
        "name": onnx.stem,
        "file": onnx.name,
        "sha256": sha256,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hemolens_version": __version__,
    }
    write_card(onnx.with_suffix(".json"), {**identity, **told, "measured_at_commit": commit(), **measured})
    for row in measured["metrics"]:
        print(f"{row['on']:18} {row['metric']:60} {row['value']} [{row['low']}, {row['high']}] n={row['n']}")


def sides_told(fold: Fold) -> dict[str, dict[str, list[str]]]:
    """Return the patients of each side as a card names them: data set, side, patients."""
    told: dict[str, dict[str, list[str]]] = {}
    for side in SIDES:
        for member in getattr(fold, side):
            dataset, _, patient = member.partition("/")
            told.setdefault(dataset, {}).setdefault(side, []).append(patient)
    return told


def shown(model: Model, datasets: Sequence[DataSet], split: Split) -> Iterator[NDArray[np.float32]]:
    """Yield slices of training patients as the network sees them: what the ranges of its 8-bit copy are read off."""
    predictor = Predictor(model)
    rng = np.random.default_rng(0)
    patients = set(split.fold(0).train)
    for dataset in datasets:
        cases = [case for case in dataset.cases if case.group in patients]
        for case in rng.choice(np.array(cases, dtype=object), min(SCANS, len(cases)), replace=False):
            seen = predictor.prepare(dataset.volume(case)).contexts
            yield seen[np.linspace(0, len(seen) - 1, min(SLICES, len(seen))).astype(int)].astype(np.float32)


def train_stages(experiment: dict[str, Any], split: Split, data: Path, run: Path) -> tuple[list[Any], list[RunResult]]:
    """Train stage after stage, each from the weights of the one before; what is done already is not done again.

    Returns
    -------
    tuple
        What the card says of each stage, and the one that the last stage made; of `BRANCHES`, one of each stage.
    """
    published = open_datasets(data, tuple(split.datasets))
    told: list[dict[str, Any]] = []
    start, branches = experiment.get("start", BEGINS_ANEW), experiment.get(BRANCHES, False)
    results: list[RunResult] = []
    for number, stage in enumerate(experiment["stage"], start=1):
        folder, datasets = run / str(number), published
        if stage.get(PSEUDO):  # of all bleeding slices, also those that an earlier stage has outlined
            trusted = SelfTrainingConfig(mend=stage.get(MEND, False))
            datasets = with_pseudo(published, outlined(start, published, split, run, trusted))
        settings = {key: value for key, value in stage.items() if key not in (PSEUDO, MEND)}
        config = load_preset(experiment["preset"], {**dotted(settings), "start": start})
        results.append(
            run_training(config, datasets, split, 0, folder, resume=True, cache=run / "cache", progress=report)
        )
        origin = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        shown = {**to_mapping(config), "start": f"stage {number - 1}" if number > 1 and not branches else start}
        told.append({"datasets": origin["datasets"], "sessions": origin["sessions"], "config": shown})
        start = start if branches else str(folder)
    if not results:
        raise SystemExit("The experiment has no [[stage]].")
    return told, results if branches else results[-1:]


def outlined(
    teacher: str, datasets: Sequence[DataSet], split: Split, run: Path, trusted: SelfTrainingConfig
) -> PseudoFolder:
    """Return the masks that the stage before derives for its training side; what is derived already is read."""
    folder = run / f"pseudo-{Path(teacher).name}{'-mended' if trusted.mend else ''}"
    if not (folder / INDEX).exists():
        shutil.rmtree(folder, ignore_errors=True)  # cut off half-way
        write_pseudo(Predictor(load_model(teacher)), datasets, split.fold(0).train, folder, trusted)
    return read_pseudo(folder)


def report(progress: Progress) -> None:
    """Print one line for each of the log."""
    if progress.row:
        shown = {k: round(v, 3) for k, v in progress.row.items() if k not in ("step", "epoch", "seconds")}
        print(time.strftime("%H:%M:%S"), progress.stage, progress.step, shown, flush=True)


if __name__ == "__main__":
    main()
