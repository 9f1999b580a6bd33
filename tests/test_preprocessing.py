"""The way to the network's grid and back: nothing may move, mirror or get lost on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hemolens.errors import GeometryError
from hemolens.geometry import Stack
from hemolens.preprocessing.head import (
    CLOSING_SHARES,
    brain_inside,
    find_crop,
    gate,
    head_masks,
    skull_inside,
    whole_slice,
)
from hemolens.preprocessing.morphology import dilated, eroded, filled, grown, opened
from hemolens.preprocessing.pipeline import Orientation, Prepared, PreprocessConfig, contexts, prepare, slice_step
from hemolens.preprocessing.resample import Crop
from hemolens.preprocessing.window import restore_ends, to_gray, to_hu
from hemolens.volume import DisplayWindow, SourceInfo, Volume
from phantom import ORIENTATIONS, build_stack, voxel_centers_mm

AXIAL = [(r, c) for r, c in ORIENTATIONS if abs(np.cross(r, c)[2]) == 1]
"""The eight ways to lay out an axial slice."""


def head(stack: Stack, rows: int, columns: int, center_mm: np.ndarray, lesion_mm: np.ndarray) -> Volume:
    """Return a head in air: an ellipsoid of brain in a skull, with one bright ball in it."""
    points = (voxel_centers_mm(stack, rows, columns) - center_mm).astype(np.float32)
    radius = length(points / np.array([60.0, 75.0, 70.0], np.float32))
    hu = np.full(radius.shape, -1000, dtype=np.int16)
    hu[radius < 1.0] = 1000
    hu[radius < 0.9] = 35
    hu[length(points - (lesion_mm - center_mm).astype(np.float32)) < 14.0] = 70
    return Volume(hu, stack, SourceInfo("dicom", "phantom"))


def length(vectors: np.ndarray) -> np.ndarray:
    """Return Euclidean lengths, several times as fast as NumPy's own on many short vectors."""
    return np.sqrt(np.einsum("...i,...i", vectors, vectors))


def bright(prepared: Prepared) -> np.ndarray:
    """Stand in for a network: blood is what is bright in the middle slice of what the network is shown."""
    middle = prepared.contexts[:, 1]
    near_bone = np.stack([ndimage.binary_dilation(image >= 200, iterations=3) for image in middle])
    return (prepared.gates & (middle > 152) & ~near_bone).astype(np.float32)  # half-way from brain to the ball


@st.composite
def axial_heads(draw: st.DrawFn) -> tuple[Volume, np.ndarray]:
    row, column = draw(st.sampled_from(AXIAL))
    frame = np.array([row, column, np.cross(row, column)], float)
    gaps = [draw(st.sampled_from([4.0, 5.0]))] * 14 + [draw(st.sampled_from([4.0, 5.0, 7.4]))] * 14
    lean = draw(st.sampled_from([(0.0, 0.0), (0.0, 0.33), (0.0, -0.3), (0.1, 0.2)]))
    spacing = draw(st.sampled_from([(1.0, 1.0), (0.9, 0.9), (1.0, 1.3)]))
    rows, columns = 220, 200
    center = np.array(draw(st.tuples(*[st.integers(-200, 200)] * 3)), float)
    height = float(np.sum(gaps))
    corner = -(rows / 2 * spacing[0] + lean[1] * height / 2) * frame[1] - height / 2 * frame[2]
    corner = corner - (columns / 2 * spacing[1] + lean[0] * height / 2) * frame[0]
    stack = build_stack(frame, gaps, spacing, lean, center + corner)
    offset = np.array(draw(st.tuples(st.integers(-15, 15), st.integers(-20, 20), st.integers(-15, 15))), float)
    return head(stack, rows, columns, center, center + offset), center + offset


@pytest.mark.slow
@settings(max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # a case is too slow to shrink
@given(axial_heads(), st.sampled_from([PreprocessConfig(size=160), PreprocessConfig(size=192, crop="none")]))
def test_a_lesion_stays_where_it_is_in_millimeters(case: tuple[Volume, np.ndarray], config: PreprocessConfig) -> None:
    volume, lesion_mm = case
    prepared = prepare(volume, config)
    found = prepared.restore(bright(prepared)) > 0.5
    assert found.any()
    where = np.argwhere(found)
    stack = volume.require_stack()
    found_mm = np.average(stack.index_to_mm(where), axis=0, weights=stack.voxel_volumes_ml[where[:, 0]])
    true = np.argwhere(volume.hu == 70)
    true_mm = np.average(stack.index_to_mm(true), axis=0, weights=stack.voxel_volumes_ml[true[:, 0]])
    assert np.linalg.norm(found_mm - true_mm) < 0.6  # half a sample of the network's grid
    assert np.linalg.norm(found_mm - lesion_mm) < 2.5  # slices up to 7.4 mm apart


@pytest.mark.parametrize(("row", "column"), AXIAL)
def test_the_network_sees_left_right_front_and_back_alike(row: tuple[float, ...], column: tuple[float, ...]) -> None:
    """Rows toward the back, columns toward the left, slices toward the head, however the source is laid out."""
    center = np.zeros(3)
    lesion = np.array([30.0, -40.0, 20.0])  # left, front, top
    frame = np.array([row, column, np.cross(row, column)], float)
    corner = -100 * frame[0] - 100 * frame[1] - 70 * frame[2]
    volume = head(build_stack(frame, [5.0] * 28, (1.0, 1.0), origin_mm=corner), 200, 200, center, lesion)
    prepared = prepare(volume, PreprocessConfig(size=96))
    slices, rows, columns = np.nonzero(bright(prepared))
    assert columns.mean() > 48
    assert rows.mean() < 48
    assert slices.mean() > 14


def test_slices_off_axial_are_refused() -> None:
    sagittal = Stack.regular(5, row_direction=(0, 1, 0), column_direction=(0, 0, -1))
    with pytest.raises(GeometryError, match="not axial"):
        Orientation.of(sagittal)


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.tuples(*[st.integers(1, 5)] * 3))
def test_undo_undoes(transpose: bool, rows: bool, columns: bool, slices: bool, shape: tuple[int, int, int]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    orientation = Orientation(transpose, rows, columns, slices)
    assert np.array_equal(orientation.undo(orientation.apply(array)), array)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(60, 200), st.integers(60, 200)),
    st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    st.tuples(st.floats(50, 150), st.floats(50, 150)),
    st.sampled_from([32, 64, 96]),
)
def test_a_crop_keeps_centers_and_sums(
    shape: tuple[int, int], start: tuple[float, float], extent: tuple[float, float], size: int
) -> None:
    crop = Crop(*start, *extent, size)
    center = (start[0] + extent[0] * 0.45, start[1] + extent[1] * 0.55)
    sigma = 0.08 * min(extent)
    if not all(4 * sigma < c < n - 1 - 4 * sigma for c, n in zip(center, shape, strict=True)):
        return
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / (2 * sigma**2))
    sampled = crop.extract(image)
    back = crop.restore(sampled, shape)
    weights = sampled / sampled.sum()
    at = crop.to_source(
        float((weights.sum(1) * np.arange(size)).sum()), float((weights.sum(0) * np.arange(size)).sum())
    )
    assert at == pytest.approx(center, abs=0.05)
    assert sampled.sum() * extent[0] * extent[1] / size**2 == pytest.approx(image.sum(), rel=0.02)
    again = back / back.sum()
    assert (again.sum(1) * np.arange(shape[0])).sum() == pytest.approx(center[0], abs=0.1)
    assert (again.sum(0) * np.arange(shape[1])).sum() == pytest.approx(center[1], abs=0.1)


def test_a_crop_of_the_very_grid_changes_nothing() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (48, 48)).astype(np.float32)
    crop = Crop(0.0, 0.0, 48.0, 48.0, 48)
    assert np.allclose(crop.extract(image), image, atol=1e-3)
    assert np.allclose(crop.restore(image, (48, 48)), image, atol=1e-3)


def test_what_lies_outside_the_image_or_the_crop_is_empty() -> None:
    ones = np.ones((40, 40), np.float32)
    beyond = Crop(-20.0, -20.0, 80.0, 80.0, 40).extract(ones)
    assert beyond[0, 0] == 0
    assert beyond[20, 20] == pytest.approx(1.0)
    back = Crop(10.0, 10.0, 20.0, 20.0, 40).restore(ones, (40, 40))
    assert back[9, 20] == 0
    assert back[10, 20] == back[29, 20] == pytest.approx(1.0)
    assert back[30, 20] == 0


@given(
    st.tuples(st.integers(20, 60), st.integers(20, 60)),
    st.tuples(st.floats(-90, 70), st.floats(-90, 70)),
    st.tuples(st.floats(5, 90), st.floats(5, 90)),
)
def test_what_a_crop_covers_is_what_it_restores(
    shape: tuple[int, int], start: tuple[float, float], extent: tuple[float, float]
) -> None:
    crop = Crop(*start, *extent, 32)
    covered = np.zeros(shape, dtype=bool)
    covered[crop.covered(shape)] = True
    assert np.array_equal(covered, crop.restore(np.ones((32, 32), np.float32), shape) > 0.5)


@pytest.mark.parametrize(("hu", "gray"), [(-1000, 0), (-20, 0), (40, 128), (100, 255), (3000, 255)])
def test_the_brain_window(hu: int, gray: int) -> None:
    assert to_gray(np.array([hu], np.int16))[0] == gray


def test_published_gray_values_pass_through_unchanged() -> None:
    gray = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_gray(to_hu(gray)), gray)
    wide = DisplayWindow(50, 300)
    assert np.array_equal(to_gray(to_hu(gray, wide), wide), gray)


class TestNarrowWindows:
    """Images that were cut off at a narrower window than the network's."""

    def cut_off(self, width_hu: float) -> tuple[Volume, Volume]:
        """Return a head with a bleed of 75 HU, and the same after it went through a window."""
        stack = build_stack(np.eye(3), [5.0] * 9, (1.0, 1.0), (0.0, 0.0), np.array([-100.0, -110.0, -22.5]))
        whole = head(stack, 220, 200, np.zeros(3), np.array([15.0, 10.0, 0.0]))
        hu = np.where(whole.hu == 70, 75, whole.hu).astype(np.float32)
        window = DisplayWindow(40, width_hu)
        shown = to_hu(to_gray(hu, window), window)
        return replace(whole, hu=hu), replace(whole, hu=shown, source=SourceInfo("images", "cut", window=window))

    @pytest.mark.parametrize("width_hu", [60, 80])
    def test_the_head_looks_as_it_does_in_the_usual_window(self, width_hu: float) -> None:
        whole, cut = self.cut_off(width_hu)
        one, other = prepare(whole, PreprocessConfig()), prepare(cut, PreprocessConfig())
        assert other.crop == one.crop
        assert np.array_equal(other.gates, one.gates)
        bleed = np.abs(one.crops.astype(int) - to_gray(np.array([75.0]))[0]) < 3
        assert bleed.sum() > 200
        assert (other.crops[bleed] < 250).all(), "blood that no bone touches is not shown as bone"
        rest = ndimage.binary_erosion(~ndimage.binary_dilation(bleed, iterations=2), iterations=1)
        assert np.abs(other.crops[rest].astype(int) - one.crops[rest]).mean() < 2

    def test_without_it_bone_and_air_would_be_gray(self) -> None:
        """What is mended here does happen."""
        _, cut = self.cut_off(60)
        gray = to_gray(cut.hu)
        assert (gray.min(), gray.max()) == (64, 191)
        mended = restore_ends(gray, cut.hu, cut.source.window)
        assert (mended.min(), mended.max()) == (0, 255)

    @pytest.mark.parametrize("window", [None, DisplayWindow(), DisplayWindow(40, 200)])
    def test_nothing_else_is_touched(self, window: DisplayWindow | None) -> None:
        whole, _ = self.cut_off(60)
        gray = to_gray(whole.hu)
        assert np.array_equal(restore_ends(gray, whole.hu, window), gray)


def ring(size: int = 224, gap: int = 0, thickness: float = 7.0) -> np.ndarray:
    """Return a slice of a skull, with a gap in its right side, a scalp hematoma beside it, and brain inside."""
    y, x = np.mgrid[:size, :size] - size // 2
    radius = np.hypot(y / 1.15, x)
    image = np.zeros((size, size), np.uint8)
    image[radius < 92] = 113
    image[(radius > 85 - thickness) & (radius < 85)] = 255
    if gap:
        image[(abs(y) < gap / 2) & (x > 0) & (radius < 86) & (radius > 84 - thickness)] = 113
    return image


@pytest.mark.parametrize("gap", [0, 5, 12, 18])
def test_the_gate_holds_the_brain_and_not_the_scalp(gap: int) -> None:
    image = ring(gap=gap)
    inside = gate(image)
    y, x = np.mgrid[:224, :224] - 112
    radius = np.hypot(y / 1.15, x)
    assert inside[radius < 76].all()
    assert not inside[(radius > 87) & (abs(y) > gap)].any()


@given(
    shape=st.tuples(st.integers(18, 70), st.integers(18, 70)), seed=st.integers(0, 2**32 - 1),
    coarse=st.floats(0.4, 4.0), share=st.floats(0.0, 1.0), reach=st.integers(1, 17),
)  # fmt: skip
@settings(max_examples=60)
def test_shapes_of_masks_are_those_of_scipy(
    shape: tuple[int, int], seed: int, coarse: float, share: float, reach: int
) -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), coarse)
    mask = field > np.quantile(field, share)
    assert np.array_equal(filled(mask), ndimage.binary_fill_holes(mask))
    assert np.array_equal(dilated(mask, 2), ndimage.binary_dilation(mask, iterations=2))
    assert np.array_equal(eroded(mask, 2), ndimage.binary_erosion(mask, iterations=2))
    assert np.array_equal(opened(mask, 2), ndimage.binary_opening(mask, iterations=2))
    near = ndimage.distance_transform_edt(~mask) <= reach if mask.any() else mask
    assert np.array_equal(grown(mask, reach), near)


def test_the_gate_opens_where_the_skull_is_not_closed() -> None:
    half = ring()
    half[:, 112:] = np.where(half[:, 112:] == 255, 0, half[:, 112:])
    assert gate(half)[half < 255].all()
    assert gate(half)[half == 255].mean() < 0.02
    assert gate(np.zeros((224, 224), np.uint8)).all()
    assert not skull_inside(np.zeros((224, 224), np.uint8)).any()


def test_an_orbit_that_opens_into_the_skull_is_no_brain() -> None:
    """At the skull base gaps of 11 mm lead from the brain into an orbit, and from there to the outside."""
    y, x = np.mgrid[:224, :224]
    brain, orbit = np.hypot(y - 130, x - 112), np.hypot(y - 28, x - 112)
    base = np.full((224, 224), 113, np.uint8)
    base[(brain < 83) | (orbit < 26)] = 255
    base[(brain < 75) | (orbit < 18) | ((abs(x - 112) < 6) & (y < 90))] = 113
    assert skull_inside(base, CLOSING_SHARES[:1]).mean() < 0.05
    assert skull_inside(base)[orbit < 15].all()
    found = brain_inside(base)
    assert found[brain < 73].mean() > 0.99
    assert not found[orbit < 15].any()
    assert found[brain > 78].mean() < 0.002


def test_inside_a_closed_skull_nothing_is_left_out() -> None:
    assert np.array_equal(brain_inside(ring()), skull_inside(ring()))
    assert not brain_inside(np.full((224, 224), 113, np.uint8)).any()


def test_bone_is_no_blood_where_a_slice_is_bone_for_the_most_part() -> None:
    """The top of the skull is a white disk in the scalp; the noise of dense blood is white specks."""
    y, x = np.mgrid[:224, :224] - 112
    radius = np.hypot(y, x)
    top = np.where(radius < 60, 113, 0).astype(np.uint8)
    top[radius < 40] = 255
    top[112 + 48 : 112 + 50, 112:114] = 255
    allowed = gate(top)
    assert not allowed[radius < 39].any()
    assert allowed[radius > 40].all()


def test_the_crop_holds_the_head_and_not_the_table() -> None:
    image = np.zeros((10, 400, 400), np.uint8)
    y, x = np.mgrid[:400, :400]
    image[:, np.hypot((y - 180) / 1.2, x - 210) < 90] = 120
    image[:, (y > 330) & (y < 338)] = 255
    crop = find_crop(image, 1.0, 64)
    assert crop.rows == crop.columns == pytest.approx(216 * 1.08, abs=8)
    assert crop.to_source(31.5, 31.5) == pytest.approx((180, 210), abs=3)
    assert head_masks(image).any(axis=(1, 2)).all()


def test_the_crop_is_square_in_millimeters() -> None:
    image = np.zeros((3, 200, 400), np.uint8)
    y, x = np.mgrid[:200, :400]
    image[:, np.hypot((y - 100) * 2, x - 200) < 90] = 120  # a circle where rows are twice as far apart
    crop = find_crop(image, 2.0, 64)
    assert crop.rows * 2.0 == pytest.approx(crop.columns)
    assert crop.columns == pytest.approx(180 * 1.08, abs=10)


def test_without_a_head_the_whole_image_is_taken() -> None:
    crop = find_crop(np.zeros((4, 100, 120), np.uint8), 1.0, 32)
    assert crop.columns == pytest.approx(120 * 1.08)


def test_thin_slices_are_averaged_to_the_thickness_that_networks_know() -> None:
    crops = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 32), np.uint8)
    thin = contexts(crops, np.arange(40) * 1.0, 5.0)
    assert thin[20, :, 0, 0].tolist() == [15, 20, 25]
    noisy = np.random.default_rng(0).normal(100, 10, (40, 32, 32)).astype(np.uint8)
    assert contexts(noisy, np.arange(40) * 1.0, 5.0)[20, 1].std() < 0.6 * noisy[20].std()


def test_thin_slices_show_what_one_thick_slice_of_their_hounsfield_units_shows() -> None:
    """The window comes after the mean in a scanner: bone in one thin slice of five whitens the thick one."""
    hu = np.random.default_rng(1).uniform(-19, 97, (5, 32, 32)).astype(np.float32)
    hu[2, :8], hu[1:4, 8:16], hu[:, 16:20] = 700.0, 700.0, 700.0
    merged = contexts(to_gray(hu), np.arange(5) * 1.0, 5.0)[2, 1]
    assert np.abs(merged.astype(int) - to_gray(hu.mean(axis=0))).max() <= 1
    assert (merged[:20] == 255).all()
    assert merged[20:].max() < 255


def test_noise_of_dense_blood_in_thin_slices_is_no_bone() -> None:
    hu = np.random.default_rng(2).normal(80, 8, (5, 64, 64)).astype(np.float32)
    assert (hu > 98).any(axis=0).mean() > 0.05, "a pixel in twenty is white in one of the slices"
    merged = to_hu(contexts(to_gray(hu), np.arange(5) * 1.0, 5.0)[2, 1])
    assert merged.mean() == pytest.approx(80, abs=0.5)
    assert merged.max() < 98


def test_thick_slices_see_their_neighbors_and_ends_themselves() -> None:
    crops = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 32), np.uint8)
    thick = contexts(crops, np.arange(6) * 5.0, 5.0)
    assert thick[2, :, 0, 0].tolist() == [1, 2, 3]
    assert thick[0, :, 0, 0].tolist() == [0, 0, 1]
    assert thick[5, :, 0, 0].tolist() == [4, 5, 5]


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        PreprocessConfig(size=100)


@pytest.mark.parametrize(
    ("shape", "aspect", "rows", "columns"),
    [((80, 80), 1.0, 80, 80), ((60, 100), 1.0, 100, 100), ((100, 60), 1.0, 100, 100), ((50, 100), 2.0, 50, 100)],
)
def test_a_whole_slice_is_padded_to_a_square_around_its_middle(
    shape: tuple[int, int], aspect: float, rows: float, columns: float
) -> None:
    crop = whole_slice(shape, aspect, 32)
    assert (crop.rows, crop.columns) == pytest.approx((rows, columns))
    assert crop.to_source(15.5, 15.5) == pytest.approx(((shape[0] - 1) / 2, (shape[1] - 1) / 2))
    image = np.full(shape, 200.0, np.float32)
    assert (crop.restore(crop.extract(image), shape) > 100).all()  # nothing of the slice is left out
    assert np.count_nonzero(crop.extract(image) > 100) == pytest.approx(
        32 * 32 * shape[0] * shape[1] / (crop.rows * crop.columns), rel=0.1
    )


def test_a_whole_slice_of_the_size_of_the_network_passes_unchanged() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    volume = Volume(to_hu(gray), None, SourceInfo("images", "noise"))
    prepared = prepare(volume, PreprocessConfig(size=64, crop="none", gate=False))
    assert np.array_equal(prepared.crops, gray)
    assert prepared.gates.all()
    assert np.array_equal(prepared.restore(gray.astype(np.float32)), gray)


def test_the_gate_is_closed_only_where_it_is_asked_for() -> None:
    volume = Volume(to_hu(np.stack([ring()] * 2)), None, SourceInfo("images", "ring"))
    assert not prepare(volume, PreprocessConfig(size=224)).gates.all()
    assert prepare(volume, PreprocessConfig(size=224, gate=False)).gates.all()


@pytest.mark.parametrize(
    ("gaps", "step"), [([5.0] * 9, 1), ([1.0] * 30, 5), ([0.625] * 40, 8), ([7.4] * 9, 1), ([1.0] * 2, 3), ([], 1)]
)
def test_thin_slices_are_taken_as_far_apart_as_networks_know_them(gaps: list[float], step: int) -> None:
    assert slice_step(np.concatenate([[0.0], np.cumsum(gaps)]), 5.0) == step
    assert slice_step(-np.concatenate([[0.0], np.cumsum(gaps)]), 5.0) == step
