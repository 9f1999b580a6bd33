"""Corruptions change pixels and truth together: a score that falls must fall for the network's sake."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.evaluation.corruptions import (
    CORRUPTIONS,
    Change,
    Scan,
    jpeg,
    mirrored,
    moved,
    noise,
    of_whole_range,
    opened_skull,
    thicker,
    thinner,
    tilted,
    told_window,
    untold_window,
)
from hemolens.sources.datasets.cases import UNKNOWN
from hemolens.volume import DisplayWindow, SourceInfo, Volume
from predictions import bleeding_head


def scan(window: bool = False) -> Scan:
    """A head with a bright bleed, exactly where its labels say."""
    volume, labels = bleeding_head()
    hu = np.where(labels > 0, 75.0, volume.hu).astype(np.float32)
    if window:
        hu = np.clip(hu, -20, 100)
    source = SourceInfo("images", "head", window=DisplayWindow() if window else None)
    return Scan.of(Volume(hu, None, source), labels)


def change(corruption: Change, given: Scan) -> Scan:
    return corruption(given, np.random.default_rng(0))


def bleed(found: Scan) -> NDArray[np.bool_]:
    """Where the pixels themselves show the bleed: brighter than brain, darker than bone."""
    return np.asarray((found.hu > 55) & (found.hu < 90))


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.name)
def test_the_bleed_stays_where_the_labels_say(corruption) -> None:
    before = scan(window=True)
    after = change(corruption.change, before)
    assert after.hu.shape == after.labels.shape
    assert len(after.sources) == len(after.hu)
    assert after.hu.dtype == np.float32
    assert np.isfinite(after.hu).all()
    labeled = (after.labels > 0) & (after.labels < UNKNOWN)
    assert labeled.any()
    inside = np.stack([ndimage.binary_erosion(plane, iterations=2) for plane in labeled])
    inside &= ndimage.binary_erosion(labeled, np.ones((3, 1, 1)))
    outside = ~np.stack([ndimage.binary_dilation(p, iterations=4) for p in labeled.any(axis=0)[None]]) & (after.hu < 88)
    assert np.median(after.hu[inside]) > np.percentile(after.hu[outside & (after.hu > 0)], 75)
    assert not np.array_equal(after.hu, before.hu)
    assert len({c.name for c in CORRUPTIONS}) == len(CORRUPTIONS)


def test_the_published_scan_is_left_as_it_is() -> None:
    before = scan(window=True)
    hu, labels = before.hu.copy(), before.labels.copy()
    for corruption in CORRUPTIONS:
        change(corruption.change, before)
    assert_array_equal(before.hu, hu)
    assert_array_equal(before.labels, labels)


def test_a_told_window_keeps_what_it_shows_and_an_untold_one_shifts_it() -> None:
    before = scan(window=True)
    told, untold = change(told_window(40, 60), before), change(untold_window(40, 60), before)
    shown = (before.hu >= 11) & (before.hu <= 69)
    assert np.abs(told.hu - before.hu)[shown].max() < 0.5
    assert told.hu.max() <= 70
    assert told.window == DisplayWindow(40, 60)
    at = np.abs(before.hu - 55) < 0.6
    assert np.allclose(untold.hu[at], 40 + 2 * (before.hu[at] - 40), atol=1.5) if at.any() else True
    assert untold.window == DisplayWindow()
    assert np.median(untold.hu[before.labels > 0]) == pytest.approx(100, abs=1), "75 HU lie above a window of 10 to 70"


def test_what_an_image_cut_off_stays_black_or_white_through_a_wider_window() -> None:
    """An 8-bit image shows bone at its upper end, 100 HU; a window of -60 to 140 HU would still show it white."""
    before = scan(window=True)
    after = change(untold_window(40, 200), before)
    bone, air = before.hu >= 99.5, before.hu <= -19.5
    assert bone.any()
    assert air.any()
    assert set(np.unique(after.hu[bone])) == {100.0}
    assert set(np.unique(after.hu[air])) == {-20.0}
    between = (before.hu > -15) & (before.hu < 95)
    assert np.allclose(after.hu[between], 40 + (before.hu[between] - 40) * 120 / 200, atol=0.5)


def test_bone_that_an_image_cut_off_is_mixed_as_bone() -> None:
    """Half a slice of bone and half of brain are white on a thick slice, not the gray of blood."""
    brain, bone, air = 35.0, 100.0, -20.0
    hu = np.full((2, 8, 8), brain, np.float32)
    hu[:, 0], hu[0, 2:4], hu[0, 6, 3:5] = air, bone, air
    cut = Scan(hu, np.zeros(hu.shape, np.uint8), ((0,), (1,)), DisplayWindow())
    thick = change(of_whole_range(thicker(2)), cut).hu[0]
    assert set(np.unique(thick[2:4])) == {100.0}
    assert set(np.unique(thick[0])) == {-20.0}
    assert set(np.unique(thick[6, 3:5])) == {7.5}, "what is black within the head is fluid or fat, not air"
    assert set(np.unique(thick[4])) == {brain}
    assert_array_equal(change(of_whole_range(thicker(2)), replace(cut, window=None)).hu, change(thicker(2), cut).hu)


def test_jpeg_loses_a_little_and_noise_has_its_strength() -> None:
    before = scan(window=True)
    stored = change(jpeg(60), before)
    assert 0 < np.abs(stored.hu - before.hu).mean() < 5
    assert (change(noise(5), before).hu - before.hu).std() == pytest.approx(5, rel=0.02)


def test_a_turn_there_and_back_is_none() -> None:
    before = scan(window=True)
    there = change(moved(20), before)
    back = change(moved(-20), there)
    overlap = (back.labels > 0) & (before.labels > 0)
    assert 2 * overlap.sum() / ((back.labels > 0).sum() + (before.labels > 0).sum()) > 0.9
    assert (there.labels > 0).sum() == pytest.approx((before.labels > 0).sum(), rel=0.05)


def test_scale_and_shift_do_what_they_say() -> None:
    before = scan(window=True)
    pixels = (before.labels > 0).sum()
    smaller = change(moved(scale=0.75), before)
    assert (smaller.labels > 0).sum() == pytest.approx(pixels * 0.75**2, rel=0.06)
    assert smaller.volume().require_stack().spacings_mm[0] == pytest.approx([0.6, 0.6]), "the head keeps its size"
    shifted = change(moved(shift=(0.12, -0.15)), before)
    rows, columns = before.hu.shape[1:]
    was, now = (np.argwhere(s.labels > 0).mean(axis=0)[1:] for s in (before, shifted))
    assert now - was == pytest.approx([0.12 * rows, -0.15 * columns], abs=1.0)


def test_mirrored_swaps_the_sides() -> None:
    before = scan()
    assert_array_equal(change(mirrored, before).hu[:, :, 0], before.hu[:, :, -1])
    assert_array_equal(change(mirrored, before).labels[:, :, 0], before.labels[:, :, -1])


def ramp(slices: int) -> Scan:
    """Slice k has the value k and the label k."""
    hu = np.broadcast_to(np.arange(slices, dtype=np.float32)[:, None, None], (slices, 6, 6)).copy()
    return Scan(hu, hu.astype(np.uint8), tuple((k,) for k in range(slices)), None)


def test_thick_slices_hold_what_they_are_made_of() -> None:
    twice = change(thicker(2), ramp(7))
    assert twice.hu[:, 0, 0].tolist() == [0.5, 2.5, 4.5], "an odd last slice fills no thick one"
    assert twice.sources == ((0, 1), (2, 3), (4, 5))
    half = change(thicker(1.5), ramp(6))
    assert half.hu[:, 0, 0] == pytest.approx([1 / 3, 5 / 3, 10 / 3, 14 / 3])
    assert half.sources == ((0, 1), (1, 2), (3, 4), (4, 5))
    assert half.labels[:, 0, 0].tolist() == [0, 2, 3, 5]
    assert len(change(thicker(2), ramp(1)).hu) == 1
    assert half.volume().require_stack().offsets_mm.tolist() == [0, 7.5, 15, 22.5]


def test_thin_slices_lie_between_their_neighbors() -> None:
    thin = change(thinner(5), ramp(3))
    assert thin.hu[:, 0, 0] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2, 2, 2])
    assert np.diff(thin.volume().require_stack().offsets_mm) == pytest.approx(1.0)
    assert [s[0] for s in thin.sources] == [0] * 5 + [1] * 5 + [2] * 5
    assert_array_equal(change(thinner(5), ramp(1)).hu, 0)


def test_a_tilt_shears_the_stack_and_names_every_slice_it_takes_from() -> None:
    rows, angle = 401, 15.0
    hu = np.broadcast_to(np.arange(30, dtype=np.float32)[:, None, None], (30, rows, 2)).copy()
    tilt = change(tilted(angle), Scan(hu, hu.astype(np.uint8), tuple((k,) for k in range(30)), None))
    rise = np.tan(np.deg2rad(angle)) * 0.45 / 5 * 200
    assert tilt.hu[15, [0, 200, 400], 0] == pytest.approx([15 - rise, 15, 15 + rise], abs=1e-4)
    assert tilt.sources[15] == tuple(range(int(15 - rise), int(np.ceil(15 + rise)) + 1))
    assert_array_equal(tilt.labels[15, :, 0], np.rint(tilt.hu[15, :, 0]))
    assert tilt.hu.min() >= 0
    assert tilt.hu.max() <= 29


def test_an_opened_skull_loses_bone_on_one_side_only_and_no_blood() -> None:
    before = scan()
    after = change(opened_skull, before)
    gone = (before.hu > 90) & (after.hu < 90)
    middle = len(before.hu) // 2
    columns = np.argwhere(gone[middle])[:, 1]
    center = before.hu.shape[2] / 2
    assert len(columns) > 20
    assert (columns > center).all() or (columns < center).all()
    assert 0.1 < gone[middle].sum() / (before.hu[middle] > 90).sum() < 0.4
    assert_array_equal(after.hu[before.labels > 0], before.hu[before.labels > 0])
