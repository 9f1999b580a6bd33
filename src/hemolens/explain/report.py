"""What `hemolens explain` writes: the map on the grid of the scan, overlays, and ``explain.json`` with the scores."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hemolens import __version__
from hemolens.explain.energy import Energy
from hemolens.explain.pictures import OverlayArtist
from hemolens.explain.run import Explanation
from hemolens.explain.truth import TrueMask
from hemolens.measurements.findings import NOTICE
from hemolens.reports.figures import spread
from hemolens.reports.folder import ResultKind, check_target, write_folder
from hemolens.reports.nifti import geometry_files, map_files, picture_names

EXPLAIN = "explain.json"
OVERVIEW = "overview.png"
KIND = ResultKind(
    EXPLAIN,
    frozenset({EXPLAIN, OVERVIEW, "heatmap.nii.gz", "mask_geometry.json"}),
    frozenset({"overlays", "heatmap"}),
)
"""What may lie in a folder of results."""
MOST_SHOWN = 12
"""Slices in the overview."""
DECIMALS = 6
SCALE = (
    "0 to 1: the map of each slice (volumes: window; scans: whole scan) divided by its peak and multiplied by the "
    "probability of the finding: what an analysis reports where model.calibrated is true, else the network's own"
)


def write_explanation(
    explanation: Explanation, out: Path, truth: TrueMask | None = None, *, truth_path: str = "", overwrite: bool = False
) -> dict[str, Path]:
    """Write ``explain.json``, the map, an overlay of each explained slice and an overview into a folder.

    Parameters
    ----------
    out
        The folder to make; it may exist if it is empty, or with `overwrite` if it holds an earlier explanation.
    truth, truth_path
        The true mask to score against, and what it is called.

    Returns
    -------
    dict
        ``explain``, ``heatmap``, ``overlays`` and ``overview``.

    Raises
    ------
    OutputError
        If the folder cannot be written or holds something else; nothing is left half-written.
    """
    check_target(out, overwrite=overwrite, kind=KIND)
    volume, artist = explanation.volume, OverlayArtist(explanation, truth)
    names = picture_names(volume) if volume.source.kind == "images" else [f"{k:03d}" for k in range(len(volume))]
    contents = map_files(volume, explanation.values, "heatmap") | geometry_files(volume)
    contents |= {f"overlays/{names[k]}.png": artist.overlay(k) for k in explanation.slices}
    contents[OVERVIEW] = artist.overview(shown_first(explanation, truth))
    told = to_mapping(explanation, truth, truth_path)
    contents[EXPLAIN] = (json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    write_folder(out, contents, KIND)
    heatmap = out / ("heatmap" if volume.source.kind == "images" else "heatmap.nii.gz")
    return {"explain": out / EXPLAIN, "heatmap": heatmap, "overlays": out / "overlays", "overview": out / OVERVIEW}


def shown_first(explanation: Explanation, truth: TrueMask | None = None, most: int = MOST_SHOWN) -> list[int]:
    """Choose the slices of the overview: those with the lesion where it is known, else the strongest maps."""
    slices = np.array(explanation.slices)
    if len(slices) <= most:
        return [int(k) for k in slices]
    if truth is not None:
        lesion = truth.lesion(explanation.config.finding)
        bleeding = slices[lesion[slices].any(axis=(1, 2))]
        if len(bleeding):
            return [int(bleeding[i]) for i in spread(len(bleeding), most)]
    peaks = explanation.values[slices].max(axis=(1, 2))
    return sorted(int(k) for k in slices[np.argsort(-peaks, kind="stable")[:most]])


def to_mapping(explanation: Explanation, truth: TrueMask | None = None, truth_path: str = "") -> dict[str, Any]:
    """Return the plain values of ``explain.json``."""
    volume, subject, config = explanation.volume, explanation.subject, explanation.config
    told: dict[str, Any] = {
        "notice": NOTICE,
        "hemolens_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": {"kind": volume.source.kind, "path_or_uid": volume.source.path_or_uid, "slices": len(volume)},
        "model": {
            "name": subject.name,
            "sha256": subject.sha256,
            "reads": subject.interface.sample,
            "calibrated": subject.judge is not None,
        },
        "method": config.method,
        "finding": config.finding,
        "layer": config.layer or None,
        "patch_px": config.patch or None,
        "scale": SCALE,
        "samples": [
            {
                "slices": [sample.slices[0], sample.slices[-1]],
                "logit": _number(sample.logit),
                "probability": _number(sample.probability),
                "peak": _number(sample.peak),
            }
            for sample in explanation.samples
        ],
        "slices": [_slice_mapping(explanation, truth, k) for k in explanation.slices],
        "truth": _truth_mapping(explanation, truth, truth_path) if truth is not None else None,
    }
    return told


def _slice_mapping(explanation: Explanation, truth: TrueMask | None, index: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "index": index,
        "source": explanation.volume.slice_label(index),
        "peak": _number(float(explanation.values[index].max())),
    }
    return values | (_energy_mapping(explanation.energy(truth, index)) if truth is not None else {})


def _truth_mapping(explanation: Explanation, truth: TrueMask, path: str) -> dict[str, Any]:
    lesion = truth.lesion(explanation.config.finding)
    scored = [explanation.energy(truth, k) for k in explanation.slices if truth.known[k] and lesion[k].any()]
    told = [energy for energy in scored if math.isfinite(energy.inside)]
    return {
        "path": path,
        "lesion": truth.of_finding(explanation.config.finding),
        "slices_known": int(truth.known[list(explanation.slices)].sum()),
        "slices_with_lesion": len(scored),
        "slices_scored": len(told),
        "slices_above_chance": sum(energy.ratio > 1 for energy in told),
        "slices_with_peak_inside": sum(bool(energy.peak_inside) for energy in told),
        "mean_energy_inside": _number(float(np.mean([e.inside for e in told])) if told else math.nan),
        "mean_chance": _number(float(np.mean([e.chance for e in told])) if told else math.nan),
        "scan": _energy_mapping(explanation.energy(truth)),
    }


def _energy_mapping(energy: Energy) -> dict[str, Any]:
    return {
        "energy_inside": _number(energy.inside),
        "chance": _number(energy.chance),
        "ratio": _number(energy.ratio),
        "peak_inside": energy.peak_inside,
    }


def _number(value: float) -> float | None:
    """Return a rounded number, or None where it is undefined, which JSON cannot hold."""
    return round(value, DECIMALS) if math.isfinite(value) else None
