"""`hemolens analyze`: scans in, findings and a report out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemolens.cli import exits
from hemolens.cli.exits import WrongUsage

if TYPE_CHECKING:
    from hemolens.analyze import AnalyzeOptions, Result
    from hemolens.inference.predictor import Predictor
    from hemolens.reports.truth import Truth

DEMO_OUT = Path("hemolens-demo")
ENDINGS = (".nii.gz", ".nii", ".dcm", ".zip", ".img.gz", ".hdr")


class Runtime(StrEnum):
    """Which library runs the network."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


@dataclass(frozen=True)
class Job:
    """One scan and where its result goes."""

    source: Path
    out: Path | None
    title: str


@dataclass(frozen=True)
class Manner:
    """How results are written and shown."""

    demo: bool
    probability: bool
    overwrite: bool
    as_json: bool
    quiet: bool
    several: bool


def analyze(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="DICOM folder, file or zip; NIfTI file; folder of slice images; or the root of the CT-ICH data set "
            "with --patient.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results. With several inputs each gets OUT/<its name>."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Analyze the built-in phantom head instead of an INPUT.")
    ] = False,
    series: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="Series Instance UID to take, if there are several.")
    ] = None,
    patient: Annotated[
        str | None, typer.Option("--patient", metavar="NUMBER", help="Patient to take from the root of a data set.")
    ] = None,
    window_level: Annotated[
        float, typer.Option("--window-level", metavar="HU", help="Slice images: window level they were rendered with.")
    ] = 40.0,
    window_width: Annotated[
        float, typer.Option("--window-width", metavar="HU", help="Slice images: window width they were rendered with.")
    ] = 120.0,
    pixel_spacing: Annotated[
        float | None,
        typer.Option(
            "--pixel-spacing", metavar="MM", help="Slice images: size of a pixel; without it, no milliliters."
        ),
    ] = None,
    slice_spacing: Annotated[
        float | None,
        typer.Option("--slice-spacing", metavar="MM", help="Slice images: distance from slice to slice."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model to use; see 'hemolens models list'.")
    ] = None,
    runtime: Annotated[
        Runtime, typer.Option("--runtime", help="Library that runs the network; auto takes the fastest installed.")
    ] = Runtime.AUTO,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Processor threads to use (default: all cores).")
    ] = None,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also write probability.nii.gz, the probability of blood per voxel.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are already in OUT.")] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the findings to standard output, and nothing else there. -o may be left out."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")] = False,
) -> None:
    """Find, outline and measure blood in head CTs.

    Writes findings.json, report.html and the mask into OUT.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but partial.
    """
    sources = inputs or []
    if demo and out is None and not as_json:
        out = DEMO_OUT
    _check_usage(sources, demo=demo, out=out, as_json=as_json)
    numbers = {"--window-width": window_width, "--pixel-spacing": pixel_spacing, "--slice-spacing": slice_spacing}
    _check_numbers(numbers, window_level)
    if (pixel_spacing is None) != (slice_spacing is None):
        raise WrongUsage("analyze", "--pixel-spacing and --slice-spacing go together: give both.")

    from hemolens.analyze import AnalyzeOptions
    from hemolens.sources.study import ReadOptions
    from hemolens.volume import DisplayWindow

    window = DisplayWindow(window_level, window_width)
    options = AnalyzeOptions(
        read=ReadOptions(series, patient, window, pixel_spacing, slice_spacing),
        model=model,
        runtime=runtime.value,
        threads=threads,
    )
    jobs = _jobs(sources, out) if not demo else [_demo_job(out)]
    manner = Manner(demo, probability, overwrite, as_json, quiet, several=len(jobs) > 1)
    raise typer.Exit(_run_all(jobs, options, manner))


def _check_usage(sources: list[Path], *, demo: bool, out: Path | None, as_json: bool) -> None:
    if demo and sources:
        raise WrongUsage("analyze", "--demo brings its own scan: leave INPUT out.")
    if not demo and not sources:
        raise WrongUsage("analyze", "Missing INPUT: name a scan, or use --demo.")
    if out is None and not as_json:
        raise WrongUsage("analyze", "Missing -o OUT: name a folder for the results, or use --json.")
    slices = [s for s in sources if s.is_file() and not s.name.lower().endswith((".nii", ".nii.gz", ".zip"))]
    folders = [s.resolve().parent for s in slices]
    if len(set(folders)) < len(folders):
        raise WrongUsage(
            "analyze", f"Several files of one folder look like slices of one scan: give {slices[0].parent}."
        )


def _check_numbers(numbers: Mapping[str, float | None], window_level: float) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < 1e5:
            raise WrongUsage("analyze", f"{name} must be a number above 0.")
    if not abs(window_level) < 1e5:
        raise WrongUsage("analyze", "--window-level must be a number of Hounsfield units.")


def _demo_job(out: Path | None) -> Job:
    from hemolens.demo import demo_source

    return Job(demo_source(), out, "demo")


def _jobs(sources: list[Path], out: Path | None) -> list[Job]:
    if len(sources) == 1:
        return [Job(sources[0], out, _name(sources[0]))]
    return [
        Job(source, out / name if out else None, name) for source, name in zip(sources, names_of(sources), strict=True)
    ]


def _name(source: Path) -> str:
    name = source.resolve().name
    ending = next((e for e in ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)] or "scan"


def names_of(sources: list[Path]) -> list[str]:
    """Name each input after itself, with as many of the folders above it as tell all of them apart."""
    if len({s.resolve() for s in sources}) < len(sources):
        raise WrongUsage("analyze", "The same INPUT was named twice.")
    depth = max(len(s.resolve().parts) for s in sources)
    for above in range(depth):
        names = []
        for source in sources:
            parents = source.resolve().parts[1:-1]
            names.append("-".join([*parents[len(parents) - min(above, len(parents)) :], _name(source)]))
        if len(set(names)) == len(names):
            return names
    return [f"{_name(source)}-{number}" for number, source in enumerate(sources, start=1)]


def _run_all(jobs: list[Job], options: AnalyzeOptions, manner: Manner) -> int:
    """Analyze every scan; with several, one that fails does not stop the others."""
    from hemolens.errors import HemolensError
    from hemolens.inference.predictor import Predictor
    from hemolens.inference.registry import load_model

    if not manner.several and jobs[0].out is not None:
        check_out(jobs[0].source, jobs[0].out, overwrite=manner.overwrite)
    predictor = Predictor(load_model(options.model), options.runtime, options.threads)
    if not manner.several:
        return _run_one(jobs[0], options, manner, predictor)
    codes = []
    for job in jobs:
        try:
            if job.out is not None:
                check_out(job.source, job.out, overwrite=manner.overwrite)
            codes.append(_run_one(job, options, manner, predictor))
        except HemolensError as error:
            exits.say(str(error))
            codes.append(exits.FAILED)
    return exits.FAILED if exits.FAILED in codes else max(codes)


def _run_one(job: Job, options: AnalyzeOptions, manner: Manner, predictor: Predictor) -> int:
    from hemolens.analyze import analyze as run
    from hemolens.cli import summary
    from hemolens.cli.terminal import progress_shown
    from hemolens.reports.as_json import to_mapping

    with _stdout_kept_clean(manner.as_json), progress_shown(job.title, quiet=manner.quiet) as tell:
        result = run(job.source, options, progress=tell, predictor=predictor)
        if tell:
            tell("report", 0.0)
        files = _save(result, job.out, manner) if job.out is not None else {}
    if manner.as_json:
        values = to_mapping(result.findings)
        print(json.dumps(values, indent=None if manner.several else 2, ensure_ascii=False, allow_nan=False))
    elif not manner.quiet:
        summary.show(result, files, title=job.title if manner.several else None, truth=_truth(manner))
    return exits.PARTIAL if result.partial else exits.DONE


def _save(result: Result, out: Path, manner: Manner) -> Mapping[str, Path]:
    return result.save(out, overwrite=manner.overwrite, probability=manner.probability, truth=_truth(manner))


def _truth(manner: Manner) -> Truth | None:
    if not manner.demo:
        return None
    from hemolens.demo import demo_truth

    return demo_truth()


def check_out(source: Path, out: Path, *, overwrite: bool) -> None:
    """Find out before minutes of work whether results could be written, and never replace a scan by its findings.

    Raises
    ------
    OutputError
        If `out` holds the scan, or `check_target` refuses it.
    """
    from hemolens.errors import OutputError
    from hemolens.reports.folder import check_target

    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise OutputError(f"{out}: this folder holds the scan itself. Name another folder with -o.")
    check_target(out, overwrite=overwrite)


@contextmanager
def _stdout_kept_clean(wanted: bool) -> Iterator[None]:
    """Send whatever decoders print meanwhile to standard error, so that standard output holds the findings only."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    try:
        real = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
