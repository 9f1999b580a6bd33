"""Searching settings: spaces are read strictly, trials are pruned and go on, the best becomes a preset."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")
optuna = pytest.importorskip("optuna", reason="needs hemolens[train]")

from hemolens.errors import ConfigError, DivergedError, OutputError  # noqa: E402
from hemolens.sources.datasets.cases import DataSet  # noqa: E402
from hemolens.training import loop  # noqa: E402
from hemolens.training import tune as tuning  # noqa: E402
from hemolens.training.config import load_preset, read_toml  # noqa: E402
from hemolens.training.tune import Dimension, default_space, parse_space, read_space, tune  # noqa: E402
from training_cases import heads, tiny  # noqa: E402

SPACE = (Dimension("optimizer.rate", 1e-4, 1e-2, log=True), Dimension("batch", choices=(2, 4)))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, ...]:
    return heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def search(datasets: tuple[DataSet, ...], tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")

    def go(out: Path, config: Any = None, space: Any = SPACE, trials: int = 2, **options: Any) -> Any:
        base = config or tiny(steps=2, validate_every=1)
        return tune(base, space, datasets, None, 0, out, trials=trials, cache=cache, **options)

    return go


def study_in(folder: Path) -> Any:
    return optuna.load_study(study_name="hemolens", storage=f"sqlite:///{folder / 'study.db'}")


def test_ranges_and_choices_are_told_from_settings() -> None:
    space, rest = parse_space(
        ["optimizer.rate=1e-4..1e-2", "batch=8|16", "steps=5", "data.depth=2..9", "loss.focal_gamma=0..2"]
    )
    assert space == (
        Dimension("optimizer.rate", 1e-4, 1e-2, log=True),
        Dimension("batch", choices=(8, 16)),
        Dimension("data.depth", 2, 9),
        Dimension("loss.focal_gamma", 0, 2),
    )
    assert rest == ("steps=5",)
    space, rest = parse_space(["optimizer.name=adam,sgd", "network.widths=[4,8]", "network.widths=[4,8]|[8,16]"])
    assert [d.choices for d in space] == [("adam", "sgd"), ([4, 8], [8, 16])]
    assert rest == ("network.widths=[4,8]",)


def test_a_space_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        'batch = [4, 8]\n[optimizer]\nrate = { low = 1e-4, high = 1e-2, log = false }\nname = ["adam", "sgd"]\n'
    )
    assert read_space(read_toml(path)) == (
        Dimension("batch", choices=(4, 8)),
        Dimension("optimizer.rate", 1e-4, 1e-2),
        Dimension("optimizer.name", choices=("adam", "sgd")),
    )


@pytest.mark.parametrize("word", ["batch=8..4", "batch=a..b", "batch=..", "optimizer.rate=1e-2..1e-4"])
def test_ranges_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"batch|optimizer\.rate"):
        parse_space([word])
    with pytest.raises(ConfigError, match="write a range as low"):
        read_space({"batch": {"low": 3}})


@pytest.mark.parametrize(
    ("settings", "space", "message"),
    [
        ({"select": "last"}, SPACE, "A search needs a score to compare: set select"),
        ({}, (Dimension("loss.mask_bce", 1.0, 2.0),), "one loss cannot be compared with another"),
        ({}, (Dimension("optimizer.rat", 1.0, 2.0),), r"Did you mean 'rate'\?"),
        ({}, (Dimension("precision", choices=("32", "8")),), "'8' is none of the choices"),
        ({}, (), "There is nothing to search"),
    ],
)
def test_searches_that_make_no_sense_are_refused(
    search: Any, settings: Any, space: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(tmp_path / "out", tiny(**settings), space)
    assert not (tmp_path / "out").exists()


def test_a_search_goes_on_and_leaves_a_preset(search: Any, tmp_path: Path) -> None:
    first = search(tmp_path, trials=2)
    assert first.finished + first.pruned == 2
    again = search(tmp_path, trials=3)
    assert again.finished + again.pruned == 3
    study = study_in(tmp_path)
    assert len(study.trials) == 3
    best = load_preset(again.preset)
    assert best.optimizer.rate == pytest.approx(study.best_params["optimizer.rate"])
    assert best.batch == study.best_params["batch"]
    assert again.value == study.best_value == min(t.value for t in study.trials if t.value is not None)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"trial-000", "trial-001", "trial-002"}
    with pytest.raises(ConfigError, match="holds a search with other settings"):
        search(tmp_path, tiny(steps=3, validate_every=1), trials=4)


def test_a_trial_that_was_cut_off_goes_on_from_its_checkpoint(search: Any, tmp_path: Path) -> None:
    config = tiny(steps=4, validate_every=4, checkpoint_every=1)

    class CutError(BaseException):
        """As a kill: nothing may catch it."""

    def cut(progress: Any) -> None:
        if progress.run.stage == "train" and progress.run.step == 3:
            raise CutError

    with pytest.raises(CutError):
        search(tmp_path, config, trials=1, progress=cut)
    (cut_trial,) = study_in(tmp_path).trials
    assert cut_trial.state.name == "RUNNING"
    steps: list[int] = []
    result = search(
        tmp_path, config, trials=1, progress=lambda p: steps.append(p.run.step) if p.run.stage == "train" else None
    )
    assert steps == [4]
    states = [t.state.name for t in study_in(tmp_path).trials]
    assert states == ["FAIL", "COMPLETE"]
    assert result.settings == cut_trial.params
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"trial-000"}


@pytest.mark.slow
def test_trials_that_fall_behind_are_pruned(search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def scripted(*_: Any) -> dict[str, float]:
        trial = sum(1 for p in tmp_path.glob("trial-*")) - 1
        calls.append(trial)
        return {"loss": 1.0 if trial < tuning.STARTUP_TRIALS else 5.0}

    monkeypatch.setattr(loop, "validate", scripted)
    monkeypatch.setattr(loop, "epoch_steps", lambda *_, **__: 1)
    result = search(tmp_path, tiny(steps=3, validate_every=1), trials=tuning.STARTUP_TRIALS + 1)
    assert (result.finished, result.pruned) == (tuning.STARTUP_TRIALS, 1)
    assert calls.count(0) == 3
    assert calls.count(tuning.STARTUP_TRIALS) < 3


def test_a_trial_that_diverges_does_not_end_the_search(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = tuning.run_training, []

    def first_fails(*given: Any, **options: Any) -> Any:
        count.append(1)
        if len(count) == 1:
            raise DivergedError("The loss is nan at step 1.")
        return real(*given, **options)

    monkeypatch.setattr(tuning, "run_training", first_fails)
    result = search(tmp_path, trials=2)
    assert (result.finished, result.pruned) == (1, 1)
    assert study_in(tmp_path).trials[0].user_attrs["problem"] == "The loss is nan at step 1."


def test_a_folder_of_something_else_is_left_alone(search: Any, tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(b"precious")
    with pytest.raises(OutputError, match="is not empty and holds no search"):
        search(tmp_path)


@pytest.mark.slow
def test_values_that_are_lists_can_be_searched(search: Any, tmp_path: Path) -> None:
    space, _ = parse_space(
        ["preprocess.size=32,64", "optimizer.rate=1e-4..1e-2", "synthesis.subtype_weights=[1,1,1,1,1]|[0,0,0,1,0]"]
    )
    result = search(tmp_path, tiny(steps=1), space, trials=1)
    best = load_preset(result.preset)
    assert list(best.synthesis.subtype_weights) == result.settings["synthesis.subtype_weights"]
    assert best.preprocess.size == result.settings["preprocess.size"]


def test_what_is_searched_unless_told() -> None:
    space = {d.key: d for d in default_space(tiny())}
    assert set(space) == {"optimizer.rate", "optimizer.name", "optimizer.weight_decay", "batch", "network.width"}
    assert space["network.width"].choices == (2, 4, 8)
    assert space["batch"].choices == (2, 4, 8)
