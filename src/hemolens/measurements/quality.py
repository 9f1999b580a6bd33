"""What a reader should know about a scan before trusting what was found in it, told from its pixels and geometry.

Notes on reading (gaps, duplicates, padding …) come from the sources. These checks look at the content. Each threshold
says where it comes from; on 63 scans of CT-ICH, 119 of PHE-SICH and the tilted GE series none of them fires without
cause. A check that needs values beyond what a windowed source can tell is left out there rather than guessed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemolens.geometry import Stack, angle_deg
from hemolens.measurements.survey import Mask, Survey
from hemolens.notes import QualityNote, Severity
from hemolens.volume import Volume

MIN_SLICES = 8
"""Fewer cannot be a whole head, even at 10 mm."""
MIN_COVERAGE_MM = 80.0
"""A newborn's brain is about 80 mm high, an adult's 120 or more."""
THICK_MM = 7.5
"""The models are trained on 5 mm slices; half as much again still samples most lesions twice."""
AXIAL_TOLERANCE_DEG = 35.0
"""Gantries tilt by up to 30 degrees."""
AIR_HU = -500.0
"""Every CT of a head has air around it."""
SKULL_HU = 300.0
MIN_SHARE = 0.001
"""Air and bone each fill far more than this share of any head CT: 5 % and 1 % at the least in the scans named above."""
RING_SHARE = 0.67
"""Skull is seen in this share of directions from the head's center in at least one slice. Whole scans reach 0.94 or
more, a neck 0.65, single slices after a wide craniectomy 0.69."""
BODY_MM = 300.0
"""Wider than any head with its headrest (211 mm in the tilted series), narrower than any adult's shoulders."""
LUNG_CM2 = 40.0
"""Air inside the outline of the patient in one slice: sinuses and airways stay below 25 cm²."""
WIDE_FIELD_MM = 350.0
"""Head protocols reconstruct 200 to 280 mm; beyond this, pixels are coarser than those that models are trained on."""
CUT_MM = 10.0
"""Length of bone at the border of the image, or of the circle that the scanner reconstructs, which shows that the
head is cut."""
RIM_PIXELS = 2
"""How wide that border is."""
CUT_SHARE = 0.04
"""The same as a share of the image's side without geometry."""
CUT_SLICES = 2
"""In at least so many slices, or in the only one."""
OPEN_TOP_SHARE = 0.6
"""Brain's area in the highest slice against the largest. The scans named above, some ending early, stay at 0.5 or
less."""
OPEN_BASE_SHARE = 0.75
"""The same in the lowest slice; neck and face enclose up to half of what the skull does."""
METAL_HU = 2800
"""Petrous bone reaches 2300, enamel 2700; clips, coils and fillings saturate 12 bits at 3071."""
METAL_MM2 = 4.0
"""In one slice, so that a single hot pixel is not metal."""
VESSEL_HU = (110.0, 700.0)
"""Enhanced vessels; acute blood stays below 100. A region with a value above is bone or dense calcification."""
VESSEL_DEPTH_MM = 6.0
"""Distance from the skull: leaves out its own blur and the sinuses along it."""
VESSEL_MIN_PIXELS = 8
"""Smaller regions are noise."""
MIN_BRAIN_CM2 = 40.0
"""Slices nearer the vertex show too little to tell vessels by."""
VESSEL_MM2 = 15.0
"""Per slice."""
VESSEL_SLICE_SHARE = 0.6
"""Vessels show in most slices above the skull base; calcified plexus, falx or pineal gland in a few (0.2 in the
tilted series)."""
VESSEL_ML = 3.0
"""In all; the tilted series has 0.5 ml of calcification."""
ABOVE_BASE_SHARE = 0.85
"""Slices from the first whose brain reaches this share of the largest area are above the skull base and the sella."""


def assess(volume: Volume) -> tuple[QualityNote, ...]:
    """Return the notes on the content of a scan; the reader's own are in `Volume.notes`.

    Where the values do not look like CT at all, nothing further is judged by them.
    """
    survey = Survey(volume)
    notes = [_too_few(volume), _thick(volume.stack), _not_axial(volume.stack), _uneven_mask(volume)]
    modality = _modality(survey)
    if modality is not None:
        notes += [modality] if modality not in volume.notes else []
    else:
        notes += [_not_a_head(survey), _field(survey), _cut(survey), _open_ends(survey)]
        notes += [_contrast(survey), _metal(volume)]
    return tuple(note for note in notes if note is not None)


def _warn(code: str, message: str, slices: NDArray[np.integer] | tuple[int, ...] = ()) -> QualityNote:
    return QualityNote(code, Severity.WARNING, message, tuple(int(k) for k in slices))


def _too_few(volume: Volume) -> QualityNote | None:
    count = f"{len(volume)} {'slice' if len(volume) == 1 else 'slices'}"
    if len(volume) < MIN_SLICES:
        return _warn("too_few_slices", f"Only {count}: a head has more; volumes are those of the part shown.")
    covered = float(volume.stack.extents_mm.sum()) if volume.stack is not None else np.inf
    if covered < MIN_COVERAGE_MM:
        return _warn(
            "too_few_slices", f"{count} cover {covered:.0f} mm: a head is higher; volumes are those of the part shown."
        )
    return None


def _thick(stack: Stack | None) -> QualityNote | None:
    if stack is None:
        return None
    extents = np.where(np.isfinite(stack.extents_mm), stack.extents_mm, stack.thickness_mm)
    thick = np.flatnonzero(extents > THICK_MM)
    # A gap makes its two neighbors stand for more; that is the reader's note.
    if 2 * len(thick) < len(stack) or not len(thick):
        return None
    return _warn(
        "thick_slices",
        f"Slices are {np.median(extents[thick]):.1f} mm thick or apart: thin or small bleeds may be missed.",
        () if len(thick) == len(stack) else thick,
    )


def _not_axial(stack: Stack | None) -> QualityNote | None:
    if stack is None:
        return None
    angle = angle_deg(stack.normal, (0.0, 0.0, 1.0))
    angle = min(angle, 180.0 - angle)
    if angle <= AXIAL_TOLERANCE_DEG:
        return None
    return _warn("not_axial", f"Slices lean {angle:.0f} degrees from axial: the model saw axial slices only.")


def _uneven_mask(volume: Volume) -> QualityNote | None:
    if volume.stack is None or volume.source.kind != "dicom" or len(volume) < 2 or volume.stack.is_regular:
        return None
    return QualityNote(
        "uneven_spacing",
        Severity.INFO,
        "NIfTI cannot hold slices that are placed like these: mask.nii.gz has one layer per image, in order, but no "
        "positions; those are in mask_geometry.json. Volumes and centroids in the findings are exact.",
    )


def _modality(survey: Survey) -> QualityNote | None:
    if survey.volume.source.window is not None:
        return None
    if any(note.code == "modality" for note in survey.volume.notes):
        # The reader has said so; nothing else is to be judged by these values then.
        return next(note for note in survey.volume.notes if note.code == "modality")
    lowest, highest = float(survey.hu.min()), float(survey.hu.max())
    if np.mean(survey.hu < AIR_HU) < MIN_SHARE:
        return _warn("modality", f"No air in the image (lowest {lowest:.0f} HU): this may be no CT, or it was masked.")
    if np.mean(survey.hu > SKULL_HU) < MIN_SHARE:
        return _warn(
            "modality", f"No bone in the image (highest {highest:.0f} HU): this may be no CT, or it was masked."
        )
    return None


def _not_a_head(survey: Survey) -> QualityNote | None:
    if survey.rings.max() >= RING_SHARE:
        return None
    return _warn("not_a_head", "No head-sized skull was found: findings outside the skull mean nothing.")


def _field(survey: Survey) -> QualityNote | None:
    if survey.pixel_mm is None or survey.floor_hu > AIR_HU:
        return None
    wide = np.flatnonzero(np.array([_width_mm(body, survey.pixel_mm) for body in survey.body]) > BODY_MM)
    if len(wide):
        return _warn("field_of_view", f"The patient is wider than {BODY_MM:.0f} mm: this is more than a head.", wide)
    lungs = np.flatnonzero(survey.areas((survey.hu < AIR_HU) & survey.body) > LUNG_CM2)
    if len(lungs):
        return _warn("field_of_view", "Air as large as lungs lies inside the patient: this is more than a head.", lungs)
    side = max(n * mm for n, mm in zip(survey.hu.shape[1:], survey.pixel_mm, strict=True))
    if side > WIDE_FIELD_MM:
        message = f"The field of view is {side:.0f} mm: the head fills little of it, and small bleeds may be missed."
        return QualityNote("field_of_view", Severity.INFO, message)
    return None


def _width_mm(mask: Mask, pixel_mm: tuple[float, float]) -> float:
    where = np.argwhere(mask)
    return float((np.ptp(where, axis=0) * pixel_mm).max()) if len(where) else 0.0


def _cut(survey: Survey) -> QualityNote | None:
    volume = survey.volume
    rows, columns = volume.shape[1:]
    pixel_mm = 1.0 if volume.stack is None else float(np.median(volume.stack.spacings_mm))
    needed = CUT_SHARE * min(rows, columns) if volume.stack is None else CUT_MM
    threshold = min(SKULL_HU, 0.9 * survey.saturation_hu)
    square, circle, beyond = _rims(rows, columns)
    limit = np.array(survey.head.shape[1:])[:, None] - 1
    cut = []
    for k, image in enumerate(volume.hu):
        # Nothing beyond the inscribed circle: it is the scanner's, and cuts like a border.
        round_field = beyond.any() and image[beyond].max() < max(AIR_HU, survey.floor_hu + 5.0)
        for rim in (square, circle) if round_field else (square,):
            r, c = np.nonzero(rim & (image >= threshold))
            coarse = (np.stack([r, c]) // survey.stride).clip(max=limit)
            if np.count_nonzero(survey.head[k][coarse[0], coarse[1]]) / RIM_PIXELS * pixel_mm >= needed:
                cut.append(k)
                break
    if len(cut) < min(CUT_SLICES, len(volume)):
        return None
    return _warn("cropped_head", "The skull reaches the border of the image: part of the head is cut off.", tuple(cut))


def _rims(rows: int, columns: int) -> tuple[Mask, Mask, Mask]:
    """Return the border of the image, that of its inscribed circle, and what lies beyond the circle."""
    y, x = np.ogrid[:rows, :columns]
    square = np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x)) < RIM_PIXELS
    radius = np.hypot(y - (rows - 1) / 2, x - (columns - 1) / 2)
    edge = min(rows, columns) / 2
    return np.asarray(square), np.asarray((radius > edge - RIM_PIXELS - 1) & (radius <= edge - 1)), radius > edge


def _open_ends(survey: Survey) -> QualityNote | None:
    areas = survey.inside_areas
    if len(areas) < MIN_SLICES or survey.rings.max() < RING_SHARE or not areas.max():
        return None
    order = areas
    if survey.volume.stack is not None and survey.volume.stack.normal[2] < 0:
        order = areas[::-1]
    missing = []
    if order[-1] > OPEN_TOP_SHARE * areas.max():
        missing.append("top")
    if order[0] > OPEN_BASE_SHARE * areas.max():
        missing.append("base")
    if not missing:
        return None
    return _warn("cropped_head", f"The {' and the '.join(missing)} of the head lies outside the scan.")


def _contrast(survey: Survey) -> QualityNote | None:
    """Look for bright, soft-edged structures away from bone in most slices above the skull base."""
    areas, volume = survey.inside_areas, survey.volume
    stack = volume.stack
    if stack is None or not volume.has_volumes or survey.saturation_hu < VESSEL_HU[1] or survey.pixel_mm is None:
        return None
    upward = range(len(volume)) if stack.normal[2] >= 0 else range(len(volume) - 1, -1, -1)
    first = next((i for i, k in enumerate(upward) if areas[k] >= ABOVE_BASE_SHARE * areas.max()), 0)
    above = [k for k in upward[first:] if areas[k] >= MIN_BRAIN_CM2]
    if len(above) < MIN_SLICES // 2:
        return None
    found = np.array([_vessel_pixels(survey, k) for k in above], dtype=np.float64)
    many = found * stack.spacings_mm[above].prod(axis=1) >= VESSEL_MM2
    if many.mean() < VESSEL_SLICE_SHARE or found @ stack.voxel_volumes_ml[above] < VESSEL_ML:
        return None
    slices = np.sort(np.asarray(above)[many])
    return _warn("contrast_suspected", "Vessels look enhanced: contrast medium can pass for blood.", slices)


def _vessel_pixels(survey: Survey, k: int) -> int:
    deep = ndimage.distance_transform_edt(survey.inside[k], sampling=survey.pixel_mm) > VESSEL_DEPTH_MM
    n = survey.stride
    rows, columns = deep.shape
    image = survey.volume.hu[k][: rows * n, : columns * n]
    labels, count = ndimage.label((image >= VESSEL_HU[0]) & deep.repeat(n, axis=0).repeat(n, axis=1))
    if not count:
        return 0
    index = np.arange(1, count + 1)
    soft = ndimage.maximum(image, labels, index) < VESSEL_HU[1]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return int(sizes[soft & (sizes >= VESSEL_MIN_PIXELS)].sum())


def _metal(volume: Volume) -> QualityNote | None:
    if volume.source.window is not None:
        return None
    pixel_mm2 = 0.25 if volume.stack is None else float(volume.stack.spacings_mm.prod(axis=1).min())
    counts = np.count_nonzero(volume.hu >= METAL_HU, axis=(1, 2))
    slices = np.flatnonzero(counts * pixel_mm2 >= METAL_MM2)
    if not len(slices):
        return None
    return _warn("metal_suspected", "Metal is in the image: its streaks can hide blood or pass for it.", slices)
