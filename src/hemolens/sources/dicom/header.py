"""What the reader must know of each slice before it touches a pixel: one frozen record per frame."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hemolens.sources.dicom.tags import Tags
from hemolens.sources.files import Entry

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
SQUARE_TOLERANCE = 1e-3
"""Largest cosine between the row and the column direction; four decimals in a header err by 1e-4."""

TRANSFER_SYNTAX, MEDIA_CLASS = 0x00020010, 0x00020002
IMAGE_TYPE, SOP_CLASS, SOP_UID = 0x00080008, 0x00080016, 0x00080018
STUDY_DATE, ACQUISITION_DATE, STUDY_TIME = 0x00080020, 0x00080022, 0x00080030
MODALITY, STUDY_DESCRIPTION, SERIES_DESCRIPTION = 0x00080060, 0x00081030, 0x0008103E
PATIENT_NAME, PATIENT_ID = 0x00100010, 0x00100020
CONTRAST_AGENT, BODY_PART, SLICE_THICKNESS, PROTOCOL = 0x00180010, 0x00180015, 0x00180050, 0x00181030
KERNEL = 0x00181210
STUDY_UID, SERIES_UID, FRAME_UID = 0x0020000D, 0x0020000E, 0x00200052
SERIES_NUMBER, ACQUISITION_NUMBER, INSTANCE_NUMBER = 0x00200011, 0x00200012, 0x00200013
POSITION, ORIENTATION = 0x00200032, 0x00200037
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
PIXEL_SPACING, ALLOCATED, STORED, HIGH_BIT = 0x00280030, 0x00280100, 0x00280101, 0x00280102
SIGNED, PADDING, PADDING_LIMIT = 0x00280103, 0x00280120, 0x00280121
INTERCEPT, SLOPE, RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054
SHARED, PER_FRAME, PIXEL_DATA = 0x52009229, 0x52009230, 0x7FE00010
PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES = 0x00209113, 0x00209116, 0x00289110
VALUE_TRANSFORMATION, CT_FRAME_TYPE, FRAME_TYPE = 0x00289145, 0x00189329, 0x00089007

HEADER_TAGS: tuple[int, ...] = (
    IMAGE_TYPE, SOP_CLASS, SOP_UID, STUDY_DATE, ACQUISITION_DATE, STUDY_TIME, MODALITY, STUDY_DESCRIPTION,
    SERIES_DESCRIPTION, PATIENT_NAME, PATIENT_ID, CONTRAST_AGENT, BODY_PART, SLICE_THICKNESS, PROTOCOL, KERNEL,
    STUDY_UID, SERIES_UID, FRAME_UID, SERIES_NUMBER, ACQUISITION_NUMBER, INSTANCE_NUMBER, POSITION, ORIENTATION,
    SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, PIXEL_SPACING, ALLOCATED, STORED, HIGH_BIT, SIGNED, PADDING,
    PADDING_LIMIT, INTERCEPT, SLOPE, RESCALE_TYPE, SHARED, PER_FRAME,
)  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Where one slice lies: LPS millimeters, unit directions, ``(between rows, between columns)`` spacing."""

    position_mm: tuple[float, float, float]
    row_direction: tuple[float, float, float]
    column_direction: tuple[float, float, float]
    spacing_mm: tuple[float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Row direction × column direction (PS3.3 C.7.6.2.1.1)."""
        return np.cross(np.asarray(self.row_direction), np.asarray(self.column_direction))


@dataclass(frozen=True)
class PixelFormat:
    """How stored values are to be understood (PS3.3 C.7.6.3, C.7.5.1.1.2, C.11.1)."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    samples: int
    transfer_syntax: str
    little_endian: bool
    slope: float | None
    intercept: float | None
    padding: bytes | None
    """Pixel Padding Value as it stands in the file: its sign is that of the pixels, whatever its VR says."""
    padding_limit: bytes | None
    rescale_type: str


@dataclass(frozen=True)
class SliceHeader:
    """One frame of one file. Carries no patient name or number, only a digest to tell patients apart."""

    entry: Entry
    frame: int
    frames: int
    series_uid: str
    patient_key: str
    study_uid: str
    sop_uid: str
    frame_of_reference_uid: str
    modality: str
    sop_class: str
    image_type: tuple[str, ...]
    description: str
    body_part: str
    kernel: str
    contrast: bool
    series_number: int | None
    acquisition_number: int | None
    instance_number: int | None
    acquired: str
    """Sortable date and time; never shown."""
    thickness_mm: float
    pixels: PixelFormat | None
    """None: the file holds no image."""
    pose: Pose | None
    pose_problem: str
    """Why there is no pose; empty if there is one."""

    @property
    def is_ct(self) -> bool:
        """Whether it is a CT image by its class or, where an anonymizer took the class away, by its modality."""
        return self.sop_class in CT_CLASSES or (not self.sop_class and self.modality == "CT")

    @property
    def is_localizer(self) -> bool:
        """Whether it is a scout (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.image_type


def slice_headers(entry: Entry, meta: Tags, tags: Tags) -> list[SliceHeader]:
    """Return one record per frame of a file, one for a file of another kind."""
    first = _header(entry, meta, tags)
    if first.frames == 1 and not tags.items(PER_FRAME):
        return [first]
    shared = tags.items(SHARED)[:1]
    frames = tags.items(PER_FRAME)
    if first.pixels is None or len(frames) != first.frames:
        return [replace(first, pose=None, pose_problem="it has several frames without a place for each")]
    return [_frame_header(first, first.pixels, index, frame, shared) for index, frame in enumerate(frames)]


def _header(entry: Entry, meta: Tags, tags: Tags) -> SliceHeader:
    pose, problem = _pose_or_reason([tags])
    sop_class = tags.text(SOP_CLASS) or meta.text(MEDIA_CLASS)
    described = (tags.text(SERIES_DESCRIPTION), tags.text(PROTOCOL))
    return SliceHeader(
        entry=entry,
        frame=0,
        frames=max(tags.integer(FRAMES) or 1, 1),
        series_uid=tags.text(SERIES_UID),
        patient_key=_patient_key(tags),
        study_uid=tags.text(STUDY_UID),
        sop_uid=tags.text(SOP_UID),
        frame_of_reference_uid=tags.text(FRAME_UID),
        modality=tags.text(MODALITY).upper(),
        sop_class=sop_class,
        image_type=tuple(t.upper() for t in tags.texts(IMAGE_TYPE)),
        description=next((d for d in described if d), ""),
        body_part=tags.text(BODY_PART).upper(),
        kernel=" ".join(t for t in tags.texts(KERNEL) if t),
        contrast=bool(tags.text(CONTRAST_AGENT)),
        series_number=tags.integer(SERIES_NUMBER),
        acquisition_number=tags.integer(ACQUISITION_NUMBER),
        instance_number=tags.integer(INSTANCE_NUMBER),
        acquired=(tags.text(STUDY_DATE) or tags.text(ACQUISITION_DATE)) + tags.text(STUDY_TIME),
        thickness_mm=_thickness([tags]),
        pixels=_pixel_format(meta, tags, [tags]),
        pose=pose,
        pose_problem=problem,
    )


def _frame_header(
    first: SliceHeader, pixels: PixelFormat, index: int, frame: Tags, shared: Sequence[Tags]
) -> SliceHeader:
    """Return the record of one frame of an enhanced image: its own groups first, then those shared by all."""
    groups = [frame, *shared]

    def inner(tag: int) -> list[Tags]:
        return [item for group in groups for item in group.items(tag)[:1]]

    measures = inner(PIXEL_MEASURES)
    pose, problem = _pose_or_reason([*inner(PLANE_POSITION), *inner(PLANE_ORIENTATION), *measures])
    transformation = inner(VALUE_TRANSFORMATION)
    kind = next((t.texts(FRAME_TYPE) for t in inner(CT_FRAME_TYPE)), first.image_type)
    return replace(
        first,
        frame=index,
        image_type=tuple(t.upper() for t in kind),
        instance_number=index + 1,
        thickness_mm=_thickness(measures),
        pixels=replace(
            pixels,
            slope=_rescale(transformation, SLOPE),
            intercept=_rescale(transformation, INTERCEPT),
            rescale_type=next((t.text(RESCALE_TYPE) for t in transformation), ""),
        ),
        pose=pose,
        pose_problem=problem,
    )


def _patient_key(tags: Tags) -> str:
    """Return a digest that tells patients apart; studies without any identity count as one patient each."""
    identity = tags.text(PATIENT_ID) or tags.text(PATIENT_NAME) or "study " + tags.text(STUDY_UID)
    return hashlib.sha256(identity.encode()).hexdigest()


def _first(groups: Sequence[Tags], tag: int, count: int) -> tuple[float, ...] | None:
    return next((found for group in groups if (found := group.decimals(tag, count)) is not None), None)


def _pose_or_reason(groups: Sequence[Tags]) -> tuple[Pose | None, str]:
    try:
        return _pose(groups), ""
    except ValueError as error:
        return None, str(error)


def _pose(groups: Sequence[Tags]) -> Pose:
    """Read position, orientation and pixel spacing (PS3.3 C.7.6.2).

    Raises
    ------
    ValueError
        If one is missing, malformed, or cannot be true.
    """
    position, orientation, spacing = (
        _first(groups, t, n) for t, n in ((POSITION, 3), (ORIENTATION, 6), (PIXEL_SPACING, 2))
    )
    if position is None or orientation is None or spacing is None:
        named = (("Position (Patient)", position), ("Orientation (Patient)", orientation), ("Pixel Spacing", spacing))
        raise ValueError(f"{' and '.join(name for name, value in named if value is None)} missing")
    if min(spacing) <= 0:
        raise ValueError("Pixel Spacing is not positive")
    if max(abs(x) for x in (*position, *spacing)) > 1e5:
        raise ValueError("Image Position (Patient) or Pixel Spacing is absurdly large")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > SQUARE_TOLERANCE:
        raise ValueError("Image Orientation (Patient) is no pair of unit vectors at right angles")
    row, column = row / lengths[0], column / lengths[1]
    return Pose(_three(position), _three(row), _three(column), (spacing[0], spacing[1]))


def _three(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _thickness(groups: Sequence[Tags]) -> float:
    try:
        found = _first(groups, SLICE_THICKNESS, 1)
    except ValueError:
        return math.nan
    return found[0] if found and found[0] > 0 else math.nan


def _rescale(groups: Sequence[Tags], tag: int) -> float | None:
    """Return slope or intercept; None if absent, NaN if malformed, so that decoding can refuse this one slice."""
    try:
        found = _first(groups, tag, 1)
    except ValueError:
        return math.nan
    return None if found is None else found[0]


def _pixel_format(meta: Tags, tags: Tags, groups: Sequence[Tags]) -> PixelFormat | None:
    rows, columns, allocated = tags.word(ROWS), tags.word(COLUMNS), tags.word(ALLOCATED)
    if not rows or not columns or not allocated:
        return None
    stored = tags.word(STORED) or allocated
    high_bit = tags.word(HIGH_BIT)
    return PixelFormat(
        rows=rows,
        columns=columns,
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=tags.word(SIGNED) == 1,
        photometric=tags.text(PHOTOMETRIC).upper() or "MONOCHROME2",
        samples=tags.word(SAMPLES) or 1,
        transfer_syntax=meta.text(TRANSFER_SYNTAX),
        little_endian=tags.is_little_endian,
        slope=_rescale(groups, SLOPE),
        intercept=_rescale(groups, INTERCEPT),
        padding=tags.raw(PADDING),
        padding_limit=tags.raw(PADDING_LIMIT),
        rescale_type=tags.text(RESCALE_TYPE).upper(),
    )
