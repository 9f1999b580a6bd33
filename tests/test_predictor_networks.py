"""Every kind of network on a scan: which slices it is shown, how its answers are joined, where they land.

The networks here are a few ONNX nodes each, so that what should come out can be computed by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemolens.analysis import AnalyzeOptions, analyze
from hemolens.config import to_mapping
from hemolens.errors import ConfigError, ModelError
from hemolens.geometry import Stack
from hemolens.inference.calibrate import UNCALIBRATED
from hemolens.inference.predictor import LONGEST_SCAN, Predictor
from hemolens.inference.registry import Interface, Model, Thresholds, load_model
from hemolens.inference.runtime import available_runtimes
from hemolens.inference.windows import Averaged, pieces, stacks, windows
from hemolens.preprocessing.pipeline import PreprocessConfig, prepare
from hemolens.volume import SourceInfo, Volume
from predictions import phantom_head

onnx = pytest.importorskip("onnx", reason="needs hemolens[train]")
from onnx import TensorProto, helper  # noqa: E402

PLAIN = PreprocessConfig(size=32, crop="none", gate=False, mirror=False)
DEPTH = 4


def network(nodes: Sequence[Any], outputs: Sequence[str], shape: Sequence[Any] | None = None) -> bytes:
    """Return an ONNX file from ``images`` of `shape` to `outputs`."""
    constants = [
        helper.make_tensor("low", TensorProto.FLOAT, [], [127.0]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.05]),
        helper.make_tensor("findings", TensorProto.FLOAT, [6], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        helper.make_tensor("in_plane", TensorProto.INT64, [2], [-1, -2]),
        helper.make_tensor("last_three", TensorProto.INT64, [3], [-1, -2, -3]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("double", TensorProto.FLOAT, [], [2.0]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["images", "low"], ["shifted"]),
         helper.make_node("Mul", ["shifted", "scale"], ["gray"]), *nodes],
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


BLOOD = helper.make_node("Identity", ["gray"], ["mask"])
"""The mask's one logit is the pixel itself, scaled: what a slice or volume network of one channel may say."""
TOP_OF_SLICE = [
    helper.make_node("ReduceMax", ["gray", "in_plane"], ["top"], keepdims=0),  # (n, c) or (n, slices, c)
    helper.make_node("Mul", ["top", "findings"], ["slice"]),  # the one channel becomes six findings
]
SUM_OF_VOLUME = [
    helper.make_node("ReduceMax", ["gray", "last_three"], ["peak"], keepdims=0),  # (n, 1)
    helper.make_node("Mul", ["peak", "findings"], ["scan"]),
]
TOP_OF_SCAN = [
    *TOP_OF_SLICE,
    helper.make_node("ReduceMax", ["slice", "one"], ["scan"], keepdims=0),
]


def model(
    folder: Path, content: bytes, interface: Interface, preprocess: PreprocessConfig = PLAIN, name: str = "model"
) -> Model:
    path = folder / f"{name}.onnx"
    path.write_bytes(content)
    return Model(
        name, path, hashlib.sha256(content).hexdigest(), preprocess, UNCALIBRATED, Thresholds(0.5, 0.5), {}, interface
    )


def predictor(folder: Path, content: bytes, interface: Interface, preprocess: PreprocessConfig = PLAIN) -> Predictor:
    return Predictor(model(folder, content, interface, preprocess), "onnxruntime", 1)


ONE = Interface("slice", channels=1, mask_channels=1, findings=False)
WINDOWED = Interface("volume", channels=1, mask_channels=1, findings=True, depth=DEPTH)
SCANNED = Interface("scan", channels=1, mask_channels=0, findings=True)


def stack_of(slices: int, gap_mm: float, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    hu = rng.uniform(-20, 100, (slices, 40, 48)).astype(np.float32)
    stack = Stack.regular(slices, spacing_mm=(1.0, 1.0), step_mm=(0, 0, gap_mm))
    return Volume(hu, stack, SourceInfo("dicom", "noise"))


def expected_gray(volume: Volume) -> np.ndarray:
    return (prepare(volume, PLAIN).contexts[:, 1].astype(np.float32) - 127.0) * np.float32(0.05)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize(("slices", "gap_mm"), [(1, 5.0), (3, 5.0), (4, 5.0), (9, 5.0), (23, 1.0), (7, 0.625)])
class TestWhateverTheScan:
    """Short, long, thick and thin scans: every slice gets its own answer, once."""

    def test_volumes_say_what_slices_say(self, tmp_path: Path, slices: int, gap_mm: float) -> None:
        volume = stack_of(slices, gap_mm)
        gray = expected_gray(volume)
        _, one = predictor(tmp_path, network([BLOOD], ["mask"]), ONE).score(volume)
        by_volume = predictor(tmp_path, network([BLOOD, *SUM_OF_VOLUME], ["mask", "scan"]), WINDOWED)
        _, windowed = by_volume.score(volume)
        assert one.blood is not None
        assert windowed.blood is not None
        assert one.blood == pytest.approx(sigmoid(gray), abs=1e-5)
        assert windowed.blood == pytest.approx(one.blood, abs=1e-6)
        assert one.subtypes is one.logits is one.scan_logits is windowed.subtypes is windowed.logits is None
        assert windowed.scan_logits == pytest.approx(gray.max() * np.arange(1, 7), abs=1e-4)

    def test_scans_get_an_answer_for_every_slice_and_one_for_all(
        self, tmp_path: Path, slices: int, gap_mm: float
    ) -> None:
        volume = stack_of(slices, gap_mm)
        gray, step = expected_gray(volume), prepare(volume, PLAIN).step
        told: list[float] = []
        prepared, scores = predictor(tmp_path, network(TOP_OF_SCAN, ["slice", "scan"]), SCANNED).score(
            volume, told.append
        )
        tops = gray.max(axis=(1, 2))
        assert step == prepared.step == {5.0: 1, 1.0: 5, 0.625: 7}[gap_mm]
        assert scores.logits == pytest.approx(tops[:, None] * np.arange(1, 7), abs=1e-4)
        by_stack = [tops[first::step].max() for first in range(min(step, slices))]
        assert scores.scan_logits == pytest.approx(np.mean(by_stack) * np.arange(1, 7), abs=1e-4)
        assert scores.blood is scores.subtypes is None
        assert told == sorted(told)
        assert told[-1] == 1.0


def test_a_scan_too_long_for_one_go_is_read_in_pieces(tmp_path: Path) -> None:
    volume = stack_of(2 * LONGEST_SCAN + 5, 5.0)
    shown: list[int] = []
    reader = predictor(tmp_path, network(TOP_OF_SCAN, ["slice", "scan"]), SCANNED)
    inner = reader.runtime.run
    reader.runtime.run = lambda images: shown.append(images.shape[1]) or inner(images)  # type: ignore[method-assign]
    _, scores = reader.score(volume)
    assert sum(shown) == len(volume)
    assert max(shown) <= LONGEST_SCAN
    tops = expected_gray(volume).max(axis=(1, 2))
    assert scores.logits == pytest.approx(tops[:, None] * np.arange(1, 7), abs=1e-4)
    assert scores.scan_logits == pytest.approx(tops.max() * np.arange(1, 7), abs=1e-4)


LEFT_HALF = [
    helper.make_node("Shape", ["gray"], ["shape"]),
    helper.make_node("Gather", ["shape", "last"], ["width"], axis=0),
    helper.make_node("Constant", [], ["two"], value=helper.make_tensor("two", TensorProto.INT64, [1], [2])),
    helper.make_node("Div", ["width", "two"], ["half"]),
    helper.make_node("Constant", [], ["none"], value=helper.make_tensor("none", TensorProto.INT64, [1], [0])),
    helper.make_node("Slice", ["gray", "half", "width", "last"], ["right"]),
    helper.make_node("Mul", ["right", "double"], ["stronger"]),
    helper.make_node("Slice", ["gray", "none", "half", "last"], ["left"]),
    helper.make_node("Concat", ["left", "stronger"], ["mask"], axis=-1),
]
"""A network that is not fair: its right half says twice as much."""


@pytest.mark.parametrize("interface", [ONE, replace(WINDOWED, findings=False)])
def test_the_mirror_image_is_averaged_where_the_card_says_so(tmp_path: Path, interface: Interface) -> None:
    volume = stack_of(6, 5.0)
    gray = expected_gray(volume)
    unfair = gray * np.where(np.arange(32) >= 16, 2.0, 1.0)
    mirrored = gray * np.where(np.arange(32) >= 16, 1.0, 2.0)
    content = network(LEFT_HALF, ["mask"])
    _, as_it_is = predictor(tmp_path, content, interface).score(volume)
    _, averaged = predictor(tmp_path, content, interface, replace(PLAIN, mirror=True)).score(volume)
    assert as_it_is.blood == pytest.approx(sigmoid(unfair), abs=1e-5)
    assert averaged.blood == pytest.approx((sigmoid(unfair) + sigmoid(mirrored)) / 2, abs=1e-5)


@pytest.mark.parametrize("interface", [ONE, replace(WINDOWED, findings=False)])
def test_blood_outside_the_skull_is_dropped_where_the_card_says_so(tmp_path: Path, interface: Interface) -> None:
    volume = phantom_head()
    content = network([BLOOD], ["mask"])
    gated_config = replace(PLAIN, gate=True, size=96)
    prepared, gated = predictor(tmp_path, content, interface, gated_config).score(volume)
    _, open_ = predictor(tmp_path, content, interface, replace(PLAIN, size=96)).score(volume)
    assert gated.blood is not None
    assert open_.blood is not None
    assert not prepared.gates.all()
    assert not gated.blood[~prepared.gates].any()
    assert np.array_equal(gated.blood[prepared.gates], open_.blood[prepared.gates])
    assert open_.blood[~prepared.gates].any()


def test_what_a_volume_network_says_lands_where_it_was_seen(tmp_path: Path) -> None:
    """A bright ball keeps its center, through crop, windows and back, in a scan stored upside down and thin."""
    hu = np.full((24, 60, 80), -10, np.float32)
    z, y, x = np.mgrid[:24, :60, :80]
    ball = ((z - 15) * 1.25) ** 2 + (y - 20) ** 2 + (x - 55) ** 2 < 8**2
    hu[ball] = 90
    volume = Volume(
        hu,
        Stack.regular(24, (0, 0, 0), (-1, 0, 0), spacing_mm=(1, 1), step_mm=(0, 0, -1.25)),
        SourceInfo("dicom", "ball"),
    )
    config = replace(PLAIN, size=64, context_mm=1.25)
    thin = predictor(tmp_path, network([BLOOD], ["mask"]), replace(WINDOWED, findings=False), config)
    prepared, scores = thin.score(volume)
    assert scores.blood is not None
    found = prepared.restore(scores.blood) > 0.5
    assert np.argwhere(found).mean(axis=0) == pytest.approx(np.argwhere(ball).mean(axis=0), abs=0.2)
    assert found.sum() == pytest.approx(ball.sum(), rel=0.1)


@pytest.mark.skipif("openvino" not in available_runtimes(), reason="needs hemolens[openvino]")
@pytest.mark.parametrize(
    ("nodes", "outputs", "interface", "shape"),
    [([BLOOD], ["mask"], ONE, ["n", 1, 32, 32]),
     ([BLOOD, *SUM_OF_VOLUME], ["mask", "scan"], WINDOWED, ["n", 1, DEPTH, 32, 32]),
     (TOP_OF_SCAN, ["slice", "scan"], SCANNED, ["n", "slices", 1, 32, 32])],
)  # fmt: skip
def test_both_runtimes_agree(
    tmp_path: Path, nodes: list[Any], outputs: list[str], interface: Interface, shape: list[Any]
) -> None:
    volume = stack_of(7, 5.0)
    made = model(tmp_path, network(nodes, outputs, shape), interface)
    answers = [Predictor(made, runtime, 1).score(volume)[1] for runtime in ("onnxruntime", "openvino")]
    for name in ("blood", "logits", "scan_logits"):
        one, other = (getattr(answer, name) for answer in answers)
        assert (one is None) == (other is None)
        if one is not None:
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    "interface",
    [ONE, WINDOWED, SCANNED, Interface(mask_channels=1), Interface(findings=False), Interface(mask_channels=0)],
)
def test_a_network_that_tells_too_little_is_not_analyzed_with(tmp_path: Path, interface: Interface) -> None:
    lacking = predictor(tmp_path, network([BLOOD], ["mask"]), interface)
    volume = stack_of(2, 5.0)
    for call in (lambda: lacking.predict(volume), lambda: analyze(volume, AnalyzeOptions(), predictor=lacking)):
        with pytest.raises(ModelError, match=r"'model' cannot analyze a scan: .* hemolens evaluate"):
            call()


@given(st.integers(1, 200), st.integers(1, 40))
def test_windows_cover_every_slice_and_overlap(slices: int, depth: int) -> None:
    found = windows(slices, depth)
    seen = np.zeros(slices, int)
    for window in found:
        seen[window] += 1
        assert window.stop - window.start == min(depth, slices)
    assert seen.min() >= 1
    assert all(b.start - a.start <= max(depth // 2, 1) for a, b in pairwise(found))
    assert len({w.start for w in found}) == len(found)


@given(st.integers(1, 300), st.integers(1, 100))
def test_pieces_and_stacks_hold_every_slice_once(slices: int, number: int) -> None:
    parts = pieces(slices, number)
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(slices))
    assert max(p.stop - p.start for p in parts) <= number
    assert sorted(i for stack in stacks(slices, number) for i in stack.tolist()) == list(range(slices))


def test_an_average_that_leaves_a_slice_out_is_refused() -> None:
    joined = Averaged(3)
    with pytest.raises(ValueError, match="do not cover"):
        joined.mean()
    joined.add(np.array([0, 1]), np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match="do not cover"):
        joined.mean()
    joined.add(np.array([1, 2]), np.full((4, 5), 3, np.float32))
    assert joined.mean()[:, 0].tolist() == [1, 2, 3]


def card(folder: Path, **changes: Any) -> Path:
    content = network([BLOOD], ["mask"])
    made = model(folder, content, ONE)
    values = {
        "name": "run", "file": made.path.name, "sha256": made.sha256, "preprocess": to_mapping(PLAIN),
        "calibration": to_mapping(UNCALIBRATED), "thresholds": {"mask": 0.5, "study": 0.5},
        "interface": to_mapping(ONE), **changes,
    }  # fmt: skip
    path = folder / "model.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return path


class TestCards:
    """What a card may say, and how models are named."""

    def test_a_run_folder_a_card_and_a_network_file_are_the_same_model(self, tmp_path: Path) -> None:
        path = card(tmp_path)
        loaded = [load_model(str(p)) for p in (tmp_path, path, path.with_suffix(".onnx"))]
        assert loaded[0] == loaded[1] == loaded[2]
        assert loaded[0].interface == ONE
        assert loaded[0].preprocess == PLAIN
        assert loaded[0].verified_bytes()

    def test_a_card_from_before_is_that_of_an_effunet2d(self, tmp_path: Path) -> None:
        old = load_model(str(card(tmp_path, interface=None, preprocess={"size": 224, "context_mm": 5.0})))
        assert old.interface == Interface("slice", 3, 6, True, 0)
        assert old.preprocess == PreprocessConfig(224, 5.0, "head", True, True)
        assert old.preprocess.neighbor_support == 0

    def test_a_folder_without_a_model_is_one_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"holds no model\.json. Name the folder of a training run that has ended"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize(
        ("interface", "message"),
        [
            ({"sample": "slices"}, "Did you mean 'slice'"),
            ({"sample": "volume"}, "volumes need a depth"),
            ({"depth": 8}, "volumes need a depth"),
            ({"channels": 2}, "channels must be 1 or 3"),
            ({"channel": 1}, "Did you mean 'channels'"),
        ],
    )
    def test_an_interface_that_cannot_be_is_named(
        self, tmp_path: Path, interface: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ModelError, match=message):
            load_model(str(card(tmp_path, interface=interface)))
        with pytest.raises((ConfigError, ModelError)):
            load_model(str(card(tmp_path, preprocess={"size": 32, "crop": "heads"})))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn2d", "unet3d", "sequence"])
def test_a_run_leaves_a_model_that_scores_scans(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("torch", reason="needs hemolens[train]")
    from hemolens.models.registry import build_network
    from hemolens.models.run_card import write_run_card
    from test_networks_contract import TINY

    network = build_network(TINY[kind])
    folder = tmp_path / "my-run"
    folder.mkdir()
    told = {"datasets": [{"name": "ct_ich", "license": "CC BY 4.0"}], "seed": 0}
    path = write_run_card(network, replace(PLAIN, size=32), folder, told)
    loaded = load_model(str(folder))
    assert path == folder / "model.json"
    assert loaded.name == "my-run"
    assert loaded.interface == network.interface
    assert "CC BY 4.0" in loaded.card["license"]
    assert loaded.card["network"]["config"] == to_mapping(TINY[kind])
    assert loaded.card["training"] == told
    volume = stack_of(7, 5.0)
    prepared, scores = Predictor(loaded, "onnxruntime", 1).score(volume)
    if "openvino" in available_runtimes():
        _, others = Predictor(loaded, "openvino", 1).score(volume)
        for part in ("blood", "logits", "scan_logits"):
            one, other = getattr(scores, part), getattr(others, part)
            assert (one is None and other is None) or one == pytest.approx(other, abs=2e-3)
    assert (scores.blood is None) == (network.mask_channels == 0)
    if scores.blood is not None:
        assert prepared.restore(scores.blood).shape == volume.shape
    assert (scores.logits is None) == (network.sample == "volume")
    assert (scores.scan_logits is None) == (kind != "sequence")
