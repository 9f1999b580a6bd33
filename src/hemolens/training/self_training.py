"""Self-training: a network outlines the slices that bleed and have no mask; what is trustworthy teaches the next one.

An outline is kept where the network is sure of its core, where the label of the slice allows a bleed of that kind at
that place, and where it is brighter than brain. Its edge is moved to where gray is half way between blood and brain.
Whatever else the network suspects on such a slice is unknown from then on: neither blood nor its absence is taught.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.inference.predictor import Predictor
from hemolens.labels import SUBTYPE_NAMES
from hemolens.preprocessing.pipeline import Prepared
from hemolens.sources.datasets.cases import UNKNOWN, Case, DataSet, SliceRecord, single_subtype

Mask = NDArray[np.bool_]
Gray = NDArray[np.uint8]
Float = NDArray[np.float32]
AT_THE_SKULL = frozenset({"epidural", "subdural"})
DEEP = frozenset({"intraparenchymal", "intraventricular"})
SNAP = 2
"""By how many samples an edge may move."""
BONE = 235
"""About 90 HU: an edge never moves into what is brighter."""
CLEAR = 12.0
"""Gray values between blood and brain from which an edge is looked for."""


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Which outlines are trusted. Lengths are shares of the side of the head crop (0.0045 is about one millimeter).

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    low: float = 0.35
    """Pixels at or above this probability are outlined ..."""
    core: float = 0.6
    """... where the region reaches this one."""
    suspected: float = 0.1
    """Other pixels at or above this are unknown rather than free of blood."""
    smallest: int = 12
    """Samples in a region."""
    brighter: float = 6.0
    """Gray values (0 to 255) by which a region must be brighter than the brain: 3 HU in a window of 120 HU."""
    near_skull: float = 0.022
    """A slice with epidural or subdural blood alone: regions come this near to the skull."""
    deep: float = 0.045
    """A slice with blood in the brain or the ventricles alone: regions reach at least this deep."""
    mend: bool = False
    """Complete the masks of data sets that are derived as published, too (`hemolens.training.mending`)."""

    def __post_init__(self) -> None:
        if not 0 < self.suspected <= self.low <= self.core < 1:
            raise ValueError("suspected, low and core must rise and lie between 0 and 1")
        if self.smallest < 1 or self.brighter < 0 or self.near_skull <= 0 or self.deep < 0:
            raise ValueError("smallest must be at least 1, brighter and deep at least 0, near_skull above 0")


@dataclass(frozen=True, eq=False)
class Derived:
    """What a network tells of some slices of a scan."""

    names: tuple[str, ...]
    """Of the slices."""
    planes: NDArray[np.uint8]
    """Their masks: labels as of `DataSet.labels`, shape ``(names, rows, columns)``, on the grid of the source."""
    findings: tuple[tuple[float, ...], ...] | None = None
    """What is known of each slice from now on, where that is anything new; all NaN with a mask that is unknown
    throughout."""


def trusted(probability: Float, crop: Gray, inside: Mask, kinds: Collection[str], config: SelfTrainingConfig) -> Mask:
    """Return the outline that may teach; shapes ``(h, w)``, on the network's grid.

    Parameters
    ----------
    probability
        Of blood.
    crop
        The slice.
    inside
        The inside of the skull; all of it where the skull is not closed, and then no region has a place.
    kinds
        Subtypes that the slice may have.
    """
    kept = np.zeros(probability.shape, dtype=bool)
    regions, count = ndimage.label(probability >= config.low, structure=np.ones((3, 3)))
    depth = None if inside.all() else ndimage.distance_transform_edt(inside) / len(inside)
    tissue = crop[inside & (crop > 40) & (crop < 200) & (probability < config.suspected)]
    brain = float(np.median(tissue)) if tissue.size else math.nan
    for number in range(1, count + 1):
        region = regions == number
        if region.sum() < config.smallest or probability[region].max() < config.core:
            continue
        if not np.median(crop[region]) - brain >= config.brighter:
            continue
        if depth is None or _is_allowed(depth[region], frozenset(kinds), config):
            kept |= _snapped(region, crop, inside, brain, probability)
    return kept


def _is_allowed(depth: NDArray[np.floating], kinds: frozenset[str], config: SelfTrainingConfig) -> bool:
    if kinds <= AT_THE_SKULL:
        return bool(depth.min() <= config.near_skull)
    if kinds <= DEEP:
        return bool(depth.max() >= config.deep)
    return True


def _snapped(region: Mask, crop: Gray, inside: Mask, brain: float, probability: Float) -> Mask:
    """Move the edge of a region to half the step from brain to blood, where that step is clear."""
    smooth = ndimage.gaussian_filter(crop.astype(np.float32), 0.7)
    blood = float(np.median(smooth[region & (probability >= np.median(probability[region]))]))
    if blood - brain < CLEAR:
        return region
    near = ndimage.binary_dilation(region, iterations=SNAP) & inside & (crop < BONE)
    core = ndimage.binary_erosion(region, iterations=SNAP)
    return np.asarray(near & (core | (smooth >= (blood + brain) / 2)))


def derive(predictor: Predictor, dataset: DataSet, case: Case, config: SelfTrainingConfig) -> Derived:
    """Outline the bleeding slices of a case whose mask is unknown."""
    volume = dataset.volume(case)
    prepared, scores = predictor.score(volume)
    assert scores.blood is not None
    order = prepared.restore_slices(np.arange(len(prepared.crops)))
    names, planes = [], []
    for k, record in enumerate(case.slices):
        if record.mask_state != "unknown" or record.findings[0] != 1.0:
            continue
        place = int(order[k])
        probability, crop, inside = scores.blood[place], prepared.crops[place], prepared.gates[place]
        kept = trusted(probability, crop, inside, allowed(record), config)
        if kept.any():
            names.append(record.name)
            planes.append(_labels(prepared, kept, (probability >= config.suspected) & ~kept, record))
    return Derived(tuple(names), stacked(planes, volume.shape[1:]))


def stacked(planes: list[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return ``(planes, rows, columns)``, also of no planes."""
    return np.stack(planes) if planes else np.zeros((0, *shape), dtype=np.uint8)


def allowed(record: SliceRecord) -> tuple[str, ...]:
    """Return the subtypes that a slice may have: those that it has, or, where none is named, those left open."""
    there = [name for name, v in zip(SUBTYPE_NAMES, record.findings[1:], strict=True) if v == 1.0]
    return tuple(there or [n for n, v in zip(SUBTYPE_NAMES, record.findings[1:], strict=True) if math.isnan(v)])


def _labels(prepared: Prepared, kept: Mask, suspected: Mask, record: SliceRecord) -> NDArray[np.uint8]:
    blood, doubt = (prepared.restore(m[None].astype(np.float32))[0] for m in (kept, suspected))
    labels = np.zeros(blood.shape, dtype=np.uint8)
    labels[doubt > 0.1] = UNKNOWN
    labels[blood >= 0.5] = single_subtype(record.findings)
    return labels
