"""From DICOM files to one `Volume`: scan, choose, order, decode, and say what was odd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import DecodeError, GeometryError, InputError
from hemolens.geometry import Stack
from hemolens.notes import QualityNote, Severity
from hemolens.sources.dicom.decode import decode_slices
from hemolens.sources.dicom.header import SliceHeader
from hemolens.sources.dicom.origin import origin_of
from hemolens.sources.dicom.scan import Scan, scan_entries
from hemolens.sources.dicom.select import SCOUT_WORDS, Choice, Series, choose
from hemolens.sources.dicom.stacks import Gap, find_gaps, is_uneven, order_slices, pose_of, stack_of
from hemolens.sources.dicom.tags import quiet
from hemolens.sources.files import MAX_VOXELS, Entry, listing, short_names
from hemolens.volume import SourceInfo, Volume

SCAN_SHARE = 0.3
"""Part of the progress that looking at the headers stands for."""
TILT_DEG = 0.5
"""A smaller angle is rounding in the header."""


def read_dicom(
    entries: Sequence[Entry],
    source: str,
    series_uid: str | None,
    progress: Callable[[float], None],
    absent: int = 0,
) -> Volume:
    """Read the axial head series among `entries`.

    Parameters
    ----------
    entries
        Files of any kind; those that are no DICOM are counted and left out.
    source
        Name of the folder, zip or file, for messages.
    series_uid
        Read this series instead of choosing one.
    progress
        Called with a fraction from 0 to 1, in this thread.
    absent
        How many files a DICOMDIR names that are not there.

    Returns
    -------
    Volume
        Slices rise along their normal; in-plane arrays are as stored.

    Raises
    ------
    InputError
        If there is no series to read, more than one patient, no geometry, or no slice that decodes.
    """
    scan = scan_entries(entries, lambda fraction: progress(SCAN_SHARE * fraction))
    choice = choose(scan, source, series_uid)
    ordered = order_slices(choice.series.slices)
    with quiet():
        loaded = _load(ordered.slices, source, lambda f: progress(SCAN_SHARE + (1 - SCAN_SHARE) * f))
    kept = [ordered.slices[i] for i in loaded.kept]
    stack = _stack(kept, source)
    with quiet():
        info = _source_info(kept, choice.series, source)
    volume = Volume(loaded.hu, stack, info)
    index_of = {old: new for new, old in enumerate(loaded.kept)}
    doubled = tuple(index_of[i] for i in ordered.doubled if i in index_of)
    notes = [
        *_choice_notes(choice),
        *_loss_notes(scan, choice.series, loaded, absent),
        *_double_notes(doubled, ordered.dropped),
        *_spacing_notes(ordered.slices, index_of, stack),
        *_pixel_notes(kept, loaded),
    ]
    progress(1.0)
    return volume.with_notes(*notes)


@dataclass
class _Loaded:
    """What decoding yields; indices are into the ordered slices."""

    hu: NDArray[np.int16] | NDArray[np.float32]
    kept: list[int] = field(default_factory=list)
    errors: dict[int, DecodeError] = field(default_factory=dict)
    padded: list[int] = field(default_factory=list)
    wrapped: list[int] = field(default_factory=list)


def _load(slices: Sequence[SliceHeader], source: str, progress: Callable[[float], None]) -> _Loaded:
    pixels = slices[0].pixels
    shape = (len(slices), pixels.rows, pixels.columns) if pixels is not None else (0, 0, 0)
    if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        problem = f"{shape[0]} slices of {shape[1]} x {shape[2]} pixels are more than {MAX_VOXELS:,} voxels"
        raise InputError(source, problem, "Give the head series alone.")
    loaded = _Loaded(np.empty(shape, dtype=np.int16))
    for index, decoded in enumerate(decode_slices(slices)):
        progress(index / len(slices))
        if isinstance(decoded, DecodeError):
            loaded.errors[index] = decoded
            continue
        if decoded.hu.dtype != np.int16 and loaded.hu.dtype == np.int16:
            loaded.hu = loaded.hu.astype(np.float32)
        loaded.hu[len(loaded.kept)] = decoded.hu
        if decoded.padded:
            loaded.padded.append(len(loaded.kept))
        if decoded.wrapped:
            loaded.wrapped.append(len(loaded.kept))
        loaded.kept.append(index)
    if not loaded.kept:
        first = loaded.errors[0]
        raise DecodeError(source, f"no slice can be decoded; {first.source}: {first.problem}", first.remedy)
    loaded.hu = loaded.hu[: len(loaded.kept)]
    return loaded


def _stack(kept: Sequence[SliceHeader], source: str) -> Stack:
    try:
        return stack_of(kept)
    except GeometryError as error:
        raise GeometryError(source, error.problem, error.remedy) from error


def _source_info(kept: Sequence[SliceHeader], series: Series, source: str) -> SourceInfo:
    names = short_names([h.entry.name if h.frames == 1 else f"{h.entry.name}#{h.frame + 1}" for h in kept])
    numbers = tuple(h.instance_number for h in kept if h.instance_number is not None)
    first = kept[0]
    return SourceInfo(
        kind="dicom",
        path_or_uid=series.uid or source,
        slice_names=names,
        slice_numbers=numbers if len(numbers) == len(kept) else (),
        sop_instance_uids=tuple(h.sop_uid for h in kept),
        study_uid=_shared([h.study_uid for h in kept]),
        series_uid=series.uid or None,
        frame_of_reference_uid=_shared([h.frame_of_reference_uid for h in kept]),
        series_description=first.description or None,
        origin=origin_of(kept),
    )


def _shared(values: Sequence[str]) -> str | None:
    """Return the one value of all slices; None where they differ or have none."""
    return values[0] or None if len(set(values)) == 1 else None


def _choice_notes(choice: Choice) -> list[QualityNote]:
    notes = []
    if choice.reason:
        severity = Severity.WARNING if choice.studies > 1 else Severity.INFO
        text = choice.reason + (f"; {choice.studies} studies of the patient were found" if choice.studies > 1 else "")
        notes.append(QualityNote("series_chosen", severity, text))
    if choice.skipped:
        kinds = listing([f"{count} {kind}" for kind, count in sorted(choice.skipped.items())], most=10)
        total = sum(choice.skipped.values())
        notes.append(QualityNote("files_skipped", Severity.INFO, f"{total} left out: {kinds}"))
    return notes


def _loss_notes(scan: Scan, series: Series, loaded: _Loaded, absent: int) -> list[QualityNote]:
    notes = []
    unreadable = [f"{e.source} ({e.problem})" for e in loaded.errors.values()]
    unreadable += [f"{name} (damaged)" for name in scan.damaged]
    if unreadable:
        text = f"{len(unreadable)} could not be decoded: {listing(unreadable)}"
        notes.append(QualityNote("slices_unreadable", Severity.PARTIAL, text))
    if absent:
        text = f"the DICOMDIR names {absent} files that are not there; they may belong to this series"
        notes.append(QualityNote("slices_missing", Severity.PARTIAL, text))
    other = [*series.left_out, *series.unposed]
    if other:
        severity = Severity.INFO if _are_localizers(series) else Severity.PARTIAL
        text = (
            f"{len(other)} images of the series have another size, orientation or spacing, or none, and were left out"
        )
        notes.append(QualityNote("mixed_geometry", severity, f"{text}: {listing([h.entry.name for h in other])}"))
    return notes


def _are_localizers(series: Series) -> bool:
    """Whether what is left out of a series is one or two views across it, as unmarked scouts are."""
    if series.unposed or len(series.left_out) > 2:
        return False
    normal = pose_of(series.first).normal
    across = all(abs(float(pose_of(h).normal @ normal)) < 0.5 for h in series.left_out)
    return across or all(SCOUT_WORDS.search(h.description) is not None for h in series.left_out)


def _double_notes(doubled: tuple[int, ...], dropped: int) -> list[QualityNote]:
    if not dropped:
        return []
    if not doubled:
        text = f"{dropped} copies of the same images were left out"
        return [QualityNote("duplicate_slices", Severity.INFO, text)]
    text = f"{len(doubled)} positions were recorded more than once; one slice of each was used"
    return [QualityNote("duplicate_slices", Severity.WARNING, text, doubled)]


def _spacing_notes(ordered: Sequence[SliceHeader], index_of: dict[int, int], stack: Stack) -> list[QualityNote]:
    """Judge the steps of the whole series, unreadable slices included, so that no loss is told twice."""
    notes = []
    normal = pose_of(ordered[0]).normal
    offsets = np.array([np.dot(pose_of(h).position_mm, normal) for h in ordered])
    gaps = find_gaps(offsets, [h.instance_number for h in ordered])
    if gaps:
        notes.append(_gap_note(gaps, offsets, index_of))
    if is_uneven(offsets, gaps):
        steps = np.diff(offsets)
        text = f"the distance between slices runs from {steps.min():.2f} to {steps.max():.2f} mm"
        notes.append(QualityNote("uneven_spacing", Severity.WARNING, text))
    if stack.tilt_deg >= TILT_DEG:
        text = f"the gantry was tilted by {stack.tilt_deg:.1f} degrees; slices are sheared against the stack"
        notes.append(QualityNote("gantry_tilt", Severity.INFO, text))
    return notes


def _gap_note(gaps: Sequence[Gap], offsets: NDArray[np.float64], index_of: dict[int, int]) -> QualityNote:
    places = [f"{offsets[g.before + 1] - offsets[g.before]:.1f} mm above slice {g.before}" for g in gaps]
    missing = sum(g.missing for g in gaps)
    about = tuple(sorted({index_of[i] for g in gaps for i in (g.before, g.before + 1) if i in index_of}))
    text = f"about {missing} slices are missing: {listing(places)}"
    return QualityNote("slices_missing", Severity.PARTIAL, text, about)


def _pixel_notes(kept: Sequence[SliceHeader], loaded: _Loaded) -> list[QualityNote]:
    notes = []
    formats = [h.pixels for h in kept if h.pixels is not None]
    if any(p.slope is None or p.intercept is None for p in formats):
        text = "Rescale Slope or Intercept is missing; stored values were taken as Hounsfield units"
        notes.append(QualityNote("rescale_assumed", Severity.WARNING, text))
    if loaded.wrapped:
        text = "pixels are declared unsigned but hold negative numbers; they were read as signed"
        notes.append(QualityNote("rescale_assumed", Severity.WARNING, text, tuple(loaded.wrapped)))
    if loaded.padded:
        text = "pixels outside the scanner's field were set to air"
        notes.append(QualityNote("padding_replaced", Severity.INFO, text, tuple(loaded.padded)))
    units = {p.rescale_type for p in formats} - {"", "HU", "US"}
    if units:
        text = f"pixel values are in {listing(sorted(u[:16] for u in units))}, not in Hounsfield units"
        notes.append(QualityNote("modality", Severity.WARNING, text))
    return notes
