"""Derived masks are mended: a network tells what of a bleed they leave out, and on which slices.

PHE-SICH's masks of blood were derived from gray values within one box a lesion. What lies outside of that box (drops
beside a hematoma, blood that broke into a ventricle, the paler half of a layered one, the slices on which a bleed fades
out) is not in them, and would be taught as no blood. A network's outline takes its place where it is trustworthy by the
rules of `hemolens.training.self_training` and hangs together with what is known, in its slice or the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.inference.predictor import Predictor
from hemolens.labels import SUBTYPE_NAMES
from hemolens.sources.datasets.cases import (
    EDEMA,
    UNKNOWN,
    UNKNOWN_FINDINGS,
    UNKNOWN_SUBTYPE,
    Case,
    DataSet,
    MaskState,
)
from hemolens.training.self_training import Derived, Float, Mask, SelfTrainingConfig, stacked, trusted
from hemolens.training.store import labels_on_grid

BESIDE = 0.03
"""How far from known blood of its own slice an outline may lie, as a share of the side of the head crop: 7 mm."""
ABOVE = 0.008
"""The same of the slice above or below."""
EDGE = 0.008
"""So near to blood nothing is in doubt: where its edge lies stays taught."""
TOUCHING = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class Mended:
    """What is known of the slices of a scan from now on, ``(slices, h, w)`` on the network's grid."""

    added: Mask
    """Blood beside what was known."""
    doubt: Mask
    """Neither blood nor its absence is known."""
    states: tuple[MaskState, ...]


def mend_masks(
    probability: Float,
    crops: NDArray[np.uint8],
    inside: Mask,
    known: Mask,
    states: Sequence[MaskState],
    numbers: Sequence[int],
    config: SelfTrainingConfig,
) -> Mended:
    """Complete the derived masks of one scan; arrays are ``(slices, h, w)`` on the network's grid.

    Parameters
    ----------
    probability
        Of blood, as a network tells it.
    crops, inside
        Gray values, and the inside of the skull.
    known
        Blood of the derived masks.
    states
        Of each slice. An unknown one is taken for one that bleeds; an empty one, for one on which nothing was marked.
    numbers
        Of the slices; those that follow each other are neighbors.
    config
        Which outlines are trusted.
    """
    sure = np.stack([trusted(*of, SUBTYPE_NAMES, config) for of in zip(probability, crops, inside, strict=True)])
    unsure = np.array([state == "unknown" for state in states])
    added = _hanging_together(sure, known, numbers)
    blood = known | added
    possible = (probability >= config.low) & ~_widened(blood, EDGE)
    suspected = (probability >= config.suspected) & ~blood
    doubt = np.where(unsure[:, None, None], suspected, possible)
    near = _near(blood, numbers)
    told: list[MaskState] = []
    for k, state in enumerate(states):
        if state == "empty" and not added[k].any():
            told.append("unknown" if _touching(doubt[k], near[k]).any() else "empty")
            doubt[k] = False
        else:
            told.append("pseudo" if blood[k].any() else "unknown")
    return Mended(added & ~known, doubt, tuple(told))


def _hanging_together(sure: Mask, known: Mask, numbers: Sequence[int]) -> Mask:
    """Return the parts of `sure` that hang together with what is known, over any number of slices."""
    added = np.zeros_like(sure)
    while True:
        near = _near(known | added, numbers)
        more = np.stack([_touching(*of) for of in zip(sure, near, strict=True)]) | added
        if (more == added).all():
            return added
        added = more


def _near(blood: Mask, numbers: Sequence[int]) -> Mask:
    """Return what is near blood of its own slice or of the next one."""
    near, over = _widened(blood, BESIDE), _widened(blood, ABOVE)
    for k in range(1, len(blood)):
        if numbers[k] - numbers[k - 1] == 1:
            near[k] |= over[k - 1]
            near[k - 1] |= over[k]
    return near


def _widened(planes: Mask, share: float) -> Mask:
    pixels = share * planes.shape[-1]
    return np.stack(
        [ndimage.distance_transform_edt(~plane) <= pixels if plane.any() else plane.copy() for plane in planes]
    )


def _touching(plane: Mask, near: Mask) -> Mask:
    """Return the regions of a plane of which any pixel is near."""
    regions, count = ndimage.label(plane, TOUCHING)
    kept = np.zeros(count + 1, dtype=bool)
    kept[regions[near]] = True
    kept[0] = False
    return np.asarray(kept[regions])


def mend(predictor: Predictor, dataset: DataSet, case: Case, config: SelfTrainingConfig) -> Derived:
    """Complete the derived masks of a case: the slices of which something else is known from now on."""
    volume, labels = dataset.volume(case), dataset.labels(case)
    prepared, scores = predictor.score(volume)
    assert scores.blood is not None
    order = prepared.restore_slices(np.arange(len(prepared.crops)))
    on_grid = labels_on_grid(labels, prepared)[order]
    known = (on_grid > 0) & (on_grid <= UNKNOWN_SUBTYPE)
    states = tuple(record.mask_state for record in case.slices)
    numbers = volume.source.slice_numbers or tuple(range(len(states)))
    inputs = (scores.blood[order], prepared.crops[order], prepared.gates[order], known)
    mended = mend_masks(*inputs, states, numbers, config)
    back = np.argsort(order)
    added, doubt = (prepared.restore(m[back].astype(np.float32)) >= 0.5 for m in (mended.added, mended.doubt))
    bleeding = _findings_of_bleeding(case)
    names, findings, planes = [], [], []
    for k, record in enumerate(case.slices):
        plane = _mended(labels[k], added[k], doubt[k], mended.states[k])
        if (plane != labels[k]).any():
            names.append(record.name)
            findings.append(bleeding if mended.states[k] == "pseudo" else UNKNOWN_FINDINGS)
            planes.append(plane)
    return Derived(tuple(names), stacked(planes, labels.shape[1:]), tuple(findings))


def _mended(labels: NDArray[np.uint8], added: Mask, doubt: Mask, state: MaskState) -> NDArray[np.uint8]:
    """Lay what is known now over the labels of a slice; drawn edema stays."""
    if state == "unknown":
        return np.full_like(labels, UNKNOWN)
    plane = np.where(labels == UNKNOWN, np.uint8(0), labels)
    plane[doubt & (plane == 0)] = UNKNOWN
    plane[added & (plane != EDEMA)] = UNKNOWN_SUBTYPE
    return plane


def _findings_of_bleeding(case: Case) -> tuple[float, ...]:
    """Return what is known of every slice of the case that has a derived mask."""
    rows = {record.findings for record in case.slices if record.mask_state == "pseudo"}
    return rows.pop() if len(rows) == 1 else (1.0, *(math.nan for _ in SUBTYPE_NAMES))
