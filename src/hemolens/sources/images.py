"""Slices saved as 8-bit pictures: no Hounsfield units, no geometry, only what the user says of them."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemolens.errors import ConfigError, DecodeError, InputError, SelectionError
from hemolens.geometry import Stack
from hemolens.notes import QualityNote, Severity
from hemolens.sources.codestream import stream_size
from hemolens.sources.files import MAX_VOXELS, Entry, listing, read_head
from hemolens.volume import DisplayWindow, SourceInfo, Volume

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
MASK_NAME = re.compile(r"(^|[-_. ])(hge_)?(seg|segmentation|masks?|labels?)$", re.IGNORECASE)
"""Ends of file names (without suffix) that are masks, not slices: ``12_HGE_Seg.jpg``, ``a_mask.png``."""
MAX_SIDE = 8192
GRAY_TOLERANCE = 8
"""Largest difference between red, green and blue that JPEG's own rounding makes in a gray picture."""
REMEDY = "Give 8-bit gray PNG or JPEG slices, or DICOM or NIfTI."


def is_image(entry: Entry) -> bool:
    """Whether a file is named like a picture that can be read."""
    return PurePosixPath(entry.name).suffix.lower() in SUFFIXES


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes are those of a PNG or JPEG."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def is_mask_name(name: str) -> bool:
    """Whether a file is named like a mask."""
    return MASK_NAME.search(PurePosixPath(name).stem) is not None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``2.jpg`` comes before ``10.jpg``."""
    parts = re.findall(r"(\d+)|(\D+)", name.lower())
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts]


def pick_slices(entries: Sequence[Entry], source: str) -> tuple[list[Entry], Counter[str]]:
    """Choose the slices of one patient among files: pictures of one folder, masks left out, in natural order.

    Returns
    -------
    list of Entry
        The slices.
    Counter
        How many other files were left out, by kind.

    Raises
    ------
    SelectionError
        If there are only masks, or pictures in several folders and none at the top.
    """
    pictures = [e for e in entries if is_image(e)]
    slices = [e for e in pictures if not is_mask_name(e.name)]
    if not slices:
        raise SelectionError(source, "holds only masks, no slices", "Give the folder of the slices themselves.")
    folders = sorted({str(PurePosixPath(e.name).parent) for e in slices}, key=natural_key)
    if len(folders) > 1 and folders[0] != ".":
        problem = f"holds pictures in {len(folders)} folders ({listing(folders)})"
        raise SelectionError(source, problem, "Give the folder of one patient's slices.")
    chosen = [e for e in slices if str(PurePosixPath(e.name).parent) == folders[0]]
    skipped = Counter({"mask": len(pictures) - len(slices), "picture in a folder below": len(slices) - len(chosen)})
    skipped["of another kind"] = len(entries) - len(pictures)
    return sorted(chosen, key=lambda e: natural_key(PurePosixPath(e.name).name)), +skipped


def read_images(
    slices: Sequence[Entry],
    source: str,
    window: DisplayWindow,
    spacing_mm: tuple[float | None, float | None],
    progress: Callable[[float], None],
    window_is_published: bool = False,
) -> Volume:
    """Read ordered 8-bit slices as Hounsfield units under a window.

    Parameters
    ----------
    slices
        Lowest first.
    source
        Folder or file, for messages and the report.
    window
        What the pictures were rendered with; black and white are its ends.
    spacing_mm
        Pixel and slice spacing, if the user knows them.
    progress
        Called with a fraction from 0 to 1.
    window_is_published
        The data set says which window it used, so the note weighs less.

    Returns
    -------
    Volume
        float32: a window of 120 HU has steps of 0.47 HU, which int16 would merge.

    Raises
    ------
    InputError
        If pictures differ in size, are in color, of 16 bits, damaged or too large.
    ConfigError
        If only one spacing of several slices is given, or one that is not positive.
    """
    numbers = _numbers(slices)
    holes = _holes(numbers)
    stack = _stack(len(slices), numbers if holes else (), spacing_mm)
    hu = _load(slices, source, window, progress)
    info = SourceInfo(
        "images",
        source,
        slice_names=tuple(PurePosixPath(e.name).name for e in slices),
        slice_numbers=numbers,
        window=window,
    )
    notes = _notes(window, stack, holes, window_is_published)
    progress(1.0)
    return Volume(hu, stack, info, notes)


def _load(
    slices: Sequence[Entry], source: str, window: DisplayWindow, progress: Callable[[float], None]
) -> NDArray[np.float32]:
    scale = np.float32((window.high_hu - window.low_hu) / 255.0)
    hu: NDArray[np.float32] | None = None
    for index, entry in enumerate(slices):
        progress(index / len(slices))
        gray = read_gray(entry)
        if hu is None:
            if len(slices) * gray.size > MAX_VOXELS:
                raise InputError(source, f"holds more than {MAX_VOXELS:,} pixels", "Give the slices of one scan.")
            hu = np.empty((len(slices), *gray.shape), dtype=np.float32)
        if gray.shape != hu.shape[1:]:
            sizes = (
                f"{slices[0].name} is {hu.shape[1]} x {hu.shape[2]}, {entry.name} is {gray.shape[0]} x {gray.shape[1]}"
            )
            raise InputError(source, f"slices differ in size: {sizes}", "Give the slices of one scan.")
        hu[index] = gray * scale + np.float32(window.low_hu)
    if hu is None:
        raise SelectionError(source, "holds no slices", REMEDY)
    return hu


def read_gray(entry: Entry) -> NDArray[np.uint8]:
    """Read one 8-bit gray picture, shape ``(rows, columns)``; colors that are all equal count as gray.

    Raises
    ------
    DecodeError
        If it is damaged.
    InputError
        If it is in color, transparent, not of 8 bits, animated or larger than `MAX_SIDE`.
    """
    head = read_head(entry, 2**16)
    rows, columns = _size(entry, head)
    if max(rows, columns) > MAX_SIDE or min(rows, columns) < 1:
        raise InputError(entry.name, f"is {rows} x {columns} pixels", f"Slices may have up to {MAX_SIDE} on a side.")
    if head.startswith(b"\x89PNG") and head[24] != 8:
        raise InputError(entry.name, f"has {head[24]} bits per value; what they mean is unknown", REMEDY)
    try:
        with entry.open() as stream, Image.open(stream, formats=("PNG", "JPEG")) as picture:
            frames = getattr(picture, "n_frames", 1)
            picture.load()
            mode = picture.mode
            pixels = np.asarray(picture if mode == "L" else picture.convert("RGBA"))
    except Exception as error:  # Pillow raises OS, syntax, struct, zlib and value errors on damage
        raise DecodeError(entry.name, "is damaged or no picture", "Copy or export the slices again.") from error
    if frames != 1:
        raise InputError(entry.name, "is animated", REMEDY)
    return pixels if mode == "L" else _gray_of(pixels, entry.name)


def _gray_of(rgba: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    colors = rgba[..., :3].astype(np.int16)
    if np.ptp(colors, axis=-1).max() > GRAY_TOLERANCE:
        raise InputError(name, "is in color", "Give the slices in gray, without drawings on them.")
    if rgba[..., 3].min() < 255:
        raise InputError(name, "is transparent in places", REMEDY)
    return np.asarray(rgba[..., 1])


def _size(entry: Entry, head: bytes) -> tuple[int, int]:
    """Return rows and columns from the header, so that no decoder is asked for a giant picture."""
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) > 28:
        columns, rows = struct.unpack(">LL", head[16:24])
        return int(rows), int(columns)
    size = stream_size(head)
    if size is None:
        raise DecodeError(entry.name, "is damaged or no PNG or JPEG", "Copy or export the slices again.")
    return size.rows, size.columns


def _numbers(slices: Sequence[Entry]) -> tuple[int, ...]:
    """Return the slice numbers if the file names are nothing but numbers, all different; else nothing."""
    stems = [PurePosixPath(e.name).stem for e in slices]
    if not all(stem.isascii() and stem.isdigit() and len(stem) < 10 for stem in stems):
        return ()
    numbers = tuple(int(stem) for stem in stems)
    return numbers if len(set(numbers)) == len(numbers) else ()


def _holes(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the indices before which numbers are missing, if most numbers follow each other."""
    jumps = np.diff(numbers)
    if len(jumps) == 0 or (jumps == 1).mean() < 0.5:
        return ()
    return tuple(int(i) + 1 for i in np.flatnonzero(jumps > 1))


def _stack(count: int, numbers: tuple[int, ...], spacing_mm: tuple[float | None, float | None]) -> Stack | None:
    pixel, step = spacing_mm
    for name, value in (("pixel spacing", pixel), ("slice spacing", step)):
        if value is not None and not 0 < value < 1e3:
            raise ConfigError(f"{name}: expected millimeters above 0, got {value}.")
    if pixel is None and step is None:
        return None
    if pixel is None or (step is None and count > 1):
        raise ConfigError("Give both the pixel spacing and the slice spacing, or neither.")
    thickness = float("nan") if step is None else step
    stack = Stack.regular(count, spacing_mm=(pixel, pixel), step_mm=(0.0, 0.0, step or 1.0), thickness_mm=thickness)
    if not numbers:
        return stack
    positions = np.zeros((count, 3))
    positions[:, 2] = (np.array(numbers) - numbers[0]) * (step or 1.0)
    return Stack(positions, stack.row_directions, stack.column_directions, stack.spacings_mm, thickness)


def _notes(
    window: DisplayWindow, stack: Stack | None, holes: tuple[int, ...], window_is_published: bool
) -> tuple[QualityNote, ...]:
    severity = Severity.INFO if window_is_published else Severity.WARNING
    named = f"level {window.level_hu:g}, width {window.width_hu:g}"
    text = f"8-bit pictures were read as {window.low_hu:g} to {window.high_hu:g} HU ({named})"
    notes = [QualityNote("unknown_window", severity, text)]
    if stack is None:
        text = "pixel size is unknown; areas are in pixels and no volume is given"
        notes.append(QualityNote("no_spacing", Severity.WARNING, text))
    text = "face up, seen from the feet, first slice lowest was assumed"
    notes.append(QualityNote("orientation_assumed", Severity.INFO, text))
    if holes:
        text = f"the numbers in the file names leave out slices before {listing([str(h) for h in holes])}"
        notes.append(QualityNote("slices_missing", Severity.PARTIAL, text, holes))
    return tuple(notes)
