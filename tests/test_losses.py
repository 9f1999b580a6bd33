"""Losses against references written out by hand, under masks, and shared out over processes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from hemolens.models.output import NetOutput  # noqa: E402
from hemolens.training.losses import (  # noqa: E402
    PARTS,
    LossConfig,
    add_parts,
    focal_loss,
    loss_parts,
    overlap_loss,
    total_loss,
)

NOTHING = LossConfig(**{name: float(name == "mask_bce") for name in PARTS})


def only(part: str, **settings: Any) -> LossConfig:
    return replace(NOTHING, **{"mask_bce": 0.0, part: 1.0, **settings})


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def batch(seed: int = 0, n: int = 4, size: int = 12) -> tuple[NetOutput, dict[str, Any]]:
    """Random logits, and labels of every kind: two drawn, one clean, one of which nothing is known."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, size, size), np.int64)
    labels[0, 2:6, 2:6], labels[0, 6:8, 2:6], labels[0, :1] = 2, 4, 255
    labels[1, 3:9, 5:9], labels[1, 9:, 5:9] = 6, 7
    labels[3] = 255
    findings = np.zeros((n, 6), np.float32)
    findings[0, [0, 2, 4]], findings[1, [0, 4]], findings[3, [0, 3]] = 1, 1, 1
    findings[1, [3, 5]] = np.nan
    inside = np.zeros((n, size, size), np.float32)
    inside[:, 1:-1, 1:-1] = 1
    output = NetOutput(
        torch.from_numpy(rng.normal(0, 2, (n, 7, size, size)).astype(np.float32)).requires_grad_(True),
        torch.from_numpy(rng.normal(0, 2, (n, 6)).astype(np.float32)).requires_grad_(True),
    )
    return output, {
        "labels": torch.from_numpy(labels),
        "inside": torch.from_numpy(inside),
        "findings": torch.from_numpy(findings),
    }


def value(part: str, output: NetOutput, given: dict[str, Any], **settings: Any) -> float | None:
    config = only(part, **settings)
    return total_loss(loss_parts(output, given, config), config).values.get(part)


def pieces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, truth and known of the batch, in plain numpy."""
    output, given = batch()
    labels = given["labels"].numpy()
    p = sigmoid(output.mask[:, 0].detach().numpy().astype(float))
    return p, ((labels >= 1) & (labels <= 6)).astype(float), labels != 255


def test_binary_cross_entropy_counts_known_pixels_only() -> None:
    p, t, known = pieces()
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p))[known].mean()
    assert value("mask_bce", *batch()) == pytest.approx(expected, rel=1e-5)


def test_dice_is_that_of_each_slice_with_blood() -> None:
    p, t, known = pieces()
    expected = []
    for k in (0, 1):
        a, b = p[k][known[k]], t[k][known[k]]
        expected.append(1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1))
    assert value("mask_dice", *batch()) == pytest.approx(np.mean(expected), rel=1e-5)


def test_dice_of_the_batch_counts_slices_without_blood_too() -> None:
    p, t, known = pieces()
    a, b = p[known], t[known]
    expected = 1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1)
    assert value("mask_dice", *batch(), overlap="batch") == pytest.approx(expected, rel=1e-5)


def test_tversky_weighs_false_and_missed_pixels() -> None:
    p, t, known = pieces()
    expected = []
    for k in (0, 1):
        a, b = p[k][known[k]], t[k][known[k]]
        both, false, missed = (a * b).sum(), (a * (1 - b)).sum(), ((1 - a) * b).sum()
        expected.append(1 - (both + 0.5) / (both + 0.2 * false + 0.9 * missed + 0.5))
    found = value("mask_tversky", *batch(), tversky_alpha=0.2, tversky_beta=0.9)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_focal_loss_is_that_of_the_paper() -> None:
    p, t, known = pieces()
    right = np.where(t == 1, p, 1 - p)
    alpha = np.where(t == 1, 0.25, 0.75)
    expected = (-alpha * (1 - right) ** 2 * np.log(right))[known].mean()
    assert value("mask_focal", *batch()) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits, truth = torch.randn(50), (torch.rand(50) < 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    assert torch.allclose(focal_loss(logits, truth, 0.0, 0.5), expected / 2, atol=1e-6)


def test_tversky_of_halves_is_dice() -> None:
    both, found, true = torch.tensor(3.0), torch.tensor(5.0), torch.tensor(7.0)
    assert float(overlap_loss(both, found, true, 0.5, 0.5)) == pytest.approx(1 - (2 * 3 + 1) / (5 + 7 + 1))


def test_findings_that_are_unknown_do_not_count() -> None:
    output, given = batch()
    x, t = output.findings.detach().numpy().astype(float), given["findings"].numpy()
    told = ~np.isnan(t)
    losses = np.logaddexp(0, x) - np.where(told, t, 0) * x
    assert value("findings", output, given) == pytest.approx(losses[told].mean(), rel=1e-5)


def test_subtypes_count_alike_however_large_they_are() -> None:
    output, given = batch()
    x, labels = output.mask.detach().numpy().astype(float)[:, 1:6], given["labels"].numpy()
    log = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    means = [-log[:, kind - 1][labels == kind].mean() for kind in (2, 4)]
    assert value("subtype", output, given) == pytest.approx(np.mean(means), rel=1e-5)


def test_blood_of_unknown_subtype_must_have_one_that_is_allowed() -> None:
    output, given = batch()
    x, labels = output.mask.detach().numpy().astype(float), given["labels"].numpy()
    share = np.exp(x[:, 1:6]) / np.exp(x[:, 1:6]).sum(axis=1, keepdims=True)
    allowed = given["findings"].numpy()[:, 1:] != 0
    likely = -np.log((share * allowed[:, :, None, None]).sum(axis=1).clip(1e-30))
    found = (x[:, 0] > 0) & (given["inside"].numpy() > 0) & (labels == 255)
    found &= (given["findings"].numpy()[:, 0] == 1)[:, None, None]
    chosen = (labels == 6) | found
    assert chosen[3].any()
    assert value("weak_subtype", output, given) == pytest.approx(likely[chosen].clip(max=10).mean(), rel=1e-4)


def test_the_brightest_pixels_follow_the_label_of_the_slice() -> None:
    output, given = batch()
    p = sigmoid(output.mask[:, 0].detach().numpy().astype(float)) * given["inside"].numpy()
    top = np.sort(p.reshape(4, -1), axis=1)[:, -40:].mean(axis=1)
    assert value("clean_top", output, given) == pytest.approx(-np.log1p(-top[2]), rel=1e-5)
    assert value("weak_top", output, given) == pytest.approx(-np.log(top[3]), rel=1e-5)
    open_skull = {**given, "inside": torch.ones_like(given["inside"])}
    assert value("weak_top", output, open_skull) is None


def test_blood_outside_the_skull_is_pushed_down() -> None:
    output, given = batch()
    p, _, _ = pieces()
    expected = 10 * (p * (1 - given["inside"].numpy())).mean()
    assert value("outside", output, given) == pytest.approx(expected, rel=1e-5)


def test_edema_is_no_blood_and_unknown_pixels_teach_nothing() -> None:
    output, given = batch()
    config = replace(NOTHING, mask_dice=1.0, mask_focal=1.0, mask_tversky=1.0)
    total_loss(loss_parts(output, given, config), config).total.backward()
    gradient = output.mask.grad[:, 0]
    assert not gradient[given["labels"] == 255].any()
    assert (gradient[given["labels"] == 7] > 0).all()
    assert (gradient[given["labels"] == 6] < 0).all()


def test_a_volume_counts_as_its_slices_do() -> None:
    output, given = batch()
    for part in ("mask_bce", "mask_focal", "outside", "subtype"):
        stacked = NetOutput(output.mask.permute(1, 0, 2, 3)[None], None)
        volume = {"labels": given["labels"][None], "inside": given["inside"][None], "findings": given["findings"][:1]}
        assert value(part, stacked, volume) == pytest.approx(value(part, output, given), rel=1e-5)


def test_scans_learn_from_slices_and_from_the_scan() -> None:
    told = torch.tensor([[[1.0] * 6, [0.0] * 6, [math.nan] * 6]])
    given = {"findings": told, "scan_findings": torch.tensor([[1.0, math.nan, 0, 0, 0, 0]])}
    output = NetOutput(None, torch.zeros(1, 3, 6), torch.full((1, 6), 2.0))
    config = replace(NOTHING, findings=1.0, scan=1.0)
    values = total_loss(loss_parts(output, given, config), config).values
    assert values["findings"] == pytest.approx(math.log(2))
    assert values["scan"] == pytest.approx((math.log1p(math.exp(-2)) + 4 * math.log1p(math.exp(2))) / 5)


ALL = LossConfig(**{name: 0.5 + 0.1 * k for k, name in enumerate(PARTS)})


@pytest.mark.parametrize("config", [ALL, replace(ALL, overlap="batch")], ids=["sample", "batch"])
@settings(max_examples=25)
@given(cut=st.integers(min_value=1, max_value=3), seed=st.integers(min_value=0, max_value=99))
def test_processes_that_share_a_batch_have_its_gradient(config: LossConfig, cut: int, seed: int) -> None:
    """As torch's DistributedDataParallel does it: each process's gradient, averaged."""
    output, given = batch(seed)
    whole = total_loss(loss_parts(output, given, config), config)
    wanted = torch.autograd.grad(whole.total, [output.mask, output.findings])
    shares = []
    for part in (slice(None, cut), slice(cut, None)):
        own = NetOutput(output.mask[part], output.findings[part])
        shares.append(loss_parts(own, {k: v[part] for k, v in given.items()}, config))
    sums = [
        torch.cat([torch.cat([x.detach().float().flatten() for x in p if torch.is_tensor(x)]) for p in s.values()])
        for s in shares
    ]
    losses = [total_loss(s, config, reduce=lambda own: sums[0] + sums[1], world=2) for s in shares]
    found = torch.autograd.grad((losses[0].total + losses[1].total) / 2, [output.mask, output.findings])
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)
    assert losses[0].values == losses[1].values
    assert losses[0].values == pytest.approx(whole.values, rel=1e-5)


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_batches_add_up_to_the_loss_of_all(over: str) -> None:
    config = replace(ALL, overlap=over)
    output, given = batch()
    halves = [
        loss_parts(NetOutput(output.mask[p], output.findings[p]), {k: v[p] for k, v in given.items()}, config)
        for p in (slice(None, 2), slice(2, None))
    ]
    added = total_loss(add_parts(*halves), config)
    assert added.values == pytest.approx(total_loss(loss_parts(output, given, config), config).values, rel=1e-5)


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    output, given = batch()
    loss = total_loss(loss_parts(output, given, ALL), ALL)
    expected = sum(ALL.weights[name] * value for name, value in loss.values.items() if name != "loss")
    assert loss.values["loss"] == pytest.approx(expected)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert set(loss.values) == {"loss", *PARTS} - {"scan"}


def test_edema_is_learned_where_it_is_known_only() -> None:
    output, given = batch()
    labels = given["labels"].numpy()
    p = sigmoid(output.mask[:, 6].detach().numpy().astype(float))
    # Sample 0 holds blood and no edema: nobody looked for it. Sample 1 shows some, 2 is clean, 3 is unknown.
    true, told = labels[1:3] == 7, labels[1:3] != 255
    entropy = -np.where(true, np.log(p[1:3]), np.log(1 - p[1:3]))[told].mean()
    assert value("edema_bce", output, given) == pytest.approx(entropy, rel=1e-5)
    both = p[1][true[0]].sum()
    dice = 2 * (both + 0.5) / (p[1].sum() + true[0].sum() + 1)
    assert value("edema_dice", output, given) == pytest.approx(1 - dice, rel=1e-5)


def test_edema_and_subtypes_do_not_mix() -> None:
    output, given = batch()
    config = replace(NOTHING, mask_bce=0, subtype=1, weak_subtype=1)
    total_loss(loss_parts(output, given, config), config).total.backward()
    assert output.mask.grad[:, 1:6].any()
    assert not output.mask.grad[:, 6].any()
    without = NetOutput(output.mask[:, :6], output.findings)
    assert set(loss_parts(without, given, ALL)) == set(PARTS) - {"scan", "edema_bce", "edema_dice"}


def test_a_batch_of_which_nothing_is_known_gives_no_loss_and_no_nan() -> None:
    output, given = batch()
    given = {**given, "labels": torch.full_like(given["labels"], 255), "findings": torch.full((4, 6), math.nan)}
    config = replace(ALL, outside=0.0, overlap="sample")
    loss = total_loss(loss_parts(output, given, config), config)
    assert loss.values == {"loss": 0}
    loss.total.backward()
    assert not output.mask.grad.any()


def test_a_network_that_cannot_answer_any_part_is_refused() -> None:
    with pytest.raises(ValueError, match="no part of the loss"):
        total_loss(loss_parts(NetOutput(None, None, torch.zeros(1, 6)), {}, NOTHING), NOTHING)


@pytest.mark.parametrize(
    "given_weights",
    [
        {"mask_bce": -1.0},
        dict.fromkeys(PARTS, 0.0),
        {"focal_alpha": 1.0},
        {"focal_gamma": -1.0},
        {"tversky_beta": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(given_weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        LossConfig(**given_weights)
