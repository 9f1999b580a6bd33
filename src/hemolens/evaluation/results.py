"""The written form of an evaluation: ``metrics.json`` and tables as CSV. NaN becomes null, or an empty cell."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hemolens import __version__
from hemolens.evaluation.metrics import Confusion, Reliability, dice_score, reliability
from hemolens.evaluation.operating import Level, OperatingPoint
from hemolens.evaluation.run import NOTICE, CaseSet, Evaluation, Fold
from hemolens.evaluation.summary import Measure
from hemolens.evaluation.tables import ScanTable, SliceTable
from hemolens.labels import FINDING_NAMES

SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class PointCounts:
    """Answers of a set at one operating point."""

    level: Level
    finding: str
    point: str
    threshold: float | None
    """None where folds differ."""
    counts: Confusion


def confusions(evaluation: Evaluation, case_set: CaseSet) -> list[PointCounts]:
    """Count the answers at every operating point that all folds have."""
    found = []
    tables: tuple[tuple[Level, SliceTable | ScanTable], ...] = (("scan", case_set.scans), ("slice", case_set.slices))
    for level, table in tables:
        for column, finding in enumerate(FINDING_NAMES):
            truth, p = table.findings[:, column], table.probability[:, column]
            known = np.isfinite(truth) & np.isfinite(p)
            if not known.any():
                continue
            of_fold = {
                fold.number: {q.name: q for q in fold.points if (q.level, q.finding) == (level, finding)}
                for fold in evaluation.folds
            }
            folds = [int(f) for f in np.unique(table.fold[known])]
            for name in of_fold[folds[0]]:
                if any(name not in of_fold[fold] for fold in folds):
                    continue
                cut = np.array([of_fold[int(fold)][name].threshold for fold in table.fold[known]])
                thresholds = set(cut.tolist())
                counts = Confusion.of(truth[known], p[known] >= cut)
                found.append(PointCounts(level, finding, name, cut[0] if len(thresholds) == 1 else None, counts))
    return found


def reliabilities(case_set: CaseSet) -> list[tuple[Level, str, Reliability]]:
    """Return the reliability diagram of each level and finding that has both classes."""
    found: list[tuple[Level, str, Reliability]] = []
    tables: tuple[tuple[Level, SliceTable | ScanTable], ...] = (("scan", case_set.scans), ("slice", case_set.slices))
    for level, table in tables:
        for column, finding in enumerate(FINDING_NAMES):
            truth, p = table.findings[:, column], table.probability[:, column]
            known = np.isfinite(truth) & np.isfinite(p)
            if 0 < truth[known].sum() < known.sum():
                found.append((level, finding, reliability(truth[known], p[known])))
    return found


def to_mapping(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of ``metrics.json``; see docs/how-to/evaluate.md."""
    told = {
        "schema_version": SCHEMA_VERSION,
        "hemolens_version": __version__,
        "created": evaluation.created,
        "notice": NOTICE,
        "warnings": list(evaluation.warnings),
        "skipped": list(evaluation.skipped),
        "bootstrap": {"draws": evaluation.options.draws, "interval": 0.95, "unit": "patient"},
        "models": [_model(fold) for fold in evaluation.folds],
        "sets": [_set(evaluation, case_set) for case_set in evaluation.sets],
        "folds": [
            {"fold": number, "dataset": dataset, "measures": [asdict(m) for m in measures]}
            for number, dataset, measures in evaluation.by_fold
        ],
    }
    plain: dict[str, Any] = _without_nan(told)
    return plain


def to_text(evaluation: Evaluation) -> str:
    """Return ``metrics.json`` as text."""
    return json.dumps(to_mapping(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _model(fold: Fold) -> dict[str, Any]:
    sides, model = fold.entry.sides, fold.entry.model
    return {
        "fold": None if fold.number < 0 else fold.number,
        "name": model.name,
        "title": str(model.card.get("title", "")),
        "sha256": model.sha256,
        "mask_threshold": model.thresholds.mask,
        "mask_seed": model.thresholds.seed,
        "probabilities": fold.scale.source,
        "split": {
            "source": sides.source,
            "unit": sides.unit,
            "leaks": sides.leaks,
            "seed": sides.seed,
            "fold": sides.fold,
            **{f"{side}_members": len(sides.members.get(side, ())) for side in ("train", "validation", "test")},
        },
        "operating_points": [asdict(point) for point in fold.points],
    }


def _set(evaluation: Evaluation, case_set: CaseSet) -> dict[str, Any]:
    slices = case_set.slices
    return {
        "dataset": case_set.dataset,
        "side": case_set.side,
        "license": case_set.license,
        "patients": case_set.patients,
        "scans": len(case_set.scans),
        "slices": len(slices),
        "masks": dict(sorted(Counter(slices.mask.tolist()).items())),
        "findings": {
            name: {
                "positive": int((slices.findings[:, k] == 1).sum()),
                "negative": int((slices.findings[:, k] == 0).sum()),
                "unknown": int(np.isnan(slices.findings[:, k]).sum()),
            }
            for k, name in enumerate(FINDING_NAMES)
        },
        "pixel_size_assumed": case_set.assumed or None,
        "measures": [asdict(measure) for measure in case_set.measures],
        "confusion": [
            {**{k: v for k, v in vars(found).items() if k != "counts"}, **asdict(found.counts)}
            for found in confusions(evaluation, case_set)
        ],
        "reliability": [
            {"level": level, "finding": finding, "bins": list(_bins(points))}
            for level, finding, points in reliabilities(case_set)
        ],
        "subtype_pixels": slices.subtype_pixels.sum(axis=0).tolist(),
    }


def _bins(points: Reliability) -> Iterator[dict[str, float]]:
    for mean, observed, count in zip(points.mean_probability, points.observed, points.count, strict=True):
        yield {"mean_probability": float(mean), "observed": float(observed), "count": int(count)}


def csv_tables(evaluation: Evaluation) -> dict[str, str]:
    """Return every table by its file name."""
    sets = evaluation.sets
    tables = {
        "metrics.csv": [
            {"dataset": s.dataset, "side": s.side, "fold": "all", **asdict(m)} for s in sets for m in s.measures
        ]
        + [
            {"dataset": dataset, "side": "test", "fold": number, **asdict(m)}
            for number, dataset, measures in evaluation.by_fold
            for m in measures
        ],
        "slices.csv": [row for s in sets for row in _slice_rows(s.slices)],
        "scans.csv": [row for s in sets for row in _scan_rows(s.scans)],
        "operating_points.csv": [_point_row(fold, point) for fold in evaluation.folds for point in fold.points],
        "confusion.csv": [
            {
                "dataset": s.dataset, "side": s.side, "level": c.level, "finding": c.finding, "point": c.point,
                "threshold": c.threshold, **asdict(c.counts),
            }
            for s in sets for c in confusions(evaluation, s)
        ],
        "reliability.csv": [
            {"dataset": s.dataset, "side": s.side, "level": level, "finding": finding, **found}
            for s in sets for level, finding, points in reliabilities(s) for found in _bins(points)
        ],
    }  # fmt: skip
    return {name: _csv(rows) for name, rows in tables.items() if rows}


def _slice_rows(table: SliceTable) -> Iterator[dict[str, Any]]:
    for k in range(len(table)):
        both, found, true = table.overlap[k]
        yield {
            "slice": table.id[k],
            "side": table.side[k],
            "fold": _fold(table.fold[k]),
            "mask": table.mask[k],
            **_columns("true", table.findings[k]),
            **_columns("probability", table.probability[k]),
            "both_px": both,
            "found_px": found,
            "true_px": true,
            "pixel_mm2": table.pixel_mm2[k],
            "dice": dice_score(both, found, true) if np.isfinite(both) else math.nan,
            "hd95_mm": table.hd95_mm[k],
        }


def _scan_rows(table: ScanTable) -> Iterator[dict[str, Any]]:
    for k in range(len(table)):
        both, found, true = table.overlap[k]
        yield {
            "scan": table.id[k],
            "side": table.side[k],
            "fold": _fold(table.fold[k]),
            **_columns("true", table.findings[k]),
            **_columns("probability", table.probability[k]),
            "found_ml": table.ml[k, 0],
            "true_ml": table.ml[k, 1],
            "dice": dice_score(both, found, true) if np.isfinite(both) else math.nan,
            "hd95_mm": table.hd95_mm[k],
            **dict(zip(
                ("true_lesions", "detected_lesions", "found_lesions", "false_lesions"), table.lesions[k], strict=True
            )),
        }  # fmt: skip


def _point_row(fold: Fold, point: OperatingPoint) -> dict[str, Any]:
    return {"fold": _fold(fold.number), "model": fold.entry.model.name, **asdict(point)}


def _columns(prefix: str, values: Iterable[float]) -> dict[str, float]:
    return {f"{prefix}_{name}": float(value) for name, value in zip(FINDING_NAMES, values, strict=True)}


def _fold(number: int) -> str:
    return "" if number < 0 else str(int(number))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value)):
        return ""
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"
    return value


def _without_nan(value: Any) -> Any:
    """Return plain values, rounded to six digits; None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return value


def headline(measures: Sequence[Measure]) -> list[tuple[str, Measure]]:
    """Return the few scores that are shown first, each with its title."""
    wanted = (
        ("Scans with blood told from those without (ROC-AUC)", "scan", "roc_auc"),
        ("Slices with blood told from those without (ROC-AUC)", "slice", "roc_auc"),
        ("Average precision of slices", "slice", "average_precision"),
        ("Dice, all drawn blood pooled", "slice", "pooled_dice"),
        ("Dice, mean of slices with drawn blood", "slice", "mean_dice"),
        ("Dice by the CT-ICH paper's protocol", "slice", "paper_dice"),
        ("Lesions found", "lesion", "lesion_recall"),
        ("False lesions per scan", "lesion", "false_lesions_per_scan"),
        ("Clean slices with over 50 mm² outlined", "slice", "share_over_50_mm2"),
    )
    told = {(m.level, m.metric): m for m in measures if m.finding == "any" and not m.point}
    return [
        (title, told[level, metric])
        for title, level, metric in wanted
        if (level, metric) in told and math.isfinite(told[level, metric].value)
    ]
