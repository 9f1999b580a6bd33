"""How many patients, scans and slices of a data set show what, as numbers and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemolens.errors import DependencyError, OutputError
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.sources.datasets.cases import DataSet, fingerprint, merged_findings

PRESENT, ABSENT, OPEN = "#c0392b", "#7f9db9", "#d9d9d9"


@dataclass(frozen=True)
class Tally:
    """Of some units (patients or slices), how many have each finding."""

    total: int
    present: Mapping[str, int]
    absent: Mapping[str, int]
    """The rest is unknown."""


@dataclass(frozen=True)
class Summary:
    """What one data set holds."""

    name: str
    license: str
    trainable: bool
    patients: Tally
    slices: Tally
    scans: int
    masks: Mapping[str, int]
    """Slices by mask state."""
    fingerprint: str
    notes: tuple[str, ...]


def summarize(dataset: DataSet) -> Summary:
    """Count a data set."""
    by_patient: dict[str, list[tuple[float, ...]]] = {}
    for case in dataset.cases:
        by_patient.setdefault(case.patient, []).append(case.findings)
    records = [record for case in dataset.cases for record in case.slices]
    states = Counter(record.mask_state for record in records)
    return Summary(
        name=dataset.name,
        license=dataset.license,
        trainable=dataset.trainable,
        patients=tally([merged_findings(rows) for rows in by_patient.values()]),
        slices=tally([record.findings for record in records]),
        scans=len(dataset.cases),
        masks={state: states[state] for state in ("drawn", "pseudo", "empty", "unknown")},
        fingerprint=fingerprint(dataset),
        notes=tuple(map(str, dataset.notes)),
    )


def tally(rows: Sequence[tuple[float, ...]]) -> Tally:
    """Count findings over units."""
    present = {name: sum(row[k] == 1.0 for row in rows) for k, name in enumerate(FINDING_NAMES)}
    absent = {name: sum(row[k] == 0.0 for row in rows) for k, name in enumerate(FINDING_NAMES)}
    return Tally(len(rows), present, absent)


def plot_summaries(summaries: Sequence[Summary], path: Path) -> None:
    """Draw patients and slices by finding, a row for each data set, as PNG.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    OutputError
        If the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("matplotlib", "data") from error
    figure = Figure(figsize=(11, 0.6 + 2.5 * len(summaries)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(summaries), 2, squeeze=False)
    for row, summary in zip(axes, summaries, strict=True):
        masks = ", ".join(f"{count:,} {state}" for state, count in summary.masks.items() if count)
        _bars(row[0], summary.patients, f"{summary.name}: {summary.patients.total:,} patients")
        _bars(row[1], summary.slices, f"{summary.slices.total:,} slices; masks: {masks}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def _bars(axis: Any, counts: Tally, title: str) -> None:
    """Draw one stacked bar for each finding: present, absent, unknown; the number of those present stands beside it."""
    titles = ["Any hemorrhage", *(subtype.title for subtype in SUBTYPES)]
    places = range(len(FINDING_NAMES))
    present = [counts.present[name] for name in FINDING_NAMES]
    absent = [counts.absent[name] for name in FINDING_NAMES]
    unknown = [counts.total - p - a for p, a in zip(present, absent, strict=True)]
    both = [p + a for p, a in zip(present, absent, strict=True)]
    axis.barh(places, present, color=PRESENT, label="present")
    axis.barh(places, absent, left=present, color=ABSENT, label="absent")
    axis.barh(places, unknown, left=both, color=OPEN, label="unknown")
    for place, count in zip(places, present, strict=True):
        axis.text(counts.total * 1.01, place, f"{count:,}", va="center", fontsize=8, color=PRESENT)
    axis.set_yticks(places, titles, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, counts.total * 1.1)
    axis.tick_params(axis="x", labelsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title(title, fontsize=9, loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
