"""The mean of networks' weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs hemolens[train]")
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from hemolens.models.average import average_onnx  # noqa: E402


def network(path: Path, weight: float, bias: float, columns: int = 2, kind: str = "Add", axis: int = 1) -> Path:
    """Write ``sum(images * weight + bias)`` over an axis."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["images", "weight"], ["scaled"]),
            helper.make_node(kind, ["scaled", "bias"], ["moved"]),
            helper.make_node("ReduceSum", ["moved", "axis"], ["answer"], keepdims=0),
        ],
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("weight", TensorProto.FLOAT, [columns], [weight] * columns),
            helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [axis]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


def test_every_weight_is_the_mean_and_constants_stay(tmp_path: Path) -> None:
    first, second = network(tmp_path / "a.onnx", 1.0, 10.0), network(tmp_path / "b.onnx", 4.0, -2.0)
    before = second.read_bytes()
    average_onnx([first, second], first)
    session = onnxruntime.InferenceSession(first.read_bytes())
    answer = session.run(None, {"images": np.array([[1, 2], [3, 5]], dtype=np.float32)})[0]
    assert answer.tolist() == [2.5 * 3 + 2 * 4, 2.5 * 8 + 2 * 4]
    assert second.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_each_of_several_counts_as_often_as_it_is_named(tmp_path: Path) -> None:
    files = [network(tmp_path / f"{name}.onnx", *values) for name, *values in (("a", 1.0, 3.0), ("b", 4.0, 0.0))]
    target = tmp_path / "c.onnx"
    average_onnx([files[0], files[1], files[0]], target)
    session = onnxruntime.InferenceSession(target.read_bytes())
    answer = session.run(None, {"images": np.array([[1, 2]], dtype=np.float32)})[0]
    assert answer.tolist() == [2 * 3 + 2 * 2]
    with pytest.raises(ValueError, match="no mean of no networks"):
        average_onnx([], target)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"columns": 3}, "differ in the shape of 'weight'"),
        ({"kind": "Sub"}, "not of the same build"),
        ({"axis": 0}, "differ in the constant 'axis'"),
    ],
)
def test_networks_of_another_build_have_no_mean(tmp_path: Path, other: dict, message: str) -> None:
    first, second = network(tmp_path / "a.onnx", 1.0, 0.0), network(tmp_path / "b.onnx", 1.0, 0.0, **other)
    before = first.read_bytes()
    with pytest.raises(ValueError, match=message):
        average_onnx([first, second], first)
    assert first.read_bytes() == before
