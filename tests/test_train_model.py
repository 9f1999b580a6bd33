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
        return SimpleNamespace()

    monkeypatch.setattr(tool, "open_datasets", lambda *_: published)
    monkeypatch.setattr(tool, "load_model", lambda folder: folder)
    monkeypatch.setattr(tool, "Predictor", lambda teacher: Path(teacher).name)
    monkeypatch.setattr(tool, "write_pseudo", lambda teacher, datasets, *_: shown.append((teacher, datasets)))
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
