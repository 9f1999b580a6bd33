"""Scores as pure functions; what is undefined is NaN, never 0 or 1.

Names that end in ``_score`` are better when higher, in ``_loss`` when lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from hemolens.evaluation import weighted

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def dice_score(intersection: ArrayLike, found: ArrayLike, true: ArrayLike) -> float:
    """Return Dice pooled over cases, ``2 Σ|A∩B| / (Σ|A| + Σ|B|)`` (Dice 1945); NaN where both are empty."""
    total = float(np.sum(found) + np.sum(true))
    return 2 * float(np.sum(intersection)) / total if total else float("nan")


def iou_score(intersection: ArrayLike, found: ArrayLike, true: ArrayLike) -> float:
    """Return intersection over union pooled over cases (Jaccard 1901); NaN where both are empty."""
    union = float(np.sum(found) + np.sum(true) - np.sum(intersection))
    return float(np.sum(intersection)) / union if union else float("nan")


def hausdorff95_loss(found: Mask, true: Mask, spacing: tuple[float, ...]) -> float:
    """Return the 95 % Hausdorff distance of two masks' borders, in the unit of `spacing`; NaN where one is empty.

    The larger of the two directed 95th percentiles, as MONAI's ``compute_hausdorff_distance``. Pixels at the image
    border are border pixels.

    Parameters
    ----------
    found, true
        Same shape, two or three dimensions.
    spacing
        Distance between voxels along each axis.
    """
    if not found.any() or not true.any():
        return float("nan")
    box = ndimage.find_objects((found | true).astype(np.int8))[0]
    borders = [_border(mask[box]) for mask in (found, true)]
    distances = []
    for here, there in (borders, borders[::-1]):
        away = ndimage.distance_transform_edt(~there, sampling=spacing)
        distances.append(float(np.percentile(away[here], 95)))
    return max(distances)


def _border(mask: Mask) -> Mask:
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman's (1986) summary of paired differences, found less true."""

    bias: float
    """Mean difference."""
    sd: float
    """Standard deviation of the differences (n - 1)."""
    low: float
    """Bias less 1.96 standard deviations: with `high`, the limits of agreement."""
    high: float
    n: int


def bland_altman(found: ArrayLike, true: ArrayLike) -> Agreement:
    """Return bias and limits of agreement; limits are NaN below two pairs, everything at none."""
    difference = np.asarray(found, float) - np.asarray(true, float)
    n = len(difference)
    bias = float(difference.mean()) if n else float("nan")
    sd = float(difference.std(ddof=1)) if n > 1 else float("nan")
    return Agreement(bias, sd, bias - 1.96 * sd, bias + 1.96 * sd, n)


@dataclass(frozen=True)
class LesionCounts:
    """How many lesions there are, were found, and were found where there are none."""

    true: int
    detected: int
    """True lesions that a found one touches."""
    found: int
    false: int
    """Found lesions that touch no true blood."""


def match_lesions(found: NDArray[np.integer], true: NDArray[np.integer], smallest: float, sizes: Array) -> LesionCounts:
    """Match lesions by touch: one voxel in common is enough, in either direction.

    Parameters
    ----------
    found, true
        Number of the lesion that each voxel belongs to, from 1; 0 is background. Same shape ``(slices, …)``.
    smallest
        Lesions below this size are left out on both sides, as `hemolens analyze` does; a found lesion that touches
        one of those true ones is not false.
    sizes
        What one voxel of each slice counts, in the unit of `smallest`, shape ``(slices,)``.
    """
    per_voxel = np.broadcast_to(sizes.reshape(-1, *[1] * (found.ndim - 1)), found.shape)
    found_sizes = np.bincount(found.ravel(), per_voxel.ravel())
    true_sizes = np.bincount(true.ravel(), per_voxel.ravel())
    # Volumes are sums of rounded products: what is exactly of the smallest size must not hang on the last bit.
    kept_found = np.flatnonzero(found_sizes[1:] >= smallest * (1 - 1e-9)) + 1
    kept_true = np.flatnonzero(true_sizes[1:] >= smallest * (1 - 1e-9)) + 1
    both = (found > 0) & (true > 0)
    touched_found = set(np.unique(found[both]).tolist())
    touched_true = set(np.unique(true[both & np.isin(found, kept_found)]).tolist())
    return LesionCounts(
        true=len(kept_true),
        detected=sum(int(number) in touched_true for number in kept_true),
        found=len(kept_found),
        false=sum(int(number) not in touched_found for number in kept_found),
    )


@dataclass(frozen=True)
class Confusion:
    """Counts of a yes-or-no answer; every score is NaN where nothing is left to divide by."""

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float

    @classmethod
    def of(cls, truth: ArrayLike, positive: ArrayLike) -> Confusion:
        """Count answers against the truth, both 0 or 1, shape ``(n,)``."""
        n = np.asarray(truth).size
        counts = weighted.called(np.ones((1, n)), np.asarray(truth).ravel(), np.asarray(positive).ravel())
        return cls(*(float(c[0]) for c in counts))

    @property
    def accuracy_score(self) -> float:
        """Share of right answers."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

    @property
    def recall_score(self) -> float:
        """Share of the positives that were called (sensitivity)."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity_score(self) -> float:
        """Share of the negatives that were not called."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision_score(self) -> float:
        """Share of the calls that were right (positive predictive value)."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def f1_score(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


def auc_score(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve; NaN where only one class is there."""
    return float(weighted.auc(_ones(truth), truth, score)[0])


def average_precision_score(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the average precision (area under the precision-recall steps); NaN where only one class is there."""
    return float(weighted.average_precision(_ones(truth), truth, score)[0])


def brier_loss(truth: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean squared error of the probabilities (Brier 1950); NaN for no cases."""
    return float(weighted.mean(_ones(truth), (np.asarray(truth, float) - np.asarray(probability, float)) ** 2)[0])


def ece_loss(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error over equal-width bins (Guo 2017); NaN for no cases."""
    return float(weighted.calibration_error(_ones(truth), truth, probability, bins)[0])


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a curve, one per threshold."""

    x: Array
    y: Array
    thresholds: Array


def roc_curve(truth: ArrayLike, score: ArrayLike) -> Curve:
    """Return false-positive rate (x) and true-positive rate (y), from the strictest threshold to the loosest.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    levels, true, false = _steps(truth, score)
    return Curve(np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]], np.r_[np.inf, levels])


def precision_recall_curve(truth: ArrayLike, score: ArrayLike) -> Curve:
    """Return recall (x) and precision (y), from the strictest threshold to the loosest.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    levels, true, false = _steps(truth, score)
    return Curve(true / true[-1], true / (true + false), levels)


def _steps(truth: ArrayLike, score: ArrayLike) -> tuple[Array, Array, Array]:
    """Return the distinct scores, highest first, and how many true and false calls there are at each."""
    y, s = _both_classes(truth, score)
    levels, member = np.unique(s, return_inverse=True)
    true = np.cumsum(np.bincount(member, y)[::-1])
    false = np.cumsum(np.bincount(member, 1 - y)[::-1])
    return levels[::-1], true.astype(float), false.astype(float)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often cases of like probability were positive; bins without a case are left out."""

    mean_probability: Array
    observed: Array
    count: NDArray[np.int64]


def reliability(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> Reliability:
    """Return the points of a reliability diagram over equal-width bins."""
    y, p = np.asarray(truth, float), np.asarray(probability, float)
    member = np.clip((p * bins).astype(int), 0, bins - 1)
    count = np.bincount(member, minlength=bins)
    kept = count > 0
    sums = [np.bincount(member, values, minlength=bins)[kept] / count[kept] for values in (p, y)]
    return Reliability(sums[0], sums[1], count[kept].astype(np.int64))


@dataclass(frozen=True, eq=False)
class PaperScore:
    """Scores by the protocol of the CT-ICH paper."""

    dice: float
    iou: float
    subjects: tuple[str, ...]
    subject_dice: Array
    slices: int


def paper_protocol(
    patients: ArrayLike,
    intersection: ArrayLike,
    found: ArrayLike,
    true: ArrayLike,
    excluded: tuple[str, ...] = ("070",),
) -> PaperScore:
    """Return Dice and IoU as Hssayeni et al. (Data 2020, 5(1), 14) report them for CT-ICH.

    Per slice with blood; the mean within a subject; the mean over subjects. Patient 70 was left out there.

    Parameters
    ----------
    patients
        Patient of each slice, three digits.
    intersection, found, true
        Pixels of each slice in both masks, in the found one and in the true one.
    """
    names = np.asarray(patients, dtype=str)
    i, f, t = (np.asarray(v, float) for v in (intersection, found, true))
    kept = (t > 0) & ~np.isin(names, excluded)
    dice, iou = 2 * i[kept] / (f + t)[kept], i[kept] / (f + t - i)[kept]
    subjects, member = np.unique(names[kept], return_inverse=True)
    if not len(subjects):
        return PaperScore(float("nan"), float("nan"), (), np.empty(0), 0)
    per_subject = [np.bincount(member, values) / np.bincount(member) for values in (dice, iou)]
    return PaperScore(
        float(per_subject[0].mean()), float(per_subject[1].mean()),
        tuple(str(s) for s in subjects), per_subject[0], int(kept.sum()),
    )  # fmt: skip


def youden_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the threshold of the highest sensitivity + specificity, in the middle of the gap that it lies in.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    candidates, recall, false_rate, _ = _candidates(truth, score)
    return float(candidates[int(np.argmax(recall - false_rate))])


def f1_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the threshold of the highest F1, in the middle of its gap.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    candidates, _, _, f1 = _candidates(truth, score)
    return float(candidates[int(np.argmax(f1))])


def recall_threshold(truth: ArrayLike, score: ArrayLike, wanted: float) -> float:
    """Return the highest threshold that still calls at least the share `wanted` of the positives.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    candidates, recall, _, _ = _candidates(truth, score)
    return float(candidates[recall >= wanted - 1e-12].max())


def specificity_threshold(truth: ArrayLike, score: ArrayLike, wanted: float) -> float:
    """Return the lowest threshold that leaves at least the share `wanted` of the negatives uncalled.

    Raises
    ------
    ValueError
        If only one class is there.
    """
    candidates, _, false_rate, _ = _candidates(truth, score)
    kept = candidates[1 - false_rate >= wanted - 1e-12]
    return float(kept.min()) if kept.size else float(np.nextafter(np.max(score), np.inf))


def _candidates(truth: ArrayLike, score: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Return thresholds (lowest score, then the middle of every gap) with recall, false-positive rate and F1."""
    levels, true, false = (v[::-1] for v in _steps(truth, score))
    candidates = np.r_[levels[0], (levels[1:] + levels[:-1]) / 2]
    f1 = 2 * true / (true + false + true[0])
    return candidates, true / true[0], false / false[0], f1


def _both_classes(truth: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    y, s = np.asarray(truth, float), np.asarray(score, float)
    if not 0 < y.sum() < len(y):
        raise ValueError("a threshold or curve needs both positive and negative cases")
    return y, s


def _ones(truth: ArrayLike) -> Array:
    return np.ones((1, np.asarray(truth).size))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
