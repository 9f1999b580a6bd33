"""Scored cases as columns, with probabilities: what every score, table and curve is made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation.scored import ScoredCase
from hemolens.inference.calibrate import Calibration, Logistic, sigmoid, study_score
from hemolens.inference.evidence import as_told
from hemolens.labels import FINDING_NAMES

Array = NDArray[np.float64]
Text = NDArray[np.str_]

ANY = FINDING_NAMES.index("any")


@dataclass(frozen=True, eq=False)
class _Columns:
    """Columns of equal length."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the chosen rows."""
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def and_also(self, others: Sequence[Self]) -> Self:
        """Return these rows and those of other tables."""
        tables = [self, *others]
        return replace(self, **{f.name: np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(self)})


@dataclass(frozen=True, eq=False)
class SliceTable(_Columns):
    """One row per scored slice."""

    dataset: Text
    side: Text
    group: Text
    """``dataset/patient``."""
    id: Text
    """``dataset/patient#slice``."""
    fold: NDArray[np.int64]
    """-1 where there is none."""
    mask: Text
    """State of the mask."""
    findings: Array
    """Truth, ``(rows, 6)``."""
    probability: Array
    """``(rows, 6)``; NaN where the model does not tell."""
    overlap: Array
    """Pixels in both masks, the found one, the true one; NaN where not scored."""
    hd95_mm: Array
    pixel_mm2: Array
    subtype_pixels: NDArray[np.int64]
    edema: Array
    """As `overlap`, of edema."""


@dataclass(frozen=True, eq=False)
class ScanTable(_Columns):
    """One row per scan (a case of more than one slice, all of them on one side)."""

    dataset: Text
    side: Text
    group: Text
    id: Text
    fold: NDArray[np.int64]
    findings: Array
    probability: Array
    ml: Array
    """Found and true volume; NaN where the masks are not known throughout, or milliliters are not."""
    overlap: Array
    """As `SliceTable.overlap`, over the scan; NaN where not every slice has a drawn or empty mask."""
    hd95_mm: Array
    lesions: Array
    """True, detected, found and false lesions; NaN where not known."""


@dataclass(frozen=True, eq=False)
class Scale:
    """How raw scores become probabilities."""

    source: str
    """``card``, ``validation`` (fitted on those patients) or ``none`` (raw scores through a sigmoid)."""
    calibration: Calibration | None = None
    scan: Logistic | None = None
    """For models with a head for whole scans: on its logit for "any"."""

    def slices(self, case: ScoredCase) -> Array:
        """Return log-odds, ``(slices, 6)``; NaN for what the model does not tell."""
        return as_told(case.evidence) if self.calibration is None else self.calibration.slices(case.evidence)

    def study(self, case: ScoredCase) -> Array:
        """Return probabilities of the whole scan, ``(6,)``; NaN for what the model does not tell."""
        if np.isfinite(case.scan_logits[ANY]):
            probability = sigmoid(case.scan_logits)
            if self.scan is not None:
                probability[ANY] = float(sigmoid(self.scan.log_odds(case.scan_logits[:1])))
            return probability
        log_odds = self.slices(case)
        if self.calibration is None or np.isnan(log_odds[:, ANY]).any():
            return sigmoid(study_score(log_odds))
        return self.calibration.study(log_odds)[0]


def fit_scale(cases: Iterable[ScoredCase]) -> Scale:
    """Fit probabilities on validation cases.

    Raises
    ------
    ValueError
        If no slice or no scan bleeds, or all do.
    """
    chosen = [case for case in cases if any(case.sides)]
    if any(np.isfinite(case.evidence).any() for case in chosen):
        return Scale("validation", fit_calibration(chosen), _fit_scan(chosen))
    return Scale("validation", None, _fit_scan(chosen))


def fit_calibration(cases: Sequence[ScoredCase]) -> Calibration:
    """Fit slice and scan probabilities on validation patients.

    What a model does not tell gets the weight 0.

    Raises
    ------
    ValueError
        If no slice or no scan bleeds, or all do.
    """
    scored = [np.array([bool(side) for side in case.sides]) for case in cases]
    truth = np.concatenate([case.findings[rows] for case, rows in zip(cases, scored, strict=True)])
    evidence = np.concatenate([case.evidence[rows] for case, rows in zip(cases, scored, strict=True)])
    told = np.isfinite(truth) & np.isfinite(evidence).any(axis=2)
    features, subtypes, known = np.nan_to_num(evidence), told.copy(), np.isfinite(truth[:, ANY])
    subtypes[:, ANY] = False
    subtype = Logistic((1.0,), 0.0)
    if 0 < truth[subtypes].sum() < subtypes.sum():
        subtype = Logistic.fit(features[subtypes], truth[subtypes])
    slices = Logistic.fit(features[known, ANY], truth[known, ANY])
    first = Calibration(slices, subtype, Logistic((1.0,), 0.0))
    scans = [case for case in cases if case.side and not case.loose and np.isfinite(case.case.findings[ANY])]
    scores = np.array([study_score(Scale("", first).slices(case))[ANY] for case in scans])
    bleeding = np.array([case.case.findings[ANY] for case in scans])
    return replace(
        first,
        study_any=Logistic.fit(scores[:, None], bleeding),
        study_scores=tuple(round(float(s), 4) for s in scores),
        study_truth=tuple(int(b) for b in bleeding),
    )


def _fit_scan(cases: Sequence[ScoredCase]) -> Logistic | None:
    scans = [
        c for c in cases if c.side and not c.loose and np.isfinite([c.scan_logits[ANY], c.case.findings[ANY]]).all()
    ]
    if not scans:
        return None
    return Logistic.fit([c.scan_logits[:1] for c in scans], [c.case.findings[ANY] for c in scans])


def slice_table(cases: Sequence[ScoredCase], scale: Scale, fold: int = -1) -> SliceTable:
    """Return the scored slices of the cases."""
    kept = [(case, np.array([bool(side) for side in case.sides])) for case in cases]
    rows = [(case, int(k)) for case, chosen in kept for k in np.flatnonzero(chosen)]

    def text(values: Iterable[str]) -> Text:
        return np.array(list(values), dtype=str)

    def stacked(values: Iterable[Array], *shape: int) -> Array:
        return np.concatenate([np.empty((0, *shape)), *values])

    return SliceTable(
        dataset=text(c.case.dataset for c, _ in rows),
        side=text(c.sides[k] for c, k in rows),
        group=text(c.case.group for c, _ in rows),
        id=text(c.case.slice_id(k) for c, k in rows),
        fold=np.full(len(rows), fold),
        mask=text(c.case.slices[k].mask_state for c, k in rows),
        findings=stacked((c.findings[chosen] for c, chosen in kept), 6),
        probability=stacked((sigmoid(scale.slices(c)[chosen]) for c, chosen in kept), 6),
        overlap=stacked((c.overlap[chosen] for c, chosen in kept), 3),
        hd95_mm=stacked(c.hd95_mm[chosen] for c, chosen in kept),
        pixel_mm2=stacked(c.grid.pixel_mm2[chosen] for c, chosen in kept),
        subtype_pixels=stacked((c.subtype_pixels[chosen].astype(float) for c, chosen in kept), 5, 7).astype(np.int64),
        edema=stacked((c.edema[chosen] for c, chosen in kept), 3),
    )


def scan_table(cases: Sequence[ScoredCase], scale: Scale, fold: int = -1) -> ScanTable:
    """Return the scans of the cases: whole ones, each on one side."""
    scans = [case for case in cases if case.side and not case.loose]
    unknown = np.full(4, np.nan)

    def text(values: Iterable[str]) -> Text:
        return np.array(list(values), dtype=str)

    def rows(values: Iterable[object], width: int) -> Array:
        return np.array(list(values), dtype=float).reshape(-1, width)

    return ScanTable(
        text(c.case.dataset for c in scans),
        text(c.side for c in scans),
        text(c.case.group for c in scans),
        text(c.case.id for c in scans),
        np.full(len(scans), fold),
        rows((c.case.findings for c in scans), 6),
        rows((scale.study(c) for c in scans), 6),
        rows(((c.scan.found_ml, c.scan.true_ml) if c.scan else unknown[:2] for c in scans), 2),
        rows(((c.scan.shared_px, c.scan.found_px, c.scan.true_px) if c.scan else unknown[:3] for c in scans), 3),
        np.array([c.scan.hd95_mm if c.scan else np.nan for c in scans], dtype=float),
        rows(
            (
                (c.lesions.true, c.lesions.detected, c.lesions.found, c.lesions.false) if c.lesions else unknown
                for c in scans
            ),
            4,
        ),
    )
