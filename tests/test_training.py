"""Training: the loss falls, a run that was cut off ends with the same weights, samples are what they say."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from test_synthesis import scene

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.errors import ConfigError, HemolensError  # noqa: E402
from hemolens.models.effunet2d import EffUNetConfig  # noqa: E402
from hemolens.preprocessing.pipeline import PreprocessConfig  # noqa: E402
from hemolens.training.augment import augment  # noqa: E402
from hemolens.training.config import MixConfig, OptimizerConfig, TrainConfig  # noqa: E402
from hemolens.training.data import KINDS, UNKNOWN_SUBTYPE, Mixture, Sample, load_ct_ich, load_phe_sich  # noqa: E402
from hemolens.training.loop import schedule, train  # noqa: E402

TINY = TrainConfig(
    steps=6,
    batch=4,
    workers=0,
    log_every=2,
    checkpoint_every=2,
    network=EffUNetConfig(decoder_channels=(8, 8, 8, 8), imagenet=False, frozen_stages=0),
    optimizer=OptimizerConfig(warmup_steps=2),
)


def samples() -> list[Sample]:
    images, inside = scene()
    clean = np.zeros(6, np.float32)
    bleeding = np.array([1, 0, 0, 0, 1, 0], np.float32)
    pseudo = np.full(6, np.nan, np.float32)
    pseudo[[0, 4]] = 1
    labels = np.zeros((224, 224), np.uint8)
    marked = labels.copy()
    marked[100:120, 140:160] = UNKNOWN_SUBTYPE
    return [
        Sample(images, inside, clean, labels, "ct_ich/001"),
        Sample(images, inside, bleeding, None, "ct_ich/002"),
        Sample(images, inside, pseudo, marked, "phe_sich/0001"),
        Sample(images, inside, clean, labels, "phe_sich/0002"),
    ]


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([v.float().flatten() for v in network.state_dict().values()])


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(TINY, samples(), tmp_path / "whole")

    class CutError(Exception):
        pass

    def cut(step: int, parts: dict[str, float]) -> None:
        if step == 4:
            raise CutError

    with pytest.raises(CutError):
        train(TINY, samples(), tmp_path / "cut", cut)
    again = train(TINY, samples(), tmp_path / "cut")
    assert torch.equal(weights(whole), weights(again))


def _run(folder: Path) -> None:
    torch.set_num_threads(1)
    train(replace(TINY, steps=10_000, checkpoint_every=1), samples(), folder)


@pytest.mark.slow
def test_a_killed_run_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    state = torch.load(tmp_path / "checkpoint.pt", map_location="cpu", weights_only=True)
    assert state["step"] >= 1


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(replace(TINY, steps=2), samples(), tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        train(replace(TINY, steps=3), samples(), tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    wild = replace(TINY, optimizer=replace(TINY.optimizer, rate=1e30, clip_norm=1e30, warmup_steps=1))
    with pytest.raises(HemolensError, match=r"the loss is .* Lower optimizer\.rate"):
        train(wild, samples(), tmp_path)


def test_samples_depend_on_seed_and_number_alone() -> None:
    one, other = Mixture(samples(), TINY), Mixture(samples(), TINY, start=5)
    for key, value in one.sample(7).items():
        assert torch.equal(value, other.sample(7)[key]) or torch.isnan(value).any()
    assert torch.equal(next(iter(other))["images"], one.sample(5)["images"])
    assert not torch.equal(one.sample(7)["images"], Mixture(samples(), replace(TINY, seed=1)).sample(7)["images"])


def test_each_kind_of_sample_says_what_is_known_of_it() -> None:
    for kind in KINDS:
        mix = MixConfig(**{k: float(k == kind) for k in KINDS})
        drawn = [Mixture(samples(), replace(TINY, mix=mix)).sample(i) for i in range(12)]
        known = {bool(s["mask_known"]) for s in drawn}
        positive = np.array([float(s["findings"][0]) for s in drawn])
        blood = np.array([int((s["labels"] > 0).sum()) for s in drawn])
        assert known == {kind != "weak"}
        if kind == "clean":
            assert not positive.any()
            assert not blood.any()
        elif kind == "weak":
            assert positive.all()
            assert not blood.any()
        elif kind == "pseudo":
            assert positive.all()
            assert (blood == 400).all()
        else:
            assert positive.mean() > 0.7
            assert np.array_equal(positive == 1, blood > 0)


def test_masks_move_with_their_pictures() -> None:
    data = {
        "images": torch.zeros(8, 3, 96, 96), "labels": torch.zeros(8, 96, 96, dtype=torch.long),
        "inside": torch.ones(8, 96, 96),
    }  # fmt: skip
    data["images"][:, :, 30:60, 20:50] = 200.0
    data["labels"][:, 30:60, 20:50] = 3
    moved = augment(data, torch.Generator().manual_seed(0))
    bright, labeled = moved["images"][:, 1] > 100, moved["labels"] == 3
    overlap = 2 * (bright & labeled).sum(dim=(1, 2)) / (bright.sum(dim=(1, 2)) + labeled.sum(dim=(1, 2)))
    assert (overlap > 0.9).all()
    assert not torch.equal(moved["labels"], data["labels"])
    assert set(moved["labels"].unique().tolist()) == {0, 3}


def test_the_rate_warms_up_and_dies_down() -> None:
    config = replace(TINY, steps=100, optimizer=OptimizerConfig(warmup_steps=10))
    rates = [schedule(s, config) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_real_ct_ich_slices_come_with_their_labels_and_without_drawn_masks(data: Path) -> None:
    found = load_ct_ich(data / "ct_ich", {"078", "100"}, PreprocessConfig(size=64))
    assert len(found) == 31 + 30
    bleeding = [s for s in found if s.findings[0] == 1]
    assert len(bleeding) == 11
    assert all(s.labels is None for s in bleeding)
    assert all(s.labels is not None and not s.labels.any() for s in found if s.findings[0] == 0)


def test_real_phe_sich_slices_come_with_pseudo_masks(data: Path) -> None:
    found = load_phe_sich(data / "phe_sich", {"0001", "0044"}, PreprocessConfig(size=64))
    assert {s.patient for s in found} == {"phe_sich/0001", "phe_sich/0044"}
    for sample in found:
        assert sample.labels is not None
        assert sample.labels.any() == (sample.findings[0] == 1)
        assert set(np.unique(sample.labels)) <= {0, UNKNOWN_SUBTYPE}
