"""Every score of one set of cases (a data set and a side), each with its n and its interval over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation import weighted
from hemolens.evaluation.bootstrap import DRAWS, bootstrap
from hemolens.evaluation.operating import Level, OperatingPoint
from hemolens.evaluation.tables import ANY, ScanTable, SliceTable
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE

Array = NDArray[np.float64]
Score = Callable[[Array], Array]

FALSE_BLEED_MM2 = 50.0
FALSE_BLEED_ML = 0.5
PAPER_EXCLUDED = ("070",)
"""Patients that the CT-ICH paper left out."""
PAPER_SETS = ("ct_ich", "ct_ich_nifti")


@dataclass(frozen=True)
class Measure:
    """One score."""

    task: str
    """``detection``, ``operating_point``, ``calibration``, ``segmentation``, ``edema``, ``volume``, ``lesions``,
    ``clean``, ``subtypes`` or ``paper``."""
    level: str
    """What a row is: ``slice``, ``scan`` or ``lesion``."""
    metric: str
    finding: str
    value: float
    low: float
    """95 % bootstrap interval over patients; NaN where there is none."""
    high: float
    n: int
    """Rows with a value."""
    unit: str
    """What n counts."""
    patients: int
    positives: int | None = None
    """For yes-or-no tasks: how many of n have the finding."""
    undefined: int = 0
    """Rows without a value, such as the distance to an outline that is not there."""
    undefined_draws: int = 0
    point: str = ""
    """Operating point that the answers were given at."""


class Summarizer:
    """Makes measures of one set.

    Parameters
    ----------
    slices, scans
        Rows of the set.
    points
        Operating points of each fold, by its number (-1 where there is one model only). An operating point that a fold
        lacks is left out.
    draws
        Of the bootstrap.
    """

    def __init__(
        self, slices: SliceTable, scans: ScanTable, points: Mapping[int, Sequence[OperatingPoint]], draws: int = DRAWS
    ) -> None:
        self.slices, self.scans = slices, scans
        self.points = points
        self.draws = draws

    def measures(self) -> list[Measure]:
        """Return all scores that the set allows."""
        tables: tuple[tuple[Level, SliceTable | ScanTable], ...] = (("scan", self.scans), ("slice", self.slices))
        found = [m for level, table in tables for m in self._detection(level, table)]
        return [
            *found,
            *self._outlines(),
            *self._edema(),
            *self._clean(),
            *self._volumes(),
            *self._lesions(),
            *self._subtypes(),
            *self._paper(),
        ]

    def _detection(self, level: Level, table: SliceTable | ScanTable) -> list[Measure]:
        found = []
        for column, finding in enumerate(FINDING_NAMES):
            known = np.isfinite(table.findings[:, column]) & np.isfinite(table.probability[:, column])
            truth, p = table.findings[known, column], table.probability[known, column]
            if not len(truth):
                continue
            groups, positives = table.group[known], int(truth.sum())
            scores: list[tuple[str, str, Score]] = [
                ("detection", "roc_auc", partial(weighted.auc, truth=truth, score=p)),
                ("detection", "average_precision", partial(weighted.average_precision, truth=truth, score=p)),
                ("calibration", "brier_loss", partial(weighted.mean, values=(p - truth) ** 2)),
                ("calibration", "ece_loss", partial(weighted.calibration_error, truth=truth, probability=p)),
            ]
            if not positives and column != ANY:
                continue
            if positives in (0, len(truth)):
                scores = scores[2:]
            found += [
                self._measure(task, level, metric, score, groups, finding=finding, positives=positives)
                for task, metric, score in scores
            ]
            for name, thresholds in self._points(level, finding, table.fold[known]):
                found += self._at(level, finding, name, truth, p >= thresholds, groups)
        return found

    def _points(self, level: Level, finding: str, folds: NDArray[np.int64]) -> list[tuple[str, Array]]:
        """Return the name and the threshold of every row of the operating points that all folds have."""
        of_fold = {
            int(fold): {p.name: p.threshold for p in self.points[int(fold)] if (p.level, p.finding) == (level, finding)}
            for fold in np.unique(folds)
        }
        names = [name for name in next(iter(of_fold.values())) if all(name in told for told in of_fold.values())]
        return [(name, np.array([of_fold[int(fold)][name] for fold in folds])) for name in names]

    def _at(
        self,
        level: Level,
        finding: str,
        point: str,
        truth: Array,
        positive: NDArray[np.bool_],
        groups: NDArray[np.str_],
    ) -> list[Measure]:
        """Count the answers at an operating point."""

        def score(part: str, w: Array) -> Array:
            tp, fp, fn, tn = weighted.called(w, truth, positive)
            shares = {
                "accuracy": (tp + tn, tp + fp + fn + tn),
                "precision": (tp, tp + fp),
                "recall": (tp, tp + fn),
                "specificity": (tn, tn + fp),
                "f1": (2 * tp, 2 * tp + fp + fn),
            }
            return weighted.divide(*shares[part])

        return [
            self._measure(
                "operating_point", level, part, partial(score, part), groups,
                finding=finding, positives=int(truth.sum()), point=point,
            )
            for part in ("accuracy", "precision", "recall", "specificity", "f1")
        ]  # fmt: skip

    def _outlines(self) -> list[Measure]:
        """Score outlines of slices with drawn blood, and of scans that are drawn throughout."""
        found = []
        tables: tuple[tuple[str, SliceTable | ScanTable], ...] = (("slice", self.slices), ("scan", self.scans))
        for level, table in tables:
            bloody = table.overlap[:, 2] > 0
            if not bloody.any():
                continue
            both, called, true = table.overlap[bloody].T
            groups, distance = table.group[bloody], table.hd95_mm[bloody]
            dice, iou = 2 * both / (called + true), both / (called + true - both)
            scores: list[tuple[str, Score]] = [
                ("pooled_dice", partial(weighted.ratio, part=2 * both, whole=called + true)),
                ("pooled_iou", partial(weighted.ratio, part=both, whole=called + true - both)),
                ("mean_dice", partial(weighted.mean, values=dice)),
                ("mean_iou", partial(weighted.mean, values=iou)),
                ("pixel_recall", partial(weighted.ratio, part=both, whole=true)),
                ("pixel_precision", partial(weighted.ratio, part=both, whole=called)),
                ("missed_wholly", partial(weighted.mean, values=both == 0)),
            ]
            unit = f"{level}s with drawn blood"
            found += [self._measure("segmentation", level, name, score, groups, unit=unit) for name, score in scores]
            if np.isfinite(distance).any() or level == "slice":
                score = partial(weighted.mean, values=distance)
                found.append(
                    self._measure(
                        "segmentation", level, "mean_hd95_mm", score, groups, unit=unit, defined=np.isfinite(distance)
                    )
                )
        return found

    def _edema(self) -> list[Measure]:
        """Score edema on the slices where some is drawn, and tell how much is found on the others."""
        overlap, pixel_mm2, groups = self.slices.edema, self.slices.pixel_mm2, self.slices.group
        drawn, without = overlap[:, 2] > 0, overlap[:, 2] == 0
        if not drawn.any():
            return []
        both, called, true = overlap[drawn].T
        scores: tuple[tuple[str, Score], ...] = (
            ("pooled_dice", partial(weighted.ratio, part=2 * both, whole=called + true)),
            ("mean_dice", partial(weighted.mean, values=2 * both / (called + true))),
            ("pixel_recall", partial(weighted.ratio, part=both, whole=true)),
            ("pixel_precision", partial(weighted.ratio, part=both, whole=called)),
        )
        unit = "slices with drawn edema"
        found = [
            self._measure("edema", "slice", name, score, groups[drawn], finding="edema", unit=unit)
            for name, score in scores
        ]
        if without.any():
            area = partial(weighted.mean, values=(overlap[:, 1] * pixel_mm2)[without])
            unit = "slices without drawn edema"
            found.append(
                self._measure("edema", "slice", "mean_false_mm2", area, groups[without], finding="edema", unit=unit)
            )
        return found

    def _clean(self) -> list[Measure]:
        """Tell what is outlined where nothing is."""
        found = []
        clean = (self.slices.mask == "empty") & np.isfinite(self.slices.overlap[:, 1])
        if clean.any():
            area = self.slices.overlap[clean, 1] * self.slices.pixel_mm2[clean]
            groups, unit = self.slices.group[clean], "clean slices"
            found += [
                self._measure(
                    "clean", "slice", "mean_false_mm2", partial(weighted.mean, values=area), groups, unit=unit
                ),
                self._measure(
                    "clean", "slice", f"share_over_{FALSE_BLEED_MM2:.0f}_mm2",
                    partial(weighted.mean, values=area > FALSE_BLEED_MM2), groups, unit=unit,
                ),
            ]  # fmt: skip
        known = (self.scans.findings[:, ANY] == 0) & np.isfinite(self.scans.ml[:, 0])
        if known.any():
            ml, groups, unit = self.scans.ml[known, 0], self.scans.group[known], "clean scans"
            found += [
                self._measure("clean", "scan", "mean_false_ml", partial(weighted.mean, values=ml), groups, unit=unit),
                self._measure(
                    "clean", "scan", f"share_over_{FALSE_BLEED_ML:g}_ml",
                    partial(weighted.mean, values=ml > FALSE_BLEED_ML), groups, unit=unit,
                ),
            ]  # fmt: skip
        return found

    def _volumes(self) -> list[Measure]:
        """Compare volumes of bleeding scans, or areas of slices where whole scans are not drawn."""
        ml = self.scans.ml
        bloody = np.isfinite(ml).all(axis=1) & (ml[:, 1] > 0)
        found = self._agreement("scan", "ml", ml[bloody], self.scans.group[bloody], "scans with drawn blood")
        drawn = self.slices.overlap[:, 2] > 0
        area = self.slices.overlap[drawn][:, [1, 2]] * self.slices.pixel_mm2[drawn, None]
        return [*found, *self._agreement("slice", "mm2", area, self.slices.group[drawn], "slices with drawn blood")]

    def _agreement(self, level: str, unit: str, pairs: Array, groups: NDArray[np.str_], counted: str) -> list[Measure]:
        if not len(pairs):
            return []
        error = pairs[:, 0] - pairs[:, 1]

        def limit(w: Array, sign: float) -> Array:
            """Return bias and 1.96 standard deviations (n - 1) of the weighted differences."""
            n, bias = w.sum(axis=1), weighted.mean(w, error)
            square = (w * (error - bias[:, None]) ** 2).sum(axis=1)
            return bias + sign * 1.96 * np.sqrt(weighted.divide(square, n - 1))

        scores: tuple[tuple[str, Score], ...] = (
            (f"mean_absolute_error_{unit}", partial(weighted.mean, values=np.abs(error))),
            (f"bias_{unit}", partial(weighted.mean, values=error)),
            (f"limit_low_{unit}", partial(limit, sign=-1.0)),
            (f"limit_high_{unit}", partial(limit, sign=1.0)),
        )
        return [self._measure("volume", level, name, score, groups, unit=counted) for name, score in scores]

    def _lesions(self) -> list[Measure]:
        known = np.isfinite(self.scans.lesions).all(axis=1)
        if not known.any():
            return []
        true, detected, called, false = self.scans.lesions[known].T
        groups, n = self.scans.group[known], int(known.sum())

        def f1(w: Array) -> Array:
            recall, precision = weighted.ratio(w, detected, true), weighted.ratio(w, called - false, called)
            return weighted.divide(2 * recall * precision, recall + precision)

        scores: tuple[tuple[str, int, str, Score], ...] = (
            ("lesion_recall", int(true.sum()), "true lesions", partial(weighted.ratio, part=detected, whole=true)),
            (
                "lesion_precision",
                int(called.sum()),
                "found lesions",
                partial(weighted.ratio, part=called - false, whole=called),
            ),
            ("lesion_f1", int(true.sum()), "true lesions", f1),
            ("false_lesions_per_scan", n, "scans", partial(weighted.mean, values=false)),
        )
        return [
            self._measure("lesions", "lesion", name, s, groups, unit=unit, n=count) for name, count, unit, s in scores
        ]

    def _subtypes(self) -> list[Measure]:
        """Tell how much of each subtype's blood is outlined at all, and as that subtype."""
        found = []
        pixels = self.slices.subtype_pixels.astype(float)
        for k, subtype in enumerate(SUBTYPES):
            whole = pixels[:, k].sum(axis=1)
            there = whole > 0
            if not there.any():
                continue
            groups, unit = self.slices.group[there], f"slices with drawn {subtype.name} blood"
            parts = [("outlined_as_blood", pixels[there, k, 1:].sum(axis=1))]
            if not pixels[:, :, UNKNOWN_SUBTYPE].any():  # the model tells subtypes
                parts.append(("outlined_as_this_subtype", pixels[there, k, subtype.index]))
            for name, part in parts:
                score = partial(weighted.ratio, part=part, whole=whole[there])
                found.append(self._measure("subtypes", "slice", name, score, groups, finding=subtype.name, unit=unit))
        return found

    def _paper(self) -> list[Measure]:
        """Score by the CT-ICH paper's protocol: mean over slices with blood in a subject, then over subjects."""
        table = self.slices
        excluded = np.array([f"{name}/{patient}" for name in PAPER_SETS for patient in PAPER_EXCLUDED])
        kept = np.isin(table.dataset, PAPER_SETS) & (table.overlap[:, 2] > 0) & ~np.isin(table.group, excluded)
        if not kept.any():
            return []
        both, called, true = table.overlap[kept].T
        groups = table.group[kept]
        values = (("paper_dice", 2 * both / (called + true)), ("paper_iou", both / (called + true - both)))
        return [
            self._measure(
                "paper", "slice", name, partial(weighted.mean_of_groups, values=value, groups=groups), groups,
                unit="slices with drawn blood",
            )
            for name, value in values
        ]  # fmt: skip

    def _measure(
        self, task: str, level: str, metric: str, score: Score, groups: NDArray[np.str_], *, finding: str = "any",
        unit: str = "", positives: int | None = None, point: str = "", defined: NDArray[np.bool_] | None = None,
        n: int | None = None,
    ) -> Measure:  # fmt: skip
        estimate = bootstrap(list(groups), score, self.draws)
        rows = len(groups)
        told = rows if defined is None else int(defined.sum())
        return Measure(
            task, level, metric, finding, estimate.value, estimate.low, estimate.high, n if n is not None else told,
            unit or f"{level}s", estimate.groups, positives, rows - told, estimate.undefined, point,
        )  # fmt: skip
