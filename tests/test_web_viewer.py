"""The viewer's Python side: which way pictures are turned, the way back, what is sent, and events that come in once."""

from __future__ import annotations

import gzip
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from hemolens.analysis import Result
from hemolens.geometry import Stack
from hemolens.volume import AIR_HU, DisplayWindow, SourceInfo, Volume
from hemolens.web import session
from hemolens.web.house import Room
from hemolens.web.session import Study
from hemolens.web.viewer import planes
from hemolens.web.viewer.component import lay_out, overlay_bytes, read_event, scan_data, take_event
from hemolens.web.viewer.model import Overlay, label_overlay
from hemolens.web.viewer.turning import Turned, slices_as_bytes, turned
from predictions import analyzed, bleeding_head

AXIAL = [
    (tuple(float(v) for v in row), tuple(float(v) for v in column))
    for row, column in permutations(
        [tuple(sign * (axis == i) for i in range(3)) for axis in (0, 1) for sign in (1, -1)], 2
    )
    if np.dot(row, column) == 0
]
"""All eight ways in which axial slices can be stored."""
SHAPE = (3, 5, 7)
SPACING = (1.5, 0.8)


def study_of(volume: Volume, labels: np.ndarray | None = None) -> Study:
    labels = np.zeros(volume.shape, np.uint8) if labels is None else labels
    return Study("test", Result(volume, *analyzed(volume, labels)))


def stored(row: Any, column: Any) -> Volume:
    """A volume whose every voxel differs and knows its own place: HU from its patient coordinates alone."""
    stack = Stack.regular(SHAPE[0], (3.0, -2.0, 10.0), row, column, SPACING, np.cross(row, column) * 5.0)
    return Volume(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), stack, SourceInfo("dicom", "test"))


@pytest.mark.parametrize(("row", "column"), AXIAL)
def test_every_pixel_stands_where_the_patient_has_it(row: Any, column: Any) -> None:
    """Right of the picture is the patient's left and its bottom the back, told from DICOM's own equation."""
    volume = stored(row, column)
    how, stack = Turned.of(volume), volume.require_stack()
    shown = how.turn(volume.hu, 0, 3, AIR_HU)
    for k in range(3):
        place = {}
        for r, c in product(range(SHAPE[1]), range(SHAPE[2])):
            place[int(volume.hu[k, r, c])] = (
                stack.positions_mm[k] + c * SPACING[1] * np.array(row) + r * SPACING[0] * np.array(column)
            )
        x = np.array([[place[int(v)][0] for v in line] for line in shown[k]])
        y = np.array([[place[int(v)][1] for v in line] for line in shown[k]])
        assert (np.diff(x, axis=1) > 0).all()
        assert (np.diff(y, axis=0) > 0).all()
        assert np.ptp(x, axis=0).max() < 1e-9
        assert np.ptp(y, axis=1).max() < 1e-9
        view = how.views[k]
        assert (view.left, view.right, view.top, view.bottom) == ("R", "L", "A", "P")
        assert np.allclose([view.column_mm, view.row_mm], [x[0, 1] - x[0, 0], y[1, 0] - y[0, 0]])


@pytest.mark.parametrize(("row", "column"), AXIAL)
def test_a_point_of_the_picture_finds_its_voxel(row: Any, column: Any) -> None:
    volume = stored(row, column)
    how = Turned.of(volume)
    shown = how.turn(volume.hu, 0, 3, AIR_HU)
    points = np.array([(x, y) for y, x in product(range(how.height), range(how.width))], dtype=float)
    found = how.to_source(1, points).astype(int)
    values = [volume.hu[1, r, c] for r, c in found]
    assert values == [shown[1, int(y), int(x)] for x, y in points]


@pytest.mark.parametrize(("row", "column"), AXIAL)
def test_a_brush_keeps_its_millimeters(row: Any, column: Any) -> None:
    volume = stored(row, column)
    how = Turned.of(volume)
    view = how.views[0]
    rows, columns = how.radius_to_source(0, (6.0 / view.column_mm, 6.0 / view.row_mm))
    assert (rows * SPACING[0], columns * SPACING[1]) == pytest.approx((6.0, 6.0))


def test_the_scan_is_sent_as_it_is_shown() -> None:
    volume = stored((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    study = study_of(volume)
    sent = np.frombuffer(slices_as_bytes(study, 1, 3), "<i2").reshape(2, 5, 7)
    assert np.array_equal(sent, volume.hu[1:3, :, ::-1])


def test_eight_bit_pictures_keep_their_values_to_a_hundredth() -> None:
    hu = np.linspace(-20, 100, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    window = DisplayWindow(40, 120)
    study = study_of(Volume(hu, None, SourceInfo("images", "test", window=window)))
    how = turned(study)
    sent = np.frombuffer(slices_as_bytes(study, 0, 3), "<i2").reshape(hu.shape)
    assert np.abs(sent * how.slope + how.intercept - hu).max() < 0.01
    told = scan_data(study)
    assert told["window"] == [40, 120]
    assert told["approximate"]
    assert told["letters"] == [["", "", "", ""]] * 3


def test_slices_of_different_turns_share_one_picture_size() -> None:
    turns = Stack(
        np.array([[0, 0, 0], [0, 0, 5.0]]),
        np.array([[1.0, 0, 0], [0, 1.0, 0]]),
        np.array([[0, 1.0, 0], [-1.0, 0, 0]]),
        np.ones((2, 2)),
    )
    hu = np.arange(2 * 4 * 6, dtype=np.int16).reshape(2, 4, 6)
    how = Turned.of(Volume(hu, turns, SourceInfo("dicom", "test")))
    assert (how.height, how.width) == (6, 6)
    shown = how.turn(hu, 0, 2, -7)
    assert np.array_equal(shown[0, :4], hu[0])
    assert (shown[0, 4:] == -7).all()
    assert np.array_equal(shown[1, :, :4], hu[1].T[:, ::-1])


def test_overlays_are_turned_like_the_scan() -> None:
    volume = stored((0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    values = (volume.hu % 6).astype(np.uint8)
    how = Turned.of(volume)
    sent = np.frombuffer(gzip.decompress(overlay_bytes(values, how)), np.uint8).reshape(3, how.height, how.width)
    assert np.array_equal(sent, how.turn(volume.hu, 0, 3, 0) % 6)


def test_shades_are_bytes_and_nothing_is_zero() -> None:
    volume = stored((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    values = np.full(SHAPE, np.nan, np.float32)
    values[0, 0, :4] = 0.0, 0.5, 1.0, 2.0
    sent = np.frombuffer(gzip.decompress(overlay_bytes(values, Turned.of(volume))), np.uint8).reshape(SHAPE)
    assert sent[0, 0, :5].tolist() == [0, 128, 255, 255, 0]


def test_the_same_overlay_keeps_its_address_and_a_changed_one_gets_another() -> None:
    volume, labels = bleeding_head()
    study, room = study_of(volume, labels), Room("token")
    first = lay_out(room, study, "view", label_overlay(labels))
    assert lay_out(room, study, "view", label_overlay(labels.copy()))["url"] == first["url"]
    assert first["present"] == [2, 4, 5]
    changed = labels.copy()
    changed[0, 0, 0] = 1
    second = lay_out(room, study, "view", label_overlay(changed))
    assert second["url"] != first["url"]
    assert second["present"] == [1, 2, 4, 5]
    assert len(room.shelf) == 1
    shown = np.frombuffer(gzip.decompress(next(iter(room.shelf.values())).make()), np.uint8)
    assert np.array_equal(shown.reshape(volume.shape), changed)


def test_an_overlay_must_make_sense() -> None:
    with pytest.raises(ValueError, match="name"):
        Overlay("a b", "title", np.zeros((1, 1, 1), np.uint8))
    with pytest.raises(ValueError, match="edited"):
        Overlay("a", "title", np.zeros((1, 1, 1), np.float32), editable=True)
    with pytest.raises(ValueError, match="shape"):
        Overlay("a", "title", np.zeros((1, 1), np.uint8))


def stroke(seq: int, **more: Any) -> dict[str, Any]:
    told = {"kind": "stroke", "slice": 1, "tool": "brush", "label": 2, "points": [[1, 2]], "radius": [2, 3]}
    return {"seq": seq, **told, **more}


def test_each_event_is_returned_once_and_none_is_lost() -> None:
    study, handled = study_of(stored((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))), {}
    sent = {"mount": "a", "events": [stroke(1, label=1), stroke(2, label=2), stroke(3, label=3)]}
    assert [take_event(sent, handled, study).label for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
    assert take_event(sent, handled, study) is None
    assert handled == {"a": 3}
    again = take_event({"mount": "b", "events": [stroke(1)]}, handled, study)  # the page was loaded anew
    assert again is not None


def test_an_event_speaks_of_the_stored_slice() -> None:
    study = study_of(stored((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))  # stored mirrored: columns run to the right
    event = read_event(stroke(1), study)
    assert event is not None
    assert (event.row, event.column) == (2, 6 - 1)
    assert event.radius == (3.0, 2.0)
    assert event.label == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "format"}, {"slice": 3}, {"slice": -1}, {"points": []}, {"points": [[float("nan"), 1]]},
        {"label": 6}, {"label": -1}, {"tool": "hammer"},
    ],
)  # fmt: skip
def test_nonsense_from_the_browser_is_left_out(wrong: dict[str, Any]) -> None:
    study = study_of(stored((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    assert read_event({**stroke(1), **wrong}, study) is None
    assert take_event(None, {}, study) is None


def test_go_to_is_for_one_study_and_counts() -> None:
    state: dict[str, Any] = {}
    study = study_of(stored((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    other = study_of(study.volume)
    assert session.requested_slice(state, study) is None
    session.go_to(state, study, 2)
    first = session.requested_slice(state, study)
    session.go_to(state, study, 2)
    second = session.requested_slice(state, study)
    assert first is not None
    assert second is not None
    assert first[0] == second[0] == 2
    assert first[1] != second[1]
    assert session.requested_slice(state, other) is None


def test_three_planes_keep_every_lesion_in_its_place() -> None:
    """Volume and centroid on the even grid are those of the tilted, unevenly spaced scan."""
    import nibabel

    gaps = np.array([4.0] * 6 + [7.0] * 6)
    offsets = np.concatenate([[0.0], np.cumsum(gaps)])
    n = len(offsets)
    tilt = np.radians(15)
    row, column = np.array([-1.0, 0, 0]), np.array([0, np.cos(tilt), np.sin(tilt)])
    positions = np.array([40.0, -40.0, -36.0]) + offsets[:, None] * np.array([0, 0, 1.0])
    if np.dot(np.cross(row, column), [0, 0, 1.0]) < 0:
        positions = positions[::-1]
    stack = Stack(positions, np.tile(row, (n, 1)), np.tile(column, (n, 1)), np.ones((n, 2)))
    index = np.stack(np.meshgrid(range(n), range(80), range(80), indexing="ij"), -1)
    points = stack.index_to_mm(index)
    inside = np.linalg.norm(points - np.array([9.0, -5.0, points[..., 2].mean()]), axis=-1) < 12
    labels = np.where(inside, 4, 0).astype(np.uint8)
    hu = np.where(np.linalg.norm(points - points.mean(axis=(0, 1, 2)), axis=-1) < 36, 35, -1000).astype(np.int16)
    study = study_of(Volume(hu, stack, SourceInfo("dicom", "test")), labels)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(planes.lesions_nifti(study, labels)))
    values = np.asarray(image.dataobj)
    assert abs(np.linalg.det(image.affine[:3, :3])) * (values == 4).sum() / 1000 == pytest.approx(
        study.label_map.volume_ml(4), rel=0.03
    )
    ras = nibabel.affines.apply_affine(image.affine, np.argwhere(values == 4)).mean(axis=0)
    weights = stack.voxel_volumes_ml[np.argwhere(inside)[:, 0]]
    wanted = np.average(points[inside], axis=0, weights=weights)
    assert np.allclose(ras * [-1, -1, 1], wanted, atol=0.5)
    head = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(planes.head_nifti(study))).dataobj)
    assert head.shape == values.shape
    assert head.max() == 35


def test_three_planes_need_geometry() -> None:
    from hemolens.errors import InputError

    study = study_of(Volume(np.zeros((3, 4, 5), np.float32), None, SourceInfo("images", "slices")))
    with pytest.raises(InputError, match="slices: three planes need"):
        planes.head_nifti(study)


def test_both_ways_to_find_an_index_agree() -> None:
    stack = Stack(
        np.array([[10.0, 0, 0], [10, 1, 4], [10, 3, 12], [10, 4, 15]]),
        np.tile([-1.0, 0, 0], (4, 1)),
        np.tile([0, -1.0, 0], (4, 1)),
        np.tile([0.5, 0.7], (4, 1)),
    )
    axes = (np.linspace(-30, 30, 7), np.linspace(-25, 28, 6), np.linspace(-9, 30, 11))
    for fast, slow in zip(planes._even_index(stack, *axes), planes._any_index(stack, *axes), strict=True):
        assert np.allclose(fast, slow, atol=1e-9)
