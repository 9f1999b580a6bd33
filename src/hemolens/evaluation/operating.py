"""Operating points: where to draw the line between yes and no, chosen on validation patients and never on test ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation.metrics import f1_threshold, recall_threshold, specificity_threshold, youden_threshold
from hemolens.evaluation.tables import ANY, ScanTable, SliceTable
from hemolens.labels import FINDING_NAMES

Array = NDArray[np.float64]
Level = Literal["slice", "scan"]

MAIN = "youden"
"""The operating point at which yes-or-no answers are counted, where validation patients are there."""
RULES: tuple[tuple[str, str, Callable[[Array, Array], float]], ...] = (
    ("youden", "highest sensitivity + specificity", youden_threshold),
    ("f1", "highest F1", f1_threshold),
    ("sensitivity_95", "highest threshold with a sensitivity of at least 95 %", partial(recall_threshold, wanted=0.95)),
    (
        "specificity_95",
        "lowest threshold with a specificity of at least 95 %",
        partial(specificity_threshold, wanted=0.95),
    ),
)
"""Name, rule in words, and the rule. For subtypes only the first is used."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on a probability and where it comes from."""

    level: Level
    finding: str
    name: str
    rule: str
    threshold: float
    chosen_on: str
    """``validation``, ``card`` or ``default``."""
    patients: int
    """That it was chosen on; 0 where it was not."""
    positives: int
    negatives: int


def choose(level: Level, table: SliceTable | ScanTable) -> list[OperatingPoint]:
    """Choose operating points on the rows of a table, which must be validation rows.

    Findings of which the table has no positive or no negative get none.
    """
    points = []
    for column, finding in enumerate(FINDING_NAMES):
        truth, probability = table.findings[:, column], table.probability[:, column]
        known = np.isfinite(truth) & np.isfinite(probability)
        positives, n = int(truth[known].sum()), int(known.sum())
        if not 0 < positives < n:
            continue
        patients = len(np.unique(table.group[known]))
        points += [
            OperatingPoint(
                level, finding, name, rule, choice(truth[known], probability[known]),
                "validation", patients, positives, n - positives,
            )
            for name, rule, choice in (RULES if column == ANY else RULES[:1])
        ]  # fmt: skip
    return points


def fallback(study_threshold: float | None) -> list[OperatingPoint]:
    """Return what is left without validation patients: the card's threshold for scans, else one half."""
    points = [
        OperatingPoint(level, finding, "half", "a probability of one half", 0.5, "default", 0, 0, 0)
        for level in ("slice", "scan")
        for finding in FINDING_NAMES
    ]
    if study_threshold is None:
        return points
    rule = "the model card's threshold for scans"
    return [OperatingPoint("scan", "any", "card", rule, study_threshold, "card", 0, 0, 0), *points]
