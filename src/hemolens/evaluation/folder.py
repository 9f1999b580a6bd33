"""The folder of an evaluation: ``metrics.json``, tables, figures, pictures and a page; all is written, or nothing."""

from __future__ import annotations

from pathlib import Path

from hemolens.evaluation.drawing import montage, panels, to_png
from hemolens.evaluation.page import render
from hemolens.evaluation.plots import figures
from hemolens.evaluation.results import csv_tables, to_text
from hemolens.evaluation.run import Evaluation
from hemolens.reports.folder import ResultKind, check_target, write_folder

METRICS, REPORT = "metrics.json", "report.html"
TABLES = ("metrics.csv", "slices.csv", "scans.csv", "operating_points.csv", "confusion.csv", "reliability.csv")
EVALUATION = ResultKind(METRICS, frozenset({METRICS, REPORT, *TABLES}), frozenset({"figures", "panels"}))
"""What `hemolens evaluate` writes."""


def write_evaluation(evaluation: Evaluation, out: Path, *, overwrite: bool = False) -> dict[str, Path]:
    """Write an evaluation into a folder.

    Returns
    -------
    dict
        ``metrics`` and ``report``.

    Raises
    ------
    OutputError
        If `out` is not empty, holds files of others, or cannot be written; nothing is left half-written then.
    """
    check_target(out, overwrite=overwrite, kind=EVALUATION)
    write_folder(out, contents(evaluation), EVALUATION)
    return {"metrics": out / METRICS, "report": out / REPORT}


def contents(evaluation: Evaluation) -> dict[str, bytes]:
    """Return every file of an evaluation by its path."""
    drawn = figures(evaluation)
    files = {f"figures/{name}": content for name, content in drawn.items()}
    for case_set in evaluation.sets:
        if case_set.gallery is None:
            continue
        stem = case_set.name.replace(", ", "-")
        for group, _, pictures in case_set.gallery.pictures():
            for number, picture in enumerate(pictures, start=1):
                files[f"panels/{stem}-{group}-{number}.png"] = to_png(panels(picture))
        scan = case_set.gallery.montage()
        if scan is not None:
            files[f"panels/{stem}-montage.png"] = to_png(montage(scan))
    files |= {name: text.encode() for name, text in csv_tables(evaluation).items()}
    return {**files, REPORT: render(evaluation, drawn).encode(), METRICS: to_text(evaluation).encode()}
