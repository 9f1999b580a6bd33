"""What `hemolens analyze` says when it is done: a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hemolens.cli.terminal import plain_console
from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import NOTICE, Findings, format_amount, summary_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from hemolens.analysis import Result
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
    if truth is not None:
        _show_truth(console, result, truth)
    for note in findings.quality:
        _line(console, f"{note.severity}: {note.message} [{note.code}]")
    _line(console, NOTICE)
    if "report" in files:
        _line(console, f"Report: {files['report']}")


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
    for name in ("lesion", "subtype", "size", "mean HU", "slices (from 0)", "probability"):
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


def _show_truth(console: Console, result: Result, truth: Truth) -> None:
    from rich.table import Table

    from hemolens.reports.truth import compare

    comparison = compare(result.label_map, result.findings.lesions, truth)
    table = Table(box=None, pad_edge=False, title="found against true", title_justify="left")
    for name in ("true subtype", "true", "found", "found as", "covered"):
        table.add_column(name, justify="left" if name in {"true subtype", "found as"} else "right")
    for pair in comparison.pairs:
        true = (TITLES[pair.true.subtype], format_amount(pair.true.volume_ml, "ml")) if pair.true else ("none", "-")
        found = (format_amount(pair.found_ml, "ml"), TITLES[pair.found[0].subtype]) if pair.found else ("-", "missed")
        table.add_row(*true, *found, "-" if pair.covered is None else f"{pair.covered:.0%}")
    total = format_amount(result.findings.total.size, "ml")
    table.add_row("total", format_amount(comparison.true_ml, "ml"), total, "", "")
    console.print(table)
