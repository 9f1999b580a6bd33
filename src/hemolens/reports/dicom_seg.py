"""DICOM Segmentation (PS3.3 A.51): the label map on the very frames that it was found on.

BINARY, because PACS take it (Orthanc refuses LABELMAP over C-STORE). One segment per subtype that was found and one for
edema, one frame per slice that it is in. Every frame names its source image and carries that image's own position, and
where they differ its own orientation, spacing and thickness, so that gantry tilt and uneven spacing need no resampling.

Written element by element: highdicom's own constructor shares one orientation among all frames and takes either
single-frame images or one multi-frame file, while a series may be several of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from hemolens.labels import EDEMA, SUBTYPES, Subtype
from hemolens.measurements.findings import NOTICE
from hemolens.reports.dicom_common import (
    ABNORMAL_STRUCTURE,
    INTRACRANIAL,
    MANUFACTURER,
    RESEARCH_ONLY,
    Origin,
    SourceFrame,
    algorithm_parameters,
    complete,
    encoded,
    subtype_code,
)
from hemolens.sources.dicom.origin import IMAGE
from hemolens.volume import LabelMap

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
SEGMENTATION = Code("113076", "DCM", "Segmentation")
DIRECTION_DIGITS = 9
SEGMENT_IDENTIFICATION, SEGMENT_NUMBER = 0x0062000A, 0x0062000B
PLANE_POSITION, IMAGE_POSITION = 0x00209113, 0x00200032


@dataclass(frozen=True)
class SegFrame:
    """One frame of a segmentation."""

    segment: int
    """Number of the segment, from 1."""
    index: int
    """Of the slice in the volume."""


@dataclass(frozen=True)
class Segmentation:
    """A segmentation and what a report must know to refer to it."""

    content: bytes
    """The file."""
    sop_instance_uid: str
    series_instance_uid: str
    segments: tuple[Subtype, ...]
    """Segment 1 is the first of them."""
    frames: tuple[SegFrame, ...]

    def segment_of(self, subtype: str) -> int:
        """Return the number of a subtype's segment."""
        return 1 + [segment.name for segment in self.segments].index(subtype)

    def frames_of(self, subtype: str, slices: tuple[int, ...]) -> list[int]:
        """Return the numbers of the frames, from 1, that show a subtype in some slices."""
        segment = self.segment_of(subtype)
        return [n for n, frame in enumerate(self.frames, 1) if frame.segment == segment and frame.index in slices]


def segmentation(origin: Origin, label_map: LabelMap) -> Segmentation | None:
    """Return the segmentation of a label map; None where nothing was outlined.

    A segmentation cannot be without segments, and an empty one named "hemorrhage" would stand in every viewer's list as
    if there were some. That the scan was looked at and is negative is what the report says.
    """
    masks = {s: label_map.labels == s.index for s in SUBTYPES}
    if label_map.edema is not None:
        masks[EDEMA] = label_map.edema
    segments = tuple(s for s, mask in masks.items() if mask.any())
    if not segments:
        return None
    frames: list[SegFrame] = []
    planes: list[NDArray[np.bool_]] = []
    for number, subtype in enumerate(segments, 1):
        for index in np.flatnonzero(masks[subtype].any(axis=(1, 2))):
            frames.append(SegFrame(number, int(index)))
            planes.append(masks[subtype][index])
    dataset = complete(_image(origin, np.stack(planes)), origin, "SEG")
    dataset.SeriesDescription = f"hemolens segmentation ({RESEARCH_ONLY})"
    dataset.SegmentSequence = [_segment(origin, n, subtype) for n, subtype in enumerate(segments, 1)]
    _add_dimensions(dataset, origin)
    _add_functional_groups(dataset, origin, frames)
    dataset.ReferencedSeriesSequence = [_referenced_series(origin, frames)]
    return Segmentation(
        encoded(dataset), str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID), segments, tuple(frames)
    )


def code_item(code: Code) -> Dataset:
    """Return the item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def reference(frame: SourceFrame) -> Dataset:
    """Return the item that refers to a source image or to one frame of it."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop_class_uid, frame.sop_instance_uid
    if frame.frame_number is not None:
        item.ReferencedFrameNumber = frame.frame_number
    return item


def _image(origin: Origin, mask: NDArray[np.bool_]) -> Dataset:
    """Return the pixels and what says how to read them."""
    dataset = Dataset()
    dataset.SOPClassUID = SEGMENTATION_STORAGE
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = mask.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.LossyImageCompression = "00"
    dataset.SegmentationType, dataset.SegmentsOverlap = "BINARY", "NO"
    dataset.ContentLabel, dataset.ContentDescription = "HEMORRHAGE", NOTICE
    dataset.ContentCreatorName = None
    dataset.FrameOfReferenceUID = origin.frame_of_reference_uid
    dataset.PositionReferenceIndicator = None
    for keyword in IMAGE:
        if keyword in origin.header and not origin.header[keyword].is_empty:
            dataset[keyword] = origin.header[keyword]
    dataset.PixelData = pack_bits(mask.astype(np.uint8), pad=True)
    dataset["PixelData"].VR = "OB"
    return dataset


def _segment(origin: Origin, number: int, subtype: Subtype) -> Dataset:
    from highdicom.color import CIELabColor

    item, algorithm = Dataset(), Dataset()
    item.SegmentNumber = number
    item.SegmentLabel = subtype.title if subtype == EDEMA else f"{subtype.title} hemorrhage"
    item.SegmentDescription = NOTICE
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = f"{MANUFACTURER} {origin.findings.model.name}"[:64]
    item.SegmentedPropertyCategoryCodeSequence = [code_item(ABNORMAL_STRUCTURE)]
    item.SegmentedPropertyTypeCodeSequence = [code_item(subtype_code(subtype))]
    item.AnatomicRegionSequence = [code_item(INTRACRANIAL)]
    item.TrackingID, item.TrackingUID = origin.tracking(subtype.name)
    item.RecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*subtype.color_rgb).value)
    algorithm.AlgorithmFamilyCodeSequence = [code_item(Code("123110", "DCM", "Artificial Intelligence"))]
    algorithm.AlgorithmName = item.SegmentAlgorithmName
    algorithm.AlgorithmVersion = origin.findings.hemolens_version
    algorithm.AlgorithmSource = MANUFACTURER
    algorithm.AlgorithmParameters = ",".join(f"{k}={v}" for k, v in algorithm_parameters(origin.findings).items())
    item.SegmentationAlgorithmIdentificationSequence = [algorithm]
    return item


def _add_dimensions(dataset: Dataset, origin: Origin) -> None:
    """Say that frames are ordered by segment, then by position (PS3.3 C.7.6.17)."""
    organization = Dataset()
    organization.DimensionOrganizationUID = origin.uid("dimensions", "SEG")
    dataset.DimensionOrganizationSequence = [organization]
    pointers = ((SEGMENT_IDENTIFICATION, SEGMENT_NUMBER, "Segment"), (PLANE_POSITION, IMAGE_POSITION, "Position"))
    indices = []
    for group, element, label in pointers:
        index = Dataset()
        index.DimensionOrganizationUID = organization.DimensionOrganizationUID
        index.DimensionIndexPointer, index.FunctionalGroupPointer = element, group
        index.DimensionDescriptionLabel = label
        indices.append(index)
    dataset.DimensionIndexSequence = indices


def _add_functional_groups(dataset: Dataset, origin: Origin, frames: list[SegFrame]) -> None:
    """Say of each frame where it lies, what it shows and what it was made from (PS3.3 C.7.6.16)."""
    places = sorted({frame.index for frame in frames})
    measures = {k: _measures(origin, k) for k in places}
    orientations = {k: _orientation(origin, k) for k in places}
    shared = Dataset()
    one_measure = all(value == measures[places[0]] for value in measures.values())
    one_orientation = all(value == orientations[places[0]] for value in orientations.values())
    if one_measure:
        shared.PixelMeasuresSequence = [measures[places[0]]]
    if one_orientation:
        shared.PlaneOrientationSequence = [orientations[places[0]]]
    items = []
    for frame in frames:
        item = Dataset()
        content, segment, position = Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues = [frame.segment, 1 + places.index(frame.index)]
        segment.ReferencedSegmentNumber = frame.segment
        position.ImagePositionPatient = decimals(origin.volume.require_stack().positions_mm[frame.index])
        item.FrameContentSequence, item.SegmentIdentificationSequence = [content], [segment]
        item.PlanePositionSequence = [position]
        item.DerivationImageSequence = [_derivation(origin.frames[frame.index])]
        if not one_measure:
            item.PixelMeasuresSequence = [measures[frame.index]]
        if not one_orientation:
            item.PlaneOrientationSequence = [orientations[frame.index]]
        items.append(item)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], items


def _measures(origin: Origin, index: int) -> Dataset:
    stack = origin.volume.require_stack()
    item = Dataset()
    item.PixelSpacing = decimals(stack.spacings_mm[index])
    told = [origin.kept.thicknesses_mm[index], stack.extents_mm[index]]
    known = [float(v) for v in told if np.isfinite(v)]
    if known:
        item.SliceThickness = decimals(known[:1])[0]
    if len(stack) > 1 and stack.is_regular:
        item.SpacingBetweenSlices = decimals([float(np.ptp(stack.offsets_mm)) / (len(stack) - 1)], 6)[0]
    return item


def _orientation(origin: Origin, index: int) -> Dataset:
    stack = origin.volume.require_stack()
    item = Dataset()
    item.ImageOrientationPatient = decimals(
        [*stack.row_directions[index], *stack.column_directions[index]], DIRECTION_DIGITS
    )
    return item


def decimals(values: Any, digits: int | None = None) -> list[DSfloat]:
    """Return numbers as the decimal strings of DICOM, at most 16 characters: as they are, or rounded."""
    numbers = (float(v) if digits is None else round(float(v), digits) + 0.0 for v in values)
    return [DSfloat(number, auto_format=True) for number in numbers]


def _derivation(frame: SourceFrame) -> Dataset:
    item, source = Dataset(), reference(frame)
    source.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
    source.SpatialLocationsPreserved = "YES"
    item.DerivationCodeSequence = [code_item(SEGMENTATION)]
    item.SourceImageSequence = [source]
    return item


def _referenced_series(origin: Origin, frames: list[SegFrame]) -> Dataset:
    """Return every source image that a frame refers to, each once (PS3.3 C.12.2)."""
    series = Dataset()
    series.SeriesInstanceUID = origin.source.series_uid
    used = {origin.frames[frame.index].sop_instance_uid: origin.frames[frame.index] for frame in frames}
    instances = []
    for frame in used.values():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop_class_uid, frame.sop_instance_uid
        instances.append(item)
    series.ReferencedInstanceSequence = instances
    return series
