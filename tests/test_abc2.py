"""ABC/2 against shapes whose estimate can be worked out by hand, and against the volumes of ellipsoids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemolens.geometry import Stack
from hemolens.measurements.abc2 import abc2, abc2_by_lesion
from hemolens.volume import LabelMap
from predictions import volume_of


def ellipsoid(stack: Stack, shape: tuple[int, int, int], radii: tuple[float, float, float], turn: float) -> np.ndarray:
    """Return an ellipsoid around the middle of the stack, turned in the plane; radii along rows, columns, normal."""
    where = stack.index_to_mm(np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1))
    offset = where - where.reshape(-1, 3).mean(axis=0)
    x = offset[..., 0] * np.cos(turn) + offset[..., 1] * np.sin(turn)
    y = offset[..., 1] * np.cos(turn) - offset[..., 0] * np.sin(turn)
    return np.asarray((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (offset[..., 2] / radii[2]) ** 2 <= 1)


def test_a_square_is_measured_from_corner_to_corner() -> None:
    stack = Stack.regular(5, spacing_mm=(0.5, 0.5), step_mm=(0, 0, 5))
    mask = np.zeros((5, 80, 80), bool)
    mask[1:4, 20:60, 20:60] = True  # 20 mm a side on three slices
    told = abc2(mask, stack)
    assert told is not None
    assert told.a_mm == pytest.approx(20 * np.sqrt(2), rel=1e-6)
    assert told.b_mm == pytest.approx(20 * np.sqrt(2), abs=1.0)
    assert told.c_mm == pytest.approx(15.0)


def test_slices_count_whole_half_or_not_at_all() -> None:
    stack = Stack.regular(5, spacing_mm=(1, 1), step_mm=(0, 0, 4))
    mask = np.zeros((5, 60, 60), bool)
    mask[0, 10:14, 10:50] = True  # 160 of 1600: 10 %
    mask[1, 10:20, 10:50] = True  # 25 %
    mask[2, 10:50, 10:50] = True  # the largest
    mask[3, 10:40, 10:50] = True  # 75 %: half
    mask[4, 10:41, 10:50] = True  # 77.5 %: whole
    told = abc2(mask, stack)
    assert told is not None
    assert told.slice == 2
    assert told.c_mm == pytest.approx(4 * (0 + 0.5 + 1 + 0.5 + 1))


def test_uneven_slices_count_with_their_own_thickness() -> None:
    positions = np.array([[0, 0, z] for z in (0.0, 5.0, 10.0, 20.0, 30.0)])
    even = Stack.regular(5)
    stack = Stack(positions, even.row_directions, even.column_directions, even.spacings_mm)
    mask = np.zeros((5, 30, 30), bool)
    mask[1:4, 5:25, 5:25] = True
    told = abc2(mask, stack)
    assert told is not None
    assert told.c_mm == pytest.approx(5 + 7.5 + 10)


@settings(max_examples=25)
@given(
    turn=st.floats(0, np.pi),
    radii=st.tuples(st.floats(14, 30), st.floats(8, 30), st.floats(12, 25)),
    spacing=st.floats(0.4, 0.9),
)
def test_on_ellipsoids_it_is_close_to_the_true_volume(
    turn: float, radii: tuple[float, float, float], spacing: float
) -> None:
    """Of an ellipsoid, counting slices by their area leaves 1.366 of its 2 half-axes, and 0.955 · 0.683 is 0.652."""
    stack = Stack.regular(22, spacing_mm=(spacing, spacing), step_mm=(0, 0, 3))
    side = int(66 / spacing)
    mask = ellipsoid(stack, (22, side, side), radii, turn)
    told = abc2(mask, stack)
    assert told is not None
    longest, shortest = sorted(radii[:2], reverse=True)
    assert told.a_mm == pytest.approx(2 * longest, abs=2.5 * spacing)
    assert told.b_mm == pytest.approx(2 * shortest, abs=4.5 * spacing + 0.15 * (longest - shortest))
    true = 4 / 3 * np.pi * np.prod(radii) / 1000
    assert told.c_mm == pytest.approx(1.366 * radii[2], abs=6)
    assert told.volume_ml / true == pytest.approx(0.652 * told.c_mm / (1.366 * radii[2]), rel=0.25)


def test_without_blood_or_thickness_there_is_no_estimate() -> None:
    stack = Stack.regular(3)
    assert abc2(np.zeros((3, 8, 8), bool), stack) is None
    single = Stack.regular(1)
    assert abc2(np.ones((1, 8, 8), bool), single) is None


def test_each_lesion_has_its_own() -> None:
    stack = Stack.regular(6, spacing_mm=(1, 1), step_mm=(0, 0, 5))
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[1:4, 5:25, 5:25] = 4
    labels[4, 40:60, 40:44] = 2
    found = abc2_by_lesion(LabelMap(labels, volume_of(labels.shape, stack)))
    assert sorted(found) == [1, 2]
    assert found[1].c_mm == pytest.approx(15)
    assert found[2].slice == 4
    assert found[2].b_mm == pytest.approx(4, abs=1.2)
    assert abc2_by_lesion(LabelMap(labels, volume_of(labels.shape, None))) == {}
