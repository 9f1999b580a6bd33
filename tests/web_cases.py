"""Studies for tests of the web app, made up in a moment: no network runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np

import hemolens
import http_peers
from dicom_files import Series, write_series
from hemolens.volume import Volume
from hemolens.web.session import Study
from predictions import analyzed

SIDE = 72


def head(number: int = 0, slices: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units of a noisy head, and the label map of the two bleeds in it."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot((rows - 36) / 32, (columns - 36) / 28)
    hu = np.where(radius < 0.88, 34.0, np.where(radius < 1, 900.0, -1000.0)) + rng.normal(0, 3, (slices, SIDE, SIDE))
    labels = np.zeros((slices, SIDE, SIDE), np.uint8)
    labels[1:4, 30:42, 24:34] = 4
    labels[4, 20:24, 34:44] = 2
    hu[labels > 0] += 30
    return np.rint(hu), labels


def dicom_volume(folder: Path, number: int = 0, **changes: Any) -> Volume:
    """A DICOM head, read from files."""
    hu, _ = head(number)
    series = Series(
        len(hu),
        SIDE,
        SIDE,
        spacing_mm=(2.8, 2.8),
        study=f"1.2.3.{number + 1}",
        series=f"1.2.3.{number + 1}.5",
        **changes,
    )
    write_series(folder / f"series{number}", series, hu.astype(int) + 1024)
    return hemolens.read_volume(folder / f"series{number}")


def study_of(volume: Volume, name: str = "Scan A", labels: np.ndarray | None = None, **options: Any) -> Study:
    """What the network would have found."""
    labels = head()[1] if labels is None else labels
    prediction, label_map, findings = analyzed(volume, labels, **options)
    return Study(name, hemolens.Result(volume, prediction, label_map, findings))


def scored(study: Study, chance: float, threshold: float = 0.5, interval: tuple[float, float] | None = None) -> Study:
    """The same study with another answer."""
    findings = study.findings
    score = replace(
        findings.study,
        probability={**findings.study.probability, "any": chance},
        threshold=threshold,
        interval=interval,
        decision="positive" if chance >= threshold else "negative",
    )
    return Study(study.name, replace(study.result, findings=replace(findings, study=score)))


ENTRIES = [
    {"urgency": "positive", "study_uid": "1.2.3.44444444444", "waiting_s": 240.0,
     "job": {"id": "a", "probability": 0.97, "volume_ml": 28.44, "error": "", "partial": False}},
    {"urgency": "no_answer", "study_uid": "1.2.5", "waiting_s": 8000.0,
     "job": {"id": "b", "probability": None, "volume_ml": None, "error": "no head CT", "partial": None}},
]  # fmt: skip


@contextmanager
def worklist_service() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Answer as the API of a PACS service does; its token is ``se/cret``. Gives its address and what it was asked."""
    seen: list[dict[str, str]] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **dict(self.headers)})
            allowed = self.headers.get("Authorization") == "Bearer se/cret"
            body = json.dumps({"entries": ENTRIES}).encode() if allowed else b"{}"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(body)

    with http_peers.serving(Api) as port:
        yield f"127.0.0.1:{port}", seen


def write_run(folder: Path, *, rows: int = 4, steps: int = 40, finished: bool = False, torn: bool = False) -> Path:
    """A run of training, as its folder stands after some steps."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'steps = {steps}\nepochs = 0\n[network]\nkind = "unet2d"\n')
    lines = [
        {"step": 5 * n, "epoch": n / 4, "seconds": 30.0 * n, "loss": 1 / n, "val_loss": 2 / n, "val_dice": n / 9}
        for n in range(1, rows + 1)
    ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + ('\n{"step": 99, "lo' if torn else "\n"))
    if finished:
        (folder / "model.json").write_text("{}")
    return folder


def write_evaluation(folder: Path) -> None:
    """An evaluation: its scores and one panel."""
    (folder / "panels").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    head = "dataset,side,fold,task,level,metric,finding,value,low,high,n"
    lines = [
        "ct_ich,test,all,seg,voxel,dice_score,any,0.71234,0.6,0.8,13",
        "ct_ich,test,0,seg,voxel,dice_score,any,0.1,,,13",
        "ct_ich,test,all,cls,slice,auc_score,any,,,,13",
        "ct_ich,test,all,cls,slice,brier_loss,any,0.1,,,13",
    ]
    (folder / "metrics.csv").write_text("\n".join([head, *lines]) + "\n")
    from PIL import Image

    Image.new("L", (8, 8)).save(folder / "panels/ct_ich-test-best-1.png")
