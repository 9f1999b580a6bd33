"""The options of `hemolens analyze`: types, names and help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Runtime(StrEnum):
    """Which library runs the network."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="DICOM folder, file or zip; NIfTI file; folder of slice images; or the root of the CT-ICH data set "
        "with --patient.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for the results. With several inputs each gets OUT/<its name>."),
]
Demo = Annotated[bool, typer.Option("--demo", help="Analyze the built-in phantom head instead of an INPUT.")]
Series = Annotated[
    str | None, typer.Option("--series", metavar="UID", help="Series Instance UID to take, if there are several.")
]
Patient = Annotated[
    str | None, typer.Option("--patient", metavar="NUMBER", help="Patient to take from the root of a data set.")
]
WindowLevel = Annotated[
    float, typer.Option("--window-level", metavar="HU", help="Slice images: window level they were rendered with.")
]
WindowWidth = Annotated[
    float, typer.Option("--window-width", metavar="HU", help="Slice images: window width they were rendered with.")
]
PixelSpacing = Annotated[
    float | None,
    typer.Option("--pixel-spacing", metavar="MM", help="Slice images: size of a pixel; without it, no milliliters."),
]
SliceSpacing = Annotated[
    float | None,
    typer.Option("--slice-spacing", metavar="MM", help="Slice images: distance from slice to slice."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Model to use; see 'hemolens models list'.")
]
RuntimeName = Annotated[
    Runtime, typer.Option("--runtime", help="Library that runs the network; auto takes the fastest installed.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Processor threads to use (default: all cores).")
]
WithProbability = Annotated[
    bool, typer.Option("--probability", help="Also write probability.nii.gz, the probability of blood per voxel.")
]
WithSummaryImage = Annotated[
    bool,
    typer.Option("--summary-image", help="DICOM: also write summary.dcm, a picture of the result (secondary capture)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are already in OUT.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the findings to standard output, and nothing else there. -o may be left out."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")]
