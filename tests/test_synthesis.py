"""Painted bleeds: where they may be, what they leave alone, and that the mask tells the truth."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from hemolens.labels import SUBTYPE_NAMES
from hemolens.sources.datasets.cases import EDEMA
from hemolens.training.synthesis import Painted, SynthesisConfig, _Canvas, paint, paint_negatives
from hemolens.training.synthesis_bleeds import BONES_DEG, PLANNERS
from hemolens.training.synthesis_negatives import NEGATIVES
from hemolens.training.synthesis_shapes import Plan, Scene


def scene(seed: int = 0, side: int = 224, slices: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return slices of a noisy brain with dark ventricles and furrows, and the inside of its skull."""
    rng = np.random.default_rng(seed)
    y, x = ((np.mgrid[:side, :side] + 0.5) / side - 0.5) * 224
    radius = np.hypot(y / 1.15, x)
    image = np.zeros((side, side))
    image[radius < 88] = 255
    inside = radius < 80
    image[inside] = 113
    image[(radius > 66) & inside & (np.sin(np.arctan2(y, x) * 24) > 0.6)] = 70
    image[(abs(y) < 22) & (abs(abs(x) - 9) < 5)] = 55
    noisy = image + rng.normal(0, 6, (slices, side, side)) * inside
    return np.clip(noisy, 0, 255).astype(np.uint8), inside


@cache
def many(config: SynthesisConfig, count: int = 30, side: int = 224) -> list[tuple[np.ndarray, np.ndarray, Painted]]:
    images, inside = scene(side=side)
    painted = [(images, inside, paint(images, inside, config, np.random.default_rng(i))) for i in range(count)]
    return [(a, b, c) for a, b, c in painted if c is not None]


def only(name: str, **more: float) -> SynthesisConfig:
    weights = tuple(float(n == name) for n in SUBTYPE_NAMES)
    plain = {"faint": 0.0, "hard_negative": 0.0, "second_bleed": 0.0, "edema": 0.0, "mixed": 0.0, "chronic": 0.0}
    return SynthesisConfig(subtype_weights=weights, **{**plain, **more})  # type: ignore[arg-type]


def blood(painted: Painted) -> np.ndarray:
    return (painted.labels[1] > 0) & (painted.labels[1] < EDEMA)


@pytest.mark.parametrize("name", SUBTYPE_NAMES)
def test_each_kind_is_painted_where_it_belongs(name: str) -> None:
    index = SUBTYPE_NAMES.index(name) + 1
    cases = many(only(name))
    assert len(cases) >= 24
    fluid = []
    for images, inside, painted in cases:
        mask = blood(painted)
        depth = ndimage.distance_transform_edt(inside)[mask]
        assert set(np.unique(painted.labels)) == {0, index}
        assert inside[mask].all()
        assert painted.subtypes.tolist() == [float(n == name) for n in SUBTYPE_NAMES]
        fluid.append((ndimage.gaussian_filter(images[1].astype(float), 1)[mask] < 95).mean())
        if name == "epidural":
            assert depth.min() < 4
        if name == "intraventricular":
            assert fluid[-1] > 0.5
            y, x = np.nonzero(mask)
            assert abs(y - 112).max() < 30
            assert abs(x - 112).max() < 22
    if name == "subarachnoid":  # in some, furrows are made up where there are none to be seen
        assert np.mean(np.array(fluid) > 0.5) > 0.5


def test_epidural_blood_keeps_within_one_bone() -> None:
    images, inside = scene()
    bearing = Scene(images[1].astype(np.float32), inside).bearing_deg
    for _, _, painted in many(only("epidural")):
        found = bearing[blood(painted)]
        assert (found > 0).all() or (found < 0).all()
        assert any(low - 3 < abs(found).min() and abs(found).max() < high + 3 for low, high in BONES_DEG)


def test_epidural_blood_bulges_and_subdural_blood_follows_the_skull() -> None:
    """The thickness of a lens for its length is more than that of a crescent."""

    def slimness(name: str) -> float:
        shares = []
        for _, inside, painted in many(only(name)):
            mask = blood(painted)
            depth = ndimage.distance_transform_edt(inside)
            if depth[mask].min() < 4:
                shares.append(depth[mask].max() / np.ptp(np.argwhere(mask), axis=0).max())
        return float(np.median(shares))

    assert slimness("epidural") > 1.5 * slimness("subdural")


def test_most_subdural_blood_hugs_the_skull_on_one_side() -> None:
    near, one_sided = [], []
    for _, inside, painted in many(only("subdural"), 60):
        mask = blood(painted)
        near.append(ndimage.distance_transform_edt(inside)[mask].min() < 4)
        left = np.nonzero(mask)[1] < 112
        one_sided.append(left.mean() < 0.1 or left.mean() > 0.9)
    assert 0.7 < np.mean(near) < 1.0  # the rest lies along the falx and the tentorium
    assert np.mean(one_sided) > 0.85


@pytest.mark.parametrize("name", SUBTYPE_NAMES)
def test_the_mask_is_what_got_brighter(name: str) -> None:
    for images, _, painted in many(only(name)):
        change = painted.images[1].astype(float) - images[1]
        mask = blood(painted)
        assert change[mask].mean() > 8
        far = np.abs(change[~ndimage.binary_dilation(mask, iterations=8)])
        assert np.percentile(far, 99.5) < 8  # specks of half a weight may lie apart, no bleed may


def test_neighbors_show_the_same_bleed_less() -> None:
    """What is labeled on a neighbor got brighter there, too; bleeds end within the slices or go beyond them."""
    ends = []
    for images, inside, painted in many(only("intraparenchymal")):
        own = blood(painted)
        for k in (0, 2):
            mask = painted.labels[k] == 4
            ends.append(not mask.any())
            if mask.any():
                assert (painted.images[k].astype(float) - images[k])[mask].mean() > 8
                assert (mask & ndimage.binary_dilation(own, iterations=6)).sum() > 0.8 * mask.sum()
            faint = (painted.images[k].astype(float) - images[k])[own & inside]
            assert faint.mean() > -8
    assert 0.1 < np.mean(ends) < 0.9


def test_a_neighbor_that_the_bleed_hardly_touches_is_left_alone() -> None:
    images, inside = scene()
    disk = np.hypot(*(np.mgrid[:224, :224] - 112)) < 12

    def thin(_: Scene, scale: float) -> np.ndarray:
        return disk * np.float32(1.0 if scale > 0.9 else 0.06)

    touched = 0
    for seed in range(60):
        canvas = _Canvas(images, np.broadcast_to(inside, images.shape), 1)
        canvas.add_bleed(Plan(thin, 0.7, (30, 40)), 3, only("intraparenchymal"), np.random.default_rng(seed))
        assert (canvas.labels[1] > 0).sum() == disk.sum()
        touched += any((canvas.pictures[k] != images[k]).any() for k in (0, 2))
    assert 0 < touched < 60


def test_a_lone_slice_that_is_repeated_is_painted_alike() -> None:
    images, inside = scene()
    painted = paint(images[[1, 1, 1]], inside, SynthesisConfig(), np.random.default_rng(1))
    assert painted is not None
    assert (painted.images == painted.images[1]).all()
    assert (painted.labels == painted.labels[1]).all()
    assert painted.images.shape == images.shape


def test_volumes_are_painted_slice_by_slice() -> None:
    images, inside = scene(slices=9)
    skulls = np.broadcast_to(inside, images.shape).copy()
    skulls[7:] = False  # beyond the vertex nothing is painted
    spans = []
    for seed in range(30):
        painted = paint(images, skulls, SynthesisConfig(hard_negative=0), np.random.default_rng(seed), center=4)
        if painted is not None:
            marked = (painted.labels > 0).reshape(9, -1).any(axis=1)
            changed = (painted.images != images).reshape(9, -1).any(axis=1)
            assert not marked[7:].any()
            assert not changed[7:].any()
            assert (changed | ~marked).all()
            spans.append(marked.sum())
    assert np.median(spans) >= 2
    assert min(spans) < 5


def test_the_noise_of_the_scan_stays() -> None:
    for images, _, painted in many(only("intraparenchymal")):
        core = ndimage.binary_erosion(blood(painted), iterations=3)
        if core.sum() > 200:
            fine = painted.images[1] - ndimage.gaussian_filter(painted.images[1].astype(float), 2)
            before = images[1] - ndimage.gaussian_filter(images[1].astype(float), 2)
            assert fine[core].std() > 0.6 * before[core].std()


def test_hematomas_in_the_brain_are_mostly_longer_than_wide() -> None:
    def axes(mask: np.ndarray) -> float:
        small, large = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T))
        return float(np.sqrt(large / small))

    found = [axes(blood(painted)) for _, _, painted in many(only("intraparenchymal"), 60) if blood(painted).sum() > 50]
    assert 1.35 < np.median(found) < 2.5  # drawn ones: 1.8
    assert max(found) > 2.2


def test_edema_is_a_dark_rim_around_blood_in_the_brain() -> None:
    rims = 0
    for images, inside, painted in many(only("intraparenchymal", edema=1.0)):
        rim = painted.labels[1] == EDEMA
        if rim.sum() > 60:
            rims += 1
            change = painted.images[1].astype(float) - images[1]
            assert np.median(change[rim]) < -2
            assert inside[rim].all()
            near = ndimage.binary_dilation(blood(painted), iterations=16)
            assert (rim & near).sum() > 0.95 * rim.sum()
    assert rims > 10
    assert not any((p.labels == EDEMA).any() for _, _, p in many(only("intraparenchymal", edema=0.0), 10))
    assert not any((p.labels == EDEMA).any() for _, _, p in many(only("epidural", edema=1.0), 10))


def test_old_subdural_blood_is_darker_than_brain() -> None:
    changes = []
    for images, _, painted in many(only("subdural", chronic=1.0)):
        mask = blood(painted) & (images[1] > 95) & (images[1] < 140)
        if mask.sum() > 50:
            changes.append(np.percentile(painted.images[1].astype(float)[mask], 20) - 113)
    assert np.mean(np.array(changes) < 0) > 0.7


def test_old_subdural_blood_is_broad_and_at_times_on_both_sides() -> None:
    both, area = [], []
    for _, _, painted in many(only("subdural", chronic=1.0), 60):
        mask = blood(painted)
        left = (np.nonzero(mask)[1] < 112).mean()
        both.append(0.1 < left < 0.9)
        area.append(mask.sum())
    assert 0.2 < np.mean(both) < 0.6
    fresh = [blood(painted).sum() for _, _, painted in many(only("subdural"), 60)]
    assert np.median(area) > 2 * np.median(fresh)


def test_old_subdural_blood_is_even_or_holds_layers_but_is_never_as_gray_as_brain() -> None:
    """A collection that cannot be told from the brain would teach that brain is blood."""
    bright = []
    for images, inside, painted in many(only("subdural", chronic=1.0), 60):
        core = ndimage.binary_erosion(blood(painted) & (ndimage.distance_transform_edt(inside) > 2), iterations=2)
        brain = core & (images[1] > 90)  # not the furrows, whose blurred surroundings are dark anyway
        if brain.sum() > 100:
            gray = ndimage.gaussian_filter(painted.images[1].astype(float), 1)[brain]
            bright.append((gray > 113 + 5).mean())
            assert np.percentile(gray, 5) < 113 - 8
    assert len(bright) > 25
    assert 0.1 < np.mean(np.array(bright) > 0.05) < 0.7  # fresh blood in it, or membranes


def test_mixed_blood_is_less_even() -> None:
    def spread(**more: float) -> float:
        found = []
        for _, _, painted in many(only("intraparenchymal", **more)):
            core = ndimage.binary_erosion(blood(painted), iterations=2)
            if core.sum() > 100:
                found.append(ndimage.gaussian_filter(painted.images[1].astype(float), 1)[core].std())
        return float(np.median(found))

    assert spread(mixed=1.0) > 1.4 * spread()


def test_faint_blood_is_fainter() -> None:
    def gain(**more: float) -> float:
        cases = many(only("intraparenchymal", **more))
        return float(np.median([(p.images[1].astype(float) - i[1])[blood(p)].mean() for i, _, p in cases]))

    assert gain(faint=1.0) < 0.6 * gain()


@pytest.mark.parametrize(("negative", "share"), NEGATIVES, ids=lambda n: getattr(n, "__name__", ""))
def test_hard_negatives_show_and_lie_where_they_belong(negative: object, share: float) -> None:
    assert share > 0
    images, inside = scene()
    head = Scene(images[1].astype(np.float32), inside)
    name = negative.__name__  # type: ignore[attr-defined]
    total = np.zeros(inside.shape)
    for seed in range(12):
        added = negative(head, np.random.default_rng(seed))  # type: ignore[operator]
        assert added.shape == inside.shape
        assert np.isfinite(added).all()
        total += np.abs(added) > 6
    assert total.any()
    y, x = np.nonzero(total)
    outside = (total * ~inside).sum() / total.sum()
    if name in {"pineal", "falx"}:
        assert abs(x - 112).max() < 14
    if name == "pineal":
        assert y.min() > 105
    if name in {"choroid", "basal_ganglia"}:
        assert (abs(x - 112) > 8).mean() > 0.9
    if name == "partial_volume":
        assert np.average(head.depth, weights=total) < 8
    if name == "wide_furrows":
        assert head.depth[total > 0].max() < 30
        furrows = [negative(head, np.random.default_rng(seed)) for seed in range(12)]  # type: ignore[operator]
        assert min(f.min() for f in furrows) < -25  # as dark as fluid
        assert max(f.max() for f in furrows) <= 10  # crowns are hardly brighter
    assert outside > 0.95 if name == "scalp_hematoma" else outside < 0.02


def test_hard_negatives_are_no_bleeds() -> None:
    images, inside = scene()
    config = SynthesisConfig(hard_negative=1.0)
    for seed in range(12):
        painted = paint_negatives(images, inside, config, np.random.default_rng(seed))
        assert painted is not None
        assert not painted.labels.any()
    assert all(
        paint_negatives(images, inside, replace(config, hard_negative=0.0), np.random.default_rng(s)) is None
        for s in range(5)
    )
    shown = [(p.images[1].astype(float) - i[1])[~ndimage.binary_dilation(p.labels[1] > 0, iterations=9)]
             for i, _, p in many(only("intraparenchymal", hard_negative=1.0), 12)]  # fmt: skip
    assert np.mean([np.abs(s).max() > 8 for s in shown]) > 0.7


def test_bone_is_never_painted() -> None:
    for images, _, painted in many(SynthesisConfig(hard_negative=0.0)):
        bone = images == 255
        assert (painted.images[bone] >= 229).all()  # an edema rim may darken it a little, blood never shows on it
        assert not painted.labels[bone].any()


@pytest.mark.parametrize("name", ["epidural", "subdural"])
def test_blood_along_the_skull_is_as_bright_as_elsewhere(name: str) -> None:
    """Against the low-passed skull it would vanish: a network trained on that misses every subdural."""
    gains = []
    for images, inside, painted in many(only(name)):
        depth = ndimage.distance_transform_edt(inside)
        near = blood(painted) & (depth > 1) & (depth <= 4)
        if near.sum() > 30:
            gains.append(float((painted.images[1][near].astype(float) - images[1][near]).mean()))
    assert len(gains) > 14
    assert np.median(gains) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBTYPE_NAMES)
def test_sizes_are_millimeters(name: str) -> None:
    """On a coarser grid a bleed fills about the same share of the head."""

    def share(side: int) -> float:
        return float(np.mean([blood(p).sum() / i.sum() for _, i, p in many(only(name), side=side)]))

    assert 0.5 < share(112) / share(224) < 2


def test_the_same_seed_paints_the_same() -> None:
    images, inside = scene()
    first, second = (paint(images, inside, SynthesisConfig(), np.random.default_rng(5)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(images, scene()[0])  # what was given is left as it was


@pytest.mark.parametrize("name", [n for n in SUBTYPE_NAMES if n != "intraventricular"])  # no ventricles so high up
def test_a_small_head_bleeds_too(name: str) -> None:
    """Near the vertex and in the posterior fossa the inside of the skull is a tenth of the crop."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:224, :224] - 111.5
    radius = np.hypot(y / 1.15, x)
    image = np.where(radius < 52, 255, 0)
    inside = radius < 37
    image[inside] = 113
    images = np.clip(image + rng.normal(0, 6, (3, 224, 224)) * inside, 0, 255).astype(np.uint8)
    assert 0.08 < inside.mean() < 0.12
    painted = [paint(images, inside, only(name), np.random.default_rng(k)) for k in range(20)]
    shown = [found for found in painted if found is not None]
    assert len(shown) >= 10
    assert all(inside[blood(found)].all() for found in shown)


def test_air_inside_the_skull_stays_air() -> None:
    """As in the mastoid, which a closed skull can hold."""
    images, inside = scene()
    air = np.zeros_like(inside)
    air[80:110, 140:170] = True
    images[:, air] = 0
    for name in SUBTYPE_NAMES:
        for k in range(10):
            found = paint(images, inside, only(name, hard_negative=0.0), np.random.default_rng(k))
            if found is not None:
                assert not found.labels[:, air].any()
                assert (found.images[:, air] == 0).all()


def test_slices_without_a_closed_skull_are_left_alone() -> None:
    images, inside = scene()
    small = np.zeros_like(inside)
    small[100:120, 100:120] = True
    assert paint(images, small, SynthesisConfig(), np.random.default_rng(0)) is None
    assert paint(images, np.ones_like(inside), SynthesisConfig(), np.random.default_rng(0)) is None


def test_every_subtype_has_a_planner() -> None:
    assert [planner.__name__ for planner in PLANNERS] == [f"plan_{name}" for name in SUBTYPE_NAMES]


@pytest.mark.parametrize(
    "wrong", [{"subtype_weights": (1, 1)}, {"subtype_weights": (0, 0, 0, 0, 0)}, {"faint": 1.2}, {"edema": -0.1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs five|must"):
        SynthesisConfig(**wrong)  # type: ignore[arg-type]
