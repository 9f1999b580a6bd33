"""DICOM Segmentation of a label map that a person corrected: who, when, and which segments are whose.

The object is that of `hemolens.reports.dicom_seg` under UIDs of its own, which follow from the mask, the person and the
time: it stands beside the network's segmentation and never in its place. Each segment says whether the network made it
alone (AUTOMATIC), a person changed it (SEMIAUTOMATIC) or drew it where the network had nothing (MANUAL; PS3.3
C.8.20.2).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from io import BytesIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from hemolens.labels import Subtype
from hemolens.measurements.findings import NOTICE, Findings
from hemolens.reports.dicom_common import Origin, encoded, obstacle, one_line
from hemolens.reports.dicom_seg import segmentation
from hemolens.sources.dicom.tags import quiet
from hemolens.volume import LabelMap

SERIES_NUMBER = 9811
"""Beside those of `hemolens.reports.dicom_common.SERIES_NUMBERS`."""


def corrected_segmentation(
    label_map: LabelMap, original: NDArray[np.uint8], findings: Findings, author: str, when: datetime
) -> bytes | None:
    """Return the segmentation of a corrected label map.

    Parameters
    ----------
    label_map
        As corrected.
    original
        The network's label map.
    findings
        Of the network.
    author, when
        Who corrected it, as a DICOM person name, and when, with time zone.

    Returns
    -------
    bytes or None
        None where nothing is outlined any more, or the scan's headers allow no DICOM results.
    """
    if label_map.volume.source.kind != "dicom" or obstacle(label_map.volume):
        return None
    origin = Origin(label_map.volume, replace(findings, created=when.isoformat(timespec="seconds")))
    plain = segmentation(origin, label_map)
    if plain is None:
        return None
    with quiet():
        dataset = pydicom.dcmread(BytesIO(plain.content))
    digest = hashlib.sha256(label_map.labels.tobytes() + f"\0{author}\0{when.isoformat()}".encode()).hexdigest()
    dataset.SeriesInstanceUID = origin.uid("series", "corrected SEG", digest)
    dataset.SOPInstanceUID = origin.uid("instance", "corrected SEG", digest)
    dataset.SeriesNumber = SERIES_NUMBER
    dataset.SeriesDescription = "hemolens segmentation, corrected (research use only)"
    dataset.ContentCreatorName = author
    dataset.ContentDescription = f"Corrected. {NOTICE}"
    for item, subtype in zip(dataset.SegmentSequence, plain.segments, strict=True):
        _sign(item, subtype, label_map.labels, original, origin, digest)
    return encoded(dataset)


def _sign(
    item: Dataset,
    subtype: Subtype,
    labels: NDArray[np.uint8],
    original: NDArray[np.uint8],
    origin: Origin,
    digest: str,
) -> None:
    """Say of a segment who made it."""
    now, before = labels == subtype.index, original == subtype.index
    if np.array_equal(now, before):
        return
    item.TrackingID = one_line(f"{subtype.name} hemorrhage, corrected")
    item.TrackingUID = origin.uid("segment", subtype.name, "corrected SEG", digest)
    # Blood that the network outlined under another name is its work, too.
    if (now & (original > 0)).any():
        item.SegmentAlgorithmType = "SEMIAUTOMATIC"
        return
    item.SegmentAlgorithmType = "MANUAL"
    del item.SegmentAlgorithmName
    del item.SegmentationAlgorithmIdentificationSequence
