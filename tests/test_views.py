"""The views of a slice: which square a small head gets, and that what is seen in a view comes back to its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemolens.config import from_mapping
from hemolens.errors import ConfigError
from hemolens.inference.registry import Interface, load_model
from hemolens.inference.views import Answer, Float, answer_in_views
from hemolens.preprocessing.head import CROP_MARGIN, own_crop
from hemolens.preprocessing.pipeline import PreprocessConfig

SIZE, BRAIN, BONE, BLOOD = 128, 113, 255, 180
UNSEEN = 0.25


def head(rows: float, columns: float, row: float, column: float) -> np.ndarray:
    """A head of that height and width (bone around brain) centered there, with blood in its lower left quarter."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    radius = np.hypot((y - row) / (rows / 2), (x - column) / (columns / 2))
    image = np.where(radius < 1, BONE, 0)
    image[radius < 0.85] = BRAIN
    image[np.hypot(y - row - rows / 6, x - column + columns / 8) < 5] = BLOOD
    return image.astype(np.uint8)


class Pixels:
    """A network whose mask is the gray of each pixel, and whose slice head tells how many slices it was shown."""

    def __init__(self) -> None:
        self.shown: list[Float] = []

    def __call__(self, images: Float) -> Answer:
        self.shown.append(images)
        return {
            "mask": np.repeat(images[:, :1] / np.float32(255), 2, axis=1),
            "slice": np.full((len(images), 6), float(len(self.shown)), dtype=np.float32),
        }


@pytest.mark.parametrize("place", [(64, 64), (40, 50), (70, 90), (30, 96)])
@pytest.mark.parametrize("sides", [(60, 48), (44, 44), (40, 56)])
def test_the_square_is_centered_on_the_head_and_holds_it(place: tuple[int, int], sides: tuple[int, int]) -> None:
    crop = own_crop(head(*sides, *place), 0.9)
    assert crop is not None
    assert crop.rows == crop.columns == pytest.approx(max(sides) * CROP_MARGIN, abs=4)
    middle = crop.row_start + crop.rows / 2, crop.column_start + crop.columns / 2
    assert middle == pytest.approx(place, abs=1.5)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (head(120, 100, 64, 64), "as large as the crop"),
        (head(18, 18, 64, 64), "scalp"),
        (np.zeros((SIZE, SIZE), dtype=np.uint8), "no head"),
        (np.full((SIZE, SIZE), BRAIN, dtype=np.uint8), "nothing around it"),
    ],
)
def test_other_slices_have_no_square_of_their_own(image: np.ndarray, why: str) -> None:
    assert own_crop(image, 0.95) is None, why


def seen(*planes: np.ndarray) -> Float:
    return np.repeat(np.stack(planes)[:, None], 3, axis=1).astype(np.float32)


@pytest.mark.parametrize("mirror", [True, False])
def test_only_small_heads_are_enlarged_and_fill_the_second_view(mirror: bool) -> None:
    planes = head(120, 100, 64, 64), head(50, 40, 50, 80), head(120, 100, 64, 64)
    closer = [own_crop(plane, 0.9) for plane in planes]
    assert [crop is not None for crop in closer] == [False, True, False]
    network = Pixels()
    found = answer_in_views(seen(*planes), network, mirror=mirror, closer=closer)
    assert [len(shown) for shown in network.shown] == [3, 3 if mirror else 1]
    enlarged = network.shown[1][1 if mirror else 0, 0]
    assert np.ptp(np.flatnonzero((enlarged > 60).any(axis=1))) + 1 == pytest.approx(SIZE / CROP_MARGIN, abs=5)
    assert found["slice"][:, 0].tolist() == ([1.5, 1.5, 1.5] if mirror else [1, 1.5, 1])
    np.testing.assert_array_equal(found["mask"][[0, 2]], seen(*planes)[[0, 2], :2] / np.float32(255))
    if mirror:
        np.testing.assert_array_equal(network.shown[1][[0, 2]], network.shown[0][[0, 2], ..., ::-1])


def test_without_mirror_image_and_small_heads_there_is_one_view() -> None:
    network = Pixels()
    found = answer_in_views(seen(head(50, 40, 50, 80)), network, mirror=False, closer=[None])
    assert len(network.shown) == 1
    np.testing.assert_array_equal(found["mask"], seen(head(50, 40, 50, 80))[:, :2] / np.float32(255))


@settings(max_examples=60, deadline=None)
@given(st.floats(36, 90), st.floats(0.75, 1.3), st.floats(-0.9, 0.9), st.floats(-0.9, 0.9), st.booleans())
def test_what_is_seen_enlarged_comes_back_to_its_place(
    rows: float, shape: float, down: float, right: float, mirror: bool
) -> None:
    """Blood that only the second view shows lies, brought back, where it was: never shifted, turned or mirrored."""
    columns = min(rows * shape, 100)
    image = np.minimum(head(rows, columns, 64 + down * (60 - rows / 2), 64 + right * (60 - columns / 2)), BLOOD)
    image[image == BLOOD] = BRAIN  # no bone, whose blurred edge is as gray as blood
    middle = np.argwhere(image == BRAIN).mean(axis=0)
    y, x = int(middle[0] + rows / 6), int(middle[1] - columns / 8)
    image[y - 3 : y + 3, x - 2 : x + 6] = BLOOD
    crop = own_crop(image, 0.95)
    assert crop is not None
    calls = []

    def blind_at_first(shown: Float) -> Answer:
        calls.append(shown)
        blood = shown[:, :1] > (BRAIN + BLOOD) / 2
        return {"mask": blood.astype(np.float32) if len(calls) > 1 else np.zeros_like(shown[:, :1])}

    found = answer_in_views(seen(image), blind_at_first, mirror=mirror, closer=[crop])["mask"][0, 0]
    truth = np.argwhere(image == BLOOD)
    center = [(np.indices(image.shape)[axis] * found).sum() / found.sum() for axis in (0, 1)]
    assert center == pytest.approx(truth.mean(axis=0).tolist(), abs=0.35)
    assert 2 * found.sum() == pytest.approx(len(truth), rel=0.2)


def test_beyond_the_square_the_whole_slice_answers_alone() -> None:
    image = head(50, 40, 40, 44)
    crop = own_crop(image, 0.9)
    assert crop is not None
    first = iter([True, False])

    def run(shown: Float) -> Answer:
        return {"mask": np.full((len(shown), 1, SIZE, SIZE), UNSEEN if next(first) else 1.0, dtype=np.float32)}

    found = answer_in_views(seen(image), run, mirror=True, closer=[crop])["mask"][0, 0]
    y, x = np.indices(image.shape)
    within = (y >= crop.row_start) & (y <= crop.row_start + crop.rows - 1)
    within &= (x >= crop.column_start) & (x <= crop.column_start + crop.columns - 1)
    assert found[within] == pytest.approx((UNSEEN + 1) / 2, abs=1e-6)
    away = (y < crop.row_start - 1) | (y > crop.row_start + crop.rows) | (x < crop.column_start - 1)
    away |= x > crop.column_start + crop.columns
    assert found[away] == pytest.approx(UNSEEN, abs=1e-6)


@pytest.mark.parametrize("below", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(below: float) -> None:
    with pytest.raises((ConfigError, ValueError), match="enlarge_below"):
        from_mapping(PreprocessConfig, {"enlarge_below": below}, "preprocess")


@pytest.mark.parametrize("sample", ["volume", "scan"])
def test_networks_that_read_across_slices_are_refused(sample: str) -> None:
    interface = Interface(sample, channels=1, depth=8 if sample == "volume" else 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read slices one by one"):
        interface.check(PreprocessConfig(enlarge_below=0.9))
    interface.check(PreprocessConfig())
    with pytest.raises(ValueError, match="read slices one by one"):
        replace(load_model(), interface=interface)
