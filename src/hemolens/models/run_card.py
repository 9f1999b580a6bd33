"""What a training run leaves for use: the network as ONNX, and the card that says what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hemolens import __version__
from hemolens.config import to_mapping
from hemolens.inference.calibrate import UNCALIBRATED
from hemolens.inference.registry import RUN_CARD, Thresholds
from hemolens.models.export import export_onnx
from hemolens.models.network import Network
from hemolens.preprocessing.pipeline import PreprocessConfig

INTENDED_USE = (
    "Research on intracranial hemorrhage on head CT. Not a medical device; no clinical decision may rest on it."
)
NOT_CALIBRATED = "Probabilities are not calibrated and the thresholds were not chosen on validation patients."


def write_run_card(network: Network, preprocess: PreprocessConfig, folder: Path, training: Mapping[str, Any]) -> Path:
    """Write ``model.onnx`` and ``model.json`` into the folder of a run, for `hemolens.inference.registry.load_model`.

    Parameters
    ----------
    network
        With the weights that the run keeps.
    preprocess
        What it was trained to see.
    training
        Where the weights come from, as plain values: kept in the card as they are. The licenses of ``"datasets"``, if
        named, become the card's.

    Returns
    -------
    Path
        Of the card.

    Raises
    ------
    ModelError
        If the exported network differs from the one in torch.
    """
    card = folder / RUN_CARD
    onnx = card.with_suffix(".onnx")
    difference = export_onnx(network, preprocess, onnx)
    kind = str(network.config.kind)
    values = {
        "name": folder.resolve().name,
        "title": f"{kind} of the run {folder.resolve().name}",
        "intended_use": INTENDED_USE,
        "license": _license(training),
        "limits": [NOT_CALIBRATED],
        "file": onnx.name,
        "sha256": hashlib.sha256(onnx.read_bytes()).hexdigest(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hemolens_version": __version__,
        "network": {
            "preset": kind,
            "parameters": sum(p.numel() for p in network.parameters()),
            "export_difference": float(f"{difference:.2g}"),
            "config": to_mapping(network.config),
        },
        "interface": to_mapping(network.interface),
        "preprocess": to_mapping(preprocess),
        "training": dict(training),
        "calibration": to_mapping(UNCALIBRATED),
        "thresholds": to_mapping(Thresholds(0.5, 0.5)),
        "metrics": [],
    }
    content = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = card.with_name(card.name + ".part")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(card)
    return card


def _license(training: Mapping[str, Any]) -> str:
    told = [f"{d['name']}: {d['license']}" for d in training.get("datasets", ()) if "license" in d]
    return f"Weights learned from data under these licenses: {'; '.join(told)}" if told else "That of the training data"
