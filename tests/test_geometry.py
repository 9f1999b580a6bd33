"""Positions in millimeters: judged by nibabel, by the DICOM equation and by analytic ellipsoids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemolens.errors import GeometryError
from hemolens.geometry import Stack, angle_deg, extents_along, normal_of, unit
from phantom import (
    ORIENTATIONS,
    Ellipsoid,
    build_stack,
    centroid_mm,
    frames,
    lesions_on_stacks,
    rotation_about,
    sample,
    stacks,
    voxel_centers_mm,
)

AXIAL = np.eye(3)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CORNER = st.floats(-20, 600, allow_nan=False)


def letters(direction: np.ndarray) -> str:
    """Name the axis that an LPS direction points along, as nibabel does."""
    axis = int(np.abs(direction).argmax())
    return "LPS"[axis] if direction[axis] > 0 else "RAI"[axis]


# Index and millimeters


@given(stacks(), st.lists(st.tuples(st.floats(-3, 45), CORNER, CORNER), min_size=1, max_size=8))
def test_index_to_mm_to_index_is_the_identity(stack: Stack, indices: list[tuple[float, float, float]]) -> None:
    index = np.array(indices)
    np.testing.assert_allclose(stack.mm_to_index(stack.index_to_mm(index)), index, atol=1e-6)


@given(stacks(), st.lists(st.tuples(*[st.floats(-400, 400)] * 3), min_size=1, max_size=8))
def test_mm_to_index_to_mm_is_the_identity(stack: Stack, points: list[tuple[float, float, float]]) -> None:
    np.testing.assert_allclose(stack.index_to_mm(stack.mm_to_index(points)), points, atol=1e-6)


@given(stacks(slices=(1, 12)))
def test_voxel_centers_follow_the_dicom_equation(stack: Stack) -> None:
    rows, columns = 3, 4
    index = np.moveaxis(np.indices((len(stack), rows, columns)), 0, -1)
    np.testing.assert_allclose(stack.index_to_mm(index), voxel_centers_mm(stack, rows, columns), atol=1e-9)


def test_rows_and_columns_are_not_mixed_up() -> None:
    """Pixel Spacing is (between rows, between columns), and the row direction runs along *columns* (PS3.3 10.7.1.3)."""
    stack = Stack.regular(2, origin_mm=(10, 20, 30), spacing_mm=(0.5, 0.25), step_mm=(0, 0, 5))
    np.testing.assert_allclose(stack.index_to_mm((1, 4, 8)), (10 + 8 * 0.25, 20 + 4 * 0.5, 35))


def test_a_point_between_uneven_slices() -> None:
    stack = build_stack(AXIAL, [2.0, 6.0], (1, 1))
    np.testing.assert_allclose(stack.mm_to_index((0, 0, 5)), (1.5, 0, 0))
    np.testing.assert_allclose(stack.mm_to_index((0, 0, -1)), (-0.5, 0, 0))
    np.testing.assert_allclose(stack.mm_to_index((0, 0, 11)), (2.5, 0, 0))


def test_pixel_size_between_slices_of_two_sizes_is_half_way() -> None:
    stack = build_stack(AXIAL, [4.0], [[1, 1], [2, 3]])
    np.testing.assert_allclose(stack.index_to_mm((0.5, 2, 2)), (4, 3, 2))


def test_mm_to_index_between_slices_of_another_turn_and_pixel_size() -> None:
    """Half-way between two such slices the in-plane axes are no longer at right angles."""
    stack = build_stack(AXIAL, [4.0], [[1, 1], [2, 3]], turns_deg=[0, 40])
    np.testing.assert_allclose(stack.mm_to_index(stack.index_to_mm((0.5, 10, 20))), (0.5, 10, 20))


def test_one_slice_of_known_and_of_unknown_thickness() -> None:
    thick = Stack.regular(1, spacing_mm=(0.5, 0.5), thickness_mm=5.0)
    np.testing.assert_allclose(thick.index_to_mm((1, 0, 0)), (0, 0, 5))
    np.testing.assert_allclose(thick.mm_to_index((1, 2, 2.5)), (0.5, 4, 2))
    np.testing.assert_allclose(thick.affine[:3, 0], (0, 0, 5))
    unknown = Stack.regular(1, spacing_mm=(0.5, 0.5))
    np.testing.assert_allclose(unknown.mm_to_index(unknown.index_to_mm((0, 3, 7))), (0, 3, 7))
    assert np.isnan(unknown.extents_mm).all()
    with pytest.raises(GeometryError, match="single slice of unknown thickness"):
        _ = unknown.affine


# The affine


@given(stacks(even=True), st.lists(st.tuples(st.floats(0, 39), CORNER, CORNER), min_size=1, max_size=5))
def test_affine_of_a_regular_stack_agrees_with_index_to_mm(stack: Stack, indices: list[tuple[float, ...]]) -> None:
    assert stack.is_regular
    expected = nib.affines.apply_affine(stack.affine, np.array(indices))
    np.testing.assert_allclose(stack.index_to_mm(indices), expected, atol=1e-6)


@pytest.mark.parametrize(("row", "column"), ORIENTATIONS)
def test_affine_of_every_orientation_is_what_nibabel_reads(row: tuple[float, ...], column: tuple[float, ...]) -> None:
    step = 5 * np.cross(row, column)
    stack = Stack.regular(4, (-90, 40, 7), row, column, spacing_mm=(0.4, 0.6), step_mm=step)
    ras = LPS_TO_RAS @ stack.affine
    assert "".join(nib.aff2axcodes(ras)) == letters(stack.normal) + letters(column) + letters(row)
    np.testing.assert_allclose(nib.affines.voxel_sizes(ras), (5, 0.4, 0.6))
    assert np.linalg.det(stack.affine) < 0, (
        "slice, row, column is the mirror of column, row, slice, which is right-handed"
    )


def test_affine_holds_the_shear_of_a_tilted_gantry() -> None:
    stack = build_stack(AXIAL, [5.0] * 9, (1, 1), lean=(0.0, 0.3))
    np.testing.assert_allclose(stack.affine[:3, 0], (0, 1.5, 5))


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (build_stack(AXIAL, [5, 5, 10], (1, 1)), "distance between slices runs from 5.00 to 10.00 mm"),
        (build_stack(AXIAL, [4.22] * 5 + [7.38] * 5, (1, 1)), "4.22 to 7.38"),
        (build_stack(AXIAL, [5, 5], [[0.5, 0.5], [0.5, 0.5], [0.6, 0.6]]), "pixel spacing differs"),
        (build_stack(AXIAL, [5, 5], (1, 1), turns_deg=[0, 0, 10]), "in-plane directions differ"),
    ],
)
def test_irregular_stacks_have_no_affine_and_say_why(stack: Stack, reason: str) -> None:
    assert not stack.is_regular
    with pytest.raises(GeometryError, match=reason) as raised:
        _ = stack.affine
    assert str(raised.value).count("\n") == 0


def test_sideways_jump_of_one_slice_is_irregular() -> None:
    positions = np.array([[0, 0, 0], [3, 0, 5], [0, 0, 10.0]])
    stack = Stack(positions, *(np.tile(d, (3, 1)) for d in AXIAL[:2]), np.ones((3, 2)))
    assert stack.irregularity is not None


def test_rounded_positions_are_still_regular() -> None:
    positions = np.round(np.arange(40)[:, None] * np.array([0.0, 0.0, 1.2345]), 2)
    assert Stack(positions, *(np.tile(d, (40, 1)) for d in AXIAL[:2]), np.ones((40, 2))).is_regular


# Tilt


@given(frames(), st.floats(-40, 40))
def test_tilt_is_the_angle_of_the_gantry(frame: np.ndarray, degrees: float) -> None:
    stack = build_stack(frame, [5.0] * 5, (1, 1), lean=(0.0, float(np.tan(np.radians(degrees)))))
    assert stack.tilt_deg == pytest.approx(abs(degrees), abs=1e-4)


def test_tilt_of_slices_that_lean_while_the_table_runs_straight() -> None:
    """As scanners write it: the slices are turned about x, the positions advance along z (or nearly so)."""
    turn = rotation_about((1, 0, 0), -18.5)
    stack = Stack.regular(10, row_direction=turn[:, 0], column_direction=turn[:, 1], step_mm=(0, 0, 5))
    assert stack.tilt_deg == pytest.approx(18.5)
    np.testing.assert_allclose(stack.extents_mm, 5 * np.cos(np.radians(18.5)))


def test_oblique_without_shear_has_no_tilt() -> None:
    turn = rotation_about((1, 2, 0), 30)
    assert build_stack(turn.T, [5.0] * 5, (1, 1)).tilt_deg == pytest.approx(0, abs=1e-5)


def test_one_slice_has_no_tilt() -> None:
    assert Stack.regular(1).tilt_deg == 0.0


# Extents


def test_extents_are_half_way_to_both_neighbors() -> None:
    np.testing.assert_allclose(extents_along([0, 2, 6, 7]), [2, 3, 2.5, 1])


def test_extent_of_one_slice_is_its_thickness_or_unknown() -> None:
    assert extents_along([3.0], 5.0) == [5.0]
    assert np.isnan(extents_along([3.0])).all()


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=40), st.floats(-500, 500))
def test_extents_fill_the_stack_without_gap_or_overlap(gaps: list[float], start: float) -> None:
    offsets = start + np.concatenate([[0], np.cumsum(gaps)])
    extents = extents_along(offsets)
    assert extents.sum() == pytest.approx(sum(gaps) + gaps[0] / 2 + gaps[-1] / 2)
    assert (extents > 0).all()


# Lesions


@settings(max_examples=60, deadline=None)
@given(lesions_on_stacks())
def test_milliliters_and_centroid_are_those_of_the_ellipsoid(
    case: tuple[Ellipsoid, Stack, tuple[int, int]],
) -> None:
    """Any orientation, tilt, slice spacing and mix of pixel spacings: volume within 1 %, centroid within 0.3 mm."""
    lesion, stack, (rows, columns) = case
    mask = sample(stack, rows, columns, lesion)
    assert not mask.labels[:, [0, -1]].any(), "the test's own fault: the lesion is cut off"
    assert not mask.labels[:, :, [0, -1]].any(), "the test's own fault: the lesion is cut off"
    assert not mask.labels[[0, -1]].any(), "the test's own fault: the lesion is cut off"
    assert mask.volume_ml(lesion.subtype) == pytest.approx(lesion.volume_ml, rel=0.01)
    np.testing.assert_allclose(centroid_mm(mask, lesion.subtype), lesion.center_mm, atol=0.3)


@pytest.mark.parametrize(
    ("gaps", "lean"),
    [
        ([4.0] * 30, 0.0),
        ([4.0] * 30, np.tan(np.radians(25))),
        ([2.5] * 24 + [5.0] * 12, 0.0),
        ([4.22] * 15 + [7.38] * 9, 0.334),
    ],
    ids=["regular", "tilted", "uneven", "tilted and uneven"],
)
def test_milliliters_of_a_large_lesion(gaps: list[float], lean: float) -> None:
    """The four everyday kinds of head CT, with a naive count beside them to show what the test can see."""
    lesion = Ellipsoid((0, 0, 0), (30, 40, 45))
    stack = build_stack(AXIAL, gaps, (0.8, 0.8), lean=(0, lean), origin_mm=(-70, -70 - lean * 60, -60))
    mask = sample(stack, 180, 180, lesion)
    assert mask.volume_ml() == pytest.approx(lesion.volume_ml, rel=0.01)
    naive = (mask.labels > 0).sum() * 0.8 * 0.8 * np.linalg.norm(stack.positions_mm[1] - stack.positions_mm[0]) / 1000
    if gaps[0] != gaps[-1] or lean:
        assert naive != pytest.approx(lesion.volume_ml, rel=0.05)


@given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS))
@settings(max_examples=40, deadline=None)
def test_centroid_is_the_same_from_every_orientation(a: tuple, b: tuple) -> None:
    """A centroid in millimeters, carried to another orientation's grid and back, is where it was."""
    lesion = Ellipsoid((12.3, -4.5, 6.7), (9, 12, 15))
    found = []
    for row, column in (a, b):
        frame = np.array([row, column, np.cross(row, column)])
        origin = np.array([-30.2, -30.7, -30.4]) @ frame + lesion.center_mm
        stack = build_stack(frame, [1.5] * 40, (1, 1), origin_mm=origin)
        found.append((stack, centroid_mm(sample(stack, 61, 61, lesion), 4)))
    (first, one), (second, other) = found
    np.testing.assert_allclose(one, other, atol=0.1)
    carried = first.index_to_mm(first.mm_to_index(second.index_to_mm(second.mm_to_index(one))))
    np.testing.assert_allclose(carried, one, atol=1e-9)


# What a stack refuses


def parts(slices: int = 3) -> dict[str, np.ndarray]:
    """Return valid arguments of `Stack`."""
    stack = Stack.regular(slices, spacing_mm=(0.5, 0.5), step_mm=(0, 0, 5))
    return {
        n: np.array(getattr(stack, n)) for n in ("positions_mm", "row_directions", "column_directions", "spacings_mm")
    }


def broken(name: str, where: tuple[int, int], value: float) -> dict[str, np.ndarray]:
    """Return the same with one value changed."""
    arguments = parts()
    arguments[name][where] = value
    return arguments


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (broken("positions_mm", (1, 2), np.nan), "positions_mm has values that are not finite"),
        (broken("positions_mm", (1, 2), np.inf), "not finite"),
        (broken("row_directions", (0, 0), np.nan), "row_directions has values that are not finite"),
        (broken("spacings_mm", (0, 1), np.nan), "spacings_mm has values that are not finite"),
        (broken("spacings_mm", (2, 1), 0.0), "pixel spacing is not positive"),
        (broken("spacings_mm", (0, 0), -0.5), "pixel spacing is not positive"),
        (broken("row_directions", (1, 0), 1.1), "unit vectors at right angles"),
        (broken("row_directions", (1, 1), 0.2), "unit vectors at right angles"),
        (broken("column_directions", (2, 1), 0.0), "unit vectors at right angles"),
        (broken("positions_mm", (1, 2), 0.0), "do not rise"),
        (broken("positions_mm", (1, 2), 12.0), "do not rise"),
        ({**parts(), "positions_mm": parts()["positions_mm"][::-1]}, "do not rise"),
        ({**parts(), "positions_mm": parts()["positions_mm"][:, :2]}, r"positions_mm has shape \(3, 2\)"),
        ({**parts(), "positions_mm": np.zeros(3)}, "shape"),
        ({**parts(), "positions_mm": np.zeros((0, 3))}, "shape"),
        ({**parts(), "spacings_mm": np.ones((2, 2))}, r"spacings_mm has shape \(2, 2\)"),
        ({**parts(), "row_directions": parts(4)["row_directions"]}, "row_directions has shape"),
    ],
)
def test_stack_refuses(arguments: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(GeometryError, match=reason):
        Stack(**arguments)


def test_stack_refuses_slices_that_are_not_parallel() -> None:
    arguments = parts()
    turn = rotation_about((1, 0, 0), 1.0)
    arguments["column_directions"][2] = turn @ arguments["column_directions"][2]
    with pytest.raises(GeometryError, match="not parallel"):
        Stack(**arguments)


def test_stack_bears_the_rounding_of_direction_cosines() -> None:
    turn = np.round(rotation_about((1, 0, 0), -18.5), 4)
    stack = Stack.regular(3)
    Stack(
        np.arange(3)[:, None] * np.array([0, 0, 5.0]),
        np.tile(turn[:, 0], (3, 1)),
        np.tile(turn[:, 1], (3, 1)),
        stack.spacings_mm,
    )


def test_stack_cannot_be_changed() -> None:
    positions = np.array([[0, 0, 0], [0, 0, 5.0]])
    stack = Stack(positions, *(np.tile(d, (2, 1)) for d in AXIAL[:2]), np.ones((2, 2)))
    positions[1, 2] = 99
    assert stack.positions_mm[1, 2] == 5
    with pytest.raises(ValueError, match="read-only"):
        stack.positions_mm[0, 0] = 1


# Small helpers


def test_unit_refuses_what_has_no_length() -> None:
    np.testing.assert_allclose(unit((3, 0, 4)), (0.6, 0, 0.8))
    for vector in ((0, 0, 0), (np.nan, 0, 1), (np.inf, 0, 0)):
        with pytest.raises(ValueError, match="no length"):
            unit(vector)


def test_normal_and_angle() -> None:
    np.testing.assert_allclose(normal_of((1, 0, 0), (0, 1, 0)), (0, 0, 1))
    np.testing.assert_allclose(normal_of((1, 0, 0), (0, 0, -1)), (0, 1, 0))
    assert angle_deg((1, 0, 0), (0, 2, 0)) == pytest.approx(90)
    assert angle_deg((1, 1, 0), (-1, -1, 0)) == pytest.approx(180)
