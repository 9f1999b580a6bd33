"""Settings, presets, the learning rate and the averaged weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from hemolens.errors import ConfigError, InputError  # noqa: E402
from hemolens.models.effunet2d import EffUNet2d, EffUNetConfig  # noqa: E402
from hemolens.models.output import NetOutput  # noqa: E402
from hemolens.models.registry import build_network  # noqa: E402
from hemolens.models.unet2d import UNet2dConfig  # noqa: E402
from hemolens.sources.splits import read_split  # noqa: E402
from hemolens.training.checkpoint import load_run, write_whole  # noqa: E402
from hemolens.training.config import (  # noqa: E402
    TrainConfig,
    load_preset,
    parse_overrides,
    parse_value,
    preset_names,
    read_toml,
    save_config,
    to_toml,
)
from hemolens.training.schedule import (  # noqa: E402
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    set_rate,
    update_average,
)
from hemolens.training.validation import Tally  # noqa: E402

PRESETS = {
    "unet2d-student", "unet2d", "unet2d-256", "cnn2d-student", "cnn2d", "effunet2d", "resnet2d", "unet3d", "cnn3d",
    "sequence",
}  # fmt: skip


def test_the_presets_are_there() -> None:
    assert set(preset_names()) == PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_the_way_through_a_file(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    save_config(config, tmp_path / "config.toml")
    assert load_preset(tmp_path / "config.toml") == config


def test_the_students_are_as_they_were() -> None:
    unet, cnn = load_preset("unet2d-student"), load_preset("cnn2d-student")
    assert (unet.epochs, unet.preprocess.size, unet.preprocess.crop) == (5, 128, "none")
    assert unet.loss.weights.keys() == {"mask_dice", "findings", "scan"}  # it tells no findings
    assert (unet.loss.overlap, unet.optimizer.name, unet.augment.enabled) == ("batch", "adam", False)
    assert (cnn.preprocess.size, cnn.optimizer.name, cnn.select) == (224, "adam", "last")
    assert cnn.augment.rotation_deg > 0
    assert cnn.augment.mirror > 0
    assert cnn.augment.noise == 0


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("unet2", {}, r"There is no preset called 'unet2'\. Did you mean 'unet2d'\?"),
        ("unet2d", {"optimizer.rat": 1}, r"optimizer\.rat: no such setting\. Did you mean 'rate'\?"),
        ("unet2d", {"optimiser.rate": 1}, r"no such setting\. Did you mean 'optimizer'\?"),
        ("unet2d", {"network.kind": "unet4d"}, r"network\.kind: there is no 'unet4d'\. Did you mean 'unet\dd'\?"),
        ("unet2d", {"batch": "many"}, r"batch: expected int, got 'many'"),
        ("unet2d", {"precision": "8"}, r"precision: '8' is none of the choices"),
        ("unet2d", {"batch": 0}, "must be at least 1"),
        ("unet2d", {"steps": 5, "epochs": 5}, "set either steps or epochs"),
        ("unet2d", {"epochs": 0}, "set either steps or epochs"),
        ("unet2d", {"select": "last"}, "stop_after needs a score to watch"),
        ("unet2d", {"precision": "16", "device": "cpu"}, "precision 16 needs a GPU"),
        ("unet2d", {"schedule.factor": 1.5}, "factor must be between 0 and 1"),
        ("unet2d", {"optimizer.rate": 0}, "rate must be above 0"),
        ("unet2d", {"optimizer.ema_decay": 1}, "ema_decay must be from 0 to below 1"),
    ],
)
def test_what_does_not_fit_is_told(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_preset(name, overrides)


def test_steps_take_the_place_of_epochs() -> None:
    assert (load_preset("unet2d").epochs, load_preset("unet2d").steps) == (50, 0)
    assert (load_preset("unet2d", {"steps": 7}).epochs, load_preset("unet2d", {"steps": 7}).steps) == (0, 7)
    assert load_preset("effunet2d", {"epochs": 3}).steps == 0


def test_a_file_that_is_no_settings_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("steps = [")
    (tmp_path / "b.toml").write_text("steps = 5\nbatches = 3\n")
    with pytest.raises(ConfigError, match=r"a\.toml: is no TOML file"):
        load_preset(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"b\.toml: batches: no such setting\. Did you mean 'batch'\?"):
        load_preset(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        load_preset(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is no folder of a training run"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("1e-3", 1e-3), (".5", 0.5), ("true", True), ("False", False), ("adam", "adam"), ("[1, 2]", [1, 2]),
        ('"7"', "7"), ("runs/a b", "runs/a b"), ("", ""),
    ],
)  # fmt: skip
def test_values_are_read_as_one_would_write_them(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_overrides_are_key_and_value() -> None:
    assert parse_overrides(["a.b=1", "start=x=y"]) == {"a.b": 1, "start": "x=y"}
    for words, message in ((["batch"], "write key=value"), (["=3"], "write key=value"), (["a=1", "a=2"], "set twice")):
        with pytest.raises(ConfigError, match=message):
            parse_overrides(words)


def test_a_choice_that_looks_like_a_number_needs_no_quotes() -> None:
    assert load_preset("unet3d", parse_overrides(["precision=32"])).precision == "32"
    with pytest.raises(ConfigError, match="precision: 64 is none of the choices"):
        load_preset("unet3d", parse_overrides(["precision=64"]))


def test_any_text_survives_toml(tmp_path: Path) -> None:
    values = {"a": 'quo"te \\ \n é', "b": {"c": [1.5, 2.0], "d": True, "e": {"f": "x"}}, "g": [], "h": 1e-7}
    (tmp_path / "x.toml").write_text(to_toml(values), encoding="utf-8")
    assert read_toml(tmp_path / "x.toml") == values


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    rates = [ScheduleConfig(warmup_steps=10).at(step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_rate_drops_or_stays() -> None:
    plateau, level = ScheduleConfig(name="plateau", warmup_steps=0), ScheduleConfig(name="constant", warmup_steps=0)
    assert [plateau.at(5, 10, drops) for drops in (0, 1, 3)] == [1.0, 0.5, 0.125]
    assert level.at(9, 10, 3) == 1.0


def test_encoders_learn_slowly_and_only_weights_decay() -> None:
    network = EffUNet2d(EffUNetConfig(imagenet=False, frozen_stages=3))
    optimizer = build_optimizer(network, OptimizerConfig(rate=0.1, encoder_factor=0.5, weight_decay=0.3))
    set_rate(optimizer, 0.5)
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[id(parameter)] = (group["lr"], group["weight_decay"])
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in seen
        else:
            rate = 0.025 if name.startswith("encoder.") else 0.05
            assert seen[id(parameter)] == (pytest.approx(rate), 0.3 if parameter.ndim > 1 else 0.0), name


@settings(max_examples=20)
@given(decay=st.floats(min_value=0, max_value=0.999), step=st.integers(min_value=0, max_value=9999))
def test_the_average_moves_toward_the_weights(decay: float, step: int) -> None:
    network = build_network(UNet2dConfig(width=2, depth=1, norm="batch"))
    average = build_network(UNet2dConfig(width=2, depth=1, norm="batch"))
    before = {k: v.clone() for k, v in average.state_dict().items()}
    update_average(average, network, decay, step)
    keep = min(decay, (1 + step) / (10 + step))
    for name, value in average.state_dict().items():
        new = network.state_dict()[name]
        if value.dtype.is_floating_point:
            assert torch.allclose(value, keep * before[name] + (1 - keep) * new, atol=1e-6)
            if decay == 0:
                assert torch.equal(value, new)
        else:
            assert torch.equal(value, new)


def test_the_tally_counts_what_is_known() -> None:
    labels = torch.full((3, 4, 4), 255)
    labels[0], labels[1] = 0, 0
    labels[0, :2], labels[1, 0, 0], labels[1, 0, 1] = 6, 2, 7
    mask = torch.full((3, 1, 4, 4), -1.0)
    mask[0, 0, 1:] = 1.0
    findings = torch.tensor([[1.0] * 6, [0.0] * 6, [math.nan] * 6])
    tally = Tally()
    output = NetOutput(mask, torch.tensor([[1.0], [1.0], [1.0]]).expand(3, 6))
    tally.add(output, {"labels": labels, "findings": findings})
    assert tally.scores() == pytest.approx(
        {"dice": 2 * 4 / (12 + 9), "accuracy": (16 - 12 + 15) / 32, "detection_accuracy": 0.5}
    )
    second = Tally()
    second.add(output, {"labels": labels, "findings": findings}, usable=torch.tensor([False, True, True]))
    assert second.scores() == pytest.approx({"dice": 0.0, "accuracy": 15 / 16, "detection_accuracy": 0.5})
    clean = Tally()
    clean.add(output, {"labels": labels * 0, "findings": findings})
    assert "dice" not in clean.scores()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_whole(path, b"first")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_settings_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="set either steps or epochs"):
        TrainConfig()
    with pytest.raises(ValueError, match="plateau needs a score"):
        replace(TrainConfig(steps=1, select="last"), schedule=ScheduleConfig(name="plateau"))


EXPERIMENTS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_stage_of_a_published_experiment_can_still_be_said(path: Path) -> None:
    experiment = read_toml(path)
    assert experiment["stage"]
    for stage in experiment["stage"]:
        dotted = {
            f"{key}.{inner}" if isinstance(value, dict) else key: setting
            for key, value in stage.items()
            if key not in {"pseudo", "mend"}  # of tools/train_model.py: learn from what the stage before outlines, too
            for inner, setting in (value.items() if isinstance(value, dict) else [("", value)])
        }
        assert load_preset(experiment["preset"], dotted).steps == stage["steps"]
    assert read_split(path.parent / experiment["split"]).folds
