"""Figures of an evaluation: Matplotlib `Figure` objects, made without pyplot, so that nothing outlives its drawing.

Colors are those of Okabe and Ito, which people with any color vision can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from hemolens.evaluation.metrics import bland_altman, precision_recall_curve, roc_curve
from hemolens.evaluation.results import confusions, headline, reliabilities
from hemolens.evaluation.run import CaseSet, Evaluation
from hemolens.evaluation.summary import Measure
from hemolens.evaluation.tables import ANY, ScanTable, SliceTable
from hemolens.labels import SUBTYPES
from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE

Array = NDArray[np.float64]
Axes = Any

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FOOTNOTE = "hemolens · research use only"
FOOT_INCHES = 0.18
DPI = 144
LEVELS = ("scan", "slice")


def figures(evaluation: Evaluation) -> dict[str, bytes]:
    """Return every figure that the data allow, as PNG by file name."""
    makers: tuple[tuple[str, Callable[[Evaluation], Figure | None]], ...] = (
        ("roc.png", roc_figure),
        ("precision_recall.png", precision_recall_figure),
        ("roc_subtypes.png", subtype_figure),
        ("confusion.png", confusion_figure),
        ("reliability.png", reliability_figure),
        ("dice.png", dice_figure),
        ("bland_altman.png", bland_altman_figure),
        ("clean.png", clean_figure),
        ("subtype_outlines.png", subtype_outline_figure),
        ("folds.png", fold_figure),
    )
    drawn = ((name, maker(evaluation)) for name, maker in makers)
    return {name: to_png(figure) for name, figure in drawn if figure is not None}


def to_png(figure: Figure) -> bytes:
    """Render a figure."""
    engine = figure.get_layout_engine()
    if engine is not None:
        foot = FOOT_INCHES / figure.get_figheight()
        engine.set(rect=(0, foot, 1, 1 - foot), h_pad=0.08)  # type: ignore[call-arg]
    figure.text(0.995, 0.005, FOOTNOTE, ha="right", va="bottom", fontsize=6.5, color="#777777")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": "hemolens"})
    return buffer.getvalue()


def roc_figure(evaluation: Evaluation) -> Figure | None:
    """Draw ROC curves for "any", scans and slices side by side, one line per set."""
    panels = _panels(evaluation)
    if not panels:
        return None
    figure, axes = _grid(1, len(panels), 4.3, 4.3)
    for ax, (level, rows) in zip(axes, panels, strict=True):
        for number, (name, truth, p) in rows:
            curve, auc = roc_curve(truth, p), _told(evaluation, name, level, "roc_auc")
            ax.plot(curve.x, curve.y, color=COLORS[number % len(COLORS)], label=f"{name}\n{auc}", linewidth=1.8)
        ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":", zorder=0)
        _square(ax, "1 - specificity", "sensitivity", f"ROC, any hemorrhage, {level}s")
        ax.legend(loc="lower right", fontsize=7.5, frameon=False)
    return figure


def precision_recall_figure(evaluation: Evaluation) -> Figure | None:
    """Draw precision-recall curves for "any"; dotted: what guessing would reach."""
    panels = _panels(evaluation)
    if not panels:
        return None
    figure, axes = _grid(1, len(panels), 4.3, 4.3)
    for ax, (level, rows) in zip(axes, panels, strict=True):
        for number, (name, truth, p) in rows:
            color = COLORS[number % len(COLORS)]
            curve = precision_recall_curve(truth, p)
            told = _told(evaluation, name, level, "average_precision", "AP")
            ax.step(curve.x, curve.y, where="pre", color=color, label=f"{name}\n{told}", linewidth=1.8)
            ax.axhline(truth.mean(), color=color, linewidth=1, linestyle=":")
        _square(ax, "recall", "precision", f"Precision and recall, any hemorrhage, {level}s")
        ax.legend(loc="lower left", fontsize=7.5, frameon=False)
    return figure


def subtype_figure(evaluation: Evaluation) -> Figure | None:
    """Draw ROC curves of the subtypes, slices, one panel per set."""
    found = []
    for case_set in evaluation.sets:
        lines = [(subtype, truth, p) for subtype in SUBTYPES for truth, p in _rated(case_set.slices, subtype.index)]
        if lines:
            found.append((case_set, lines))
    if not found:
        return None
    figure, axes = _grid(1, len(found), 4.3, 4.3)
    for ax, (case_set, lines) in zip(axes, found, strict=True):
        for subtype, truth, p in lines:
            curve = roc_curve(truth, p)
            auc = _told(evaluation, case_set.name, "slice", "roc_auc", finding=subtype.name)
            label = f"{subtype.title} ({int(truth.sum())} slices)\n{auc}"
            ax.plot(curve.x, curve.y, color=_rgb(subtype.color_rgb), label=label, linewidth=1.8)
        ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":", zorder=0)
        _square(ax, "1 - specificity", "sensitivity", f"Subtypes, slices: {case_set.name}")
        ax.legend(loc="lower right", fontsize=6.5, framealpha=0.8, edgecolor="none")
    return figure


def confusion_figure(evaluation: Evaluation) -> Figure | None:
    """Draw the answers for "any" at the main operating point of each set and level."""
    found = []
    for case_set in evaluation.sets:
        seen: set[str] = set()
        for counts in confusions(evaluation, case_set):
            if counts.finding == "any" and counts.level not in seen:  # the first is the main one
                seen.add(counts.level)
                found.append((case_set.name, counts))
    if not found:
        return None
    columns = min(4, len(found))
    figure, axes = _grid(-(-len(found) // columns), columns, 2.9, 2.9)
    for ax, (name, told) in zip(axes, found, strict=False):
        c = told.counts
        table = np.array([[c.true_negative, c.false_positive], [c.false_negative, c.true_positive]])
        whole = table.sum(axis=1, keepdims=True)
        share = np.divide(table, whole, out=np.zeros_like(table), where=whole > 0)
        _heat(ax, share, [[f"{int(n)}\n{s:.0%}" if w else "0" for n, s in zip(row, part, strict=True)]
                          for row, part, w in zip(table, share, whole[:, 0], strict=True)])  # fmt: skip
        ax.set_xticks([0, 1], ["no", "yes"])
        ax.set_yticks([0, 1], ["no", "yes"])
        ax.set_xlabel("model says blood")
        ax.set_ylabel("blood is there")
        cut = "" if told.threshold is None else f" (≥ {told.threshold:.2f})"
        ax.set_title(f"{name}\n{told.level}s, {told.point}{cut}", fontsize=8.5)
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    return figure


def reliability_figure(evaluation: Evaluation) -> Figure | None:
    """Draw how often cases of like probability were positive; the area of a dot is its number of cases."""
    drawn: dict[str, list[tuple[int, str, Any]]] = {}
    for number, case_set in enumerate(evaluation.sets):
        for told in reliabilities(case_set):
            if told[1] == "any":
                drawn.setdefault(told[0], []).append((number, case_set.name, told[2]))
    if not drawn:
        return None
    levels = [level for level in LEVELS if level in drawn]
    figure, axes = _grid(1, len(levels), 4.3, 4.3)
    for ax, level in zip(axes, levels, strict=True):
        ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":")
        for number, name, points in drawn[level]:
            color = COLORS[number % len(COLORS)]
            ece = _told(evaluation, name, level, "ece_loss", "ECE")
            ax.plot(points.mean_probability, points.observed, color=color, linewidth=1.2, label=f"{name}\n{ece}")
            size = 12 + 160 * points.count / points.count.max()
            ax.scatter(points.mean_probability, points.observed, s=size, color=color, alpha=0.55, linewidth=0)
        _square(ax, "probability that was told", "share with blood", f"Calibration, any hemorrhage, {level}s")
        ax.legend(loc="upper left", fontsize=7.5, frameon=False)
    return figure


def dice_figure(evaluation: Evaluation) -> Figure | None:
    """Draw the Dice of every slice with drawn blood against how much blood it shows."""
    found = [(s, s.slices.where(s.slices.overlap[:, 2] > 0)) for s in evaluation.sets]
    found = [(s, rows) for s, rows in found if len(rows)]
    if not found:
        return None
    figure, axes = _grid(1, len(found), 4.6, 3.8)
    for ax, (case_set, rows) in zip(axes, found, strict=True):
        both, called, true = rows.overlap.T
        area = true * rows.pixel_mm2 / 100
        ax.scatter(area, 2 * both / (called + true), s=26, color=COLORS[0], alpha=0.65, linewidth=0)
        _log(ax)
        for metric, style, word in (("pooled_dice", "-", "pooled"), ("mean_dice", "--", "mean of slices")):
            told = _find(case_set.measures, "slice", metric)
            label = f"{word} {_interval(told)}"
            ax.axhline(told.value, color=COLORS[1], linestyle=style, linewidth=1.3, label=label)
        ax.set_ylim(-0.04, 1.02)
        ax.set_xlabel("drawn blood in the slice, cm²" + (" (assumed pixel size)" if case_set.assumed else ""))
        ax.set_ylabel("Dice")
        ax.set_title(f"{case_set.name}: {len(rows)} slices", fontsize=9.5)
        ax.legend(loc="best", fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none")
        _plain(ax)
    return figure


def bland_altman_figure(evaluation: Evaluation) -> Figure | None:
    """Draw found less true volume (scans) and area (slices) with bias and limits of agreement."""
    found = []
    for case_set in evaluation.sets:
        for level, unit, pairs in _amounts(case_set):
            if len(pairs) > 1:
                found.append((case_set, level, unit, pairs))
    if not found:
        return None
    figure, axes = _grid(1, len(found), 4.6, 3.8)
    for ax, (case_set, level, unit, pairs) in zip(axes, found, strict=True):
        called, true = pairs.T
        told = bland_altman(called, true)
        ax.scatter((called + true) / 2, called - true, s=26, color=COLORS[0], alpha=0.65, linewidth=0)
        ax.axhline(0, color="#bbbbbb", linewidth=1)
        for value, style, word in (
            (told.bias, "-", "bias"), (told.low, "--", "limits of agreement"), (told.high, "--", ""),
        ):  # fmt: skip
            label = f"{word} {value:+.1f} {unit}" if word == "bias" else word
            if word == "limits of agreement":
                label = f"{word} {told.low:+.1f} to {told.high:+.1f} {unit}"
            ax.axhline(value, color=COLORS[1], linestyle=style, linewidth=1.3, label=label or None)
        ax.set_xlabel(f"mean of found and true, {unit}" + (" (assumed pixel size)" if case_set.assumed else ""))
        ax.set_ylabel(f"found - true, {unit}")
        ax.margins(y=0.28)
        ax.set_title(f"{case_set.name}: {told.n} {level}s with drawn blood", fontsize=9.5)
        ax.legend(loc="best", fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none")
        _plain(ax)
    return figure


def clean_figure(evaluation: Evaluation) -> Figure | None:
    """Draw what share of the clean slices has more than so much outlined."""
    figure, (ax,) = _grid(1, 1, 5.6, 3.8)
    drawn, most = False, 0.0
    for number, case_set in enumerate(evaluation.sets):
        table = case_set.slices
        clean = (table.mask == "empty") & np.isfinite(table.overlap[:, 1])
        if not clean.any():
            continue
        drawn = True
        area = np.sort(table.overlap[clean, 1] * table.pixel_mm2[clean])
        share = 1 - np.arange(len(area)) / len(area)
        any_share = float(np.mean(area > 0))
        most = max(most, any_share)
        label = f"{case_set.name}: {len(area)} clean slices, {any_share:.0%} with any"
        color = COLORS[number % len(COLORS)]
        ax.step(np.maximum(area, 0.5), share, where="pre", color=color, label=label, linewidth=1.8)
    if not drawn:
        return None
    ax.axvline(50, color="#bbbbbb", linewidth=1, linestyle=":")
    _log(ax)
    ax.set_xlim(1, None)
    ax.set_ylim(0, 1.15 * most if most else 1)
    ax.set_xlabel("outlined though nothing is there, mm²")
    ax.set_ylabel("share of clean slices with at least so much")
    ax.legend(fontsize=7.5, frameon=False)
    _plain(ax)
    return figure


def subtype_outline_figure(evaluation: Evaluation) -> Figure | None:
    """Draw what became of each subtype's drawn pixels: missed, or outlined as which subtype."""
    found = [(s, s.slices.subtype_pixels.sum(axis=0).astype(float)) for s in evaluation.sets]
    found = [(s, pixels) for s, pixels in found if pixels.sum()]
    if not found:
        return None
    figure, axes = _grid(1, len(found), 5.2, 3.6)
    for ax, (case_set, pixels) in zip(axes, found, strict=True):
        whole = pixels.sum(axis=1)
        rows = np.flatnonzero(whole)
        names = ["missed", *(s.abbreviation for s in SUBTYPES)]
        shown = pixels[rows, : len(names)]
        if pixels[:, UNKNOWN_SUBTYPE].any():  # the model tells no subtypes
            names, shown = ["missed", "outlined"], pixels[rows][:, [0, UNKNOWN_SUBTYPE]]
        share = shown / whole[rows, None]
        _heat(ax, share, [[f"{v:.0%}" for v in row] for row in share])
        ax.set_xticks(range(len(names)), names, fontsize=8)
        ax.set_yticks(range(len(rows)), [SUBTYPES[k].abbreviation for k in rows], fontsize=8)
        ax.set_xlabel("outlined as")
        ax.set_ylabel("drawn as")
        ax.set_title(f"Pixels of drawn blood: {case_set.name}", fontsize=9.5)
    return figure


def fold_figure(evaluation: Evaluation) -> Figure | None:
    """Draw each fold's headline scores beside the pooled ones; None without cross-validation."""
    rows = []
    for case_set in evaluation.sets:
        for title, measure in headline(case_set.measures):
            alone = [
                told.value
                for _, dataset, measures in evaluation.by_fold
                if dataset == case_set.dataset
                for told in [_find(measures, measure.level, measure.metric)]
                if told is not None
            ]
            if len(alone) > 1 and 0 <= measure.value <= 1:
                rows.append((f"{title}\n{case_set.dataset}", measure, alone))
    if not rows:
        return None
    figure, (ax,) = _grid(1, 1, 7.4, 0.9 + 0.52 * len(rows))
    for y, (_, measure, alone) in enumerate(reversed(rows)):
        ax.plot([measure.low, measure.high], [y, y], color=COLORS[0], linewidth=5, alpha=0.3, solid_capstyle="butt")
        ax.plot([measure.value], [y], "D", color=COLORS[0], markersize=6)
        ax.plot(alone, [y] * len(alone), "o", color=COLORS[1], markersize=4.5, alpha=0.75)
    ax.set_yticks(range(len(rows)), [title for title, _, _ in reversed(rows)], fontsize=7.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("diamond and bar: all folds pooled, with the interval over patients; dots: single folds")
    ax.xaxis.label.set_fontsize(8)
    _plain(ax)
    return figure


def _panels(evaluation: Evaluation) -> list[tuple[str, list[tuple[int, tuple[str, Array, Array]]]]]:
    """Return for each level the sets that have both classes: number, then name, truth and probability of "any"."""
    found = []
    for level in LEVELS:
        rows = [
            (number, (case_set.name, truth, p))
            for number, case_set in enumerate(evaluation.sets)
            for truth, p in _rated(case_set.scans if level == "scan" else case_set.slices, ANY)
        ]
        if rows:
            found.append((level, rows))
    return found


def _rated(table: SliceTable | ScanTable, column: int) -> Iterator[tuple[Array, Array]]:
    """Yield truth and probability of a finding, once, if both classes are there."""
    truth, p = table.findings[:, column], table.probability[:, column]
    known = np.isfinite(truth) & np.isfinite(p)
    if 0 < truth[known].sum() < known.sum():
        yield truth[known], p[known]


def _amounts(case_set: CaseSet) -> Iterator[tuple[str, str, Array]]:
    """Yield level, unit and (found, true) of what has drawn blood."""
    ml = case_set.scans.ml
    yield "scan", "ml", ml[np.isfinite(ml).all(axis=1) & (ml[:, 1] > 0)]
    drawn = case_set.slices.where(case_set.slices.overlap[:, 2] > 0)
    yield "slice", "cm²", drawn.overlap[:, [1, 2]] * drawn.pixel_mm2[:, None] / 100


def _find(measures: Sequence[Measure], level: str, metric: str, finding: str = "any") -> Any:
    return next((m for m in measures if (m.level, m.metric, m.finding, m.point) == (level, metric, finding, "")), None)


def _told(evaluation: Evaluation, name: str, level: str, metric: str, word: str = "AUC", finding: str = "any") -> str:
    case_set = next(s for s in evaluation.sets if s.name == name)
    measure = _find(case_set.measures, level, metric, finding)
    return "" if measure is None else f"{word} {_interval(measure)}, n = {measure.n}"


def _interval(measure: Measure) -> str:
    value = f"{measure.value:.2f}"
    return f"{value} ({measure.low:.2f} to {measure.high:.2f})" if np.isfinite(measure.low) else value


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def _square(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set_xlim(-0.01, 1.01)
    ax.set_ylim(-0.01, 1.01)
    ax.set_aspect("equal")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize=9.5)
    _plain(ax)


def _log(ax: Axes) -> None:
    """Scale the x axis by logarithms, with plain numbers at its ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.xaxis.label.set_fontsize(8.5)
    ax.yaxis.label.set_fontsize(8.5)


def _heat(ax: Axes, share: Array, texts: Sequence[Sequence[str]]) -> None:
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            color = "white" if share[row, column] > 0.6 else "#222222"
            ax.text(column, row, text, ha="center", va="center", fontsize=8.5, color=color)
    ax.tick_params(length=0, labelsize=8)
    ax.xaxis.label.set_fontsize(8.5)
    ax.yaxis.label.set_fontsize(8.5)


def _rgb(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in color)
    return red, green, blue
