from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from hemolens.geometry import Stack
from hemolens.measurements.lesions import (
    MIN_LESION_ML,
    MIN_LESION_SHARE,
    find_lesions,
    number_lesions,
    smallest_size,
)
from hemolens.measurements.regions import LINK_MAX_GAP_MM, SPLIT_ML, Scale, find_patches
from phantom import Ellipsoid, build_stack, lesions_on_stacks, sample
from predictions import predict, volume_of

AXIAL = np.eye(3)


def grid(slices: int = 10, gap: float = 5.0, pixel: float = 1.0) -> Stack:
    return Stack.regular(slices, spacing_mm=(pixel, pixel), step_mm=(0, 0, gap))


@settings(max_examples=15)
@given(lesions_on_stacks())
def test_an_ellipsoid_is_one_lesion_of_its_volume_and_centroid_on_any_stack(case) -> None:
    truth, stack, (rows, columns) = case
    mask = sample(stack, rows, columns, truth)
    label_map, lesions = find_lesions(mask.volume, predict(mask.labels))
    assert len(lesions) == 1
    found = lesions[0]
    assert found.volume_ml == pytest.approx(truth.volume_ml, rel=0.01)
    assert found.area_px is None
    assert np.allclose(found.centroid_mm, truth.center_mm, atol=0.3)
    assert (label_map.labels == mask.labels).all()
    assert label_map.volume_ml() == pytest.approx(found.volume_ml)
    assert found.slices == tuple(np.flatnonzero(mask.labels.any(axis=(1, 2))))


@settings(max_examples=20)
@given(lesions_on_stacks())
def test_extents_are_the_shadow_of_the_ellipsoid_on_each_axis(case) -> None:
    truth, stack, (rows, columns) = case
    mask = sample(stack, rows, columns, truth)
    (found,) = find_lesions(mask.volume, predict(mask.labels))[1]
    axes = stack.row_directions[0], stack.column_directions[0], stack.normal
    gap = np.diff(stack.offsets_mm).max()
    for length, axis, voxel in zip(found.extent_mm, axes, (*stack.spacings_mm.max(axis=0)[::-1], gap), strict=True):
        assert length == pytest.approx(2 * truth.half_width_along(axis), abs=1.5 * voxel + 0.06 * length)


def test_lesions_are_numbered_by_size_and_carry_their_hu() -> None:
    small = Ellipsoid((20, 20, 20), (8, 8, 9), subtype=2)
    large = Ellipsoid((60, 60, 22), (12, 14, 11), subtype=4)
    mask = sample(grid(pixel=0.5), 160, 160, small, large)
    mask.volume.hu[mask.labels == 2] = 71
    label_map, lesions = find_lesions(mask.volume, predict(mask.labels))
    assert [(lesion.id, lesion.subtype) for lesion in lesions] == [(1, "intraparenchymal"), (2, "subdural")]
    assert [lesion.mean_hu for lesion in lesions] == pytest.approx([65, 71])
    numbers = number_lesions(label_map)
    assert (numbers[mask.labels == 4] == 1).all()
    assert (numbers[mask.labels == 2] == 2).all()


def test_each_patch_of_a_slice_is_weighed_by_its_own_pixels() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 20, 24)).astype(np.uint8)
    patches = find_patches(labels, grid(3), Scale(np.array([1.0, 2.0, 3.0]), False))
    assert len(patches) > 100
    for number in range(len(patches)):
        where = np.argwhere(patches.map == number + 1)
        assert set(where[:, 0]) == {patches.slices[number]}
        assert set(labels[tuple(where.T)]) == {patches.subtypes[number]}
        assert patches.sizes[number] == len(where) * (1 + patches.slices[number])


def test_equal_lesions_are_numbered_from_the_bottom_up() -> None:
    labels = np.zeros((10, 40, 40), np.uint8)
    labels[7, 5:15, 5:15] = labels[1, 20:30, 20:30] = 4
    label_map, lesions = find_lesions(volume_of(labels.shape, grid()), predict(labels))
    assert [lesion.slices for lesion in lesions] == [(1,), (7,)]
    assert number_lesions(label_map)[1].max() == 1


def test_what_is_below_the_smallest_size_is_no_lesion_and_not_in_the_label_map() -> None:
    labels = np.zeros((10, 60, 60), np.uint8)
    voxels = round(MIN_LESION_ML / 0.005)
    labels[3, 10, 10 : 10 + voxels] = 4
    labels[6, 40, 10 : 10 + voxels - 1] = 4
    label_map, lesions = find_lesions(volume_of(labels.shape, grid()), predict(labels))
    assert [lesion.slices for lesion in lesions] == [(3,)]
    assert not label_map.labels[6].any()


def test_a_leaning_sheet_on_thick_slices_stays_whole() -> None:
    """A subdural under the convexity: 2 mm thick, 4 mm farther in on each 5 mm slice, its pixels never touching."""
    labels = np.zeros((8, 130, 200), np.uint8)
    for k in range(8):
        labels[k, 5:125, 20 + 8 * k : 24 + 8 * k] = 2
    volume = volume_of(labels.shape, grid(8, pixel=0.5))
    assert len(find_lesions(volume, predict(labels))[1]) == 1
    thin = volume_of(labels.shape, grid(8, gap=1.0, pixel=0.5))
    assert len(find_lesions(thin, predict(labels))[1]) == 8


def test_pixels_that_meet_at_a_corner_across_slices_are_one_lesion() -> None:
    labels = np.zeros((4, 50, 50), np.uint8)
    labels[1, 10:20, 10:20] = labels[2, 20:30, 20:30] = 4
    assert len(find_lesions(volume_of(labels.shape, grid(4, gap=1.0)), predict(labels))[1]) == 1
    assert len(find_lesions(volume_of(labels.shape, None), predict(labels))[1]) == 1
    labels[2] = 0
    labels[2, 22:32, 22:32] = 4
    assert len(find_lesions(volume_of(labels.shape, grid(4, gap=1.0)), predict(labels))[1]) == 2
    assert len(find_lesions(volume_of(labels.shape, None), predict(labels))[1]) == 2


def test_gantry_tilt_is_followed_when_slices_are_linked() -> None:
    """A straight rod along the normal drifts by 20 pixels a slice in a steeply sheared stack, and is one lesion."""
    stack = build_stack(AXIAL, [5.0] * 9, (0.5, 0.5), lean=(0.0, 2.0))
    rod = Ellipsoid((50.0, 120.0, 22.0), (4.0, 4.0, 300.0))
    mask = sample(stack, 320, 200, rod)
    assert all(mask.labels[k].any() for k in range(10))
    assert len(find_lesions(mask.volume, predict(mask.labels))[1]) == 1
    straight = volume_of(mask.labels.shape, grid(10, pixel=0.5))
    assert len(find_lesions(straight, predict(mask.labels))[1]) == 10


def test_a_turn_and_another_pixel_size_between_slices_are_followed() -> None:
    stack = build_stack(
        AXIAL, [5.0] * 5, [(0.5, 0.5)] * 3 + [(0.8, 0.8)] * 3, turns_deg=[0, 0, 0, -20, -20, -20], origin_mm=(0, 0, 0)
    )
    rod = Ellipsoid((40.0, 60.0, 12.0), (4.0, 4.0, 300.0))
    mask = sample(stack, 200, 200, rod)
    assert all(mask.labels[k].any() for k in range(6))
    assert len(find_lesions(mask.volume, predict(mask.labels))[1]) == 1


def test_lesions_are_not_joined_across_missing_slices() -> None:
    labels = np.zeros((6, 40, 40), np.uint8)
    labels[2:4, 10:20, 10:20] = 4
    for gap, count in ((LINK_MAX_GAP_MM - 0.1, 1), (LINK_MAX_GAP_MM + 0.1, 2)):
        stack = build_stack(AXIAL, [5, 5, gap, 5, 5], (1, 1))
        assert len(find_lesions(volume_of(labels.shape, stack), predict(labels))[1]) == count


def test_a_bleed_that_breaks_into_the_ventricle_is_two_lesions() -> None:
    """Touching parts of two subtypes, both substantial: split where the network's subtypes meet."""
    labels = np.zeros((6, 80, 80), np.uint8)
    labels[1:5, 10:40, 10:40] = 4
    labels[1:5, 10:40, 40:52] = 5
    label_map, lesions = find_lesions(volume_of(labels.shape, grid(6)), predict(labels))
    assert [lesion.subtype for lesion in lesions] == ["intraparenchymal", "intraventricular"]
    assert (label_map.labels == labels).all()
    assert lesions[1].volume_ml == pytest.approx(4 * 30 * 12 * 0.005)


def test_specks_of_another_subtype_take_that_of_their_surroundings() -> None:
    labels = np.zeros((6, 80, 80), np.uint8)
    labels[1:5, 10:50, 10:50] = 4
    labels[1:5, 20:24, 20:24] = 1
    labels[1:3, 48:50, 10:50] = 2
    label_map, lesions = find_lesions(volume_of(labels.shape, grid(6)), predict(labels))
    assert [lesion.subtype for lesion in lesions] == ["intraparenchymal"]
    assert set(np.unique(label_map.labels)) == {0, 4}


def test_a_part_that_is_large_but_small_against_its_region_is_not_split_off() -> None:
    """Two milliliters of doubt in a bleed of forty."""
    labels = np.zeros((6, 100, 100), np.uint8)
    labels[1:5, 10:60, 10:50] = 4
    labels[2, 20:40, 50:70] = 5
    assert np.count_nonzero(labels == 5) * 0.005 > SPLIT_ML
    _, lesions = find_lesions(volume_of(labels.shape, grid(6)), predict(labels))
    assert [lesion.subtype for lesion in lesions] == ["intraparenchymal"]


def test_a_region_without_a_substantial_part_goes_by_majority() -> None:
    labels = np.zeros((3, 40, 40), np.uint8)
    labels[1, 10:16, 10:20] = 2
    labels[1, 10:16, 20:34] = 3
    label_map, lesions = find_lesions(volume_of(labels.shape, grid(3)), predict(labels))
    assert [lesion.subtype for lesion in lesions] == ["subarachnoid"]
    assert lesions[0].volume_ml == pytest.approx(6 * 24 * 0.005)
    assert lesions[0].volume_ml < SPLIT_ML
    assert set(np.unique(label_map.labels)) == {0, 3}


def test_majority_is_weighed_by_volume_not_by_voxels() -> None:
    """Two slices: fewer voxels, but each stands for a thicker slice."""
    labels = np.zeros((3, 30, 30), np.uint8)
    labels[0, 5:15, 5:11] = 2
    labels[2, 5:15, 5:10] = labels[1, 5:15, 5:10] = 4
    stack = build_stack(AXIAL, [1.0, 9.0], (1, 1))
    prediction = predict(labels)
    assert stack.extents_mm[0] * 6 < (stack.extents_mm[1] + stack.extents_mm[2]) * 5
    assert [x.subtype for x in find_lesions(volume_of(labels.shape, stack), prediction)[1]] == ["intraparenchymal"]
    upside = build_stack(AXIAL, [9.0, 1.0], (1, 1))
    labels = labels[::-1].copy()
    labels[labels == 4], labels[labels == 2] = 1, 2
    assert [x.subtype for x in find_lesions(volume_of(labels.shape, upside), predict(labels))[1]] == ["epidural"]


def test_blood_without_any_subtype_takes_the_slice_heads_word() -> None:
    labels = np.zeros((3, 40, 40), np.uint8)
    labels[1, 10:20, 10:20] = 4
    prediction = predict(labels)
    prediction.slice_probability[1, 1:] = [0.1, 0.2, 0.7, 0.3, 0.1]
    unnamed = replace(prediction, subtype=np.zeros_like(labels))
    assert [x.subtype for x in find_lesions(volume_of(labels.shape, grid(3)), unnamed)[1]] == ["subarachnoid"]


def test_confidence_is_of_the_surest_voxels_and_no_higher_than_its_slices() -> None:
    labels = np.zeros((3, 40, 40), np.uint8)
    labels[1, 10:30, 10:30] = 4
    prediction = predict(labels, sure=0.6)
    prediction.blood[1, 10:12, 10:30] = 0.8
    volume = volume_of(labels.shape, grid(3))
    assert find_lesions(volume, prediction)[1][0].probability == pytest.approx(0.8, abs=1e-3)
    prediction.slice_probability[1, 0] = 0.7
    assert find_lesions(volume, prediction)[1][0].probability == pytest.approx(0.7)


def test_without_geometry_lesions_have_pixels_and_no_millimeters() -> None:
    labels = np.zeros((3, 100, 100), np.uint8)
    labels[1, 10:20, 10:20] = 5
    labels[2, 60:61, 60:62] = 5
    volume = volume_of(labels.shape, None)
    assert smallest_size(volume) == pytest.approx(MIN_LESION_SHARE * 10_000)
    (lesion,) = find_lesions(volume, predict(labels))[1]
    assert (lesion.area_px, lesion.volume_ml, lesion.centroid_mm, lesion.extent_mm) == (100, None, None, None)


def test_a_single_slice_of_unknown_thickness_has_a_place_but_no_volume() -> None:
    labels = np.zeros((1, 40, 40), np.uint8)
    labels[0, 10:20, 10:20] = 5
    volume = volume_of(labels.shape, Stack.regular(1, spacing_mm=(0.5, 0.5)))
    assert not volume.has_volumes
    (lesion,) = find_lesions(volume, predict(labels))[1]
    assert (lesion.area_px, lesion.volume_ml, lesion.extent_mm) == (100, None, (5.0, 5.0, None))
    assert lesion.centroid_mm == pytest.approx((7.25, 7.25, 0))


def test_nothing_found_is_an_empty_map_and_no_lesion() -> None:
    labels = np.zeros((3, 20, 20), np.uint8)
    label_map, lesions = find_lesions(volume_of(labels.shape, grid(3)), predict(labels))
    assert lesions == ()
    assert not label_map.labels.any()
    assert not number_lesions(label_map).any()


def test_a_mask_of_noise_is_measured_in_bounded_time_and_counts_every_voxel_once() -> None:
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((12, 96, 96)) < 0.3, rng.integers(1, 6, (12, 96, 96)), 0).astype(np.uint8)
    label_map, lesions = find_lesions(volume_of(labels.shape, grid(12)), predict(labels))
    assert sum(lesion.volume_ml for lesion in lesions) == pytest.approx(label_map.volume_ml())
    assert len(lesions) == number_lesions(label_map).max()
