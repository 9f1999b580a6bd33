"""The findings of one scan: the contract that every report and front-end reads.

The dataclasses mirror ``findings.json`` key for key. Every number's key ends in its unit; a value that does not exist
is None, never NaN or 0. Where a pair such as `volume_ml` and `area_px` stands side by side, exactly one of the two is
set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from hemolens.inference.calibrate import VOLUME_ERROR, volume_interval
from hemolens.inference.prediction import Prediction
from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES, SUBTYPES
from hemolens.measurements.edema import Edema, measure_edema
from hemolens.measurements.lesions import Lesion
from hemolens.measurements.regions import Scale
from hemolens.notes import QualityNote
from hemolens.volume import DisplayWindow, LabelMap, Volume

SCHEMA_VERSION = "1.2"
"""Raised in the first place when a reader of an earlier version could misread the file, in the second when keys are
added."""
NOTICE = "Research use only. Not a medical device."


@dataclass(frozen=True)
class InputInfo:
    """What was analyzed."""

    kind: str
    """``dicom``, ``nifti`` or ``images``."""
    path_or_uid: str
    slices: int
    spacing_mm: tuple[float | None, float, float] | None
    """Median distance between slices (None for one slice), between rows and between columns; None without geometry."""
    regular: bool | None
    """Whether one affine describes every slice; None without geometry."""
    window: DisplayWindow | None
    """The window that 8-bit images were rendered with."""


@dataclass(frozen=True)
class ModelInfo:
    """Which weights were used."""

    name: str
    sha256: str
    card: dict[str, Any]


@dataclass(frozen=True)
class StudyScore:
    """The answer for the scan as a whole."""

    probability: dict[str, float]
    """Of any hemorrhage and of each subtype; calibrated as the model's card says."""
    interval: tuple[float, float] | None
    """Lower and upper probability of any hemorrhage."""
    decision: str
    """``positive`` where the probability of any hemorrhage reaches the threshold, else ``negative``."""
    threshold: float
    sensitive_threshold: float | None = None
    """The threshold that found 95 % of the bleeding validation scans; None where the model names none."""
    uncertain: bool = False
    """Whether the probability lies in the band of doubt: a human should look first, whatever the decision."""
    uncertain_band: tuple[float, float] | None = None
    """The band; None where the model has too few validation scans to tell."""


@dataclass(frozen=True)
class SliceScore:
    """The answer for one slice."""

    index: int
    """From 0, in the order of the volume: along the slice normal."""
    source: str
    """The slice's name in its source."""
    position_mm: tuple[float, float, float] | None
    """LPS center of the slice's first pixel; None without geometry."""
    probability: dict[str, float]
    blood_area_mm2: float | None
    blood_area_px: int | None


@dataclass(frozen=True)
class Total:
    """All lesions together."""

    volume_ml: float | None
    area_px: int | None
    by_subtype: dict[str, float]
    """In the unit of the total; every subtype is there."""
    left_out_ml: float | None
    """Blood at or above the mask threshold in regions too small to count as lesions."""
    left_out_px: int | None
    volume_interval_ml: tuple[float, float] | None = None
    """Where the true volume lies for 80 % of scans like those of validation; None where that is unknown."""

    @property
    def size(self) -> float:
        """Volume in milliliters or area in pixels, whichever is known."""
        return self.volume_ml if self.volume_ml is not None else float(self.area_px or 0)

    @property
    def unit(self) -> str:
        """``ml`` or ``px``."""
        return "px" if self.volume_ml is None else "ml"


@dataclass(frozen=True)
class Findings:
    """Everything that hemolens says about one scan."""

    schema_version: str
    hemolens_version: str
    created: str
    """ISO 8601 with offset."""
    notice: str
    input: InputInfo
    model: ModelInfo
    study: StudyScore
    slices: tuple[SliceScore, ...]
    lesions: tuple[Lesion, ...]
    total: Total
    quality: tuple[QualityNote, ...]
    timing_s: dict[str, float]
    edema: Edema | None = None
    """Around the bleeds; None where the network does not tell edema."""

    @property
    def positive(self) -> bool:
        """Whether the scan is called positive."""
        return self.study.decision == "positive"


def build_findings(
    volume: Volume,
    prediction: Prediction,
    label_map: LabelMap,
    lesions: tuple[Lesion, ...],
    notes: tuple[QualityNote, ...],
    timing_s: Mapping[str, float],
    created: datetime,
) -> Findings:
    """Put together what was found.

    Parameters
    ----------
    volume, prediction, label_map, lesions
        The scan, the network's answer and what `find_lesions` made of it.
    notes
        Every quality note: the reader's and `assess`'s.
    timing_s
        Seconds spent in each stage.
    created
        When, with time zone.

    Raises
    ------
    ValueError
        If `created` has no time zone.
    """
    if created.tzinfo is None:
        raise ValueError("created needs a time zone")
    from hemolens import __version__

    return Findings(
        schema_version=SCHEMA_VERSION,
        hemolens_version=__version__,
        created=created.isoformat(timespec="seconds"),
        notice=NOTICE,
        input=_input_info(volume),
        model=ModelInfo(prediction.model.name, prediction.model.sha256, dict(prediction.model.card)),
        study=StudyScore(
            probability=_probabilities(prediction.study_probability),
            interval=prediction.study_interval,
            decision="positive" if prediction.positive else "negative",
            threshold=float(prediction.study_threshold),
            sensitive_threshold=prediction.sensitive_threshold,
            uncertain=prediction.uncertain,
            uncertain_band=prediction.study_band,
        ),
        slices=_slice_scores(volume, prediction, label_map),
        lesions=lesions,
        total=_total(volume, prediction, label_map),
        quality=notes,
        timing_s={stage: float(seconds) for stage, seconds in timing_s.items()},
        edema=measure_edema(label_map),
    )


def summary_sentence(findings: Findings) -> str:
    """Say the result in one sentence.

    Such as ``Hemorrhage likely (0.97): 28.4 ml in 2 lesions, mostly intraparenchymal.``
    """
    total, lesions = findings.total, findings.lesions
    amount = f"{format_amount(total.size, total.unit)} in {len(lesions)} {'lesion' if len(lesions) == 1 else 'lesions'}"
    chance = f"{findings.study.probability['any']:.2f}"
    if findings.study.uncertain:
        outlined = f"{amount} outlined" if lesions else "no lesion outlined"
        return f"Uncertain ({chance}), a human should look first: {outlined}."
    if findings.positive:
        if not lesions:
            return f"Hemorrhage likely ({chance}), but no lesion could be outlined."
        main, share = _main_subtype(total)
        kind = main if share > 0.995 else f"mostly {main}" if share > 0.5 else "of several subtypes"
        return f"Hemorrhage likely ({chance}): {amount}, {kind}."
    if lesions:
        amount = amount.replace(" in ", " was outlined in ")
        return f"Hemorrhage unlikely ({chance}), yet {amount}: look at the marked slices."
    return f"Hemorrhage unlikely ({chance}); no lesion outlined."


def format_amount(size: float, unit: str) -> str:
    """Write a volume or an area for people: one decimal of a milliliter, two below one, whole pixels."""
    if unit == "px":
        return f"{size:,.0f} px"
    return f"{size:.1f} ml" if size >= 1 or size == 0 else f"{size:.2f} ml"


def volume_told(total: Total) -> str:
    """Write the total, with its interval where the card gives one: ``31.2 ml (80 % interval 25.0 to 40.1 ml)``."""
    amount = format_amount(total.size, total.unit)
    if total.volume_interval_ml is None:
        return amount
    low, high = total.volume_interval_ml
    return f"{amount} ({100 * (1 - VOLUME_ERROR):.0f} % interval {low:.1f} to {high:.1f} ml)"


def _main_subtype(total: Total) -> tuple[str, float]:
    name = max(total.by_subtype, key=lambda subtype: total.by_subtype[subtype])
    return name, total.by_subtype[name] / total.size if total.size else 0.0


def _probabilities(values: Any) -> dict[str, float]:
    clipped = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    return {name: round(float(value), 6) for name, value in zip(FINDING_NAMES, clipped, strict=True)}


def _input_info(volume: Volume) -> InputInfo:
    source, stack = volume.source, volume.stack
    spacing: tuple[float | None, float, float] | None = None
    if stack is not None:
        rows, columns = (float(v) for v in np.median(stack.spacings_mm, axis=0))
        between = float(np.median(np.diff(stack.offsets_mm))) if len(stack) > 1 else None
        spacing = (between, rows, columns)
    regular = None if stack is None else stack.is_regular
    return InputInfo(source.kind, source.path_or_uid, len(volume), spacing, regular, source.window)


def _slice_scores(volume: Volume, prediction: Prediction, label_map: LabelMap) -> tuple[SliceScore, ...]:
    stack = volume.stack
    pixels = np.count_nonzero(label_map.labels, axis=(1, 2))
    scores = []
    for k in range(len(volume)):
        position = None
        if stack is not None:
            x, y, z = (float(v) for v in stack.positions_mm[k])
            position = (x, y, z)
        scores.append(
            SliceScore(
                index=k,
                source=volume.slice_label(k),
                position_mm=position,
                probability=_probabilities(prediction.slice_probability[k]),
                blood_area_mm2=None if stack is None else float(pixels[k] * stack.spacings_mm[k].prod()),
                blood_area_px=int(pixels[k]) if stack is None else None,
            )
        )
    return tuple(scores)


def _total(volume: Volume, prediction: Prediction, label_map: LabelMap) -> Total:
    scale = Scale.of(volume)

    def size(mask: Any) -> float:
        return float(np.count_nonzero(mask, axis=(1, 2)) @ scale.weights)

    by_subtype = {s.name: size(label_map.labels == s.index) for s in SUBTYPES}
    total = sum(by_subtype[name] for name in SUBTYPE_NAMES)
    left_out = size(prediction.outlined & (label_map.labels == 0))
    if scale.in_ml:
        ratio = prediction.volume_log_ratio
        interval = volume_interval(total, ratio) if ratio is not None and total > 0 else None
        return Total(total, None, by_subtype, left_out, None, interval)
    return Total(None, round(total), by_subtype, None, round(left_out))
