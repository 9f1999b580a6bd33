"""Configuration is strict: nothing unknown, nothing of the wrong type, and everything survives the way out and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemolens.config import from_mapping, suggestion, to_mapping, with_overrides
from hemolens.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    rate: float = 1e-3
    steps: int = 100
    name: str = "adamw"


@dataclass(frozen=True)
class Training:
    seed: int
    optimizer: Optimizer = field(default_factory=Optimizer)
    weights: tuple[float, ...] = (1.0,)
    size: tuple[int, int] = (192, 192)
    mix: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError("the seed is not negative")


numbers = st.floats(allow_nan=False)
trainings = st.builds(
    Training,
    seed=st.integers(min_value=0),
    optimizer=st.builds(Optimizer, numbers, st.integers(), st.text()),
    weights=st.lists(numbers).map(tuple),
    size=st.tuples(st.integers(), st.integers()),
    mix=st.dictionaries(st.text(), numbers),
    note=st.none() | st.text(),
    flip=st.booleans(),
)


@given(trainings)
def test_out_and_back_is_the_identity(config: Training) -> None:
    assert from_mapping(Training, to_mapping(config)) == config


@given(trainings)
def test_through_json_too(config: Training) -> None:
    assert from_mapping(Training, json.loads(json.dumps(to_mapping(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1, "optimiser": {}}, "optimiser: no such setting. Did you mean 'optimizer'?"),
        ({"seed": 1, "optimizer": {"rat": 1.0}}, "optimizer.rat: no such setting. Did you mean 'rate'?"),
        ({"seed": 1, "zzz": 1}, "zzz: no such setting. Known: flip, mix, note, optimizer, seed, size, weights."),
        ({}, "Training: missing seed."),
        ({"seed": "1"}, "seed: expected int, got '1'."),
        ({"seed": True}, "seed: expected int, got True."),
        ({"seed": 1.5}, "seed: expected int, got 1.5."),
        ({"seed": 1, "flip": 1}, "flip: expected bool, got 1."),
        ({"seed": 1, "weights": 3.0}, "weights: expected a list, got 3.0."),
        ({"seed": 1, "weights": [1.0, "x"]}, "weights[1]: expected float, got 'x'."),
        ({"seed": 1, "size": [1]}, "size: expected 2 values, got 1."),
        ({"seed": 1, "note": 7}, "note: expected str, got 7."),
        ({"seed": 1, "optimizer": 3}, "optimizer: expected a table of settings, got 3"),
        ({"seed": -1}, "Training: the seed is not negative"),
    ],
)
def test_what_is_wrong_is_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Training, values)
    assert str(caught.value) == message


def test_whole_numbers_stand_for_floats() -> None:
    rate = from_mapping(Training, {"seed": 1, "optimizer": {"rate": 1}}).optimizer.rate
    assert isinstance(rate, float)


def test_overrides_reach_inner_settings_and_leave_the_rest() -> None:
    base = Training(seed=1)
    changed = with_overrides(base, {"optimizer.rate": 0.5, "seed": 2})
    assert changed == Training(seed=2, optimizer=Optimizer(rate=0.5))
    assert base == Training(seed=1)


@pytest.mark.parametrize("key", ["optimizer.rates", "optimzer.rate", "seeds", "seed.x"])
def test_unknown_overrides_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="no such setting"):
        with_overrides(Training(seed=1), {key: 1})


def test_suggestions() -> None:
    assert suggestion("onxruntime", ["onnxruntime", "openvino"]) == " Did you mean 'onnxruntime'?"
    assert suggestion("q", ["b", "a"]) == " Known: a, b."


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    side: float = 2.0


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square = field(default_factory=Circle)
    frame: Circle | Square | None = None
    mode: Literal["fill", "line"] = "fill"
    count: Literal[1, 3] = 1


@pytest.mark.parametrize(
    "drawing", [Drawing(), Drawing(Square(side=3.0)), Drawing(frame=Square(), mode="line", count=3)]
)
def test_a_table_of_several_kinds_comes_back_as_the_kind_it_was(drawing: Drawing) -> None:
    assert from_mapping(Drawing, json.loads(json.dumps(to_mapping(drawing)))) == drawing
    assert from_mapping(Drawing, {"shape": drawing.shape}).shape is drawing.shape


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shape": {"kind": "squar"}}, "shape.kind: there is no 'squar'. Did you mean 'square'?"),
        ({"shape": {"kind": 3}}, "shape.kind: there is no '3'. Known: circle, square."),
        ({"shape": {"radius": 1}}, "shape: missing kind. Known: circle, square."),
        ({"shape": {"kind": "square", "radius": 1}}, "shape.radius: no such setting. Known: kind, side."),
        ({"shape": "square"}, "shape: expected a table of settings, got 'square'"),
        ({"mode": "fil"}, "mode: 'fil' is none of the choices. Did you mean 'fill'?"),
        ({"count": 2}, "count: 2 is none of the choices. Known: 1, 3."),
        ({"count": True}, "count: True is none of the choices. Known: 1, 3."),
    ],
)
def test_what_is_wrong_with_a_choice_is_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Drawing, values)
    assert str(caught.value) == message


def test_another_kind_starts_from_its_own_defaults_whatever_the_order() -> None:
    base = Drawing(Circle(radius=9.0))
    for overrides in ({"shape.kind": "square", "shape.side": 4.0}, {"shape.side": 4.0, "shape.kind": "square"}):
        assert with_overrides(base, overrides) == Drawing(Square(side=4.0))
    assert with_overrides(base, {"shape.kind": "circle"}) == base  # the kind that it is changes nothing
    with pytest.raises(ConfigError, match=r"shape\.radius: no such setting"):
        with_overrides(base, {"shape.kind": "square", "shape.radius": 4.0})
    with pytest.raises(ConfigError, match=r"there is no 'squares'"):
        with_overrides(base, {"shape.kind": "squares"})


@dataclass(frozen=True)
class Plan:
    schedule: Schedule


@dataclass(frozen=True)
class Schedule:
    kind: str = "cosine"
    warmup: int = 4


def test_a_kind_that_is_a_plain_setting_leaves_the_others() -> None:
    assert with_overrides(Plan(Schedule(warmup=9)), {"schedule.kind": "plateau"}).schedule == Schedule("plateau", 9)
