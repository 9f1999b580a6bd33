"""Stored words to Hounsfield units, slice by slice, with a bounded look-ahead."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from scipy import ndimage

from hemolens.errors import DecodeError
from hemolens.sources.dicom.decoders import COMPRESSED, FrameDecoder
from hemolens.sources.dicom.header import PIXEL_DATA, PixelFormat, SliceHeader
from hemolens.sources.dicom.tags import read_tags
from hemolens.sources.files import Entry
from hemolens.volume import AIR_HU

REMEDY = "Copy or export the file again."
NATIVE = frozenset(
    {
        "",  # no meta information at all
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.2",
        "1.2.840.113619.5.2",  # GE private, implicit
    }
)
LOWEST_HU = -1500.0
"""Nothing that a scanner measures lies below; GE's undeclared padding lies at -2000 or -3024."""
PADDING_HU = (-500.0, 3000.0)
"""A padding value between these is also a tissue's: then only the region that touches the border is padding."""
HIGHEST_HU = 2.0**20
WRAPPED_SHARE = 0.1
"""Share of pixels above the sign bit from which unsigned pixels are taken for wrapped negative ones."""
FRAMES_PER_WORKER = 48
"""A further decoding process pays off from here: starting one costs about as much as decoding ten frames."""
MAX_WORKERS = 4


@dataclass(frozen=True, eq=False)
class DecodedSlice:
    """One slice in Hounsfield units and what had to be done to it."""

    hu: NDArray[np.int16] | NDArray[np.float32]
    padded: bool
    """Some pixels were padding and are air now."""
    wrapped: bool
    """Unsigned pixels held negative numbers."""


def decode_slices(headers: Sequence[SliceHeader]) -> Iterator[DecodedSlice | DecodeError]:
    """Decode slices in order; a damaged one yields its error instead of raising it.

    Parameters
    ----------
    headers
        Slices with a pixel format.
    """
    compressed = sum(h.pixels is not None and h.pixels.transfer_syntax in COMPRESSED for h in headers)
    workers = min(MAX_WORKERS, os.cpu_count() or 1, 1 + compressed // FRAMES_PER_WORKER)
    with FrameDecoder(workers) as decoder:
        pixels = PixelReader(decoder)
        if workers == 1:
            # 5 ms a slice, most of it under the interpreter lock: threads would only add their own cost.
            yield from (_decoded_or_error(header, pixels) for header in headers)
        else:
            yield from _decode_ahead(headers, pixels, workers)


def _decode_ahead(
    headers: Sequence[SliceHeader], pixels: PixelReader, workers: int
) -> Iterator[DecodedSlice | DecodeError]:
    """Keep every worker busy, one thread each, while the results are taken in order."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[DecodedSlice | DecodeError]] = deque()
        try:
            for header in headers:
                pending.append(pool.submit(_decoded_or_error, header, pixels))
                if len(pending) > 2 * workers:  # bounds what is held in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _decoded_or_error(header: SliceHeader, pixels: PixelReader) -> DecodedSlice | DecodeError:
    try:
        return decode_slice(header, pixels)
    except DecodeError as error:
        return error


class PixelReader:
    """Stored words of slices; the one multi-frame file at hand is kept, or each frame would read it anew."""

    def __init__(self, decoder: FrameDecoder) -> None:
        self._decoder = decoder
        self._lock = threading.Lock()
        self._kept: tuple[Entry, bytes] | None = None

    def words(self, header: SliceHeader, pixels: PixelFormat) -> NDArray[np.unsignedinteger]:
        """Return the words of one frame, unsigned, shape ``(rows, columns)``; see `decode_slice` for errors."""
        name = header.entry.name
        data = _pixel_data(header.entry) if header.frames == 1 else self._shared(header.entry)
        if pixels.transfer_syntax in COMPRESSED:
            return self._decoder.decode(_codestream(name, data, header), pixels, name)
        if pixels.transfer_syntax not in NATIVE:
            raise DecodeError(name, f"uses transfer syntax {pixels.transfer_syntax[:64]}, which is no CT's", REMEDY)
        width = pixels.allocated // 8
        length = pixels.rows * pixels.columns * width
        frame = data[header.frame * length : (header.frame + 1) * length]
        if len(frame) < length:
            raise DecodeError(name, "is cut short", REMEDY)
        order = "<" if pixels.little_endian else ">"
        return np.frombuffer(frame, dtype=f"{order}u{width}").reshape(pixels.rows, pixels.columns)

    def _shared(self, entry: Entry) -> bytes:
        with self._lock:
            if self._kept is None or self._kept[0] != entry:
                self._kept = (entry, _pixel_data(entry))
            return self._kept[1]


def _pixel_data(entry: Entry) -> bytes:
    _, tags = read_tags(entry, [PIXEL_DATA], pixels=True)
    data = tags.raw(PIXEL_DATA)
    if data is None:
        raise DecodeError(entry.name, "has lost its pixels", REMEDY)
    return data


def decode_slice(header: SliceHeader, reader: PixelReader) -> DecodedSlice:
    """Read and decode one slice.

    Raises
    ------
    DecodeError
        If its pixels are missing, cut short, damaged, or its header contradicts itself.
    """
    name, pixels = header.entry.name, header.pixels
    if pixels is None:
        raise DecodeError(name, "holds no image", REMEDY)
    _check_format(name, pixels)
    return to_hounsfield(name, reader.words(header, pixels), pixels)


def _check_format(name: str, pixels: PixelFormat) -> None:
    if pixels.allocated not in (8, 16, 32) or not 1 <= pixels.stored <= pixels.allocated:
        raise DecodeError(name, f"has {pixels.stored} bits in pixels of {pixels.allocated}", REMEDY)
    if not pixels.stored - 1 <= pixels.high_bit < pixels.allocated:
        raise DecodeError(name, f"has its highest bit at {pixels.high_bit} of {pixels.allocated}", REMEDY)
    for label, value in (("Rescale Slope", pixels.slope), ("Rescale Intercept", pixels.intercept)):
        if value is not None and not math.isfinite(value):
            raise DecodeError(name, f"{label} is no finite number", REMEDY)
        if value is not None and abs(value) > HIGHEST_HU:
            raise DecodeError(name, f"{label} leads beyond any Hounsfield unit", REMEDY)
    if pixels.slope == 0:
        raise DecodeError(name, "Rescale Slope is zero", REMEDY)


def _codestream(name: str, data: bytes, header: SliceHeader) -> bytes:
    try:
        return get_frame(data, header.frame, number_of_frames=header.frames)
    except Exception as error:  # struct, index, stop-iteration and more, all from hostile item lengths
        raise DecodeError(name, "has damaged compressed pixels", REMEDY) from error


def to_hounsfield(name: str, words: NDArray[np.unsignedinteger], pixels: PixelFormat) -> DecodedSlice:
    """Turn stored words into Hounsfield units (PS3.3 C.11.1.1.2), with padding (C.7.5.1.1.2) set to air.

    Parameters
    ----------
    name
        The file, for messages.
    words
        Unsigned, as wide as Bits Allocated, shape ``(rows, columns)``.
    pixels
        How to understand them.

    Raises
    ------
    DecodeError
        If the values lead beyond any scale.
    """
    slope = 1.0 if pixels.slope is None else pixels.slope
    intercept = 0.0 if pixels.intercept is None else pixels.intercept
    values = _values(words, pixels)
    wrapped = _is_wrapped(values, pixels, slope, intercept)
    if wrapped:
        values = np.where(values >= 1 << (pixels.stored - 1), values - (1 << pixels.stored), values)
    hu: NDArray[Any]
    if slope.is_integer() and intercept.is_integer():
        # The common slope of 1 cannot overflow the narrow type; any other might.
        wide = values if slope == 1 else values.astype(np.int64)
        hu = wide * int(slope) + int(intercept)
    else:
        hu = values * slope + intercept
    padding = _padding(words, values, hu, pixels) | (hu < LOWEST_HU)
    padded = bool(padding.any())
    if padded:
        hu[padding] = AIR_HU
    highest = hu.max()
    if highest > HIGHEST_HU:
        raise DecodeError(name, "its rescale slope and intercept lead beyond any Hounsfield unit", REMEDY)
    fits = hu.dtype.kind == "i" and highest <= np.iinfo(np.int16).max
    narrow: NDArray[Any] = hu.astype(np.int16 if fits else np.float32)
    return DecodedSlice(narrow, padded, wrapped)


def _values(words: NDArray[np.unsignedinteger], pixels: PixelFormat) -> NDArray[Any]:
    """Clear the unused bits and extend the sign (PS3.5 8.1.1)."""
    values: NDArray[Any] = words.astype(np.int32 if pixels.allocated <= 16 else np.int64)
    if pixels.stored < pixels.allocated:
        values >>= pixels.high_bit + 1 - pixels.stored
        values &= (1 << pixels.stored) - 1
    if pixels.signed:
        sign = 1 << (pixels.stored - 1)
        values = (values ^ sign) - sign
    return values


def _is_wrapped(values: NDArray[Any], pixels: PixelFormat, slope: float, intercept: float) -> bool:
    """Whether unsigned pixels hold two's complement numbers, as in some of the RSNA 2019 data.

    With an intercept near zero unsigned pixels cannot show air at all, and half the range of 12 bits is brighter than
    any bone: many pixels up there are negative numbers that lost their sign.
    """
    if pixels.signed or slope <= 0 or intercept < -100 or pixels.stored < 12:
        return False
    bright = values >= 1 << (pixels.stored - 1)
    return bool(bright.mean() > WRAPPED_SHARE)


def _padding(
    words: NDArray[np.unsignedinteger],
    values: NDArray[Any],
    hu: NDArray[Any],
    pixels: PixelFormat,
) -> NDArray[np.bool_]:
    """Return where the declared padding is, before rescale, as PS3.3 C.7.5.1.1.2 defines it."""
    nowhere = np.zeros(words.shape, dtype=bool)
    first, last = (_padding_word(raw, pixels) for raw in (pixels.padding, pixels.padding_limit))
    if first is None:
        return nowhere
    bounds = [_as_value(word, pixels) for word in (first, first if last is None else last)]
    if all(_is_storable(bound, pixels) for bound in bounds):
        found = (values >= min(bounds)) & (values <= max(bounds))
    else:
        # Such as 63536, the unsigned twin of -2000, in pixels of 12 bits: only the whole word can equal it.
        found = words == first
    if not found.any():
        return nowhere
    levels = hu[found]
    if levels.max() > PADDING_HU[0] and levels.min() < PADDING_HU[1]:
        return _touching_border(found)
    return found


def _padding_word(raw: bytes | None, pixels: PixelFormat) -> int | None:
    width = pixels.allocated // 8
    if raw is None or len(raw) < width:
        return None
    return int.from_bytes(raw[:width], "little" if pixels.little_endian else "big")


def _as_value(word: int, pixels: PixelFormat) -> int:
    return word - (1 << pixels.allocated) if pixels.signed and word >> (pixels.allocated - 1) else word


def _is_storable(value: int, pixels: PixelFormat) -> bool:
    low, high = (-(1 << (pixels.stored - 1)), 1 << (pixels.stored - 1)) if pixels.signed else (0, 1 << pixels.stored)
    return low <= value < high


def _touching_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(mask)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.asarray(np.isin(labels, border[border > 0]))
