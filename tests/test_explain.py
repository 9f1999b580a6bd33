"""Maps follow the lesion and lie on the grid of the scan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from explain_cases import BLOOD, SMALL, little_head
from hemolens.analysis import analyze
from hemolens.demo import demo_source, demo_truth
from hemolens.errors import ConfigError, ModelError
from hemolens.explain.maps import GradientMapper
from hemolens.explain.pictures import OverlayArtist
from hemolens.explain.report import shown_first, write_explanation
from hemolens.explain.report import to_mapping as explained_mapping
from hemolens.explain.run import ExplainConfig, Explanation, explain
from hemolens.explain.subject import Subject, layer_names, of_network, open_subject
from hemolens.explain.truth import TrueMask
from hemolens.geometry import Stack
from hemolens.labels import FINDING_NAMES
from hemolens.models.cnn2d import CNN2dConfig
from hemolens.models.cnn3d import CNN3dConfig
from hemolens.models.effunet2d import EffUNetConfig
from hemolens.models.registry import NETWORKS, build_network
from hemolens.models.resnet2d import ResNet2dConfig
from hemolens.models.sequence import SequenceConfig
from hemolens.models.unet2d import UNet2dConfig
from hemolens.models.unet3d import UNet3dConfig
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.preprocessing.window import to_gray
from hemolens.reports.nifti import file_affine, file_order
from hemolens.sources.study import read_volume
from hemolens.volume import Volume

TINY: dict[str, Any] = {
    "cnn2d": CNN2dConfig(widths=(4, 8), hidden=8),
    "resnet2d": ResNet2dConfig(width=4, blocks=(1, 1, 1, 1)),
    "effunet2d": EffUNetConfig(imagenet=False),
    "unet2d": UNet2dConfig(width=4, depth=2, findings_head=True),
    "unet3d": UNet3dConfig(depth=4, widths=(4, 8), flat_levels=1, findings_head=True),
    "cnn3d": CNN3dConfig(depth=4, widths=(4, 8), flat_levels=1, hidden=8),
    "sequence": SequenceConfig(imagenet=False, hidden=8),
}


@pytest.fixture(scope="module")
def demo() -> Volume:
    return read_volume(demo_source())


@pytest.fixture(scope="module")
def shipped() -> Subject:
    return open_subject()


@pytest.fixture(scope="module")
def demo_map(demo: Volume, shipped: Subject) -> Explanation:
    return explain(demo, shipped, slices=[2, 9, 11, 12])


def with_bleed(volume: Volume, index: int, row: int, column: int, radius: int = 22) -> tuple[Volume, NDArray[np.uint8]]:
    """Paint a bleed into three slices; its truth goes along."""
    hu, labels = volume.hu.copy(), np.zeros(volume.shape, dtype=np.uint8)
    rows, columns = np.ogrid[: volume.shape[1], : volume.shape[2]]
    disk = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    for k in (index - 1, index, index + 1):
        hu[k][disk], labels[k][disk] = BLOOD, 4
    return replace(volume, hu=hu), labels


# The shipped network


def test_the_map_lies_on_the_hematoma_and_not_on_a_clean_slice(demo_map: Explanation) -> None:
    truth = TrueMask.of(demo_truth().labels())
    for index in (9, 11, 12):
        energy = demo_map.energy(truth, index)
        assert energy.ratio > 3, index
        assert energy.peak_inside
    assert np.isnan(demo_map.energy(truth, 2).inside)
    assert demo_map.values[11].max() > 0.9
    for sample in demo_map.samples:  # no map is brighter than the network is sure, and none is darker
        assert demo_map.values[sample.slices[0]].max() == pytest.approx(sample.probability, rel=0.03)
    assert demo_map.energy(truth).ratio > 3
    assert demo_map.values.shape == demo_map.volume.shape
    assert not demo_map.values[10].any()
    assert [s.slices for s in demo_map.samples] == [(2,), (9,), (11,), (12,)]


def test_slices_without_blood_stay_dark(demo: Volume, shipped: Subject) -> None:
    clean = explain(demo, shipped, slices=[1, 26])
    assert np.isnan(clean.energy(TrueMask.of(demo_truth().labels())).inside)
    assert clean.values.max() < 0.1


def test_maps_are_as_bright_as_the_analysis_reports(demo: Volume, demo_map: Explanation) -> None:
    reported = analyze(demo).prediction.slice_probability[:, FINDING_NAMES.index("any")]
    assert [s.probability for s in demo_map.samples] == pytest.approx([reported[k] for k in (2, 9, 11, 12)], abs=1e-4)
    assert reported[11] - reported[2] > 0.9
    of_subtype = explain(demo, open_subject(), ExplainConfig(finding="subdural"), slices=[11]).samples[0]
    assert of_subtype.probability != demo_map.samples[2].probability


def test_without_a_calibration_maps_are_as_bright_as_the_network_says(demo: Volume, shipped: Subject) -> None:
    sample = explain(demo, replace(shipped, judge=None), slices=[9]).samples[0]
    assert sample.reported is None
    assert sample.probability == pytest.approx(1 / (1 + np.exp(-sample.logit)))


@pytest.mark.parametrize(
    "method", ["gradcam", *(pytest.param(m, marks=pytest.mark.slow) for m in ("gradcam++", "occlusion"))]
)
def test_the_map_moves_when_the_lesion_moves(demo: Volume, method: Any) -> None:
    """A bleed painted into the right half (left in the image), then the other: it is where the map is bright."""
    subject = open_subject(gradients=method != "occlusion")
    for column in (190, 320):
        volume, labels = with_bleed(demo, 6, 200, column)
        found = explain(volume, subject, ExplainConfig(method, patch=56 if method == "occlusion" else 0), slices=[6])
        assert found.samples[0].probability > 0.8
        assert found.energy(TrueMask.of(labels), 6).ratio > 1.2
        values = found.values[6].astype(np.float64)
        values[values < values.max() / 2] = 0
        assert (values * np.arange(512)).sum() / values.sum() == pytest.approx(column, abs=25)


def test_the_map_follows_the_layout_of_the_scan(demo: Volume, demo_map: Explanation, shipped: Subject) -> None:
    """The same head stored upside down and transposed gets the same map on its own grid."""
    part = replace(demo, hu=demo.hu[9:14], stack=Stack.regular(5, spacing_mm=(0.47, 0.47), step_mm=(0, 0, 5.0)))
    s, _, _ = part.shape
    turned = replace(
        part,
        hu=np.ascontiguousarray(part.hu[::-1].swapaxes(1, 2)),
        stack=Stack.regular(s, (0, 0, 20.0), (0, 1, 0), (1, 0, 0), (0.47, 0.47), (0, 0, -5.0)),
    )
    one, other = explain(part, shipped, slices=[1]), explain(turned, shipped, slices=[3])
    assert other.samples[0].slices == (3,)
    assert np.abs(other.values[3].T - one.values[1]).max() < 1e-4
    assert one.values[1].max() > 0.9


# Every network


def test_every_network_is_tried() -> None:
    assert set(TINY) == set(NETWORKS)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_every_network_with_findings_can_be_explained(kind: str) -> None:
    torch.manual_seed(0)
    volume = little_head(6, 60)
    subject = of_network(build_network(TINY[kind], pretrained=False), SMALL)
    assert subject.layer in layer_names(subject.findings)
    peaks = []
    for finding in FINDING_NAMES[:3]:
        found = explain(volume, subject, ExplainConfig(finding=finding))
        assert found.values.shape == volume.shape
        assert found.values.min() >= 0
        assert found.values.max() <= 1
        assert {k for s in found.samples for k in s.slices} == set(range(6))
        peaks += [s.peak for s in found.samples]
    assert max(peaks) > 0
    assert found.config.layer == subject.layer


def test_logits_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    volume = little_head(3, 64)
    network = build_network(TINY["cnn2d"]).eval()
    found = explain(volume, of_network(network, replace(SMALL, mirror=True)), ExplainConfig(finding="subdural"))
    images = torch.from_numpy(to_gray(volume.hu).astype(np.float32))[:, None]
    with torch.no_grad():
        expected = (network(images).findings + network(images.flip(-1)).findings)[:, 2] / 2
    assert [s.logit for s in found.samples] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_layer_without_a_map_is_one_clear_error() -> None:
    subject = of_network(build_network(TINY["effunet2d"], pretrained=False), SMALL)
    for layer in ("mask_head", "decoder.3", "slice_head.1"):
        with pytest.raises(ModelError, match=f"Layer '{layer}' holds no features"):
            explain(little_head(1, 64), subject, ExplainConfig(layer=layer))
    with pytest.raises(ConfigError, match=r"no layer 'encoder.stages.7'. Did you mean 'encoder.stages.\d'"):
        explain(little_head(1, 64), subject, ExplainConfig(layer="encoder.stages.7"))


def test_explaining_leaves_the_network_as_it_was() -> None:
    network = build_network(TINY["sequence"], pretrained=False).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learning = [p.requires_grad for p in network.parameters()]
    explain(little_head(2, 64), of_network(network, SMALL))
    assert network.training
    assert network.config.frozen
    assert [p.requires_grad for p in network.parameters()] == learning
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in network.modules())


def test_a_frozen_first_layer_does_not_stop_gradients() -> None:
    subject = of_network(build_network(EffUNetConfig(imagenet=False, frozen_stages=3), pretrained=False), SMALL)
    mapper = GradientMapper(subject.findings, "encoder.stages.1", plus_plus=False)
    evidence, _ = mapper(torch.rand(1, 3, 64, 64) * 255, 0)
    assert evidence.shape == (1, 64, 64)


def test_occlusion_of_a_whole_scan_is_refused() -> None:
    subject = of_network(build_network(TINY["sequence"], pretrained=False), SMALL)
    with pytest.raises(ModelError, match="reads whole scans"):
        explain(little_head(2, 64), subject, ExplainConfig("occlusion"))


# Three dimensions

SIDE, DEPTH = 32, 8
SMALL_3D = PreprocessConfig(size=SIDE, crop="none", gate=False, mirror=False)


def with_ball(volume: Volume, center: tuple[int, int, int], radius: float = 4.0) -> tuple[Volume, NDArray[np.uint8]]:
    """A bright ball, half as many slices high as pixels wide."""
    z, y, x = np.ogrid[tuple(slice(n) for n in volume.shape)]
    ball = (2 * (z - center[0])) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 < radius**2
    return replace(volume, hu=np.where(ball, np.float32(BLOOD), volume.hu)), ball.astype(np.uint8)


@pytest.fixture(scope="module")
def subject_3d() -> Subject:
    """A cnn3d that learned in seconds to tell heads with a bright ball from those without."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = build_network(CNN3dConfig(depth=DEPTH, widths=(8, 16, 16), flat_levels=1, hidden=16, dropout=0.0))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(100):
        heads, truth = [], []
        for number in range(8):
            volume = little_head(DEPTH, SIDE, seed=8 * step + number)
            if number % 2:
                volume, _ = with_ball(volume, (rng.integers(1, 7), rng.integers(10, 22), rng.integers(10, 22)))
            heads.append(to_gray(volume.hu))
            truth.append(number % 2)
        images = torch.from_numpy(np.stack(heads).astype(np.float32))[:, None]
        logits = network(images).findings[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(truth, dtype=torch.float32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    return of_network(network, SMALL_3D, "ball")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "occlusion"])
def test_in_three_dimensions_the_map_moves_with_the_lesion(subject_3d: Subject, method: Any) -> None:
    """Over a scan of 12 slices, which takes two windows of 8."""
    centers = []
    for place in ((2, 12, 12), (9, 20, 20)):
        volume, labels = with_ball(little_head(12, SIDE, seed=999), place)
        found = explain(volume, subject_3d, ExplainConfig(method))
        assert [s.slices for s in found.samples] == [tuple(range(8)), tuple(range(4, 12))]
        energy = found.energy(TrueMask.of(labels))
        assert energy.ratio > 3
        values = found.values.astype(np.float64)
        centers.append([(values * axis).sum() / values.sum() for axis in np.indices(values.shape)])
        peak = np.array(np.unravel_index(values.argmax(), values.shape))
        assert (np.abs(peak - place) <= (2, 5, 5)).all()
    assert (np.subtract(centers[1], centers[0]) > 3).all()


@pytest.mark.slow
def test_a_volume_without_the_finding_stays_dark(subject_3d: Subject) -> None:
    found = explain(little_head(12, SIDE, seed=999), subject_3d)
    assert found.values.max() < 0.3
    assert all(s.probability < 0.3 for s in found.samples)


@pytest.mark.slow
def test_a_scan_shorter_than_a_window_is_explained(subject_3d: Subject) -> None:
    volume, labels = with_ball(little_head(5, SIDE, seed=999), (2, 16, 16))
    found = explain(volume, subject_3d, slices=[1, 2])
    assert found.values.shape == volume.shape
    assert not found.values[[0, 3, 4]].any()
    assert found.samples[0].slices == tuple(range(5))
    assert found.energy(TrueMask.of(labels), 2).ratio > 1


# Files and pictures


def test_the_overlay_is_hot_where_the_map_is(demo_map: Explanation) -> None:
    """Yellow and orange have far more red than blue; gray has as much of both."""
    truth = TrueMask.of(demo_truth().labels())
    with Image.open(_stream(OverlayArtist(demo_map).overlay(11))) as picture:
        pixels = np.asarray(picture).astype(int)
    half = pixels.shape[1] // 2
    plain, heated = pixels[22:-22, :half], pixels[22:-22, half:]
    assert np.ptp(plain, axis=2).max() == 0
    hot = heated[..., 0] - heated[..., 2] > 60
    assert 0.005 < hot.mean() < 0.2
    assert np.flatnonzero(hot.any(axis=0)).mean() > half / 2  # the hematoma is in the left half of the head
    with Image.open(_stream(OverlayArtist(demo_map, truth).overlay(11))) as picture:
        outlined = np.asarray(picture).astype(int)[22:-22, :half]
    assert (outlined == (0, 255, 255)).all(axis=2).sum() > 50
    assert "energy inside" in OverlayArtist(demo_map, truth).caption(11)


def _stream(content: bytes) -> Any:
    import io

    return io.BytesIO(content)


def test_the_overview_shows_slices_with_the_lesion_first(demo_map: Explanation) -> None:
    many = replace(demo_map, slices=tuple(range(30)))
    truth = TrueMask.of(demo_truth().labels())
    shown = shown_first(many, truth, most=5)
    assert len(shown) == 5
    assert truth.labels[shown].any(axis=(1, 2)).all()
    assert set(shown_first(many, most=3)) == {9, 11, 12}


def test_the_folder_holds_maps_on_the_grid_and_scores(tmp_path: Path, demo: Volume, demo_map: Explanation) -> None:
    truth = TrueMask.of(demo_truth().labels())
    files = write_explanation(demo_map, tmp_path / "out", truth, truth_path="demo")
    image = nib.load(files["heatmap"])
    assert image.shape == file_order(demo.hu, demo).shape
    assert np.allclose(image.affine, file_affine(demo), atol=1e-3)
    assert np.abs(image.get_fdata() - file_order(demo_map.values, demo)).max() < 1e-3
    assert sorted(p.name for p in files["overlays"].iterdir()) == ["002.png", "009.png", "011.png", "012.png"]
    told = json.loads(files["explain"].read_text("utf-8"))
    assert told == {**explained_mapping(demo_map, truth, "demo"), "created": told["created"]}
    assert told["truth"]["slices_with_lesion"] == told["truth"]["slices_above_chance"] == 3
    assert told["slices"][0]["energy_inside"] is None
    assert told["slices"][2]["energy_inside"] == pytest.approx(demo_map.energy(truth, 11).inside, abs=1e-5)
    assert told["notice"].startswith("Research use only")
