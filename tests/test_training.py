"""Runs: whatever stops one, it goes on to the very same weights; what is wrong is told in one line."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.errors import ConfigError, DivergedError, HemolensError, InputError, ModelError, OutputError  # noqa: E402
from hemolens.inference.registry import load_model  # noqa: E402
from hemolens.models.unet2d import UNet2dConfig  # noqa: E402
from hemolens.sources.datasets.cases import DataSet  # noqa: E402
from hemolens.sources.splits import Fold, Split, make_split  # noqa: E402
from hemolens.training import checkpoint, loop  # noqa: E402
from hemolens.training.checkpoint import kept_weights, load_run, load_state  # noqa: E402
from hemolens.training.config import TrainConfig  # noqa: E402
from hemolens.training.data import open_batches  # noqa: E402
from hemolens.training.devices import deterministic  # noqa: E402
from hemolens.training.loop import Progress  # noqa: E402
from hemolens.training.run import RunResult, run_training  # noqa: E402
from hemolens.training.schedule import OptimizerConfig, ScheduleConfig  # noqa: E402
from training_cases import heads, tiny, weights  # noqa: E402


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, ...]:
    return heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def split(datasets: tuple[DataSet, ...]) -> Split:
    return make_split(datasets, folds=5, seed=0)


@pytest.fixture(scope="module")
def run(datasets: tuple[DataSet, ...], cache: Path, split: Split) -> Any:
    def go(out: Path, config: TrainConfig | None = None, **options: Any) -> RunResult:
        options = {"cache": cache, "export": False, **options}
        return run_training(config or tiny(), datasets, options.pop("split", split), 0, out, **options)

    return go


@pytest.fixture(scope="module")
def whole(run: Any, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """An unbroken run of `tiny`."""
    return run(tmp_path_factory.mktemp("whole") / "run")


class CutError(Exception):
    pass


def cut_at(step: int) -> Any:
    def tell(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == step:
            raise CutError

    return tell


def everything(folder: Path) -> dict[str, Any]:
    """All that a run would go on with, but for the time it took."""
    state = load_state(folder / "checkpoint.pt")
    del state["state"]["seconds"]
    return state


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_cut_off_ends_as_if_it_was_not(run: Any, whole: RunResult, step: int, tmp_path: Path) -> None:
    with pytest.raises(CutError):
        run(tmp_path / "run", progress=cut_at(step))
    again = run(tmp_path / "run", resume=True)
    assert torch.equal(weights(again.network), weights(whole.network))
    assert same(everything(again.folder), everything(whole.folder))
    assert (again.best, again.best_step, again.step) == (whole.best, whole.best_step, whole.step)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in loop_rows(again.folder)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in loop_rows(whole.folder)]


def loop_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_run_is_the_same_twice_and_another_with_another_seed(run: Any, whole: RunResult, tmp_path: Path) -> None:
    assert torch.equal(weights(run(tmp_path / "again").network), weights(whole.network))
    assert not torch.equal(weights(run(tmp_path / "other", tiny(seed=1)).network), weights(whole.network))


def test_a_power_cut_in_the_middle_of_a_checkpoint_loses_that_one_only(
    run: Any, whole: RunResult, tmp_path: Path
) -> None:
    with pytest.raises(CutError):
        run(tmp_path / "run", progress=cut_at(5))
    good = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.pt.part").write_bytes(good[: len(good) // 2])
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    again = run(tmp_path / "run", resume=True)
    assert torch.equal(weights(again.network), weights(whole.network))
    assert not list((tmp_path / "run").glob("*.part"))
    assert [row["step"] for row in loop_rows(tmp_path / "run")] == [2, 3, 4, 6]


def test_a_full_disk_keeps_the_last_whole_checkpoint(
    run: Any, whole: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if (tmp_path / "run" / "checkpoint.pt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*Free some space, then go on with --resume"):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert calls
    assert load_state(tmp_path / "run" / "checkpoint.pt")["state"]["step"] == 2
    assert not list((tmp_path / "run").glob("*.part"))
    assert torch.equal(weights(run(tmp_path / "run", resume=True).network), weights(whole.network))


def test_a_damaged_checkpoint_is_named(run: Any, whole: RunResult, tmp_path: Path) -> None:
    content = (whole.folder / "checkpoint.pt").read_bytes()
    for number, damage in enumerate((content[:-2000], content[:3000] + b"x" * 64 + content[3064:], b"nothing")):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(damage)
        with pytest.raises(ModelError, match=f"{number}.pt: is damaged or no checkpoint"):
            load_state(path)
    with pytest.raises(ModelError, match=r"none\.pt: there is no such checkpoint"):
        load_state(tmp_path / "none.pt")


@pytest.mark.slow
def test_everything_that_a_run_writes(run: Any, datasets: tuple[DataSet, ...], tmp_path: Path) -> None:
    result = run(tmp_path / "run", tiny(tensorboard=True), split=None, cache=None, export=True)
    folder = tmp_path / "run"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "best.pt", "cache", "checkpoint.pt", "config.toml", "curves.png", "log.csv", "log.jsonl", "model.json",
        "model.onnx", "provenance.json", "split.json", "tensorboard",
    }  # fmt: skip
    config, network = load_run(folder)
    assert config == tiny(tensorboard=True)
    assert torch.equal(weights(network), weights(result.network))
    assert load_model(str(folder)).interface.mask_channels == 1
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"]
    assert float(rows[1]["val_loss"]) == pytest.approx(loop_rows(folder)[1]["val_loss"], rel=1e-4)
    assert rows[0]["val_loss"] == ""
    assert any(p.stat().st_size > 100 for p in (folder / "tensorboard").iterdir())
    told = json.loads((folder / "provenance.json").read_text())
    assert told["datasets"][0]["patients"] == 10
    assert told["split"]["train"] == 6
    assert told["sessions"][0]["packages"]["torch"] == torch.__version__
    text = (folder / "provenance.json").read_text() + (folder / "model.json").read_text()
    for private in (str(tmp_path), str(datasets[0].root), os.uname().nodename, "folder/p00"):
        assert private not in text


def test_the_kept_weights_are_those_of_the_best_validation(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def scripted(network: Any, *_: Any) -> dict[str, float]:
        seen.append(weights(network).clone())
        return {"dice": [0.2, 0.6, 0.4][len(seen) - 1], "loss": 1.0}

    monkeypatch.setattr(loop, "validate", scripted)
    result = run(tmp_path / "run", tiny(select="dice", validate_every=2))
    assert (result.best, result.best_step) == (0.6, 4)
    assert torch.equal(weights(result.network), seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_run_stops_when_validation_no_longer_improves(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 9.0])
    monkeypatch.setattr(loop, "validate", lambda *_: {"loss": next(losses)})
    result = run(tmp_path / "run", tiny(steps=20, validate_every=2, stop_after=2))
    assert (result.step, result.stopped_early, result.best_step) == (8, True, 4)
    again = run(tmp_path / "run", tiny(steps=20, validate_every=2, stop_after=2), resume=True)
    assert (again.step, again.stopped_early) == (8, True)


def test_the_rate_drops_on_a_plateau(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 3.0, 3.5, 2.0, 2.1, 2.2, 2.3])
    monkeypatch.setattr(loop, "validate", lambda *_: {"loss": next(losses)})
    schedule = ScheduleConfig(name="plateau", warmup_steps=0, factor=0.1, patience=2)
    result = run(tmp_path / "run", tiny(steps=7, validate_every=1, log_every=1, schedule=schedule))
    assert [row["rate"] for row in result.rows] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5])


def test_the_last_weights_are_kept_where_that_is_asked_for(run: Any, tmp_path: Path) -> None:
    result = run(tmp_path / "run", tiny(select="last"))
    assert (result.best, result.best_step) == (None, 6)
    assert torch.equal(weights(result.network), weights_of(tmp_path / "run" / "checkpoint.pt"))


def weights_of(path: Path) -> Any:
    return torch.cat([v.double().flatten() for v in kept_weights(path).values()])


def test_a_run_goes_on_from_the_weights_of_another(run: Any, whole: RunResult, tmp_path: Path) -> None:
    frozen = OptimizerConfig(name="sgd", rate=1e-30, momentum=0, weight_decay=0)
    result = run(tmp_path / "run", tiny(steps=1, start=str(whole.folder), optimizer=frozen))
    assert torch.allclose(weights(result.network), weights(whole.network), atol=1e-12)
    other = tiny(start=str(whole.folder), network=UNet2dConfig(width=8, depth=2, norm="group", findings_head=True))
    with pytest.raises(ModelError, match=r"is a checkpoint of another network \(it has another shape of 'down"):
        run(tmp_path / "other", other)
    with pytest.raises(InputError, match="holds no weights to go on from"):
        run(tmp_path / "none", tiny(start=str(tmp_path)))


def test_a_part_of_the_network_can_begin_anew(run: Any, whole: RunResult, tmp_path: Path) -> None:
    frozen = OptimizerConfig(name="sgd", rate=1e-30, momentum=0, weight_decay=0)
    settings = {"steps": 1, "start": str(whole.folder), "optimizer": frozen}
    began = kept_weights(whole.folder)
    result = run(tmp_path / "run", tiny(**settings, start_anew=("mask_head",)))
    for name, value in result.network.state_dict().items():
        same = torch.allclose(value.double(), began[name].double(), atol=1e-12)
        assert same is not name.startswith("mask_head."), name
    with pytest.raises(ConfigError, match=r"has no part 'mask_heat'\. Did you mean 'mask_head'"):
        run(tmp_path / "none", tiny(**settings, start_anew=("mask_heat",)))


def test_bfloat16_learns_what_full_precision_learns(run: Any, whole: RunResult, tmp_path: Path) -> None:
    result = run(tmp_path / "run", tiny(precision="bf16"))
    losses = [row["loss"] for row in result.rows]
    assert losses == pytest.approx([row["loss"] for row in whole.rows], rel=0.03)
    assert losses != [row["loss"] for row in whole.rows]
    assert weights(result.network).isfinite().all()
    with pytest.raises(CutError):
        run(tmp_path / "cut", tiny(precision="bf16"), progress=cut_at(3))
    again = run(tmp_path / "cut", tiny(precision="bf16"), resume=True)
    assert torch.equal(weights(again.network), weights(result.network))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_loss_falls(run: Any, name: str, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(name=name, rate=3e-2 if name == "sgd" else 5e-3, ema_decay=0.8)  # type: ignore[arg-type]
    config = tiny(steps=40, log_every=10, validate_every=40, checkpoint_every=40, optimizer=optimizer)
    losses = [row["loss"] for row in run(tmp_path / name, config).rows]
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_batch(run: Any, tmp_path: Path) -> None:
    wild = tiny(optimizer=OptimizerConfig(rate=1e30, clip_norm=0), checkpoint_every=1)
    with pytest.raises(DivergedError, match=r"at step \d.*nan_batch\.npz\. Lower optimizer\.rate") as caught:
        run(tmp_path / "run", wild)
    assert "\n" not in str(caught.value)
    batch = np.load(tmp_path / "run" / "nan_batch.npz")
    assert batch["images"].shape == (4, 1, 32, 32)
    assert batch["names"].tolist()[0].startswith("folder/p")
    assert batch["labels"].shape == (4, 32, 32)


def test_images_that_are_not_finite_are_named(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        for batch in open_batches(*given, **options):
            batch["images"][1, 0, 3, 3] = np.nan
            yield batch

    monkeypatch.setattr(loop, "open_batches", broken)
    config = tiny()
    with pytest.raises(DivergedError, match="Its images are not finite: look there"):
        run(tmp_path / "run", replace(config, augment=replace(config.augment, enabled=False)))
    assert np.isnan(np.load(tmp_path / "run" / "nan_batch.npz")["images"][1]).any()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_says_what_to_lower(
    run: Any, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(loop, "loss_parts", fail)
    with pytest.raises(HemolensError, match=r"not enough memory\. Lower batch \(now 4\), preprocess\.size \(now 32\)"):
        run(tmp_path / "run")


def test_other_errors_stay_what_they_are(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "loss_parts", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(run: Any, whole: RunResult, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds a training run already\. Go on with --resume"):
        run(whole.folder)
    (tmp_path / "scan.dcm").write_bytes(b"precious")
    with pytest.raises(OutputError, match="is not empty and holds no training run"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.dcm"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 9}, r"holds a run with other settings \(steps was 6, not 9\)"),
        ({"network": UNet2dConfig(width=8, depth=2)}, r"checkpoint of another network \(network.\w+ was .*, not"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(
    run: Any, whole: RunResult, settings: dict[str, Any], message: str
) -> None:
    before = (whole.folder / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(whole.folder, tiny(**settings), resume=True)
    assert (whole.folder / "checkpoint.pt").read_bytes() == before


def test_a_run_of_an_earlier_version_goes_on(run: Any, tmp_path: Path) -> None:
    """Its checkpoint lacks the settings that came later: they stand at their defaults, and only there."""
    run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    state = load_state(path)
    del state["config"]["preprocess"]["neighbor_support"]
    torch.save(state, path)
    run(tmp_path / "run", resume=True)
    changed = replace(tiny(), preprocess=replace(tiny().preprocess, neighbor_support=1.0))
    with pytest.raises(ConfigError, match=r"preprocess\.neighbor_support was 0\.0, not 1\.0"):
        run(tmp_path / "run", changed, resume=True)


def test_a_run_goes_on_with_its_own_fold_only(run: Any, whole: RunResult, split: Split) -> None:
    with pytest.raises(ConfigError, match="holds a run on other data or another fold"):
        run(whole.folder, resume=True, split=replace(split, folds=split.folds[::-1]))


def test_a_finished_run_stays_as_it_is(run: Any, tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    again = run(tmp_path / "run", resume=True)
    assert torch.equal(weights(first.network), weights(again.network))
    assert len(loop_rows(tmp_path / "run")) == 4


class ForResearch:
    """A data set whose license keeps weights from being given away."""

    trainable = False

    def __init__(self, inner: DataSet) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_data_for_research_only_are_not_trained_on_unasked(
    datasets: tuple[DataSet, ...], split: Split, cache: Path, tmp_path: Path
) -> None:
    kept = (ForResearch(datasets[0]),)
    with pytest.raises(ConfigError, match=r"folder is for research use only.*Set research_data=true"):
        run_training(tiny(), kept, split, 0, tmp_path / "no", cache=cache, export=False)
    run_training(tiny(steps=1, research_data=True), kept, split, 0, tmp_path / "yes", cache=cache, export=False)


def test_a_split_that_does_not_fit_is_refused(
    run: Any, split: Split, datasets: tuple[DataSet, ...], tmp_path: Path
) -> None:
    strangers = Split("patient", 0, {"rsna": ("a",)}, (Fold(("rsna/a",), (), ()),))
    with pytest.raises(ConfigError, match="The split was made for rsna, not for folder"):
        run(tmp_path / "strangers", split=strangers)
    clean = tuple(c.group for c in datasets[0].cases if c.findings[0] == 0.0)
    bled = tuple(c.group for c in datasets[0].cases if c.findings[0] == 1.0)
    with pytest.raises(ConfigError, match="Fold 0 of the split has no hemorrhage in its train side"):
        run(tmp_path / "clean", split=replace(split, folds=(Fold(clean, bled, ()),)))
    with pytest.raises(ConfigError, match="has no validation side: set select=last"):
        run(tmp_path / "blind", split=replace(split, folds=(Fold(bled + clean, (), ()),)))
    unwatched = run(tmp_path / "last", tiny(select="last"), split=replace(split, folds=(Fold(bled + clean, (), ()),)))
    assert not any("val_loss" in row for row in unwatched.rows)


def test_a_score_that_cannot_be_told_is_refused(run: Any, split: Split, datasets: Any, tmp_path: Path) -> None:
    cases = {c.group: c.findings[0] for c in datasets[0].cases}
    clean, bled = ([g for g, f in cases.items() if f == value] for value in (0.0, 1.0))
    one_class = replace(split, folds=(Fold((*clean, *bled[1:]), (bled[0],), ()),))
    result = run(tmp_path / "loss", split=one_class)
    assert "val_dice" in result.rows[-1]
    config = tiny(network=UNet2dConfig(width=4, depth=2))
    with pytest.raises(ConfigError, match=r"select=auc cannot be told.*Set select=loss"):
        run(tmp_path / "auc", replace(config, select="auc"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "device is cuda, but torch finds no GPU here. Set device=cpu"),
        ({"precision": "16"}, "precision 16 needs a GPU"),
        ({"nodes": 2}, "torchrun started 1 processes, which nodes=2 machines cannot share"),
    ],
)
def test_a_machine_that_lacks_something_says_so(run: Any, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", tiny(**settings))
    assert not (tmp_path / "run").exists()


def test_training_leaves_the_process_as_it_was(whole: RunResult) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    assert float(torch.full((8,), 1e-40).mul(2.0)[0]) > 0, "numbers below 1e-38 count again"


def test_numbers_too_small_to_matter_do_not_slow_a_step_down() -> None:
    with deterministic():
        assert torch.full((8,), 1e-40).mul(2.0).tolist() == [0.0] * 8
    assert torch.is_grad_enabled()
    assert "lightning_fabric" in sys.modules
