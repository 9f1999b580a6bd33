"""DICOM elements as they stand in the file: read by pydicom, parsed here from the raw bytes.

pydicom checks a value the moment it is turned into Python and warns, with the value in the text, about every one that
breaks the standard. Real archives break it all the time (UIDs that are no UIDs), and no identity may reach a log. So
the bytes are taken before that step.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from hemolens.errors import DecodeError
from hemolens.sources.files import Entry, printable

MAX_INFLATED_BYTES = 2**29
"""Most bytes that a deflated file (PS3.5 A.5) may unpack to; its header alone to `MAX_INFLATED_HEADER`."""
MAX_INFLATED_HEADER = 2**23
DEFLATED = b"1.2.840.10008.1.2.1.99"
EXPLICIT_PADDED = b"1.2.840.10008.1.2.1\0\0\0"
REMEDY_DAMAGED = "Copy or export the file again."


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back pydicom's own remarks on odd files; hemolens says in its notes what matters.

    The filter names pydicom only: `warnings` is global to the process, and a second thread that reads at the same time
    then loses nothing but those same remarks.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\.")
        yield


class Tags:
    """Elements of one dataset or sequence item, by keyword number, parsed on demand."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        # Taken one by one, as they are: asking for a single one converts it in some cases, which may fail or warn.
        self._elements: dict[int, Any] = {int(element.tag): element for element in dataset.elements()}

    @property
    def is_little_endian(self) -> bool:
        """Byte order of the file; little unless it says otherwise."""
        return self._dataset.original_encoding[1] is not False

    @property
    def is_implicit(self) -> bool:
        """Whether elements are written without their type."""
        return self._dataset.original_encoding[0] is True

    def raw(self, tag: int) -> bytes | None:
        """Return the bytes of an element, or None if it is absent, empty or a sequence."""
        element = self._elements.get(tag)
        value: Any = None if element is None else element.value
        if isinstance(element, RawDataElement):
            return bytes(value) if value else None
        # What pydicom has turned into Python already: sequences, and little else.
        return value.encode() if isinstance(value, str) else None

    def texts(self, tag: int) -> tuple[str, ...]:
        r"""Return a text element split at its backslashes, without padding and on one line."""
        value = self.raw(tag)
        if value is None:
            return ()
        try:
            text = value.decode("utf-8")  # nothing else looks like it, so the declared character set need not be asked
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        return tuple(printable(part.strip(" \0\t\r\n")) for part in text.split("\\"))

    def text(self, tag: int) -> str:
        """Return the first value of a text element, or an empty string."""
        values = self.texts(tag)
        return values[0] if values else ""

    def decimals(self, tag: int, count: int) -> tuple[float, ...] | None:
        """Return the first `count` values of a decimal string, or None if the element is absent or empty.

        Raises
        ------
        ValueError
            If there are fewer, or one is no finite number.
        """
        texts = self.texts(tag)
        if not any(texts):
            return None
        numbers = tuple(float(t) for t in texts[:count])
        if len(numbers) < count or not all(math.isfinite(n) for n in numbers):
            raise ValueError(f"({tag >> 16:04x},{tag & 0xFFFF:04x}) does not hold {count} finite numbers")
        return numbers

    def decimal(self, tag: int) -> float | None:
        """Return the first value of a decimal string, None if absent; see `decimals`."""
        numbers = self.decimals(tag, 1)
        return None if numbers is None else numbers[0]

    def word(self, tag: int) -> int | None:
        """Return the first value of an unsigned short (US), None if absent."""
        value = self.raw(tag)
        if value is None or len(value) < 2:
            return None
        return int(struct.unpack("<H" if self.is_little_endian else ">H", value[:2])[0])

    def integer(self, tag: int) -> int | None:
        """Return an integer string (IS), None if absent or not a number."""
        try:
            return int(float(self.text(tag)))
        except (ValueError, OverflowError):
            return None

    def doubles(self, tag: int) -> tuple[float, ...]:
        """Return the values of a double (FD) element."""
        value = self.raw(tag) or b""
        count = len(value) // 8
        return struct.unpack(("<" if self.is_little_endian else ">") + f"{count}d", value[: 8 * count])

    def items(self, tag: int) -> tuple[Tags, ...]:
        """Return the items of a sequence; empty if it is absent or no sequence."""
        if tag not in self._elements:
            return ()
        value: Any = self._dataset[tag].value
        return tuple(Tags(item) for item in value) if isinstance(value, Sequence) and not isinstance(value, str) else ()


def read_tags(entry: Entry, tags: Sequence[int], pixels: bool = False) -> tuple[Tags, Tags]:
    """Read the named elements of a DICOM file, with or without preamble.

    Parameters
    ----------
    entry
        The file.
    tags
        Elements to keep. Reading stops before the pixels unless `pixels`.

    Returns
    -------
    tuple of Tags
        The file's meta information (may be empty) and its dataset.

    Raises
    ------
    DecodeError
        If the file cannot be opened or is damaged beyond parsing. Call inside `quiet`.
    """
    try:
        with entry.open() as stream:
            dataset = pydicom.dcmread(
                inflated(stream, MAX_INFLATED_BYTES if pixels else MAX_INFLATED_HEADER),
                stop_before_pixels=not pixels,
                force=True,
                specific_tags=list(tags),
            )
        return Tags(dataset.file_meta), Tags(dataset)
    except DecodeError:
        raise
    except Exception as error:  # pydicom raises whatever a hostile byte leads to
        raise DecodeError(entry.name, "is damaged or no DICOM file", REMEDY_DAMAGED) from error


def inflated(stream: BinaryIO, limit: int) -> BinaryIO:
    """Return `stream`, or its contents unpacked (at most `limit` bytes) if the dataset is deflated.

    pydicom would unpack without a bound; a deflated file of 1 MB can hold a gigabyte of zeros.
    """
    head = stream.read(1024)
    stream.seek(0)
    if head[128:132] != b"DICM" or DEFLATED not in head or len(head) < 144:
        return stream
    end = 144 + int(struct.unpack("<L", head[140:144])[0])  # (0002,0000) counts from behind itself
    if head[132:140] != b"\x02\0\0\0UL\x04\0" or end > len(head):
        raise DecodeError("DICOM file", "is deflated, but its meta information is damaged", REMEDY_DAMAGED)
    meta = stream.read(end).replace(DEFLATED, EXPLICIT_PADDED)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(stream.read(), limit)
    return BytesIO(meta + body)
