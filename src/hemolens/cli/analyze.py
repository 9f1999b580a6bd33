"""`hemolens analyze`: scans in, findings and a report out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hemolens.cli import exits
from hemolens.cli.exits import WrongUsage
from hemolens.cli.options import (
    AsJson,
    Debug,
    Demo,
    Inputs,
    ModelName,
    Out,
    Overwrite,
    Patient,
    PixelSpacing,
    Quiet,
    Runtime,
    RuntimeName,
    Series,
    SliceSpacing,
    Threads,
    WindowLevel,
    WindowWidth,
    WithProbability,
    WithSummaryImage,
)

if TYPE_CHECKING:
    from hemolens.analysis import AnalyzeOptions, Result
    from hemolens.inference.predictor import Predictor
    from hemolens.reports.truth import Truth

DEMO_OUT = Path("hemolens-demo")
ENDINGS = (".nii.gz", ".nii", ".dcm", ".zip", ".img.gz", ".hdr")


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
    summary_image: bool
    overwrite: bool
    as_json: bool
    quiet: bool
    several: bool


def analyze(
    inputs: Inputs = None,
    out: Out = None,
    demo: Demo = False,
    series: Series = None,
    patient: Patient = None,
    window_level: WindowLevel = 40.0,
    window_width: WindowWidth = 120.0,
    pixel_spacing: PixelSpacing = None,
    slice_spacing: SliceSpacing = None,
    model: ModelName = None,
    runtime: RuntimeName = Runtime.AUTO,
    threads: Threads = None,
    probability: WithProbability = False,
    summary_image: WithSummaryImage = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find, outline and measure blood in head CTs.

    Writes findings.json, report.html and the mask into OUT, and for DICOM seg.dcm and sr.dcm.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but partial.
    """
    sources = inputs or []
    if demo and out is None and not as_json:
        out = DEMO_OUT
    _check_usage(sources, demo=demo, out=out, as_json=as_json)
    numbers = {"--window-width": window_width, "--pixel-spacing": pixel_spacing, "--slice-spacing": slice_spacing}
    _check_numbers(numbers, window_level)

    from hemolens.analysis import AnalyzeOptions
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
    manner = Manner(demo, probability, summary_image, overwrite, as_json, quiet, several=len(jobs) > 1)
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
    from hemolens.analysis import analyze as run
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
    return result.save(
        out,
        overwrite=manner.overwrite,
        probability=manner.probability,
        summary_image=manner.summary_image,
        truth=_truth(manner),
    )


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
