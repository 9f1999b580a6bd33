"""A network's answer made up from a known label map, so that what follows can be tested without one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.geometry import Stack
from hemolens.inference.prediction import ModelIdentity, Prediction
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.measurements.findings import Findings, build_findings
from hemolens.measurements.lesions import find_lesions
from hemolens.notes import QualityNote
from hemolens.volume import LabelMap, SourceInfo, Volume

MODEL = ModelIdentity("test-net", "0" * 64, {"data": ["none"], "license": "Apache-2.0", "metrics": {"dice": 0.5}})


def predict(
    labels: NDArray[np.uint8], sure: float = 0.9, *, interval: tuple[float, float] | None = (0.9, 0.99), **told: Any
) -> Prediction:
    """Answer exactly `labels`: probability `sure` inside, 0 outside, slice scores to match; `told` as in Prediction."""
    labels = np.asarray(labels, dtype=np.uint8)
    slices = np.full((len(labels), len(FINDING_NAMES)), 0.05, dtype=np.float32)
    slices[labels.any(axis=(1, 2)), 0] = 0.95
    for subtype in SUBTYPES:
        slices[(labels == subtype.index).any(axis=(1, 2)), subtype.index] = 0.9
    return Prediction(
        blood=np.where(labels > 0, sure, 0.0).astype(np.float16),
        subtype=labels,
        slice_probability=slices,
        study_probability=slices.max(axis=0),
        study_interval=interval,
        mask_threshold=0.5,
        study_threshold=0.5,
        model=MODEL,
        **told,
    )


def volume_of(shape: tuple[int, int, int], stack: Stack | None, hu: float = 35.0) -> Volume:
    """A volume of one value."""
    return Volume(np.full(shape, hu, dtype=np.float32), stack, SourceInfo("dicom" if stack else "images", "test"))


def phantom_head(
    *, slices: int = 34, gap_mm: float = 5.0, size: int = 128, pixel_mm: float = 2.0, scale: float = 1.0
) -> Volume:
    """A skull with brain, fat and scalp around it, in air; large enough to pass for a head."""
    stack = Stack.regular(
        slices,
        (-(size - 1) / 2 * pixel_mm,) * 2 + (-(slices - 1) / 2 * gap_mm,),
        spacing_mm=(pixel_mm, pixel_mm),
        step_mm=(0, 0, gap_mm),
    )
    z, y, x = (
        (np.arange(n) - (n - 1) / 2).reshape(shape) * mm
        for n, mm, shape in ((slices, gap_mm, (-1, 1, 1)), (size, pixel_mm, (1, -1, 1)), (size, pixel_mm, (1, 1, -1)))
    )
    hu = np.full((slices, size, size), -1000, dtype=np.int16)
    for shrink, value in ((0, 40), (3, -90), (6, 900), (13, 35)):
        inside = sum((a / (r * scale - shrink)) ** 2 for a, r in ((x, 80), (y, 98), (z, 82)))
        hu[inside <= 1] = value
    return Volume(hu, stack, SourceInfo("dicom", "phantom"))


def analyzed(
    volume: Volume, labels: NDArray[np.uint8], *, notes: tuple[QualityNote, ...] = (), **options: Any
) -> tuple[Prediction, LabelMap, Findings]:
    """Go from a made-up answer to findings, as `hemolens.analyze` does."""
    prediction = predict(labels, **options)
    label_map, lesions = find_lesions(volume, prediction)
    timing = {"read": 0.5, "preprocess": 0.25, "infer": 1.5, "measure": 0.125}
    findings = build_findings(
        volume, prediction, label_map, lesions, (*volume.notes, *notes), timing, datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    )
    return prediction, label_map, findings


def bleeding_head(volume: Volume | None = None) -> tuple[Volume, NDArray[np.uint8]]:
    """A phantom head with a bleed of 2 subtypes on the patient's left (high column), and another in front."""
    volume = volume or phantom_head()
    slices, rows, columns = volume.shape
    labels = np.zeros(volume.shape, np.uint8)
    k, r, c = slices // 2, rows // 2, columns // 2
    labels[k - 3 : k + 3, r - 6 : r + 6, c + 8 : c + 20] = 4
    labels[k - 1 : k + 2, r - 3 : r + 3, c + 2 : c + 8] = 5
    labels[k : k + 2, r - 30 : r - 26, c - 10 : c + 10] = 2
    return replace(volume, hu=np.where(labels > 0, 65, volume.hu).astype(volume.hu.dtype)), labels
