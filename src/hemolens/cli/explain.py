"""`hemolens explain`: where a network sees a finding."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemolens.cli.exits import WrongUsage
from hemolens.cli.options import (
    Debug,
    Overwrite,
    Patient,
    PixelSpacing,
    Quiet,
    Series,
    SliceSpacing,
    WindowLevel,
    WindowWidth,
)
from hemolens.cli.terminal import Progress, progress_shown

if TYPE_CHECKING:
    from hemolens.explain.run import ExplainConfig, Explanation
    from hemolens.explain.truth import TrueMask
    from hemolens.sources.study import ReadOptions

NEEDED = ("torch", "monai", "matplotlib")
"""Of the extra `train`; each is imported under its own name."""


def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Name of a model (see 'hemolens models list'), path of one with its card, or folder of a training "
            "run.",
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]",
            show_default=False,
            help="DICOM folder, file or zip; NIfTI file; folder of slice images.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Take the built-in phantom head and its true mask.")] = False,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="gradcam, gradcam++ or occlusion.")
    ] = "gradcam",
    finding: Annotated[
        str,
        typer.Option("--finding", metavar="NAME", help="any, or a subtype such as subdural."),
    ] = "any",
    slices: Annotated[
        str | None,
        typer.Option("--slices", metavar="LIST", help="Slices to explain, from 0, such as 8-12,20. [default: all]"),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth", metavar="MASK", help="True mask of the scan: scores how much of the map lies inside the lesion."
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Grad-CAM: layer of the network to look at.")
    ] = None,
    patch: Annotated[
        int | None, typer.Option("--patch", metavar="PX", help="Occlusion: side of a patch on the network's grid.")
    ] = None,
    series: Series = None,
    patient: Patient = None,
    window_level: WindowLevel = 40.0,
    window_width: WindowWidth = 120.0,
    pixel_spacing: PixelSpacing = None,
    slice_spacing: SliceSpacing = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where a network sees a finding: maps on the grid of the scan, overlays, and a score with --truth.

    Needs the extra 'train'. Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    if out is None:
        raise WrongUsage("explain", "Missing -o OUT: name a folder for the results.")
    if demo == (source is not None) or (demo and truth is not None):
        raise WrongUsage("explain", "Name a SOURCE, or use --demo, which brings its own scan and true mask.")
    if window_width <= 0:
        raise WrongUsage("explain", "--window-width must be a number above 0.")
    wanted = parse_slices(slices) if slices is not None else None
    _check_installed()

    from hemolens.explain.run import ExplainConfig
    from hemolens.sources.study import ReadOptions
    from hemolens.volume import DisplayWindow

    config = ExplainConfig(method, finding, layer or "", patch or 0)  # type: ignore[arg-type]
    options = ReadOptions(series, patient, DisplayWindow(window_level, window_width), pixel_spacing, slice_spacing)
    _check_out(source, out, overwrite=overwrite)
    with progress_shown("", quiet=quiet) as tell:
        explanation, known, name = _explained(model, source, truth, options, config, wanted, tell)
        if tell:
            tell("report", 0.0)
        files = _written(explanation, out, known, name, overwrite=overwrite)
    if not quiet:
        _summarize(explanation, known, files)


def parse_slices(text: str) -> list[int]:
    """Read slice numbers such as ``8-12,20``.

    Raises
    ------
    WrongUsage
        If it is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise WrongUsage("explain", f"--slices: '{part.strip()}' is no slice number or range such as 8-12.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise WrongUsage("explain", f"--slices: {first}-{last} runs backward; write {last}-{first}.")
        found += range(first, last + 1)
    return found


def _check_installed() -> None:
    from hemolens.errors import DependencyError

    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise DependencyError(package, "train")


def _check_out(source: Path | None, out: Path, *, overwrite: bool) -> None:
    """Find out before the work whether results could be written, and never replace a scan by its maps."""
    from hemolens.errors import OutputError
    from hemolens.explain.report import KIND
    from hemolens.reports.folder import check_target

    if source is not None and (out.resolve() == source.resolve() or out.resolve() in source.resolve().parents):
        raise OutputError(f"{out}: this folder holds the scan itself. Name another folder with -o.")
    check_target(out, overwrite=overwrite, kind=KIND)


def _explained(
    model: str,
    source: Path | None,
    truth: Path | None,
    options: ReadOptions,
    config: ExplainConfig,
    wanted: list[int] | None,
    tell: Progress | None,
) -> tuple[Explanation, TrueMask | None, str]:
    """Return the maps, the true mask and what it is called."""
    from hemolens.demo import demo_source, demo_truth
    from hemolens.explain.run import check_slices, explain
    from hemolens.explain.subject import open_subject
    from hemolens.explain.truth import TrueMask, read_truth
    from hemolens.sources.study import read_volume

    subject = open_subject(model, gradients=config.method != "occlusion")
    volume = read_volume(source or demo_source(), options, (lambda f: tell("read", f)) if tell else None)
    slices = check_slices(volume, wanted)
    known, name = None, ""
    if source is None:
        known, name = TrueMask.of(demo_truth().labels()), "demo"
    elif truth is not None:
        known, name = read_truth(truth, volume), str(truth)
    explanation = explain(volume, subject, config, slices, (lambda f: tell("infer", f)) if tell else None)
    return explanation, known, name


def _written(
    explanation: Explanation, out: Path, truth: TrueMask | None, name: str, *, overwrite: bool
) -> dict[str, Path]:
    from hemolens.explain.report import write_explanation

    return write_explanation(explanation, out, truth, truth_path=name, overwrite=overwrite)


def _summarize(explanation: Explanation, truth: TrueMask | None, files: Mapping[str, Path]) -> None:
    """Print what was done, the score and where the pictures are."""
    from hemolens.explain.report import to_mapping
    from hemolens.measurements.findings import NOTICE

    config, slices = explanation.config, explanation.slices
    where = config.layer or f"patches of {config.patch} pixels"
    print(f"{config.method} of '{config.finding}' by {explanation.subject.name} on {len(slices)} slices ({where}).")
    if truth is not None:
        told = to_mapping(explanation, truth)["truth"]
        if told["slices_scored"]:
            print(
                f"Energy inside the lesion: {told['mean_energy_inside']:.3f} on average over {told['slices_scored']} "
                f"slices, where chance is {told['mean_chance']:.3f}; above chance on {told['slices_above_chance']}, "
                f"peak inside on {told['slices_with_peak_inside']}."
            )
        else:
            print("No explained slice has a lesion of this kind in the true mask, so there is nothing to score.")
    print(NOTICE)
    print(f"Overview: {files['overview']}")
