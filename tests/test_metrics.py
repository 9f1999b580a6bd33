"""Scores against tables counted by hand, scikit-learn, MONAI and SciPy, and against laws that any input must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn import metrics as sk

from hemolens.evaluation import weighted
from hemolens.evaluation.bootstrap import bootstrap
from hemolens.evaluation.metrics import (
    Confusion,
    LesionCounts,
    auc_score,
    average_precision_score,
    bland_altman,
    brier_loss,
    dice_score,
    ece_loss,
    f1_threshold,
    hausdorff95_loss,
    iou_score,
    match_lesions,
    paper_protocol,
    precision_recall_curve,
    recall_threshold,
    reliability,
    roc_curve,
    specificity_threshold,
    youden_threshold,
)

CASES = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.int8, n, elements=st.integers(0, 1)),
        # Few levels, so that ties are common.
        arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0])),
    )
)
MASKS = array_shapes(min_dims=2, max_dims=3, min_side=3, max_side=9).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


def counts(found: np.ndarray, true: np.ndarray) -> tuple[int, int, int]:
    return int((found & true).sum()), int(found.sum()), int(true.sum())


class TestOverlap:
    def test_dice_and_iou_are_pooled(self) -> None:
        assert dice_score([1, 8], [2, 10], [2, 10]) == pytest.approx(2 * 9 / 24)
        assert iou_score([1, 8], [2, 10], [2, 10]) == pytest.approx(9 / 15)

    def test_both_empty_is_undefined_and_a_miss_is_zero(self) -> None:
        assert np.isnan(dice_score([0], [0], [0]))
        assert np.isnan(iou_score([0], [0], [0]))
        assert dice_score([0], [0], [5]) == 0.0
        assert iou_score([0], [3], [0]) == 0.0

    @given(MASKS)
    def test_equal_to_scikit_learn_on_any_masks(self, masks: tuple[np.ndarray, np.ndarray]) -> None:
        found, true = masks
        assume(found.any() or true.any())
        table = counts(found, true)
        assert dice_score(*table) == pytest.approx(sk.f1_score(true.ravel(), found.ravel(), zero_division=0))
        assert iou_score(*table) == pytest.approx(sk.jaccard_score(true.ravel(), found.ravel(), zero_division=0))
        # One follows from the other.
        assert dice_score(*table) == pytest.approx(2 * iou_score(*table) / (1 + iou_score(*table)))


class TestHausdorff:
    def test_two_points(self) -> None:
        found, true = np.zeros((2, 9, 9), dtype=bool)
        found[1, 1], true[1, 5] = True, True
        assert hausdorff95_loss(found, true, (1.0, 0.5)) == pytest.approx(2.0)

    def test_empty_is_undefined(self) -> None:
        empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
        assert np.isnan(hausdorff95_loss(empty, full, (1.0, 1.0)))
        assert np.isnan(hausdorff95_loss(full, empty, (1.0, 1.0)))
        assert np.isnan(hausdorff95_loss(empty, empty, (1.0, 1.0)))

    def test_far_speckles_below_five_percent_do_not_count(self) -> None:
        true = np.zeros((60, 60), dtype=bool)
        true[10:30, 10:30] = True
        found = true.copy()
        found[58, 58] = True
        assert hausdorff95_loss(found, true, (1.0, 1.0)) == 0.0

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(24, 31), (6, 20, 17)])
    @pytest.mark.parametrize("seed", range(4))
    def test_equal_to_monai(self, shape: tuple[int, ...], seed: int) -> None:
        import torch
        from monai.metrics import compute_hausdorff_distance

        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
        blobs = []
        for _ in range(2):
            center = np.array([rng.uniform(0.3, 0.7) * n for n in shape]).reshape(-1, *[1] * len(shape))
            blobs.append(np.linalg.norm((grid - center) / np.array(shape).reshape(center.shape), axis=0) < 0.25)
        spacing = (5.0, 0.4, 0.5)[-len(shape) :]
        found, true = (torch.from_numpy(b[None, None]) for b in blobs)
        monai = compute_hausdorff_distance(found, true, include_background=True, percentile=95, spacing=spacing)
        assert hausdorff95_loss(blobs[0], blobs[1], spacing) == pytest.approx(float(monai[0, 0]), rel=1e-5)

    @given(MASKS)
    def test_symmetric_and_zero_on_itself(self, masks: tuple[np.ndarray, np.ndarray]) -> None:
        found, true = masks
        assume(found.any() and true.any())
        spacing = (2.0, 0.5, 0.7)[-found.ndim :]
        assert hausdorff95_loss(true, true, spacing) == 0.0
        assert hausdorff95_loss(found, true, spacing) == hausdorff95_loss(true, found, spacing)
        # Empty space around changes nothing, though a mask's border at the image border is one either way.
        padded = (np.pad(found, 2), np.pad(true, 2))
        assert hausdorff95_loss(*padded, spacing) == pytest.approx(hausdorff95_loss(found, true, spacing))


class TestAgreement:
    def test_a_table_worked_by_hand(self) -> None:
        told = bland_altman([11.0, 22.0, 30.0], [10.0, 20.0, 33.0])  # differences 1, 2, -3
        assert (told.bias, told.n) == (0.0, 3)
        assert told.sd == pytest.approx(np.sqrt(7))
        assert told.low == pytest.approx(-1.96 * np.sqrt(7))
        assert told.high == -told.low

    def test_one_pair_has_a_bias_and_no_limits_none_has_nothing(self) -> None:
        one = bland_altman([3.0], [5.0])
        assert one.bias == -2.0
        assert np.isnan([one.sd, one.low, one.high]).all()
        assert np.isnan(bland_altman([], []).bias)


class TestLesions:
    FOUND = np.array([[[1, 1, 0, 0, 2, 2, 0, 3, 0, 4]]])
    TRUE = np.array([[[0, 1, 0, 0, 0, 0, 2, 3, 3, 0]]])

    def test_a_table_worked_by_hand(self) -> None:
        """Found 1 and 3 touch true 1 and 3; found 2 and 4 touch nothing; true 2 is missed."""
        assert match_lesions(self.FOUND, self.TRUE, 0.0, np.ones(1)) == LesionCounts(3, 2, 4, 2)

    def test_small_ones_do_not_count_on_either_side(self) -> None:
        """Of at least 2: found 1 and 2, true 3. Found 1 touches true 1, which is too small to count but is blood."""
        assert match_lesions(self.FOUND, self.TRUE, 2.0, np.ones(1)) == LesionCounts(1, 0, 2, 1)

    def test_sizes_are_those_of_each_slice(self) -> None:
        found = np.array([[[1, 0]], [[0, 2]]])
        true = np.zeros_like(found)
        assert match_lesions(found, true, 1.0, np.array([1.0, 0.5])) == LesionCounts(0, 0, 1, 1)

    def test_one_large_blob_finds_all_it_touches_and_is_one_call(self) -> None:
        found = np.ones((1, 1, 6), dtype=int)
        assert match_lesions(found, np.array([[[1, 0, 2, 0, 3, 0]]]), 0.0, np.ones(1)) == LesionCounts(3, 3, 1, 0)


class TestConfusion:
    def test_a_table_worked_by_hand(self) -> None:
        told = Confusion.of([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0])
        assert told == Confusion(2, 1, 1, 4)
        assert told.accuracy_score == 6 / 8
        assert told.recall_score == 2 / 3
        assert told.specificity_score == 4 / 5
        assert told.precision_score == 2 / 3
        assert told.f1_score == pytest.approx(2 / 3)

    @settings(max_examples=50)
    @given(CASES)
    def test_equal_to_scikit_learn(self, case: tuple[np.ndarray, np.ndarray]) -> None:
        truth, score = case
        called = score >= 0.4
        told = Confusion.of(truth, called)
        negative, false, missed, true = sk.confusion_matrix(truth, called, labels=[0, 1]).ravel()
        assert (told.true_negative, told.false_positive, told.false_negative, told.true_positive) == (
            negative, false, missed, true,
        )  # fmt: skip
        assert told.accuracy_score == pytest.approx(sk.accuracy_score(truth, called))
        for ours, theirs in (
            (told.precision_score, sk.precision_score),
            (told.recall_score, sk.recall_score),
            (told.f1_score, sk.f1_score),
        ):
            assert ours == pytest.approx(theirs(truth, called, zero_division=np.nan), nan_ok=True)

    def test_what_cannot_be_divided_is_nan(self) -> None:
        nothing = Confusion.of([0, 0], [0, 0])
        assert np.isnan([nothing.recall_score, nothing.precision_score, nothing.f1_score]).all()
        assert np.isnan(Confusion.of([], []).accuracy_score)


class TestRanking:
    def test_auc_counts_pairs(self) -> None:
        truth, score = [0, 0, 1, 1, 1], [0.1, 0.4, 0.35, 0.8, 0.4]
        assert auc_score(truth, score) == pytest.approx((1 + 2 + 1.5) / 6)

    @settings(max_examples=50)
    @given(CASES)
    def test_equal_to_scikit_learn(self, case: tuple[np.ndarray, np.ndarray]) -> None:
        truth, score = case
        if not 0 < truth.sum() < len(truth):
            assert np.isnan([auc_score(truth, score), average_precision_score(truth, score)]).all()
            return
        assert auc_score(truth, score) == pytest.approx(sk.roc_auc_score(truth, score))
        assert average_precision_score(truth, score) == pytest.approx(sk.average_precision_score(truth, score))
        roc = roc_curve(truth, score)
        assert auc_score(truth, score) == pytest.approx(np.trapezoid(roc.y, roc.x))
        false_rate, true_rate, levels = sk.roc_curve(truth, score, drop_intermediate=False)
        np.testing.assert_allclose([roc.x, roc.y], [false_rate, true_rate], atol=1e-12)
        np.testing.assert_array_equal(roc.thresholds, levels)
        curve = precision_recall_curve(truth, score)
        precision, recall, levels = sk.precision_recall_curve(truth, score)
        np.testing.assert_allclose(curve.y[::-1], precision[:-1], atol=1e-12)
        np.testing.assert_allclose(curve.x[::-1], recall[:-1], atol=1e-12)
        np.testing.assert_array_equal(curve.thresholds[::-1], levels)

    @settings(max_examples=50)
    @given(CASES, st.integers(0, 2**31))
    def test_a_weight_is_so_many_copies_of_the_row(self, case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        """The whole bootstrap rests on this."""
        truth, score = case
        copies = np.random.default_rng(seed).integers(0, 4, len(truth))
        weights, again = copies[None].astype(float), (np.repeat(truth, copies), np.repeat(score, copies))
        for ours, plain in (
            (weighted.auc, auc_score),
            (weighted.average_precision, average_precision_score),
            (weighted.calibration_error, ece_loss),
        ):
            assert ours(weights, truth, score)[0] == pytest.approx(plain(*again), nan_ok=True)
        told = [float(c[0]) for c in weighted.called(weights, truth, score > 0.4)]
        assert Confusion(*told) == Confusion.of(again[0], again[1] > 0.4)

    def test_no_rows_at_all(self) -> None:
        assert np.isnan(
            [auc_score([], []), average_precision_score([], []), ece_loss([], []), brier_loss([], [])]
        ).all()
        with pytest.raises(ValueError, match="both"):
            roc_curve([1, 1], [0.2, 0.3])


class TestCalibration:
    def test_a_table_worked_by_hand(self) -> None:
        """Bins 0.0 to 0.1 (p 0.05, no positive), 0.6 to 0.7 (p 0.65, one of two), 1.0 belongs to the last one."""
        truth, p = [0, 0, 1, 1], [0.05, 0.65, 0.65, 1.0]
        assert ece_loss(truth, p) == pytest.approx((0.05 + 2 * 0.15 + 0.0) / 4)
        assert brier_loss(truth, p) == pytest.approx((0.0025 + 0.4225 + 0.1225 + 0) / 4)
        points = reliability(truth, p)
        assert points.count.tolist() == [1, 2, 1]
        assert points.mean_probability == pytest.approx([0.05, 0.65, 1.0])
        assert points.observed == pytest.approx([0.0, 0.5, 1.0])

    @settings(max_examples=50)
    @given(CASES)
    def test_the_diagram_and_the_error_say_the_same(self, case: tuple[np.ndarray, np.ndarray]) -> None:
        truth, p = case
        points = reliability(truth, p)
        assert points.count.sum() == len(truth)
        gap = points.count @ np.abs(points.mean_probability - points.observed) / len(truth)
        assert ece_loss(truth, p) == pytest.approx(gap)
        assert brier_loss(truth, p) == pytest.approx(sk.brier_score_loss(truth, p, labels=[0, 1]))

    def test_many_fair_draws_have_almost_no_error(self) -> None:
        rng = np.random.default_rng(1)
        p = rng.uniform(size=20_000)
        assert ece_loss(rng.uniform(size=20_000) < p, p) < 0.02


class TestThresholds:
    TRUTH = (0, 0, 0, 1, 0, 1, 1, 1)
    SCORE = (0.1, 0.2, 0.3, 0.35, 0.4, 0.6, 0.8, 0.9)

    def test_tables_worked_by_hand(self) -> None:
        """Youden: 0.5 leaves one positive (3/4 + 4/4), 0.325 calls one negative (4/4 + 3/4): the lower wins a tie."""
        assert youden_threshold(self.TRUTH, self.SCORE) == pytest.approx(0.325)
        assert f1_threshold(self.TRUTH, self.SCORE) == pytest.approx(0.325)  # 8/9 against 6/7
        assert recall_threshold(self.TRUTH, self.SCORE, 0.75) == pytest.approx(0.5)
        assert recall_threshold(self.TRUTH, self.SCORE, 0.76) == pytest.approx(0.325)
        assert specificity_threshold(self.TRUTH, self.SCORE, 1.0) == pytest.approx(0.5)
        assert specificity_threshold(self.TRUTH, self.SCORE, 0.75) == pytest.approx(0.325)

    def test_the_threshold_lies_between_the_classes(self) -> None:
        assert youden_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)
        with pytest.raises(ValueError, match="both"):
            youden_threshold([1, 1], [0.2, 0.3])

    @settings(max_examples=50)
    @given(CASES, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
    def test_they_keep_what_they_promise(self, case: tuple[np.ndarray, np.ndarray], wanted: float) -> None:
        truth, score = case
        assume(0 < truth.sum() < len(truth))
        assert Confusion.of(truth, score >= recall_threshold(truth, score, wanted)).recall_score >= wanted - 1e-9
        at = Confusion.of(truth, score >= specificity_threshold(truth, score, wanted))
        assert at.specificity_score >= wanted - 1e-9
        best = Confusion.of(truth, score >= f1_threshold(truth, score)).f1_score
        youden = Confusion.of(truth, score >= youden_threshold(truth, score))
        for level in np.unique(score):
            other = Confusion.of(truth, score >= level)
            assert other.f1_score <= best + 1e-9
            gain = other.recall_score + other.specificity_score
            assert gain <= youden.recall_score + youden.specificity_score + 1e-9


class TestPaperProtocol:
    def test_a_table_worked_by_hand(self) -> None:
        """Patient 49: slices of Dice 0.5 and 1; 50: 0; 70 is left out, and so is a slice without blood."""
        told = paper_protocol(["049", "049", "050", "070", "049"], [1, 4, 0, 9, 0], [2, 4, 0, 9, 7], [2, 4, 6, 9, 0])
        assert told.subjects == ("049", "050")
        assert told.slices == 3
        assert told.subject_dice == pytest.approx([0.75, 0.0])
        assert told.dice == pytest.approx(0.375)
        assert told.iou == pytest.approx(((1 / 3 + 1) / 2 + 0) / 2)

    def test_no_slice_with_blood_is_undefined(self) -> None:
        told = paper_protocol(["049"], [0], [5], [0])
        assert np.isnan([told.dice, told.iou]).all()
        assert told.slices == 0


class TestBootstrap:
    def test_intervals_draw_patients_not_slices(self) -> None:
        """Ten patients of 50 equal slices know as much as ten slices."""
        rng = np.random.default_rng(0)
        per_patient = rng.normal(0, 1, 10)
        values = np.repeat(per_patient, 50)
        grouped = bootstrap([str(i) for i in np.repeat(np.arange(10), 50)], lambda w: weighted.mean(w, values))
        single = bootstrap([str(i) for i in range(500)], lambda w: weighted.mean(w, values))
        assert grouped.groups == 10
        assert grouped.value == pytest.approx(values.mean())
        assert (grouped.high - grouped.low) > 4 * (single.high - single.low)
        assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * per_patient.std() / np.sqrt(10), rel=0.15)

    def test_it_covers_what_it_promises(self) -> None:
        """Of a hundred samples of 40, about 95 intervals hold the true mean."""
        rng = np.random.default_rng(3)
        names = [str(i) for i in range(40)]
        hits = 0
        for _ in range(100):
            values = rng.normal(2.0, 1.0, 40)
            told = bootstrap(names, lambda w, v=values: weighted.mean(w, v), draws=400)
            hits += told.low <= 2.0 <= told.high
        assert 88 <= hits <= 99

    def test_undefined_draws_are_counted(self) -> None:
        """With two patients a quarter of the draws holds only the negative one, a quarter only the positive one."""
        found = bootstrap(["a", "b"], lambda w: weighted.auc(w, [0, 1], [0.2, 0.8]))
        assert found.value == 1.0
        assert 900 < found.undefined < 1100

    def test_one_patient_has_no_interval(self) -> None:
        found = bootstrap(["a", "a"], lambda w: weighted.mean(w, [1.0, 2.0]))
        assert (found.value, found.groups) == (1.5, 1)
        assert np.isnan([found.low, found.high]).all()
        assert np.isnan(bootstrap([], lambda w: weighted.mean(w, [])).value)

    def test_the_seed_decides_and_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names, values = [str(i % 7) for i in range(50)], np.arange(50.0)
        whole = bootstrap(names, lambda w: weighted.mean(w, values))
        sizes: list[int] = []

        def score(w: np.ndarray) -> np.ndarray:
            sizes.append(w.size)
            return weighted.mean(w, values)

        monkeypatch.setattr("hemolens.evaluation.bootstrap.CHUNK", 5000)
        assert bootstrap(names, score) == whole
        assert max(sizes) <= 5000

    def test_groups_count_once_however_many_rows_they_have(self) -> None:
        groups, values = ["a", "a", "a", "b"], [1.0, 1.0, np.nan, 0.0]
        assert weighted.mean_of_groups(np.ones((1, 4)), values, groups)[0] == 0.5
        assert weighted.mean_of_groups(np.array([[2.0, 2, 2, 1]]), values, groups)[0] == pytest.approx(2 / 3)
        assert np.isnan(weighted.mean_of_groups(np.ones((1, 2)), [np.nan, np.nan], ["a", "b"])[0])
