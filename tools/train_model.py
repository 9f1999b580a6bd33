"""Train a model that ships, calibrate and measure it, and write its ONNX file and card into the package.

    python tools/train_model.py configs/ich-effunet2d-1.toml --data ../shared/data --run runs/ich-effunet2d-1

A run that was cut off goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hemolens import __version__
from hemolens.config import to_mapping, with_overrides
from hemolens.evaluation.card import calibrate_and_measure, uncalibrated, write_card
from hemolens.models.export import export_onnx
from hemolens.training.config import TrainConfig
from hemolens.training.data import load_ct_ich, load_phe_sich
from hemolens.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "hemolens" / "models" / "weights"


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    chosen = parser.parse_args()
    experiment = tomllib.loads(chosen.experiment.read_text(encoding="utf-8"))
    split = json.loads((chosen.experiment.parent / experiment["split"]).read_text(encoding="utf-8"))
    configs = [with_overrides(TrainConfig(), flatten(stage)) for stage in experiment["stage"]]
    preprocess = configs[0].preprocess

    samples = load_ct_ich(chosen.data / "ct_ich", set(split["ct_ich"]["train"]), preprocess)
    samples += load_phe_sich(chosen.data / "phe_sich", set(split["phe_sich"]["train"]), preprocess)
    stages, network = [], None
    for number, config in enumerate(configs, start=1):
        run = chosen.run / str(number)
        stages.append({**provenance_of(run), "config": to_mapping(config)})
        network = train(config, samples, run, report, start=network)
    name = experiment["name"]
    onnx = WEIGHTS / f"{name}.onnx"
    difference = export_onnx(network, preprocess, onnx)
    sha256 = hashlib.sha256(onnx.read_bytes()).hexdigest()
    model = uncalibrated(name, onnx, sha256, preprocess)
    measured = calibrate_and_measure(model, chosen.data, split["ct_ich"]["validation"], split["ct_ich"]["drawn"])
    card = {
        "name": name,
        **{key: experiment[key] for key in ("title", "intended_use", "license", "limits")},
        "file": onnx.name,
        "sha256": sha256,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hemolens_version": __version__,
        "network": {
            "preset": "effunet2d",
            "parameters": sum(p.numel() for p in network.parameters()),
            "export_difference": float(f"{difference:.2g}"),
        },
        "preprocess": to_mapping(preprocess),
        "training": {"data": experiment["data"], "slices": len(samples), "stages": stages},
        "split": split,
        "measured_at_commit": commit(),
        **measured,
    }
    write_card(onnx.with_suffix(".json"), card)
    for row in card["metrics"]:
        print(f"{row['on']:18} {row['metric']:60} {row['value']} [{row['low']}, {row['high']}] n={row['n']}")


def provenance_of(run: Path) -> dict[str, Any]:
    """Return the commit and machine of a run, written down at its first start."""
    path = run / "provenance.json"
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        told = {
            "commit": commit(),
            "machine": platform.processor() or platform.machine(),
            "python": sys.version.split()[0],
        }
        path.write_text(json.dumps(told), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def commit() -> str:
    """Return the commit of the working tree, marked where files differ from it."""
    run = ["git", "-C", str(ROOT)]
    head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    dirty = subprocess.run([*run, "status", "--porcelain", "src"], capture_output=True, text=True, check=True).stdout
    return head + ("+changes" if dirty.strip() else "")


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def report(step: int, parts: dict[str, float]) -> None:
    """Print one line of progress."""
    print(time.strftime("%H:%M:%S"), step, {k: round(v, 3) for k, v in parts.items()}, flush=True)


if __name__ == "__main__":
    main()
