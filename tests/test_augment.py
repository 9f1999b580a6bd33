"""Augmentation: masks move with their pictures, each switch does its own thing, a sample hangs on its number alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.sources.datasets.cases import UNKNOWN  # noqa: E402
from hemolens.training.augment import AugmentConfig, augment_batch, compress  # noqa: E402

NOTHING = AugmentConfig(
    rotation_deg=0, scale=0, stretch=0, shift=0, mirror=0, elastic=0, gain=0, level=0, gamma=0, noise=0, blur=0,
    sharpen=0, jpeg=0,
)  # fmt: skip
GEOMETRY = ("rotation_deg", "scale", "stretch", "shift", "elastic")
GRAY = ("gain", "level", "gamma", "noise", "blur", "sharpen")


def batch(n: int = 8, side: int = 96, first: int = 0) -> dict[str, Any]:
    """A bright square with its label on gray tissue in black."""
    images = torch.zeros(n, 3, side, side)
    images[:, :, 8:-8, 8:-8] = 110.0
    images[:, :, 30:60, 20:50] = 200.0
    labels = torch.zeros(n, side, side, dtype=torch.long)
    labels[:, 30:60, 20:50] = 3
    return {
        "images": images, "labels": labels, "inside": torch.ones(n, side, side), "names": ["x"] * n,
        "findings": torch.zeros(n, 6), "number": torch.arange(first, first + n),
    }  # fmt: skip


def test_masks_move_with_their_pictures() -> None:
    told = batch()
    moved = augment_batch(told, replace(NOTHING, **{k: getattr(AugmentConfig(), k) for k in GEOMETRY}, mirror=0.5), 0)
    bright, labeled = moved["images"][:, 1] > 155, moved["labels"] == 3
    overlap = 2 * (bright & labeled).sum(dim=(1, 2)) / (bright.sum(dim=(1, 2)) + labeled.sum(dim=(1, 2)))
    assert (overlap > 0.9).all()
    assert not torch.equal(moved["labels"], told["labels"])
    assert set(moved["labels"].unique().tolist()) == {0, 3}
    centers = torch.stack([m.float().mul(torch.arange(96.0)).sum() / m.sum() for m in labeled])
    assert (centers < 48).any()
    assert (centers > 48).any()  # some are mirrored


def test_nothing_happens_where_all_is_switched_off() -> None:
    told = batch()
    assert augment_batch(told, AugmentConfig(enabled=False), 0) is told
    same = augment_batch(told, NOTHING, 0)
    assert torch.allclose(same["images"], told["images"], atol=0.05)
    assert torch.equal(same["labels"], told["labels"])


@pytest.mark.parametrize("name", [*GEOMETRY, *GRAY, "mirror"])
def test_each_switch_does_its_own_thing(name: str) -> None:
    told = batch()
    told["images"] = told["images"] + torch.rand(told["images"].shape, generator=torch.Generator().manual_seed(0)) * 9
    strength = 1.0 if name == "mirror" else float(getattr(AugmentConfig(), name)) * 2
    changed = augment_batch(told, replace(NOTHING, **{name: strength}), 0)
    assert (changed["images"] - told["images"]).abs().max() > 2
    assert torch.equal(changed["labels"], told["labels"]) == (name in GRAY)
    if name == "mirror":
        assert torch.allclose(changed["images"], told["images"].flip(-1), atol=0.05)


def test_the_strength_is_the_limit() -> None:
    told = batch(64)
    level = augment_batch(told, replace(NOTHING, level=10.0), 0)["images"][:, 0, 40, 40] - 200
    assert 8 < level.abs().max() <= 10
    assert level.min() < -5 < 5 < level.max()
    gain = augment_batch(told, replace(NOTHING, gain=0.1), 0)["images"][:, 0, 40, 40] - 105
    assert 95 * np.exp(-0.1) - 0.1 <= gain.min() < 90 < 100 < gain.max() <= 95 * np.exp(0.1) + 0.1


def test_a_sample_hangs_on_seed_and_number_alone() -> None:
    whole = augment_batch(batch(8), AugmentConfig(), 3)
    part = augment_batch(batch(3, first=4), AugmentConfig(), 3)
    for key in ("images", "labels", "inside"):
        assert torch.equal(part[key], whole[key][4:7])
    assert not torch.equal(augment_batch(batch(8), AugmentConfig(), 4)["images"], whole["images"])
    assert not torch.equal(whole["images"][0], whole["images"][1])


def test_black_stays_black_and_gray_in_range() -> None:
    told = batch(32)
    told["images"][:, :, :30] = 0
    changed = augment_batch(told, replace(AugmentConfig(), **dict.fromkeys(GEOMETRY, 0.0), mirror=0.0), 0)["images"]
    assert not changed[:, :, :29].any()
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_what_is_unknown_stays_unknown_to_the_border() -> None:
    told = batch()
    told["labels"][:4] = UNKNOWN
    told["inside"][2:] = 0
    told["inside"][2:, 20:70, 20:70] = 1
    moved = augment_batch(told, AugmentConfig(), 0)
    assert (moved["labels"][:4] == UNKNOWN).all()
    assert not (moved["labels"][4:] == UNKNOWN).any()
    assert (moved["inside"][:2] == 1).all()
    assert set(moved["inside"][2:].unique().tolist()) == {0, 1}
    assert (moved["inside"][2:, 0] == 0).all()


def test_a_repeated_slice_stays_repeated() -> None:
    changed = augment_batch(batch(16), AugmentConfig(), 0)["images"]
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 2], changed[:, 1])


@pytest.mark.parametrize("shape", [(4, 1, 5, 64, 64), (4, 5, 3, 64, 64)], ids=["volume", "scan"])
def test_slices_of_a_sample_move_together(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape)
    images[..., 20:40, 10:30] = 200.0
    told: dict[str, Any] = {"images": images, "number": torch.arange(4)}
    if shape[1] == 1:
        told["labels"] = (images[:, 0] > 0).long() * 2
    changed = augment_batch(told, replace(AugmentConfig(), noise=0.0), 0)
    flat = changed["images"].flatten(1, 2)
    assert changed["images"].shape == shape
    assert torch.allclose(flat, flat[:, :1].expand_as(flat), atol=1e-3)
    if "labels" in told:
        assert changed["labels"].shape == (4, 5, 64, 64)
        bright = changed["images"][:, 0] > 80
        assert (bright == (changed["labels"] == 2)).float().mean() > 0.97


def test_jpeg_by_its_chance() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 64, 64)).astype(np.uint8)
    never = compress(images, replace(NOTHING, jpeg=0.0), rng)
    assert never is images
    assert compress(images, AugmentConfig(enabled=False, jpeg=1.0), rng) is images
    changed = [not np.array_equal(compress(images, replace(NOTHING, jpeg=0.3), rng), images) for _ in range(200)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.1)
    volume = compress(np.broadcast_to(images[:1], (2, 3, 64, 64)), replace(NOTHING, jpeg=1.0), np.random.default_rng(1))
    assert volume.shape == (2, 3, 64, 64)
    assert (volume == volume[0, 0]).all()  # one quality for all slices
    rough = compress(images, replace(NOTHING, jpeg=1.0, jpeg_quality=1), np.random.default_rng(3))
    assert 0 < np.abs(rough.astype(float) - images).mean() < 60


@pytest.mark.parametrize(
    "wrong", [{k: -1.0} for k in (*GEOMETRY, *GRAY)] + [{"mirror": 1.5}, {"jpeg": -0.1}, {"jpeg_quality": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|from 0 to 1"):
        AugmentConfig(**wrong)


def test_every_setting_is_tested_above() -> None:
    assert {f.name for f in fields(AugmentConfig)} == {*GEOMETRY, *GRAY, "mirror", "enabled", "jpeg", "jpeg_quality"}
