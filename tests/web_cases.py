"""Studies for tests of the web app, made up in a moment: no network runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import hemolens
from dicom_files import Series, write_series
from hemolens.volume import Volume
from hemolens.web.session import Study
from predictions import analyzed

SIDE = 72


def head(number: int = 0, slices: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units of a noisy head, and the label map of the two bleeds in it."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot((rows - 36) / 32, (columns - 36) / 28)
    hu = np.where(radius < 0.88, 34.0, np.where(radius < 1, 900.0, -1000.0)) + rng.normal(0, 3, (slices, SIDE, SIDE))
    labels = np.zeros((slices, SIDE, SIDE), np.uint8)
    labels[1:4, 30:42, 24:34] = 4
    labels[4, 20:24, 34:44] = 2
    hu[labels > 0] += 30
    return np.rint(hu), labels


def dicom_volume(folder: Path, number: int = 0, **changes: Any) -> Volume:
    """A DICOM head, read from files."""
    hu, _ = head(number)
    series = Series(
        len(hu),
        SIDE,
        SIDE,
        spacing_mm=(2.8, 2.8),
        study=f"1.2.3.{number + 1}",
        series=f"1.2.3.{number + 1}.5",
        **changes,
    )
    write_series(folder / f"series{number}", series, hu.astype(int) + 1024)
    return hemolens.read_volume(folder / f"series{number}")


def study_of(volume: Volume, name: str = "Scan A", labels: np.ndarray | None = None, **options: Any) -> Study:
    """What the network would have found."""
    labels = head()[1] if labels is None else labels
    prediction, label_map, findings = analyzed(volume, labels, **options)
    return Study(name, hemolens.Result(volume, prediction, label_map, findings))


def scored(study: Study, chance: float, threshold: float = 0.5, interval: tuple[float, float] | None = None) -> Study:
    """The same study with another answer."""
    findings = study.findings
    score = replace(
        findings.study,
        probability={**findings.study.probability, "any": chance},
        threshold=threshold,
        interval=interval,
        decision="positive" if chance >= threshold else "negative",
    )
    return Study(study.name, replace(study.result, findings=replace(findings, study=score)))
