"""From raw network scores to probabilities: logistic calibration, and Venn-Abers intervals for the scan.

Everything here is fitted on validation patients and stored in the model card; nothing is fitted in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from hemolens.labels import FINDING_NAMES

Array = NDArray[np.float64]

ABSTAIN_ERROR = 0.1
"""Outside the band of doubt, at most this share of bleeding scans, and of bleed-free ones, is called wrongly."""
VOLUME_ERROR = 0.2
"""Share of scans whose true volume may lie outside the interval of the volume."""
VOLUME_OFFSET_ML = 0.5
"""Added to a volume before its logarithm is taken, so that tiny bleeds do not count as errors of many times."""
SOURCES = ("neighbors", "outline", "head")
"""What speaks for a finding on a slice, in the order of the weights (`hemolens.inference.evidence`)."""
TOP_SLICES = 2
"""A scan's score is the mean log-odds of its this many most suspicious slices: one slice alone is often an artifact."""


@dataclass(frozen=True)
class Logistic:
    """Probability = sigmoid(intercept + weights · features)."""

    weights: tuple[float, ...]
    intercept: float

    def log_odds(self, features: ArrayLike) -> Array:
        """Return calibrated log-odds for features of shape ``(…, len(weights))``."""
        return np.asarray(np.asarray(features, float) @ np.array(self.weights) + self.intercept)

    @classmethod
    def fit(cls, features: ArrayLike, truth: ArrayLike, penalty: float = 1e-2) -> Logistic:
        """Fit by maximum likelihood with Platt's smoothed targets (Platt 1999), which keep separable data finite.

        Parameters
        ----------
        features
            Shape ``(n, k)``.
        truth
            0 or 1, shape ``(n,)``.
        penalty
            L2 penalty on the weights, per sample.

        Raises
        ------
        ValueError
            If only one class is there.
        """
        x, y = np.asarray(features, float), np.asarray(truth, float)
        positives, negatives = y.sum(), len(y) - y.sum()
        if not positives or not negatives:
            raise ValueError("calibration needs both positive and negative cases")
        target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

        def loss(w: Array) -> tuple[float, Array]:
            z = x @ w[:-1] + w[-1]
            residual = sigmoid(z) - target
            value = float(np.mean(np.logaddexp(0, z) - target * z)) + penalty * float((w[:-1] ** 2).sum()) / 2
            gradient = np.append(x.T @ residual / len(x) + penalty * w[:-1], residual.mean())
            return value, gradient

        found = optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B")
        return cls(tuple(float(v) for v in found.x[:-1]), float(found.x[-1]))


@dataclass(frozen=True)
class Calibration:
    """How a card's network is calibrated."""

    slice_any: Logistic
    """On the evidence for "any", in the order of `SOURCES`; fewer weights are those of the last ones."""
    slice_subtype: Logistic
    """The same for a subtype; shared by the five."""
    study_any: Logistic
    """On the scan's score (`study_score`)."""
    study_scores: tuple[float, ...] = ()
    """Scores of the validation scans, for the interval."""
    study_truth: tuple[int, ...] = ()
    """Whether each of them holds a hemorrhage."""
    volume_log_ratios: tuple[float, ...] = ()
    """`volume_log_ratio` of the validation scans whose truth is known."""

    def __post_init__(self) -> None:
        if len(self.study_scores) != len(self.study_truth):
            raise ValueError("study_scores and study_truth differ in length")
        if not all(0 < len(fitted.weights) <= len(SOURCES) for fitted in (self.slice_any, self.slice_subtype)):
            raise ValueError(f"slices are judged by {len(SOURCES)} weights at most")

    def slices(self, evidence: Array) -> Array:
        """Return calibrated log-odds per slice, shape ``(slices, 6)`` in `FINDING_NAMES` order.

        Parameters
        ----------
        evidence
            Shape ``(slices, 6, 3)``, from `hemolens.inference.evidence.gather_evidence`. What is NaN has no say; where
            all is NaN, so is the answer.
        """
        told = np.nan_to_num(evidence)
        out = np.empty((len(told), len(FINDING_NAMES)))
        out[:, 0] = _last(self.slice_any, told[:, 0])
        out[:, 1:] = np.minimum(_last(self.slice_subtype, told[:, 1:]), out[:, :1])
        out[np.isnan(evidence).all(axis=2)] = np.nan
        return out

    def study(self, slice_log_odds: Array) -> tuple[Array, tuple[float, float] | None]:
        """Return the scan's probabilities, shape ``(6,)``, and the Venn-Abers interval of "any"."""
        scores = study_score(slice_log_odds)
        probability = sigmoid(scores)
        probability[0] = sigmoid(self.study_any.log_odds(scores[:1]))
        probability[1:] = np.minimum(probability[1:], probability[0])
        if not self.study_scores:
            return probability, None
        low, high = venn_abers(self.study_scores, self.study_truth, float(scores[0]))
        return probability, (min(low, float(probability[0])), max(high, float(probability[0])))

    def band(self) -> tuple[float, float] | None:
        """Return the probabilities of "any" between which a human should look first; None without validation scans."""
        band = conformal_band(self.study_scores, self.study_truth)
        if band is None:
            return None
        low, high = (float(sigmoid(self.study_any.log_odds([score]))) for score in band)
        return min(low, high), max(low, high)

    def volume_log_ratio(self) -> tuple[float, float] | None:
        """Return between which log ratios the true volume lies for all but `VOLUME_ERROR` of scans, or None."""
        return conformal_interval(self.volume_log_ratios, VOLUME_ERROR)


def _last(fitted: Logistic, evidence: Array) -> Array:
    """Return the log-odds of a logistic that may have fewer weights than there are sources."""
    return fitted.log_odds(evidence[..., -len(fitted.weights) :])


UNCALIBRATED = Calibration(Logistic((0.5, 0.5), 0.0), Logistic((0.5, 0.5), 0.0), Logistic((1.0,), 0.0))
"""Takes what a network says as it is: its slice head and its outline each have half a say."""


def study_score(slice_log_odds: Array) -> Array:
    """Return the mean of the `TOP_SLICES` highest log-odds of each finding, shape ``(6,)``."""
    top = np.sort(np.asarray(slice_log_odds, float), axis=0)[-TOP_SLICES:]
    return np.asarray(top.mean(axis=0))


def venn_abers(scores: Sequence[float], truth: Sequence[int], score: float) -> tuple[float, float]:
    """Return the lower and upper probability that a new case of this score is positive.

    Isotonic regression is fitted twice, with the new case added as a negative and as a positive; one of the two
    probabilities is calibrated whatever the distribution (Vovk and Petej 2014, arXiv 1211.0025). The fewer the
    calibration cases, the wider the interval.
    """
    order = np.argsort([*scores, score], kind="stable")
    ranks = np.array([*scores, score])[order]
    place = int(np.flatnonzero(order == len(scores))[0])
    bounds = []
    for assumed in (0.0, 1.0):
        labels = np.array([*truth, assumed], dtype=float)[order]
        _, inverse, counts = np.unique(ranks, return_inverse=True, return_counts=True)
        means = np.bincount(inverse, labels) / counts
        fitted = optimize.isotonic_regression(means, weights=counts.astype(float)).x
        bounds.append(float(fitted[inverse[place]]))
    return bounds[0], bounds[1]


def conformal_band(
    scores: Sequence[float], truth: Sequence[int], error: float = ABSTAIN_ERROR
) -> tuple[float, float] | None:
    """Return the scores between which neither answer is safe: where to abstain.

    Class-conditional (Mondrian) conformal prediction: for new scans like those of validation, whatever their
    distribution, at most a share `error` of the bleeding ones scores below the band and at most that share of the
    bleed-free ones above it (Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, chapter 4.5).
    Where the classes lie apart, the band is the gap between them, in which nothing was ever seen.

    Parameters
    ----------
    scores, truth
        Of the validation scans.
    error
        Allowed for each class.

    Returns
    -------
    tuple of float or None
        None where a class has too few scans to promise that share.
    """
    positive = np.sort([s for s, t in zip(scores, truth, strict=True) if t])
    negative = np.sort([s for s, t in zip(scores, truth, strict=True) if not t])
    below = int(np.floor(error * (len(positive) + 1)))  # a positive with fewer below it than this is left out
    above = int(np.floor(error * (len(negative) + 1)))
    if not below or not above:
        return None
    low, high = float(positive[below - 1]), float(negative[len(negative) - above])
    return min(low, high), max(low, high)


def volume_log_ratio(true_ml: float, outlined_ml: float) -> float:
    """Return how many times too small an outlined volume is, as a logarithm."""
    return float(np.log((true_ml + VOLUME_OFFSET_ML) / (outlined_ml + VOLUME_OFFSET_ML)))


def volume_interval(outlined_ml: float, log_ratio: tuple[float, float]) -> tuple[float, float]:
    """Return between which volumes the true one lies; the outlined one is always inside."""
    low, high = ((outlined_ml + VOLUME_OFFSET_ML) * float(np.exp(r)) - VOLUME_OFFSET_ML for r in log_ratio)
    return max(0.0, min(low, outlined_ml)), max(high, outlined_ml)


def conformal_interval(residuals: Sequence[float], error: float) -> tuple[float, float] | None:
    """Return the interval that holds a new residual with probability 1 - `error` (split conformal, both sides alike).

    Parameters
    ----------
    residuals
        Of validation scans.
    error
        Share allowed outside.

    Returns
    -------
    tuple of float or None
        None where there are too few residuals to promise that share.
    """
    each = int(np.floor(error / 2 * (len(residuals) + 1)))
    if not each:
        return None
    ordered = np.sort(residuals)
    return float(ordered[each - 1]), float(ordered[len(ordered) - each])


def held_left_out(residuals: Sequence[float], error: float) -> list[bool]:
    """Return whether the `conformal_interval` of all others holds each residual; where they give none, it does."""
    held = []
    for k, residual in enumerate(residuals):
        interval = conformal_interval([*residuals[:k], *residuals[k + 1 :]], error)
        held.append(interval is None or interval[0] <= residual <= interval[1])
    return held


def sigmoid(x: ArrayLike) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, float))))


def logit(p: ArrayLike) -> Array:
    """Return the log-odds of a probability, held within ±12."""
    q = np.clip(np.asarray(p, float), 6e-6, 1 - 6e-6)
    return np.asarray(np.log(q) - np.log1p(-q))
