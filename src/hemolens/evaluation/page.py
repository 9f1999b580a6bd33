"""``report.html`` of an evaluation: one page with every score, curve and picture; nothing is loaded from elsewhere.

Jinja escapes every string. The only markup that passes unescaped is the style sheets of hemolens.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hemolens import __version__
from hemolens.evaluation.drawing import montage, panel_names, panels, to_jpeg
from hemolens.evaluation.operating import OperatingPoint
from hemolens.evaluation.results import headline
from hemolens.evaluation.run import NOTICE, CaseSet, Evaluation, Fold
from hemolens.evaluation.sides import UNKNOWN_SIDE
from hemolens.evaluation.summary import Measure

FIGURES: tuple[tuple[str, str, str], ...] = (
    ("roc.png", "detection", "Every threshold at once: sensitivity against false alarms."),
    (
        "precision_recall.png",
        "detection",
        "Of what is called blood, how much is; dotted lines are what guessing reaches.",
    ),
    ("roc_subtypes.png", "detection", "Each subtype against everything else, slices."),
    (
        "confusion.png",
        "detection",
        "Answers at the operating point that stands above each table; shares are of the row.",
    ),
    ("dice.png", "outlines", "Each dot is a slice with drawn blood: small bleeds are the hard ones."),
    (
        "bland_altman.png",
        "outlines",
        "Found less true, after Bland and Altman: bias and limits of agreement (1.96 SD).",
    ),
    ("clean.png", "outlines", "What is outlined on slices without blood; the dotted line is at 50 mm²."),
    ("subtype_outlines.png", "outlines", "What became of each subtype's drawn pixels."),
    ("reliability.png", "calibration", "A calibrated model lies on the diagonal; large dots are many cases."),
    ("folds.png", "folds", "Each fold alone, and all of them pooled."),
)
"""File, section and caption."""
TITLES = {
    "roc_auc": "ROC-AUC",
    "average_precision": "Average precision",
    "brier_loss": "Brier score",
    "ece_loss": "Expected calibration error",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall (sensitivity)",
    "specificity": "Specificity",
    "f1": "F1",
    "pooled_dice": "Dice, pooled",
    "pooled_iou": "IoU, pooled",
    "mean_dice": "Dice, mean",
    "mean_iou": "IoU, mean",
    "pixel_recall": "Drawn blood that is outlined",
    "pixel_precision": "Outlined that is drawn blood",
    "missed_wholly": "Missed wholly",
    "mean_hd95_mm": "95 % Hausdorff distance, mm",
    "mean_absolute_error_ml": "Absolute error, ml",
    "bias_ml": "Bias, ml",
    "limit_low_ml": "Lower limit of agreement, ml",
    "limit_high_ml": "Upper limit of agreement, ml",
    "mean_absolute_error_mm2": "Absolute error, mm²",
    "bias_mm2": "Bias, mm²",
    "limit_low_mm2": "Lower limit of agreement, mm²",
    "limit_high_mm2": "Upper limit of agreement, mm²",
    "mean_false_mm2": "Outlined, mean mm²",
    "share_over_50_mm2": "Over 50 mm² outlined",
    "mean_false_ml": "Outlined, mean ml",
    "share_over_0.5_ml": "Over 0.5 ml outlined",
    "lesion_recall": "Lesions found",
    "lesion_precision": "Found lesions that are real",
    "lesion_f1": "F1 of lesions",
    "false_lesions_per_scan": "False lesions per scan",
    "outlined_as_blood": "Outlined as blood",
    "outlined_as_this_subtype": "Outlined as this subtype",
    "paper_dice": "Dice, mean in a subject, then over subjects",
    "paper_iou": "IoU, mean in a subject, then over subjects",
}
TASKS: tuple[tuple[str, str, str], ...] = (
    ("detection", "Telling blood", "detection"),
    ("operating_point", "Yes or no", "detection"),
    ("calibration", "Probabilities", "calibration"),
    ("segmentation", "Outlines", "outlines"),
    ("edema", "Perihematomal edema", "outlines"),
    ("volume", "Volume and area", "outlines"),
    ("lesions", "Lesions", "outlines"),
    ("clean", "Where nothing is", "outlines"),
    ("subtypes", "Subtypes of outlines", "outlines"),
    ("paper", "The CT-ICH paper's protocol", "outlines"),
)
SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("detection", "Detection and subtypes", ""),
    ("outlines", "Outlines, volumes and lesions", ""),
    ("calibration", "Calibration", ""),
    ("folds", "Folds", ""),
)
PROBABILITIES = {
    "card": "calibrated as the model's card says",
    "validation": "fitted on the validation patients of this split",
    "none": "raw scores of the network, not calibrated",
}


def render(evaluation: Evaluation, figures: Mapping[str, bytes]) -> str:
    """Return the page.

    Parameters
    ----------
    figures
        From `hemolens.evaluation.plots.figures`.
    """
    environment = Environment(
        loader=PackageLoader("hemolens.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    names = list(dict.fromkeys(fold.entry.model.name for fold in evaluation.folds))
    return environment.get_template("evaluation.html.j2").render(
        css=_style(),
        notice=NOTICE,
        version=__version__,
        created=datetime.fromisoformat(evaluation.created).strftime("%Y-%m-%d %H:%M %Z"),
        title=names[0] if len(names) == 1 else f"{len(names)} models, cross-validated",
        leaks=any(fold.entry.sides.leaks for fold in evaluation.folds),
        warnings=evaluation.warnings,
        skipped=evaluation.skipped,
        draws=evaluation.options.draws,
        sets=[_set(case_set) for case_set in evaluation.sets],
        sections=list(_sections(evaluation, figures)),
        galleries=[told for case_set in evaluation.sets for told in _gallery(case_set)],
        points=[_point(fold, point) for fold in evaluation.folds for point in fold.points if _worth_telling(point)],
        pooled=len(evaluation.folds) > 1,
        made=[row for fold in evaluation.folds for row in _made(fold, many=len(evaluation.folds) > 1)],
    )


def _style() -> Markup:
    # Our own files; style sheets have no entities to escape.
    shared = files("hemolens.reports").joinpath("templates/report.css").read_text("utf-8")
    return Markup(shared + files("hemolens.evaluation").joinpath("templates/evaluation.css").read_text("utf-8"))


def _set(case_set: CaseSet) -> dict[str, Any]:
    slices = case_set.slices
    counts = ((case_set.patients, "patient"), (len(case_set.scans), "scan"), (len(slices), "slice"))
    told = [f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in counts if count]
    masks = {state: int((slices.mask == state).sum()) for state in ("drawn", "empty", "pseudo", "unknown")}
    words = {"drawn": "drawn", "empty": "known to be empty"}
    parts = [f"{count} {words.get(state, f'{state} (not scored)')}" for state, count in masks.items() if count]
    return {
        "name": case_set.dataset,
        "side": "" if case_set.side == UNKNOWN_SIDE else case_set.side,
        "license": case_set.license,
        "told": " · ".join(told),
        "masks": f"masks: {', '.join(parts)}",
        "assumed": case_set.assumed,
        "headline": [_cells(measure, title) for title, measure in headline(case_set.measures)],
    }


def _sections(evaluation: Evaluation, figures: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    for name, title, text in SECTIONS:
        shown = [
            {"file": file, "caption": caption, "data": _data(figures[file])}
            for file, section, caption in FIGURES
            if section == name and file in figures
        ]
        tables = list(_tables(evaluation, name)) if name != "folds" else list(_fold_tables(evaluation))
        if shown or tables:
            yield {"name": name, "title": title, "text": text, "figures": shown, "tables": tables}


def _tables(evaluation: Evaluation, section: str) -> Iterator[dict[str, Any]]:
    for case_set in evaluation.sets:
        for task, title, where in TASKS:
            rows = [m for m in case_set.measures if m.task == task and math.isfinite(m.value)]
            if where == section and rows:
                if task == "operating_point":  # subtypes and other points are in the CSV
                    first = {m.level: m.point for m in reversed(rows) if m.finding == "any"}
                    rows = [m for m in rows if m.finding == "any" and m.point == first.get(m.level)]
                    title = f"{title}, at the points {', '.join(f'{p} ({lv}s)' for lv, p in sorted(first.items()))}"
                yield {"title": f"{case_set.name}: {title[:1].lower()}{title[1:]}", "rows": [_cells(m) for m in rows]}


def _fold_tables(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for number, dataset, measures in evaluation.by_fold:
        rows = [_cells(measure, title) for title, measure in headline(measures)]
        if rows:
            yield {"title": f"Fold {number}: {dataset}", "rows": rows}


def _cells(measure: Measure, title: str = "") -> dict[str, Any]:
    finding = "" if measure.finding == "any" else measure.finding
    level = {"scan": "scans", "slice": "slices", "lesion": "lesions"}[measure.level]
    n = f"{measure.n} {measure.unit}"
    if measure.positives is not None:
        n += f", {measure.positives} with it" if finding else f", {measure.positives} with blood"
    if measure.undefined:
        n += f"; {measure.undefined} undefined"
    share = 0.0 <= measure.value <= 1.0
    return {
        "title": title or TITLES.get(measure.metric, measure.metric),
        "level": level,
        "finding": finding,
        "value": _number(measure.value),
        "interval": f"{_number(measure.low)} to {_number(measure.high)}" if math.isfinite(measure.low) else "",
        "n": n,
        "patients": measure.patients,
        "bar": f"{100 * measure.value:.1f}" if share else "",
    }


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _gallery(case_set: CaseSet) -> Iterator[dict[str, Any]]:
    if case_set.gallery is None:
        return
    groups = [
        {
            "title": title,
            "pictures": [
                {
                    "id": p.id,
                    "told": "" if math.isnan(p.dice) else f"Dice {p.dice:.2f}",
                    "data": _data(to_jpeg(panels(p))),
                    "names": panel_names(p),
                }
                for p in pictures
            ],
        }
        for _, title, pictures in case_set.gallery.pictures()
    ]
    scan = case_set.gallery.montage()
    if groups or scan:
        yield {
            "name": case_set.name,
            "groups": groups,
            "montage": "" if scan is None else _data(to_jpeg(montage(scan))),
            "montage_title": "" if scan is None else _montage_title(scan.id, len(scan.tiles), scan.slices),
        }


def _montage_title(name: str, shown: int, slices: int) -> str:
    if not name:
        return f"{shown} single slices"
    return f"Scan {name}, lowest slice first" + ("" if shown == slices else f"; {shown} of {slices} slices")


def _worth_telling(point: OperatingPoint) -> bool:
    return point.chosen_on != "default" or point.finding == "any"


def _point(fold: Fold, point: OperatingPoint) -> dict[str, Any]:
    on = {
        "validation": f"{point.patients} validation patients ({point.positives} of "
        f"{point.positives + point.negatives} {point.level}s positive)",
        "card": "the model's card",
        "default": "nothing: there was no one to choose it on",
    }[point.chosen_on]
    return {
        "fold": "" if fold.number < 0 else str(fold.number),
        "level": point.level,
        "finding": point.finding,
        "name": point.name,
        "rule": point.rule,
        "threshold": f"{point.threshold:.3f}",
        "on": on,
    }


def _made(fold: Fold, *, many: bool) -> Iterator[dict[str, Any]]:
    sides, model = fold.entry.sides, fold.entry.model
    source = {
        "file": "a split file",
        "run": "the split that the run was trained on",
        "card": "the patients that the model's card names",
        "none": "not known",
    }[sides.source]
    counts = ", ".join(f"{side} {len(members)}" for side, members in sides.members.items())
    if sides.fold is not None:
        source += f", fold {sides.fold}"
    number = f" of fold {fold.number}" if many else ""
    rows: Sequence[tuple[str, str, bool]] = (
        (f"Model{number}", f"{model.name} {model.card.get('title', '')}".strip(), False),
        ("Model file (SHA-256)", model.sha256, True),
        ("Sides", f"{source}" + (f" ({counts} members; unit: {sides.unit})" if counts else ""), False),
        ("Probabilities", PROBABILITIES[fold.scale.source], False),
        ("Outline", f"Blood is outlined {model.thresholds.mask_told}", False),
    )
    for name, value, mono in rows:
        yield {"name": name, "value": value, "mono": mono}


def _data(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
