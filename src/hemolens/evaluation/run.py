"""Running a model over cases with a known truth, by the very path that it takes in use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation.bootstrap import Estimate, bootstrap
from hemolens.evaluation.metrics import auc_score, dice_score, precision_score
from hemolens.inference.predictor import Predictor, Scores
from hemolens.labels import SUBTYPES
from hemolens.preprocessing.pipeline import Prepared
from hemolens.sources.datasets import bhsd, ct_ich
from hemolens.sources.study import ReadOptions, read_volume

FALSE_BLEED_MM2 = 50.0
CT_ICH_PIXEL_MM = 0.39
"""Typical pixel size of an adult head in CT-ICH; it is not published."""


@dataclass(frozen=True, eq=False)
class ScoredScan:
    """One CT-ICH patient with the network's output."""

    patient: str
    prepared: Prepared
    scores: Scores
    findings: NDArray[np.float64]
    """True 0 or 1, shape ``(slices, 6)``."""
    masks: tuple[NDArray[np.bool_] | None, ...]
    """Drawn or empty mask of each slice; None where unknown."""


def score_ct_ich(predictor: Predictor, root: Path, patients: Iterable[str]) -> list[ScoredScan]:
    """Run the network on the named patients of CT-ICH."""
    truth = {(row.patient, row.slice_number): row for row in ct_ich.read_labels(root)}
    scans = []
    for patient in patients:
        volume = read_volume(root, ReadOptions(patient=patient))
        prepared, scores = predictor.score(volume)
        rows = [truth[patient, number] for number in volume.source.slice_numbers]
        masks = tuple(ct_ich.read_mask(root, row) for row in rows)
        scans.append(ScoredScan(patient, prepared, scores, np.array([r.findings for r in rows], float), masks))
    return scans


def mask_counts(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return how many pixels are in both masks, in the found one and in the true one."""
    return float((found & true).sum()), float(found.sum()), float(true.sum())


def measure_bhsd(predictor: Predictor, root: Path) -> list[dict[str, object]]:
    """Return pooled and mean Dice of blood, pixel recall per subtype and subtype accuracy on BHSD's slices."""
    counts, cases, recalls, per_slice = [], [], [], []
    threshold = predictor.model.thresholds.mask
    for item in bhsd.read_slices(root):
        prediction = predictor.predict(item.volume)
        found = prediction.blood[0] >= threshold
        counts.append(mask_counts(found, item.labels > 0))
        per_slice.append(dice_score(*counts[-1]))
        cases.append(item.case)
        recalls.append(
            [
                (
                    float((found & (item.labels == s.index)).sum()),
                    float((found & (item.labels == s.index) & (prediction.subtype[0] == s.index)).sum()),
                    float((item.labels == s.index).sum()),
                )
                for s in SUBTYPES
            ]
        )
    table, shares, single = np.array(counts), np.array(recalls), np.array(per_slice)
    rows = [
        _row("pooled Dice, blood", bootstrap(cases, lambda i: dice_score(*table[i].T)), len(cases), "slices"),
        _row("mean Dice per slice, blood", bootstrap(cases, lambda i: float(single[i].mean())), len(cases), "slices"),
    ]
    for k, subtype in enumerate(SUBTYPES):
        n = int((shares[:, k, 2] > 0).sum())
        for name, column in (("outlined as blood", 0), ("outlined as this subtype", 1)):
            estimate = bootstrap(cases, lambda i, k=k, c=column: _share(shares[i, k, c], shares[i, k, 2]))  # type: ignore[misc]
            rows.append(_row(f"pixel recall, {subtype.title.lower()}, {name}", estimate, n, "slices with it"))
    return [{"on": "bhsd", **row} for row in rows]


def measure_ct_ich(predictor: Predictor, scans: list[ScoredScan], name: str) -> list[dict[str, object]]:
    """Return slice and patient detection, false bleeds on clean slices and, where drawn, pooled Dice on CT-ICH."""
    calibration, threshold = predictor.model.calibration, predictor.model.thresholds.mask
    log_odds = [calibration.slices(s.scores.mask_scores, s.scores.logits.astype(float)) for s in scans]
    groups = [s.patient for s, values in zip(scans, log_odds, strict=True) for _ in values]
    score, truth = np.concatenate(log_odds), np.concatenate([s.findings for s in scans])
    patients = [s.patient for s in scans]
    study = np.array([calibration.study(values)[0][0] for values in log_odds])
    bleeding = np.array([s.findings[:, 0].max() for s in scans])
    rows = [
        _row(
            "ROC-AUC per slice, any",
            bootstrap(groups, lambda i: auc_score(truth[i, 0], score[i, 0])),
            len(score),
            "slices",
        ),
        _row(
            "average precision per slice, any",
            bootstrap(groups, lambda i: precision_score(truth[i, 0], score[i, 0])),
            len(score),
            "slices",
        ),
        _row(
            "ROC-AUC per patient, any",
            bootstrap(patients, lambda i: auc_score(bleeding[i], study[i])),
            len(scans),
            "patients",
        ),
    ]
    for k, subtype in enumerate(SUBTYPES, start=1):
        if truth[:, k].any():
            estimate = bootstrap(groups, lambda i, k=k: auc_score(truth[i, k], score[i, k]))  # type: ignore[misc]
            rows.append(
                _row(f"ROC-AUC per slice, {subtype.title.lower()}", estimate, int(truth[:, k].sum()), "slices with it")
            )
    rows += _masks(scans, threshold)
    return [{"on": name, **row} for row in rows]


def _masks(scans: list[ScoredScan], threshold: float) -> list[dict[str, object]]:
    clean: list[tuple[str, float]] = []
    drawn: list[tuple[str, tuple[float, float, float]]] = []
    for scan in scans:
        blood = scan.prepared.restore(scan.scores.blood) >= threshold
        for k, mask in enumerate(scan.masks):
            if mask is not None and mask.any():
                drawn.append((scan.patient, mask_counts(blood[k], mask)))
            elif mask is not None:
                clean.append((scan.patient, float(blood[k].sum()) * CT_ICH_PIXEL_MM**2))
    area = np.array([a for _, a in clean])
    large = bootstrap([p for p, _ in clean], lambda i: float((area[i] > FALSE_BLEED_MM2).mean()))
    rows = [_row(f"clean slices with over {FALSE_BLEED_MM2:.0f} mm2 outlined", large, len(clean), "clean slices")]
    if drawn:
        counts = np.array([c for _, c in drawn])
        dice = bootstrap([p for p, _ in drawn], lambda i: dice_score(*counts[i].T))
        rows.append(_row("pooled Dice on drawn masks, blood", dice, len(drawn), "slices"))
    return rows


def _row(metric: str, estimate: Estimate, n: int, unit: str) -> dict[str, object]:
    values = {
        k: (round(v, 4) if np.isfinite(v) else None) for k, v in vars(estimate).items() if k in ("value", "low", "high")
    }
    return {
        "metric": metric,
        **values,
        "n": n,
        "unit": unit,
        "patients": estimate.groups,
        "undefined_draws": estimate.undefined,
    }


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else float("nan")
