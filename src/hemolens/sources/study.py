"""The one way in: what kind of source a path is, and the `Volume` in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hemolens.errors import ConfigError, DecodeError, InputError, SelectionError
from hemolens.notes import QualityNote, Severity
from hemolens.sources.files import Entry, FileEntry, file_entry, folder_entries, listing, read_head, zip_entries
from hemolens.volume import DisplayWindow, Volume

if TYPE_CHECKING:
    from hemolens.sources.datasets.ct_ich import Location

Progress = Callable[[float], None]
KINDS = "Give a DICOM folder, file or zip, a NIfTI file, or a folder of PNG or JPEG slices."
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a source."""

    series_uid: str | None = None
    """DICOM: read this series instead of choosing one."""
    patient: str | None = None
    """Root of a data set such as CT-ICH: which patient."""
    window: DisplayWindow = field(default_factory=DisplayWindow)
    """8-bit pictures: what they were rendered with."""
    pixel_spacing_mm: float | None = None
    """8-bit pictures: distance of pixels, if known."""
    slice_spacing_mm: float | None = None
    """8-bit pictures: distance of slices, if known."""


DEFAULT_OPTIONS = ReadOptions()


def read_volume(path: str | Path, options: ReadOptions = DEFAULT_OPTIONS, progress: Progress | None = None) -> Volume:
    """Read a head CT from whatever holds it.

    Parameters
    ----------
    path
        DICOM folder, file, zip or DICOMDIR; NIfTI file; folder of PNG or JPEG slices or one of them; root, patient or
        ``brain`` folder of CT-ICH.
    options
        What the user says about the source.
    progress
        Called with a fraction from 0 to 1, in this thread.

    Returns
    -------
    Volume
        With `source` and `notes` filled.

    Raises
    ------
    InputError
        If nothing can be read, or more than one thing; `GeometryError`, `DecodeError` and `SelectionError` say more.
    ConfigError
        If an option does not fit the source.
    """
    source = Path(path)
    tell: Progress = progress if progress is not None else lambda _fraction: None
    try:
        if _is_folder(source):
            return _read_folder(source, options, tell)
        return _read_file(file_entry(source), source, options, tell)
    except MemoryError as error:
        raise InputError(
            source, "does not fit into memory", "Give the head series alone, or use a larger machine."
        ) from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long; `file_entry` says so
        return False


def _read_folder(folder: Path, options: ReadOptions, progress: Progress) -> Volume:
    from hemolens.sources.datasets import ct_ich

    location = ct_ich.locate(folder)
    if location is not None:
        return _read_ct_ich(location, options, progress)
    entries = folder_entries(folder)
    if not entries:
        raise InputError(folder, "is an empty folder", KINDS)
    return _read_entries(entries, str(folder), options, progress)


def _read_ct_ich(location: Location, options: ReadOptions, progress: Progress) -> Volume:
    from hemolens.sources.datasets import ct_ich

    _refuse_options(options, "this is the CT-ICH data set", series_uid=True)
    spacing = (options.pixel_spacing_mm, options.slice_spacing_mm)
    return ct_ich.read_patient(location, options.patient, options.window, spacing, progress)


def _read_entries(entries: Sequence[Entry], source: str, options: ReadOptions, progress: Progress) -> Volume:
    """Read the contents of a folder or zip: DICOM if there is any, else one NIfTI, else pictures."""
    from hemolens.sources.dicom.scan import may_hold_dicom
    from hemolens.sources.images import is_image

    if any(may_hold_dicom(e) for e in entries):
        return _read_dicom(entries, source, options, progress)
    niftis = [e for e in entries if e.name.lower().endswith((".nii", ".nii.gz"))]
    if len(niftis) > 1:
        raise SelectionError(
            source, f"holds {len(niftis)} NIfTI files", f"Give one: {listing([e.name for e in niftis])}."
        )
    if niftis:
        name = str(Path(source) / niftis[0].name)
        return _with_skipped(_read_nifti(niftis[0], name, options, progress), Counter(file=len(entries) - 1))
    if any(is_image(e) for e in entries):
        return _read_pictures(entries, source, options, progress)
    raise InputError(source, f"holds no scan among its {len(entries)} files", KINDS)


def _read_file(entry: FileEntry, source: Path, options: ReadOptions, progress: Progress) -> Volume:
    """Read one file by what its first bytes are, whatever its name."""
    from hemolens.sources.dicom.directory import is_directory_file
    from hemolens.sources.dicom.scan import may_hold_dicom
    from hemolens.sources.images import looks_like_image
    from hemolens.sources.nifti import nifti_kind, unpacked_head

    head = read_head(entry, 544)
    if head.startswith(ZIP_MAGIC):
        return _read_zip(source, options, progress)
    if nifti_kind(unpacked_head(entry)):
        return _read_nifti(entry, str(source), options, progress)
    if looks_like_image(head):
        return _read_pictures([entry], str(source), options, progress)
    if may_hold_dicom(entry):
        if is_directory_file(entry):
            return _read_dicomdir(entry, source, options, progress)
        return _read_dicom([entry], str(source), options, progress)
    raise _unknown_file(entry, source, head)


def _unknown_file(entry: FileEntry, source: Path, head: bytes) -> InputError:
    name = entry.name.lower()
    if entry.size == 0:
        return DecodeError(source, "is an empty file", "Copy or export it again.")
    if name.endswith(".zip"):
        return InputError(source, "is no readable zip file", "Copy or download it again, or unpack it first.")
    if name.endswith((".nii", ".nii.gz", ".png", ".jpg", ".jpeg")) or head.startswith(b"\x1f\x8b"):
        return DecodeError(source, "is damaged, or not what its name says", "Copy or convert it again.")
    return InputError(source, "is no scan that hemolens knows", KINDS)


def _read_zip(source: Path, options: ReadOptions, progress: Progress) -> Volume:
    with zip_entries(source) as entries:
        if not entries:
            raise InputError(source, "is an empty zip", KINDS)
        return _read_entries(entries, str(source), options, progress)


def _read_dicomdir(directory: FileEntry, source: Path, options: ReadOptions, progress: Progress) -> Volume:
    from hemolens.sources.dicom.directory import referenced_entries

    entries, absent = referenced_entries(directory, folder_entries(source.parent))
    if not entries:
        raise InputError(source, "names no file that is here", "Copy the whole medium, not the DICOMDIR alone.")
    return _read_dicom(entries, str(source), options, progress, absent)


def _read_dicom(
    entries: Sequence[Entry], source: str, options: ReadOptions, progress: Progress, absent: int = 0
) -> Volume:
    from hemolens.sources.dicom.read import read_dicom

    _refuse_options(options, "this is DICOM", patient=True, spacing=True)
    return read_dicom(entries, source, options.series_uid, progress, absent)


def _read_nifti(entry: Entry, source: str, options: ReadOptions, progress: Progress) -> Volume:
    from hemolens.sources.nifti import read_nifti

    _refuse_options(options, "this is NIfTI", series_uid=True, patient=True, spacing=True)
    return read_nifti(entry, source, progress)


def _read_pictures(entries: Sequence[Entry], source: str, options: ReadOptions, progress: Progress) -> Volume:
    from hemolens.sources.images import is_image, pick_slices, read_images

    _refuse_options(options, "these are pictures", series_uid=True, patient=True)
    alone = len(entries) == 1 and not is_image(entries[0])  # a picture by its contents, under another name
    slices, skipped = (list(entries), Counter[str]()) if alone else pick_slices(entries, source)
    spacing = (options.pixel_spacing_mm, options.slice_spacing_mm)
    return _with_skipped(read_images(slices, source, options.window, spacing, progress), skipped)


def _with_skipped(volume: Volume, skipped: Counter[str]) -> Volume:
    total = sum(skipped.values())
    if not total:
        return volume
    kinds = listing([f"{count} {kind}" for kind, count in sorted(skipped.items())])
    return volume.with_notes(QualityNote("files_skipped", Severity.INFO, f"{total} left out: {kinds}"))


def _refuse_options(
    options: ReadOptions, kind: str, *, series_uid: bool = False, patient: bool = False, spacing: bool = False
) -> None:
    """Refuse what the source cannot honor, instead of ignoring it."""
    if series_uid and options.series_uid is not None:
        raise ConfigError(f"A series can be chosen in DICOM only; {kind}.")
    if patient and options.patient is not None:
        raise ConfigError(f"A patient can be chosen in the root of a data set only; {kind}.")
    if spacing and (options.pixel_spacing_mm is not None or options.slice_spacing_mm is not None):
        raise ConfigError(f"Spacing can be told for pictures only; {kind} and has its own.")
