"""The one call: from a source to a `Result`. Every front-end is a skin over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hemolens.inference.prediction import Prediction
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import load_model
from hemolens.measurements.edema import add_edema
from hemolens.measurements.findings import Findings, build_findings
from hemolens.measurements.lesions import find_lesions
from hemolens.measurements.quality import assess
from hemolens.notes import is_partial
from hemolens.reports.dicom_common import origin_notes
from hemolens.reports.folder import write_reports
from hemolens.reports.truth import Truth
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.volume import LabelMap, Volume

Progress = Callable[[str, float], None]
STAGES = ("read", "preprocess", "infer", "measure", "report")


@dataclass(frozen=True)
class AnalyzeOptions:
    """How to read a source and which network to run on it."""

    read: ReadOptions = field(default_factory=ReadOptions)
    model: str | None = None
    """Name of a shipped model, or the path of a network or card; None for the default."""
    runtime: str = "auto"
    """``"auto"``, ``"openvino"`` or ``"onnxruntime"``."""
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in one scan, and how to write it down."""

    volume: Volume
    prediction: Prediction
    label_map: LabelMap
    findings: Findings

    @property
    def partial(self) -> bool:
        """Whether part of the scan is missing from the result; `findings.quality` says what."""
        return is_partial(self.findings.quality)

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        probability: bool = False,
        summary_image: bool = False,
        truth: Truth | None = None,
    ) -> dict[str, Path]:
        """Write findings.json, report.html, the mask and, for DICOM, SEG and SR into `out`; all of it or nothing.

        Parameters
        ----------
        out
            The folder to make. It may exist if it is empty, or with `overwrite`.
        probability
            Also write the voxel-wise probability.
        summary_image
            DICOM: also write a picture of the result as secondary capture.
        truth
            Known lesions to set beside the found ones.

        Returns
        -------
        dict
            What was written: name of the report to its path.

        Raises
        ------
        OutputError
            If the folder cannot be written or holds something already.
        ConfigError
            If a summary image is asked for and the scan is no DICOM.
        """
        return write_reports(
            Path(out),
            self.volume,
            self.prediction,
            self.label_map,
            self.findings,
            overwrite=overwrite,
            probability=probability,
            summary_image=summary_image,
            truth=truth,
        )


def analyze(
    source: str | Path | Volume,
    options: AnalyzeOptions | None = None,
    progress: Progress | None = None,
    predictor: Predictor | None = None,
) -> Result:
    """Find, classify, outline and measure intracranial hemorrhage in one head CT.

    Parameters
    ----------
    source
        A DICOM folder, file or zip, a NIfTI file, a folder of slice images, or a `Volume`.
    options
        See `AnalyzeOptions`.
    progress
        Called with the stage ("read", "preprocess", "infer", "measure") and how much of it is done, 0 to 1.
    predictor
        A loaded network to use again; by default the one that `options` names is loaded.

    Raises
    ------
    HemolensError
        If the source cannot be read, is no head CT that can be analyzed, or the model cannot be loaded.
    """
    options = options or AnalyzeOptions()
    tell = progress or (lambda stage, fraction: None)
    timing: dict[str, float] = {}
    # Loading the network is no part of a stage: it happens once for any number of scans.
    predictor = predictor or Predictor(load_model(options.model), options.runtime, options.threads)
    predictor.check_complete()
    with _stage("read", timing, tell):
        volume = source if isinstance(source, Volume) else _read(source, options.read, tell)
    with _stage("preprocess", timing, tell):
        prepared = predictor.prepare(volume)
    with _stage("infer", timing, tell):
        prediction = predictor.finish(prepared, predictor.run(prepared, lambda fraction: tell("infer", fraction)))
    with _stage("measure", timing, tell):
        label_map, lesions = find_lesions(volume, prediction)
        label_map = add_edema(label_map, prediction)
        notes = (*volume.notes, *assess(volume), *origin_notes(volume))
    findings = build_findings(volume, prediction, label_map, lesions, notes, timing, datetime.now(UTC))
    return Result(volume, prediction, label_map, findings)


def _read(source: str | Path, options: ReadOptions, tell: Progress) -> Volume:
    return read_volume(source, options, lambda fraction: tell("read", fraction))


@contextmanager
def _stage(name: str, timing: dict[str, float], tell: Progress) -> Iterator[None]:
    tell(name, 0.0)
    started = time.perf_counter()
    yield
    timing[name] = time.perf_counter() - started
    tell(name, 1.0)
