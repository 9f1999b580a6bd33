"""What a `Volume` and a `LabelMap` promise, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from hemolens.errors import GeometryError, InputError
from hemolens.geometry import Stack
from hemolens.notes import QualityNote, Severity
from hemolens.volume import DisplayWindow, LabelMap, SourceInfo, Volume
from phantom import build_stack

SOURCE = SourceInfo("dicom", "1.2.3")


def make(slices: int = 3, stack: Stack | None = None, **source: object) -> Volume:
    """Return a volume of air."""
    info = SourceInfo("dicom", "1.2.3", **source)  # type: ignore[arg-type]
    return Volume(np.full((slices, 4, 5), -1000, np.int16), stack, info)


def test_shape_and_length() -> None:
    volume = make()
    assert volume.shape == (3, 4, 5)
    assert len(volume) == 3


@pytest.mark.parametrize("shape", [(4, 5), (1, 2, 3, 4), (0, 4, 5), (3, 0, 5), ()])
def test_volume_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"1\.2\.3: the image has shape"):
        Volume(np.zeros(shape, np.int16), None, SOURCE)


def test_volume_refuses_a_stack_of_other_length() -> None:
    with pytest.raises(InputError, match="3 slices but 2 positions"):
        make(3, Stack.regular(2))


def test_without_geometry_there_are_no_millimeters() -> None:
    volume = make()
    assert not volume.has_volumes
    with pytest.raises(InputError, match="no geometry"):
        _ = volume.affine
    mask = LabelMap(np.ones(volume.shape, np.uint8), volume)
    assert np.isnan(mask.volume_ml())
    assert np.isnan(mask.volume_ml(1))


def test_one_slice_of_unknown_thickness_has_no_milliliters() -> None:
    volume = make(1, Stack.regular(1))
    assert not volume.has_volumes
    assert np.isnan(LabelMap(np.ones(volume.shape, np.uint8), volume).volume_ml())


def test_one_slice_of_known_thickness_has_milliliters() -> None:
    volume = make(1, Stack.regular(1, spacing_mm=(2, 3), thickness_mm=5))
    labels = np.zeros(volume.shape, np.uint8)
    labels[0, 0, :2] = 1
    assert LabelMap(labels, volume).volume_ml() == pytest.approx(2 * 2 * 3 * 5 / 1000)


def test_affine_is_the_stack_s_and_refuses_as_it_does() -> None:
    even = Stack.regular(3, step_mm=(0, 0, 5))
    np.testing.assert_array_equal(make(3, even).affine, even.affine)
    with pytest.raises(GeometryError, match="no single affine"):
        _ = make(3, build_stack(np.eye(3), [5, 9], (1, 1))).affine


def test_every_slice_counts_with_its_own_area_and_extent() -> None:
    stack = build_stack(np.eye(3), [2, 4], [[1, 1], [1, 1], [0.5, 0.5]])
    volume = make(3, stack)
    labels = np.zeros(volume.shape, np.uint8)
    labels[0, 0, 0] = 1
    labels[1, 0, 0] = 2
    labels[2, 0, 0] = 2
    mask = LabelMap(labels, volume)
    assert mask.volume_ml(1) == pytest.approx(2 / 1000)
    assert mask.volume_ml(2) == pytest.approx((3 + 0.25 * 4) / 1000)
    assert mask.volume_ml(3) == 0
    assert mask.volume_ml() == pytest.approx(mask.volume_ml(1) + mask.volume_ml(2))


def test_mask_must_have_the_shape_of_its_volume() -> None:
    with pytest.raises(InputError, match="cannot belong"):
        LabelMap(np.zeros((3, 4, 4), np.uint8), make())


def test_notes_are_added_and_the_volume_stays_as_it_was() -> None:
    volume = make()
    note = QualityNote("gantry_tilt", Severity.INFO, "18.5 degrees")
    noted = volume.with_notes(note).with_notes(note)
    assert noted.notes == (note, note)
    assert volume.notes == ()
    assert noted.hu is volume.hu


def test_slices_are_named_as_their_source_names_them() -> None:
    assert make(3, slice_names=("a.dcm", "b.dcm", "c.dcm")).slice_label(1) == "b.dcm"
    assert make(3).slice_label(1) == "1"


def test_window_limits() -> None:
    window = DisplayWindow()
    assert (window.low_hu, window.high_hu) == (-20, 100)


@pytest.mark.parametrize(("level", "width"), [(40, 0), (40, -1), (np.nan, 80), (40, np.inf)])
def test_window_refuses(level: float, width: float) -> None:
    with pytest.raises(ValueError, match="window"):
        DisplayWindow(level, width)
