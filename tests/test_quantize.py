"""8-bit networks: small, close to what they were made from, and runnable by both runtimes.

On the shipped network and the demo head: 8 bits of an untrained network say nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs hemolens[train]")

import onnx
import onnxruntime

from hemolens.demo import demo_source
from hemolens.inference.calibrate import sigmoid
from hemolens.inference.registry import load_model
from hemolens.models.quantize import quantize_onnx
from hemolens.preprocessing.pipeline import prepare
from hemolens.sources.study import read_volume


@pytest.fixture(scope="module")
def seen() -> np.ndarray:
    """What the network is shown of the demo head, ``(slices, 3, size, size)``."""
    return prepare(read_volume(demo_source()), load_model().preprocess).contexts.astype(np.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, seen: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    target = folder / "net-int8.onnx"
    quantize_onnx(load_model().path, target, (image[None] for image in seen[::3]))
    assert [p.name for p in folder.iterdir()] == ["net-int8.onnx"]
    return target


def blood(path: Path, seen: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([sigmoid(session.run(["mask"], {"images": i[None]})[0][:, 0]) for i in seen])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.slow
def test_the_outlines_stay_and_the_size_falls(small: Path, seen: np.ndarray) -> None:
    whole = load_model().path
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    graph = onnx.load(small).graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") > 50
    rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    whole_bits = [node.input[1] not in rounded for node in graph.node if node.op_type == "Conv"]
    assert whole_bits == [True] * 12 + [False] * (len(whole_bits) - 13) + [True]
    shown = seen[1::3]  # not those that the ranges were read off
    one, other = blood(whole, shown), blood(small, shown)
    assert (one >= 0.5).sum() > 500
    assert dice(one >= 0.5, other >= 0.5) > 0.9
    assert not np.array_equal(one, other)


def test_both_runtimes_run_it_alike(small: Path, seen: np.ndarray) -> None:
    openvino = pytest.importorskip("openvino")
    network = openvino.Core().compile_model(str(small), "CPU")
    shown = seen[4::6]
    other = np.concatenate([sigmoid(np.asarray(network([i[None]])["mask"])[:, 0]) for i in shown])
    assert dice(blood(small, shown) >= 0.5, other >= 0.5) > 0.95


def test_without_images_there_are_no_ranges(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        quantize_onnx(load_model().path, tmp_path / "x.onnx", [])
    assert not list(tmp_path.iterdir())
