"""What `hemolens analyze` says when it is done: a few lines for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import NOTICE, Findings, format_amount, summary_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from hemolens.analyze import Result
    from hemolens.reports.truth import Truth

TITLES = {subtype.name: subtype.title for subtype in SUBTYPES}


def show(result: Result, files: Mapping[str, Path], *, title: str | None = None, truth: Truth | None = None) -> None:
    """Print the sentence, the lesions, the notes and the path of the report to standard output."""
    findings, console = result.findings, plain_console()
    if title:
        _line(console, f"== {title}", style="bold")
    _line(console, summary_sentence(findings), style="bold")
    if findings.lesions:
        _show_lesions(console, findings)
    for note in findings.quality:
        _line(console, f"{note.severity}: {note.message} [{note.code}]")
    if "report" in files:
        _line(console, f"Report: {files['report']}")
    _line(console, NOTICE)


def plain_console() -> Console:
    """Return a console for standard output that never breaks a table row in a pipe, which has no width."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def slice_range(slices: Sequence[int]) -> str:
    """Write slice indices short: the first and the last."""
    if not slices:
        return "-"
    return str(slices[0]) if len(slices) == 1 else f"{min(slices)}-{max(slices)}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, soft_wrap=True, style=style)


def _show_lesions(console: Console, findings: Findings) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("lesion", "subtype", "size", "mean HU", "slices", "probability"):
        table.add_column(name, justify="left" if name in {"lesion", "subtype"} else "right")
    for lesion in findings.lesions:
        table.add_row(
            str(lesion.id),
            TITLES.get(lesion.subtype, lesion.subtype),
            format_amount(lesion.size, findings.total.unit),
            f"{lesion.mean_hu:.0f}",
            slice_range(lesion.slices),
            f"{lesion.probability:.2f}",
        )
    console.print(table)
