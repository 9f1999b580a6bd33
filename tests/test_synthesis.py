"""Painted bleeds: where they may be, what they leave alone, and that the mask tells the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hemolens.labels import SUBTYPE_NAMES
from hemolens.training.synthesis import PAINTERS, Painted, SynthesisConfig, paint


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return three slices of a noisy brain with dark ventricles and furrows, and the inside of its skull."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:224, :224] - 112
    radius = np.hypot(y / 1.1, x)
    image = np.zeros((224, 224))
    image[radius < 92] = 255
    inside = radius < 85
    image[inside] = 113
    image[(radius > 72) & inside & (np.sin(np.arctan2(y, x) * 30) > 0.7)] = 75
    image[(abs(y) < 22) & (abs(abs(x) - 9) < 5)] = 55
    noisy = image + rng.normal(0, 6, (3, 224, 224)) * (image > 0)
    return np.clip(noisy, 0, 255).astype(np.uint8), inside


def many(config: SynthesisConfig, count: int = 60) -> list[tuple[np.ndarray, np.ndarray, Painted]]:
    images, inside = scene()
    painted = [(images, inside, paint(images, inside, config, np.random.default_rng(i))) for i in range(count)]
    return [(a, b, c) for a, b, c in painted if c is not None]


def only(name: str) -> SynthesisConfig:
    weights = tuple(float(n == name) for n in SUBTYPE_NAMES)
    return SynthesisConfig(subtype_weights=weights, faint=0.0, hard_negative=0.0, second_bleed=0.0, edema=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUBTYPE_NAMES)
def test_each_kind_is_painted_where_it_belongs(name: str) -> None:
    index = SUBTYPE_NAMES.index(name) + 1
    cases = many(only(name))
    assert len(cases) >= 30
    for images, inside, painted in cases:
        mask = painted.labels > 0
        depth = ndimage.distance_transform_edt(inside)[mask]
        assert set(np.unique(painted.labels)) == {0, index}
        assert inside[mask].all()
        assert painted.subtypes.tolist() == [float(n == name) for n in SUBTYPE_NAMES]
        if name == "epidural":
            assert depth.min() < 4
        if name == "intraventricular":
            assert (images[1][mask] < 95).mean() > 0.5
        if name == "subarachnoid":
            assert np.median(ndimage.gaussian_filter(images[1].astype(float), 1)[mask]) < 108


def test_most_subdural_blood_hugs_the_skull() -> None:
    depths = [
        ndimage.distance_transform_edt(inside)[painted.labels > 0].min()
        for _, inside, painted in many(only("subdural"))
    ]
    assert np.mean(np.array(depths) < 4) > 0.7  # the rest lies along the falx


def test_the_mask_is_what_got_brighter() -> None:
    for images, _, painted in many(only("intraparenchymal")):
        change = painted.images[1].astype(float) - images[1]
        mask = painted.labels > 0
        assert change[mask].mean() > 8
        far = np.abs(change[~ndimage.binary_dilation(mask, iterations=8)])
        assert np.percentile(far, 99.9) < 5  # specks of half a weight may lie apart, no bleed may


def test_the_noise_of_the_scan_stays() -> None:
    for images, _, painted in many(only("intraparenchymal"), 20):
        core = ndimage.binary_erosion(painted.labels > 0, iterations=3)
        if core.sum() > 200:
            fine = painted.images[1] - ndimage.gaussian_filter(painted.images[1].astype(float), 2)
            before = images[1] - ndimage.gaussian_filter(images[1].astype(float), 2)
            assert fine[core].std() > 0.6 * before[core].std()


def test_calcifications_are_no_bleeds() -> None:
    config = SynthesisConfig(subtype_weights=(1, 0, 0, 0, 0), hard_negative=1.0, second_bleed=0.0)
    brightest = 0
    for _, inside, painted in many(config, 20):
        deep = ndimage.distance_transform_edt(inside) > 45
        assert not painted.labels[deep].any()
        brightest = max(brightest, int(painted.images[1][deep].max()))
    assert brightest > 200


def test_bone_is_never_painted() -> None:
    for images, _, painted in many(SynthesisConfig(hard_negative=0.0)):
        bone = images == 255
        assert (painted.images[bone] >= 229).all()  # an edema rim may darken it a little, blood never shows on it


def test_the_same_seed_paints_the_same() -> None:
    images, inside = scene()
    first, second = (paint(images, inside, SynthesisConfig(), np.random.default_rng(5)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


def test_slices_without_a_closed_skull_are_left_alone() -> None:
    images, inside = scene()
    small = np.zeros_like(inside)
    small[100:120, 100:120] = True
    assert paint(images, small, SynthesisConfig(), np.random.default_rng(0)) is None
    assert paint(images, np.ones_like(inside), SynthesisConfig(), np.random.default_rng(0)) is None


def test_every_subtype_has_a_painter() -> None:
    assert len(PAINTERS) == len(SUBTYPE_NAMES)


@pytest.mark.parametrize("name", ["epidural", "subdural"])
def test_blood_along_the_skull_is_as_bright_as_elsewhere(name: str) -> None:
    """Against the low-passed skull it would vanish: a network trained on that misses every subdural."""
    gains = []
    for images, inside, painted in many(only(name)):
        depth = ndimage.distance_transform_edt(inside)
        near = (painted.labels > 0) & (depth > 1) & (depth <= 4)
        if near.sum() > 30:
            gains.append(float((painted.images[1][near].astype(float) - images[1][near]).mean()))
    assert len(gains) > 20
    assert np.median(gains) > 30
