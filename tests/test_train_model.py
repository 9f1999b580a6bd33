"""The tool that trains what ships: what its stages learn from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs hemolens[train]")

from scripts import script

STAGE = {"steps": 1}


def test_each_round_of_self_training_outlines_every_bleeding_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round once got the data sets of the first, in which all but 13 slices had a mask already."""
    tool = script("tools", "train_model")
    published, taught, shown = object(), [], []

    def run_training(config: Any, datasets: Any, split: Any, fold: int, folder: Path, **_: Any) -> Any:
        folder.mkdir(parents=True)
        (folder / tool.PROVENANCE).write_text(json.dumps({"datasets": [], "sessions": []}))
        taught.append(datasets)
        return SimpleNamespace(start=config.start)

    monkeypatch.setattr(tool, "open_datasets", lambda *_: published)
    monkeypatch.setattr(tool, "load_model", lambda folder: folder)
    monkeypatch.setattr(tool, "Predictor", lambda teacher: Path(teacher).name)
    asked: list[bool] = []

    def write_pseudo(teacher: str, datasets: Any, members: Any, folder: Path, trusted: Any) -> None:
        shown.append((teacher, datasets))
        asked.append(trusted.mend)

    monkeypatch.setattr(tool, "write_pseudo", write_pseudo)
    monkeypatch.setattr(tool, "read_pseudo", lambda folder: folder.name)
    monkeypatch.setattr(tool, "with_pseudo", lambda datasets, masks: (datasets, masks))
    monkeypatch.setattr(tool, "run_training", run_training)
    split: Any = SimpleNamespace(datasets=("ct_ich",), fold=lambda _: SimpleNamespace(train=()))
    stages = [STAGE, {**STAGE, "pseudo": True}, {**STAGE, "pseudo": True}, STAGE]
    tool.train_stages({"preset": "effunet2d", "stage": stages}, split, tmp_path, tmp_path)
    assert shown == [("1", published), ("2", published)]
    assert taught == [published, (published, "pseudo-1"), (published, "pseudo-2"), published]

    shown.clear()
    experiment = {"preset": "effunet2d", "start": "a-model", "stage": [{**STAGE, "pseudo": True}, STAGE]}
    stages_told, _ = tool.train_stages(experiment, split, tmp_path, tmp_path / "on")
    assert shown == [("a-model", published)]  # teaches the first stage, which goes on from it
    assert [stage["config"]["start"] for stage in stages_told] == ["a-model", "stage 1"]
    assert asked == [False] * 3

    shown.clear()
    stages = [{**STAGE, "pseudo": True, "mend": True}, {**STAGE, "pseudo": True, "seed": 1}]
    experiment = {"preset": "effunet2d", "start": "a-model", "branches": True, "stage": stages}
    stages_told, results = tool.train_stages(experiment, split, tmp_path, tmp_path / "branches")
    assert shown == [("a-model", published)] * 2  # each goes on from what the first went on from
    assert asked[3:] == [True, False]
    assert taught[-2:] == [(published, "pseudo-a-model-mended"), (published, "pseudo-a-model")]
    assert [r.start for r in results] == [stage["config"]["start"] for stage in stages_told] == ["a-model", "a-model"]


@pytest.mark.parametrize(("average_with_start", "expected"), [(False, ["0", "1"]), (True, ["0", "1", "a-model"])])
def test_what_ships_is_the_mean_of_all_branches(
    average_with_start: bool, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = script("tools", "train_model")
    meant: list[list[str]] = []
    monkeypatch.setattr(tool, "load_model", lambda name: SimpleNamespace(path=tmp_path / f"{name}.onnx"))
    monkeypatch.setattr(tool, "export_onnx", lambda network, preprocess, file: network)
    monkeypatch.setattr(tool, "average_onnx", lambda files, target: meant.append([file.stem for file in files]))
    results: Any = [SimpleNamespace(network=difference) for difference in (1e-6, 3e-6)]
    experiment = {"start": "a-model", "average_with_start": average_with_start}
    difference, told = tool.joined(experiment, results, SimpleNamespace(), tmp_path / "whole.onnx")
    assert meant == [expected]
    assert difference == 3e-6
    assert ("averaged_with" in told) == average_with_start
    assert told["averaged"] == "the 2 stages, each from a-model"
