"""What speaks for a finding on a slice: its outline, the outlines of its neighbors, and the network's slice head.

A calibration (`hemolens.inference.calibrate.Calibration.slices`) weighs the three. A slice is so judged by what the
slices around it show, as the best entries of the RSNA 2019 challenge do (Wang et al. 2021, NeuroImage: Clinical
32:102785), but with three weights in place of a recurrent network: some ten bleeding patients carry no more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hemolens.inference.calibrate import SOURCES, logit
from hemolens.inference.support import neighbor_slices
from hemolens.labels import FINDING_NAMES

TOP_PIXELS = 30
"""An outline's score is the mean probability of this many pixels of the crop: about 0.4 square centimeters."""
Array = NDArray[np.float64]
Float = NDArray[np.float32]


def outline_scores(blood: Float, subtypes: Float | None) -> Array:
    """Return log-odds of the mean of each slice's `TOP_PIXELS` brightest pixels.

    Parameters
    ----------
    blood
        Probability, shape ``(slices, size, size)``.
    subtypes
        Probability of each given blood, shape ``(slices, 5, size, size)``; None where they are not told.

    Returns
    -------
    ndarray
        Shape ``(slices, 6)`` in `FINDING_NAMES` order; NaN for what is not told.
    """
    scores = np.full((len(blood), len(FINDING_NAMES)), np.nan)
    scores[:, 0] = _brightest(blood)
    if subtypes is not None:
        for k in range(subtypes.shape[1]):
            scores[:, 1 + k] = _brightest(blood * subtypes[:, k])
    return scores


def gather_evidence(outlines: Array, head: Array, offsets_mm: Array, context_mm: float) -> Array:
    """Return all that speaks for each finding of each slice.

    Parameters
    ----------
    outlines
        From `outline_scores`, in the order of `offsets_mm`.
    head
        The slice head's logits, shape ``(slices, 6)``; NaN where there is none.
    offsets_mm
        Where each slice lies along the body, increasing.
    context_mm
        About how far away a neighbor is looked for.

    Returns
    -------
    ndarray
        Shape ``(slices, 6, 3)``, the last in the order of `SOURCES`. A slice without neighbors stands in for them.
    """
    around = outlines.copy()
    for k in range(len(outlines)):
        neighbors = neighbor_slices(offsets_mm, context_mm, k)
        if neighbors.size:
            around[k] = outlines[neighbors].mean(axis=0)
    found = {"neighbors": around, "outline": outlines, "head": head}
    return np.stack([found[name] for name in SOURCES], axis=2)


def as_told(evidence: Array) -> Array:
    """Return log-odds without a calibration: the mean of outline and slice head, or the one of them that is told.

    Parameters
    ----------
    evidence
        Shape ``(…, 3)``.
    """
    own = evidence[..., [SOURCES.index("outline"), SOURCES.index("head")]]
    told = np.isfinite(own)
    sums, counts = np.where(told, own, 0.0).sum(axis=-1), told.sum(axis=-1)
    return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))


def _brightest(probability: Float) -> Array:
    flat = probability.reshape(len(probability), -1)
    return logit(np.partition(flat, -TOP_PIXELS, axis=1)[:, -TOP_PIXELS:].mean(axis=1))
