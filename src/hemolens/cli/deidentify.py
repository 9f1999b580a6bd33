"""`hemolens deidentify`: copies of head CTs without what names the patient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hemolens.cli import exits

Sources = Annotated[list[Path], typer.Argument(metavar="INPUT", help="CT images: DICOM files or folders.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the copies: empty, or not there yet.")]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help="File with a secret: the same one gives the same pseudonyms in every run."
    ),
]
KeepCharacteristics = Annotated[
    bool, typer.Option("--keep-characteristics", help="Keep sex, age, height and weight of the patient.")
]
AllowBurnedIn = Annotated[
    bool, typer.Option("--allow-burned-in", help="Take images that say that text is burned into their pixels.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def deidentify(
    inputs: Sources,
    out: Out,
    key: Key = None,
    keep_characteristics: KeepCharacteristics = False,
    allow_burned_in: AllowBurnedIn = False,
    debug: Debug = False,
) -> None:
    """Copy CT images without what names the patient (DICOM PS3.15 Basic Profile); warns about text and faces in pixels.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some files were not taken.
    """
    from hemolens.deidentification import DeidentifyOptions, read_key
    from hemolens.deidentification import deidentify as run

    options = DeidentifyOptions(read_key(key) if key else "", keep_characteristics, allow_burned_in)
    report = run(inputs, out, options)
    images = "image" if report.written == 1 else "images"
    print(f"{report.written} {images} of {len(report.series)} series written to {out}")
    print("Recorded in each: " + "; ".join(f"{code.value} {code.meaning}" for code in options.codes))
    for file, why in report.refused.items():
        exits.say(f"{file}: not taken: {why}.")
    if report.skipped:
        print(f"{report.skipped} files that are no DICOM were left out")
    for warning in report.warnings():
        exits.say(f"warning: {warning}")
    raise typer.Exit(exits.PARTIAL if report.refused else exits.DONE)
