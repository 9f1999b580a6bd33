"""Making a model card: calibration and threshold fitted on validation patients, then every score with its n."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hemolens.config import from_mapping, to_mapping
from hemolens.evaluation.metrics import recall_threshold, youden_threshold
from hemolens.evaluation.scored import ScoredCase, score_case
from hemolens.evaluation.summary import FALSE_BLEED_MM2, Measure, Summarizer
from hemolens.evaluation.tables import Scale, fit_calibration, scan_table, slice_table
from hemolens.inference.calibrate import (
    UNCALIBRATED,
    VOLUME_ERROR,
    Calibration,
    held_left_out,
    sigmoid,
    volume_log_ratio,
)
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import Model, Thresholds
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.datasets.opening import open_datasets

UNCHOSEN = Thresholds(0.5, 0.5)
BHSD_SLICE_MM = 5.0
"""Taken as the thickness of BHSD's loose slices, so that areas are volumes; an interval of ratios hardly feels it."""
ADULT_YEARS = 18
DETECTION = (
    ("slice", "roc_auc", "ROC-AUC per slice"),
    ("slice", "average_precision", "average precision per slice"),
    ("scan", "roc_auc", "ROC-AUC per patient"),
)


def uncalibrated(
    name: str, path: Path, sha256: str, preprocess: PreprocessConfig, thresholds: Thresholds = UNCHOSEN
) -> Model:
    """Return a network as a model whose probabilities mean nothing yet."""
    return Model(name, path, sha256, preprocess, UNCALIBRATED, thresholds, {})


def chosen_thresholds(calibration: Calibration, given: Thresholds) -> Thresholds:
    """Return thresholds with those that the validation scans give: balanced (Youden), and for a sensitivity of 95 %."""
    truth = np.array(calibration.study_truth)
    probability = sigmoid(calibration.study_any.log_odds(np.array(calibration.study_scores)[:, None]))
    balanced, sensitive = youden_threshold(truth, probability), recall_threshold(truth, probability, 0.95)
    return replace(given, study=round(balanced, 4), sensitive=math.floor(1e4 * sensitive) / 1e4)


def calibrate_and_measure(
    model: Model, data: Path, validation: list[str], never_seen: list[str], swollen: Collection[str] = ()
) -> dict[str, Any]:
    """Return the calibration, thresholds and metrics of a card.

    Parameters
    ----------
    model
        From `uncalibrated`.
    data
        Folder that holds ``ct_ich/`` and ``bhsd/``.
    validation
        CT-ICH patients on whom probabilities and the decision threshold are fitted.
    never_seen
        CT-ICH patients used for nothing but the drawn-mask score; may be among `validation`.
    swollen
        PHE-SICH patients, kept from training, on whose drawn edema that of the model is scored. Their masks of blood
        are derived, and no yardstick.
    """
    bhsd, ct_ich = open_datasets(data, ("bhsd", "ct_ich"))
    predictor = Predictor(model)
    patients = list(_scored(predictor, ct_ich, validation))
    drawn_slices = list(_scored(predictor, bhsd))
    ratios = _volume_log_ratios(drawn_slices)
    calibration = replace(fit_calibration(patients), volume_log_ratios=tuple(round(r, 4) for r in ratios.values()))
    thresholds = chosen_thresholds(calibration, model.thresholds)
    scale = Scale("card", calibration)
    drawn = [case for case in patients if case.case.patient in never_seen]
    young = [c for c in patients if c.case.age_years is not None and c.case.age_years < ADULT_YEARS]
    metrics = [
        *_ct_ich_rows(_measures(patients, scale), "ct_ich validation"),
        *(_ct_ich_rows(_measures(young, scale), f"ct_ich validation, under {ADULT_YEARS} years") if young else ()),
        *_bhsd_rows(_measures(drawn_slices, scale)),
        _coverage_row(list(ratios.values())),
        *(row for row in _ct_ich_rows(_measures(drawn, scale), _named(never_seen)) if "Dice" in row["metric"]),
    ]
    if swollen:
        (phe_sich,) = open_datasets(data, ("phe_sich",))
        metrics += _edema_rows(_measures(list(_scored(predictor, phe_sich, swollen)), scale))
    return {"calibration": to_mapping(calibration), "thresholds": to_mapping(thresholds), "metrics": metrics}


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card as JSON that reads well in a diff."""
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def with_calibration(card: dict[str, Any], calibration: Calibration, told: str) -> dict[str, Any]:
    """Return a run's card with probabilities and thresholds that were fitted on its validation patients.

    Parameters
    ----------
    told
        On whom, in words; it takes the place of the remark that nothing was fitted.
    """
    thresholds = chosen_thresholds(calibration, from_mapping(Thresholds, card["thresholds"], "thresholds"))
    limits = [limit for limit in card.get("limits", []) if "not calibrated" not in limit]
    return {
        **card,
        "limits": [*limits, told],
        "calibration": to_mapping(calibration),
        "thresholds": to_mapping(thresholds),
    }


def _scored(predictor: Predictor, dataset: DataSet, patients: Collection[str] | None = None) -> Iterator[ScoredCase]:
    for case in dataset.cases:
        if patients is None or case.patient in patients:
            yield score_case(predictor, dataset, case, ("measured",) * len(case.slices))


def _measures(cases: Sequence[ScoredCase], scale: Scale) -> list[Measure]:
    return Summarizer(slice_table(cases, scale), scan_table(cases, scale), {-1: ()}).measures()


def _volume_log_ratios(cases: Sequence[ScoredCase]) -> dict[str, float]:
    """Return how many times too small the volume of each patient's drawn slices is outlined, as a logarithm."""
    volumes: dict[str, NDArray[np.float64]] = {}
    for case in cases:
        ml = (case.overlap * case.grid.pixel_mm2[:, None]).sum(axis=0) * BHSD_SLICE_MM / 1000
        volumes[case.case.patient] = volumes.get(case.case.patient, 0) + ml
    return {patient: volume_log_ratio(float(ml[2]), float(ml[1])) for patient, ml in volumes.items()}


def _coverage_row(ratios: Sequence[float]) -> dict[str, Any]:
    """Return how often the interval of the volume holds the truth of a patient who had no part in it."""
    inside = held_left_out(ratios, VOLUME_ERROR)
    found = stats.binomtest(sum(inside), len(inside)).proportion_ci(method="wilson")
    return {
        "on": "bhsd",
        "metric": f"volume inside its interval (goal {1 - VOLUME_ERROR:g}), patient left out",
        "value": round(sum(inside) / len(inside), 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "n": len(inside),
        "unit": "patients",
        "patients": len(inside),
        "undefined_draws": 0,
    }


def _ct_ich_rows(measures: Sequence[Measure], name: str) -> Iterator[dict[str, Any]]:
    """Yield slice and patient detection, false bleeds on clean slices and, where drawn, pooled Dice."""
    told = {(m.level, m.metric, m.finding): m for m in measures}
    for level, metric, title in DETECTION:
        if (level, metric, "any") in told:
            unit = "patients" if level == "scan" else "slices"
            yield _row(name, f"{title}, any", told[level, metric, "any"], unit)
    yield from _subtype_rows(measures, name)
    clean = told.get(("slice", f"share_over_{FALSE_BLEED_MM2:.0f}_mm2", "any"))
    if clean is not None:
        yield _row(name, f"clean slices with over {FALSE_BLEED_MM2:.0f} mm2 outlined", clean)
    dice = told.get(("slice", "pooled_dice", "any"))
    if dice is not None:
        yield _row(name, "pooled Dice on drawn masks, blood", dice, "slices")


def _bhsd_rows(measures: Sequence[Measure]) -> Iterator[dict[str, Any]]:
    """Yield pooled and mean Dice of blood, ranking of slices by subtype, and pixel recall per subtype."""
    told = {(m.metric, m.finding): m for m in measures if m.level == "slice"}
    yield _row("bhsd", "pooled Dice, blood", told["pooled_dice", "any"], "slices")
    yield _row("bhsd", "mean Dice per slice, blood", told["mean_dice", "any"], "slices")
    yield from _subtype_rows(measures, "bhsd")
    for subtype in SUBTYPES:
        for metric in ("outlined_as_blood", "outlined_as_this_subtype"):
            found = told.get((metric, subtype.name))
            if found is not None:
                title = f"pixel recall, {subtype.title.lower()}, {metric.replace('_', ' ')}"
                yield _row("bhsd", title, found, "slices with it")


def _subtype_rows(measures: Sequence[Measure], name: str) -> Iterator[dict[str, Any]]:
    """Yield how well slices are ranked by the probability of each subtype that some have and others have not."""
    told = {m.finding: m for m in measures if (m.level, m.metric) == ("slice", "roc_auc")}
    for finding in FINDING_NAMES[1:]:
        if finding in told:
            yield _row(name, f"ROC-AUC per slice, {finding}", told[finding], "slices with it", told[finding].positives)


def _edema_rows(measures: Sequence[Measure]) -> Iterator[dict[str, Any]]:
    """Yield how well edema is outlined on the slices where it is drawn, and how much is outlined on the others."""
    titles = {
        "pooled_dice": "pooled Dice, edema, slices with drawn edema",
        "mean_false_mm2": "mean mm2 of edema outlined where none is drawn",
    }
    for measure in measures:
        if measure.task == "edema" and measure.metric in titles:
            yield _row("phe_sich validation", titles[measure.metric], measure)


def _row(on: str, title: str, measure: Measure, unit: str = "", n: int | None = None) -> dict[str, Any]:
    values = {key: getattr(measure, key) for key in ("value", "low", "high")}
    return {
        "on": on,
        "metric": title,
        **{key: round(value, 4) if np.isfinite(value) else None for key, value in values.items()},
        "n": measure.n if n is None else n,
        "unit": unit or measure.unit,
        "patients": measure.patients,
        "undefined_draws": measure.undefined_draws,
    }


def _named(patients: Sequence[str]) -> str:
    numbers = sorted(int(p) for p in patients)
    run = numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else False
    return f"ct_ich {numbers[0]}-{numbers[-1]}" if run else f"ct_ich {', '.join(map(str, numbers))}"
