from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hemolens.geometry import Stack, normal_of
from hemolens.measurements.lesions import number_lesions
from hemolens.reports.figures import BLOOD_WINDOW, Illustrator, View, key_slices, spread
from hemolens.volume import DisplayWindow, LabelMap, SourceInfo, Volume
from phantom import ORIENTATIONS
from predictions import analyzed, bleeding_head, phantom_head

DIRECTION = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "F": (0, 0, -1), "H": (0, 0, 1)}
SHOWN = {0: "APHF", 1: "RLHF", 2: "RLAP"}
"""Left, right, top and bottom of a sagittal, a coronal and an axial picture."""


def scan(row, column, labels: np.ndarray | None = None, spacing=(1.0, 1.0)) -> LabelMap:
    """Three slices of 40 by 60 with one bright dot near a corner."""
    normal = normal_of(row, column)
    stack = Stack.regular(3, (0, 0, 0), row, column, spacing, 5 * normal)
    hu = np.full((3, 40, 60), -1000, np.int16)
    hu[:, 4:36, 6:54] = 30
    if labels is None:
        labels = np.zeros(hu.shape, np.uint8)
    return LabelMap(labels, Volume(hu, stack, SourceInfo("dicom", "scan")))


def picture_of(label_map: LabelMap, index: int = 1, height: int = 200):
    return Illustrator(label_map, ()).picture(index, height)


def pixels(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)


@pytest.mark.parametrize(("row", "column"), ORIENTATIONS)
def test_every_orientation_is_shown_the_radiological_way(row, column) -> None:
    """A bright dot toward the patient's left, back and feet lies where that is in the picture, and the letters say
    so."""
    label_map = scan(row, column)
    hu, stack = label_map.volume.hu, label_map.volume.stack
    corner = max(
        [(5, 7), (5, 52), (34, 7), (34, 52)],
        key=lambda rc: float(stack.index_to_mm([1, *rc]) @ np.array([1.0, 1.0, -1.0])),
    )
    hu[1, corner[0] - 1 : corner[0] + 2, corner[1] - 1 : corner[1] + 2] = 400
    view = View.of(stack, 1)
    axis = int(np.argmax(np.abs(stack.normal)))
    assert view.left + view.right + view.top + view.bottom == SHOWN[axis]
    image = pixels(picture_of(label_map))
    r, c = np.unravel_index(image.argmax(), image.shape)
    # Left, back and feet are on the right and at the bottom in all three conventions; A-P is left to right in a
    # sagittal one.
    assert c > image.shape[1] / 2
    assert r > image.shape[0] / 2


@pytest.mark.parametrize(("row", "column"), ORIENTATIONS)
def test_the_letters_name_the_directions_of_the_picture(row, column) -> None:
    stack = scan(row, column).volume.stack
    view = View.of(stack, 0)
    index = np.indices((40, 60)).transpose(1, 2, 0)
    shown = np.stack([view.turn(index[..., i]) for i in (0, 1)], axis=-1)
    top_left, top_right, bottom_left = (stack.index_to_mm([0, *shown[i]]) for i in ((0, 0), (0, -1), (-1, 0)))
    assert (top_right - top_left) @ DIRECTION[view.right] > 0
    assert (top_left - top_right) @ DIRECTION[view.left] > 0
    assert (bottom_left - top_left) @ DIRECTION[view.bottom] > 0
    assert (top_left - bottom_left) @ DIRECTION[view.top] > 0


def test_a_tilted_axial_stack_keeps_its_letters() -> None:
    a = np.radians(25)
    view = View.of(scan((1, 0, 0), (0, np.cos(a), -np.sin(a))).volume.stack, 0)
    assert (view.left, view.right, view.top, view.bottom) == ("R", "L", "A", "P")


def test_pixels_are_shown_in_their_true_proportion() -> None:
    wide = picture_of(scan((1, 0, 0), (0, 1, 0), spacing=(1.0, 0.5)), height=300)
    turned = picture_of(scan((0, 1, 0), (1, 0, 0), spacing=(0.5, 1.0)), height=300)
    for picture in (wide, turned):
        on = pixels(picture) > 60
        height, width = on.any(axis=1).sum(), on.any(axis=0).sum()
        # 32 rows by 48 columns of tissue: 32 by 24 mm, and 48 by 16 mm turned by a right angle.
        expected = 24 / 32 if picture is wide else 16 / 48
        assert width / height == pytest.approx(expected, rel=0.05)


def test_without_geometry_a_slice_is_shown_as_given_without_letters() -> None:
    given = scan((1, 0, 0), (0, 1, 0))
    given.volume.hu[1, 34, 7] = 400
    bare = LabelMap(given.labels, replace(given.volume, stack=None))
    picture = picture_of(bare)
    assert picture.view == View()
    r, c = np.unravel_index(pixels(picture).argmax(), pixels(picture).shape)
    assert r > picture.height / 2
    assert c < picture.width / 2


@pytest.mark.parametrize(("row", "column"), ORIENTATIONS[::5])
def test_an_outline_encloses_the_blood_that_is_seen(row, column) -> None:
    labels = np.zeros((3, 40, 60), np.uint8)
    labels[1, 10:20, 15:40] = 4
    labels[1, 25:31, 40:50] = 2
    label_map = scan(row, column, labels)
    label_map.volume.hu[labels > 0] = 200
    _, final, findings = analyzed(label_map.volume, labels)
    picture = Illustrator(final, findings.lesions).picture(1, 400)
    bright = pixels(picture) > 175
    assert len(picture.outlines) == 2
    for outline in picture.outlines:
        points = np.array(re.findall(r"([\d.]+) ([\d.]+)", outline.path), float)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        inside = bright[round(y0) + 2 : round(y1) - 2, round(x0) + 2 : round(x1) - 2]
        assert inside.mean() > 0.99
        assert outline.path.startswith("M")
        assert outline.path.endswith("Z")
        bright[round(y0) - 4 : round(y1) + 5, round(x0) - 4 : round(x1) + 5] = False
    assert not bright.any()
    assert {o.subtype.name for o in picture.outlines} == {"intraparenchymal", "subdural"}
    assert {o.lesion for o in picture.outlines} == {1, 2}


def test_a_line_one_pixel_wide_and_a_hole_are_outlined() -> None:
    labels = np.zeros((3, 40, 60), np.uint8)
    labels[:, 10, 10:50] = 2
    labels[:, 20:34, 12:40] = 4
    labels[:, 25:29, 20:30] = 0
    label_map = scan((1, 0, 0), (0, 1, 0), labels)
    _, final, findings = analyzed(label_map.volume, labels)
    paths = {o.subtype.name: o.path for o in Illustrator(final, findings.lesions).picture(1, 400).outlines}
    assert paths["subdural"].count("M") == 1
    assert paths["intraparenchymal"].count("M") == 2


def test_the_head_fills_the_picture_and_no_lesion_is_cut() -> None:
    small = phantom_head(size=128, pixel_mm=3.0)
    labels = np.zeros(small.shape, np.uint8)
    labels[17, 4:8, 4:8] = 1
    plain = Illustrator(LabelMap(np.zeros_like(labels), small), ())
    picture = plain.picture(17, 300)
    rows = np.flatnonzero((pixels(picture) > 60).any(axis=1))
    assert np.ptp(rows) / picture.height > 0.85
    _, final, findings = analyzed(small, labels)
    (outline,) = Illustrator(final, findings.lesions).picture(17, 300).outlines
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", outline.path), float)
    assert points.min() > 0


def test_images_are_shown_in_their_own_window_and_ct_in_that_of_blood() -> None:
    label_map = scan((1, 0, 0), (0, 1, 0))
    assert Illustrator(label_map, ()).window == BLOOD_WINDOW
    window = DisplayWindow(50, 150)
    images = replace(label_map.volume, stack=None, source=SourceInfo("images", "x", window=window))
    assert Illustrator(LabelMap(label_map.labels, images), ()).window == window


def test_slices_that_are_turned_differently_are_each_shown_right() -> None:
    directions = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    stack = Stack(
        np.array([[0, 0, 0], [0, 0, 5.0]]), directions, np.array([[0, 1.0, 0], [-1.0, 0, 0]]), np.ones((2, 2))
    )
    label_map = LabelMap(
        np.zeros((2, 30, 50), np.uint8), Volume(np.zeros((2, 30, 50), np.int16), stack, SourceInfo("dicom", "x"))
    )
    first, second = (Illustrator(label_map, ()).picture(k, 100) for k in (0, 1))
    assert (first.view.transpose, second.view.transpose) == (False, True)
    assert first.width > first.height
    assert second.width < second.height
    assert {first.view.left, second.view.left} == {"R"}


def test_key_slices_show_every_lesion_before_more_of_the_largest() -> None:
    volume, labels = bleeding_head()
    labels[5:7, 60:70, 60:70] = 3
    _, label_map, findings = analyzed(volume, labels)
    numbers, scores = number_lesions(label_map), np.zeros(len(volume))
    key = key_slices(numbers, findings.lesions, scores)
    assert key == sorted(key)
    assert len(key) <= 6
    for lesion in findings.lesions:
        assert set(key) & set(lesion.slices)
    assert len(key_slices(numbers, findings.lesions, scores, most=2)) == 2


def test_without_lesions_the_likeliest_slices_are_shown() -> None:
    empty = np.zeros((8, 4, 4), np.uint16)
    assert key_slices(empty, (), np.array([0.1, 0.9, 0.8, 0.2, 0.1, 0.7, 0.3, 0.6])) == [1, 5, 7]
    assert key_slices(empty[:1], (), np.array([0.3])) == [0]


@pytest.mark.parametrize(("count", "most"), [(1, 40), (40, 40), (41, 40), (500, 40)])
def test_a_montage_is_bounded_and_reaches_both_ends(count: int, most: int) -> None:
    shown = spread(count, most)
    assert len(shown) == len(set(shown)) == min(count, most)
    assert (shown[0], shown[-1]) == (0, count - 1)
