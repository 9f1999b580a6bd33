"""Making a model card: calibration and threshold fitted on validation patients, then every score with its n."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hemolens.config import to_mapping
from hemolens.evaluation.metrics import youden_threshold
from hemolens.evaluation.run import ScoredScan, measure_bhsd, measure_ct_ich, score_ct_ich
from hemolens.inference.calibrate import Calibration, Logistic, sigmoid, study_score
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import Model, Thresholds
from hemolens.preprocessing.pipeline import PreprocessConfig

MASK_THRESHOLD = 0.5
"""Not tuned: too few drawn masks are there to choose it on."""
UNCALIBRATED = Calibration(Logistic((0.5, 0.5), 0.0), Logistic((1.0,), 0.0), Logistic((1.0,), 0.0))


def uncalibrated(name: str, path: Path, sha256: str, preprocess: PreprocessConfig) -> Model:
    """Return a network as a model whose probabilities mean nothing yet."""
    return Model(name, path, sha256, preprocess, UNCALIBRATED, Thresholds(MASK_THRESHOLD, 0.5), {})


def fit_calibration(scans: list[ScoredScan]) -> Calibration:
    """Fit slice and scan probabilities on validation patients.

    Raises
    ------
    ValueError
        If no patient bleeds, or all do.
    """
    truth = np.concatenate([s.findings for s in scans])
    logits = np.concatenate([s.scores.logits for s in scans]).astype(float)
    masks = np.concatenate([s.scores.mask_scores for s in scans])
    calibration = Calibration(
        slice_any=Logistic.fit(np.stack([masks, logits[:, 0]], axis=1), truth[:, 0]),
        slice_subtype=Logistic.fit(logits[:, 1:].reshape(-1, 1), truth[:, 1:].ravel()),
        study_any=Logistic((1.0,), 0.0),
    )
    values = [calibration.slices(s.scores.mask_scores, s.scores.logits.astype(float)) for s in scans]
    scores = np.array([study_score(v)[0] for v in values])
    bleeding = np.array([s.findings[:, 0].max() for s in scans])
    return replace(
        calibration,
        study_any=Logistic.fit(scores[:, None], bleeding),
        study_scores=tuple(round(float(s), 4) for s in scores),
        study_truth=tuple(int(b) for b in bleeding),
    )


def decision_threshold(calibration: Calibration) -> float:
    """Return the scan probability of the highest sensitivity + specificity on the validation patients."""
    probability = sigmoid(calibration.study_any.log_odds(np.array(calibration.study_scores)[:, None]))
    return round(youden_threshold(calibration.study_truth, probability), 4)


def calibrate_and_measure(model: Model, data: Path, validation: list[str], never_seen: list[str]) -> dict[str, Any]:
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
    """
    predictor = Predictor(model)
    scans = score_ct_ich(predictor, data / "ct_ich", validation)
    calibration = fit_calibration(scans)
    thresholds = Thresholds(MASK_THRESHOLD, decision_threshold(calibration))
    predictor.model = replace(model, calibration=calibration, thresholds=thresholds)
    metrics = measure_ct_ich(predictor, scans, "ct_ich validation")
    metrics += measure_bhsd(predictor, data / "bhsd")
    drawn = [s for s in scans if s.patient in never_seen]
    metrics += [m for m in measure_ct_ich(predictor, drawn, "ct_ich 77-79") if "Dice" in str(m["metric"])]
    return {"calibration": to_mapping(calibration), "thresholds": to_mapping(thresholds), "metrics": metrics}


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card as JSON that reads well in a diff."""
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
