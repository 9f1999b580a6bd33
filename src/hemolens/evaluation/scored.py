"""What a model said of one case beside what is known of it: numbers per slice and scan, no pixels.

A case's pixels are read, scored, compared and let go, so that memory holds one scan at a time however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation.metrics import LesionCounts, hausdorff95_loss, match_lesions
from hemolens.inference.outline import outline_blood
from hemolens.inference.predictor import Predictor, Scores
from hemolens.inference.registry import Thresholds
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.measurements.edema import EDEMA_THRESHOLD, around
from hemolens.measurements.lesions import smallest_size
from hemolens.measurements.regions import Scale, find_patches
from hemolens.preprocessing.pipeline import Prepared
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN, UNKNOWN_SUBTYPE, Case, DataSet, MaskState
from hemolens.volume import Volume

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FIELD_MM = 250.0
"""Field of view that slice images of unknown pixel size are taken to show."""
PUBLISHED_MM = (("ct_ich", 5.0, 0.39),)
"""Data sets whose pictures carry no spacing but whose slice distance is published: name, distance, pixel of an adult
head."""
SCORED: tuple[MaskState, ...] = ("drawn", "empty")
"""Masks that may be measured against. A pseudo-mask is a training signal; an unknown one is nothing at all."""


@dataclass(frozen=True, eq=False)
class Grid:
    """What the pixels of a scan measure."""

    pixel_mm2: Array
    """Shape ``(slices,)``."""
    voxel_ml: Array
    """Shape ``(slices,)``; NaN where no distance between slices is known."""
    spacing_mm: tuple[float, float, float]
    """Between slices (NaN where unknown), rows and columns: the scan's medians."""
    assumed: str
    """What was assumed, or nothing where the source says it all."""

    @classmethod
    def of(cls, volume: Volume, dataset: str) -> Grid:
        """Read it off a volume's geometry, else take what is published, else a usual field of view."""
        n = len(volume)
        if volume.stack is not None:
            rows, columns = (float(v) for v in np.median(volume.stack.spacings_mm, axis=0))
            step = float(np.median(np.diff(volume.stack.offsets_mm))) if n > 1 else float("nan")
            area = volume.stack.spacings_mm.prod(axis=1)
            return cls(area, volume.stack.voxel_volumes_ml, (step, rows, columns), "")
        for name, step, pixel in PUBLISHED_MM:
            if name == dataset and n > 1:
                area = np.full(n, pixel**2)
                told = f"pixels of {pixel:g} mm (an adult head; not published) and slices {step:g} mm apart"
                return cls(area, area * step / 1000, (step, pixel, pixel), told)
        pixel = FIELD_MM / volume.shape[2]
        area = np.full(n, pixel**2)
        told = f"a field of view of {FIELD_MM:g} mm (the pixel size is not known)"
        return cls(area, np.full(n, np.nan), (float("nan"), pixel, pixel), told)


@dataclass(frozen=True, eq=False)
class ScanScore:
    """A scan whose every slice has a drawn or empty mask; milliliters are NaN where unknown."""

    true_ml: float
    found_ml: float
    true_px: float
    found_px: float
    shared_px: float
    hd95_mm: float


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """One case; arrays have one row per slice, in the order of the volume."""

    case: Case
    sides: tuple[str, ...]
    """Side of the split that each slice was scored for; empty where it was not."""
    findings: Array
    """Truth, ``(slices, 6)``: 1, 0 or NaN."""
    evidence: Array
    """What speaks for each finding, ``(slices, 6, 3)`` (`hemolens.inference.evidence`); NaN for what is not told."""
    scan_logits: Array
    """The scan head's, ``(6,)``; NaN for a model without one."""
    overlap: Array
    """Pixels in both masks, in the found and in the true one, ``(slices, 3)``; NaN where the mask is not scored."""
    hd95_mm: Array
    """In the plane; NaN where either mask is empty."""
    subtype_pixels: NDArray[np.int64]
    """Drawn subtype against outlined one, ``(slices, 5, 7)``: 0 is not outlined, 6 outlined without a subtype."""
    grid: Grid
    scan: ScanScore | None
    """None where a slice is of unknown mask or was not scored, and for loose slices."""
    lesions: LesionCounts | None
    """None where `scan` is, but told for a loose slice with a drawn or empty mask."""
    edema: Array
    """As `overlap`, of edema; NaN for a model that does not tell it and in cases where none is drawn."""

    @property
    def loose(self) -> bool:
        """Whether this is a slice without its scan."""
        return len(self.case.slices) == 1 and self.case.scan_findings is None

    @property
    def side(self) -> str:
        """Side of the whole case; empty where its slices stand on several."""
        return self.sides[0] if len(set(self.sides)) == 1 else ""


Watcher = Callable[[Sequence["Compared"]], None]
"""Is shown the scored slices of a case while their pixels are there."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One slice with its pixels, for pictures."""

    case: Case
    index: int
    side: str
    volume: Volume
    prepared: Prepared
    true: Mask | None
    """Blood; None where the mask is not scored."""
    evidence: Array
    """Of any hemorrhage, ``(3,)`` (`hemolens.inference.evidence`)."""
    outline: Callable[[], Mask | None]
    """Return the outline on the source grid; None where nothing was found."""


def read_case(predictor: Predictor, dataset: DataSet, case: Case) -> tuple[Volume, Prepared]:
    """Read a case and prepare it for a model: the part that needs no network, and so can be done ahead.

    Raises
    ------
    InputError
        If the case cannot be read.
    """
    volume = dataset.volume(case)
    return volume, predictor.prepare(volume)


def score_case(
    predictor: Predictor,
    dataset: DataSet,
    case: Case,
    sides: Sequence[str],
    watch: Watcher | None = None,
    ready: tuple[Volume, Prepared] | None = None,
) -> ScoredCase:
    """Run a model on a case and compare.

    Parameters
    ----------
    sides
        For each slice the side that it is scored for; empty to leave it out.
    watch
        Called once, with the scored slices.
    ready
        From `read_case`; read here if None.

    Raises
    ------
    InputError
        If the case cannot be read.
    """
    volume, prepared = read_case(predictor, dataset, case) if ready is None else ready
    scores = predictor.run(prepared)
    thresholds = predictor.model.thresholds
    states = [r.mask_state if side else "unknown" for r, side in zip(case.slices, sides, strict=True)]
    labels = dataset.labels(case) if "drawn" in states or scores.edema is not None else None
    outlines = _Outlines(prepared, scores, thresholds)
    comparison = _Comparison(volume, Grid.of(volume, case.dataset))
    evidence = prepared.restore_slices(scores.evidence(prepared, predictor.model.preprocess.context_mm))
    shown = []
    for k, state in enumerate(states):
        if not sides[k]:
            continue
        true = None
        if state in SCORED and scores.blood is not None:
            plane = labels[k] if labels is not None and state == "drawn" else np.zeros(volume.shape[1:], np.uint8)
            true, found = is_blood(plane), outlines.blood(k)
            comparison.add(k, plane, true, None if found is None else found & (plane != UNKNOWN), outlines)
        outline = partial(outlines.blood, k)
        shown.append(Compared(case, k, sides[k], volume, prepared, true, evidence[k, 0], outline))
    if watch is not None:
        watch(shown)
    whole = scores.blood is not None and all(state in SCORED for state in states)
    return ScoredCase(
        case,
        tuple(sides),
        np.array([r.findings for r in case.slices], dtype=float),
        evidence,
        _row(scores.scan_logits),
        comparison.overlap,
        comparison.hd95,
        comparison.subtypes,
        comparison.grid,
        comparison.scan() if whole and len(volume) > 1 else None,
        comparison.lesions() if whole else None,
        _edema(prepared, scores, thresholds, labels, sides),
    )


def is_blood(labels: NDArray[np.uint8]) -> Mask:
    """Return where labels say blood: subtypes 1 to 5 and blood of unknown subtype, not edema."""
    return np.asarray((labels > 0) & (labels <= UNKNOWN_SUBTYPE))


class _Outlines:
    """Brings outlines onto the source grid, one slice at a time and only where there is one."""

    def __init__(self, prepared: Prepared, scores: Scores, thresholds: Thresholds) -> None:
        self._prepared, self._scores, self._thresholds = prepared, scores, thresholds
        self._order = prepared.restore_slices(np.arange(len(prepared.crops), dtype=np.float32)).astype(int)
        self._blood: dict[int, Mask | None] = {}

    def blood(self, index: int) -> Mask | None:
        """Return the outline of slice `index`; None where nothing reaches the threshold."""
        if index not in self._blood:
            self._blood[index] = self._restore(index)
        return self._blood[index]

    def _restore(self, index: int) -> Mask | None:
        if self._scores.blood is None:
            return None
        plane = self._scores.blood[self._order[index]]
        # Samples on the source grid are weighted means of the crop's: none exceeds the largest.
        if plane.max() < max(self._thresholds.mask, self._thresholds.seed or 0):
            return None
        found = outline_blood(self._prepared.restore(plane[None]), self._thresholds.mask, self._thresholds.seed)[0]
        return found if found.any() else None

    def subtypes(self, index: int) -> NDArray[np.int64] | None:
        """Return the likeliest subtype (1 to 5) of every pixel; None for a model that tells none."""
        if self._scores.subtypes is None:
            return None
        planes = self._scores.subtypes[self._order[index]]
        shares = [self._prepared.restore(np.ascontiguousarray(plane)[None])[0] for plane in planes]
        return np.asarray(np.argmax(shares, axis=0) + 1)


class _Comparison:
    """Adds up a case slice by slice."""

    def __init__(self, volume: Volume, grid: Grid) -> None:
        n = len(volume)
        self.grid = grid
        self.overlap = np.full((n, 3), np.nan)
        self.hd95 = np.full(n, np.nan)
        self.subtypes = np.zeros((n, len(SUBTYPES), UNKNOWN_SUBTYPE + 1), dtype=np.int64)
        self._volume = volume
        self._true: dict[int, Mask] = {}
        self._found: dict[int, Mask] = {}

    def add(self, k: int, labels: NDArray[np.uint8], true: Mask, found: Mask | None, outlines: _Outlines) -> None:
        if true.any():
            self._true[k] = true
        if found is not None and found.any():
            self._found[k] = found
        else:
            found = None
        both = 0 if found is None else int((found & true).sum())
        self.overlap[k] = both, 0 if found is None else int(found.sum()), int(true.sum())
        if found is not None and true.any():
            self.hd95[k] = hausdorff95_loss(found, true, self.grid.spacing_mm[1:])
        self._add_subtypes(k, labels, found, outlines)

    def _add_subtypes(self, k: int, labels: NDArray[np.uint8], found: Mask | None, outlines: _Outlines) -> None:
        present = [s.index for s in SUBTYPES if (labels == s.index).any()]
        best = outlines.subtypes(k) if present and found is not None else None
        for index in present:
            called = found[labels == index] if found is not None else np.zeros((labels == index).sum(), bool)
            kinds = np.where(called, UNKNOWN_SUBTYPE if best is None else best[labels == index], 0)
            self.subtypes[k, index - 1] = np.bincount(kinds, minlength=UNKNOWN_SUBTYPE + 1)

    def scan(self) -> ScanScore:
        """Score the scan as a whole."""
        shared, found, true = (float(v) for v in self.overlap.sum(axis=0))
        ml = self.overlap * self.grid.voxel_ml[:, None]
        return ScanScore(float(ml[:, 2].sum()), float(ml[:, 1].sum()), true, found, shared, self._hd95())

    def _hd95(self) -> float:
        if not self._true or not self._found or not np.isfinite(self.grid.spacing_mm[0]):
            return float("nan")
        slices = sorted({*self._true, *self._found})
        low, high = slices[0], slices[-1] + 1
        found, true = (self._stack(masks, low, high) for masks in (self._found, self._true))
        return hausdorff95_loss(found, true, self.grid.spacing_mm)

    def _stack(self, masks: dict[int, Mask], low: int, high: int) -> Mask:
        stacked = np.zeros((high - low, *self._volume.shape[1:]), dtype=bool)
        for k, mask in masks.items():
            stacked[k - low] = mask
        return stacked

    def lesions(self) -> LesionCounts:
        """Match connected lesions, in three dimensions as `hemolens analyze` connects them."""
        if not self._true and not self._found:
            return LesionCounts(0, 0, 0, 0)
        scale = Scale.of(self._volume)
        numbers = []
        for masks in (self._found, self._true):
            labels = self._stack(masks, 0, len(self._volume)).astype(np.uint8)
            patches = find_patches(labels, self._volume.stack, scale)
            numbers.append(patches.paint(patches.connected() + 1) if len(patches) else labels.astype(np.uint16))
        smallest = smallest_size(self._volume)
        return match_lesions(numbers[0], numbers[1], smallest, np.asarray(scale.weights, dtype=float))


def _edema(
    prepared: Prepared,
    scores: Scores,
    thresholds: Thresholds,
    labels: NDArray[np.uint8] | None,
    sides: Sequence[str],
) -> Array:
    """Compare edema with the drawn one.

    A case that shows some is taken as drawn wherever its labels are known; most data sets say nothing of edema.
    """
    overlap = np.full((len(sides), 3), np.nan)
    if scores.edema is None or scores.blood is None or labels is None or not (labels == EDEMA).any():
        return overlap
    swollen = prepared.restore(scores.edema)
    blood = outline_blood(prepared.restore(scores.blood), thresholds.mask, thresholds.seed)
    found, true = around(swollen >= EDEMA_THRESHOLD, blood), labels == EDEMA
    for k, side in enumerate(sides):
        known = labels[k] != UNKNOWN
        if side and known.any():
            overlap[k] = (found[k] & true[k]).sum(), (found[k] & known).sum(), true[k].sum()
    return overlap


def _row(values: NDArray[np.floating] | None) -> Array:
    return np.full(len(FINDING_NAMES), np.nan) if values is None else np.asarray(values, dtype=float).ravel()
