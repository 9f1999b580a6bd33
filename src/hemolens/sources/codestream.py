"""Size and depth of a compressed image as its own first bytes tell them, read before any decoder sees it.

A decoder believes the stream and allocates what it asks for; hemolens first compares the stream with what the file
around it says. JPEG and JPEG-LS markers: ITU-T T.81 B.2.2 and T.87 C.2.2; JPEG 2000: T.800 A.5.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
MAX_TILES = 4096
"""More tiles than this in one slice is hostile: OpenJPEG allocates for each."""


@dataclass(frozen=True)
class StreamSize:
    """What a codestream says of itself."""

    rows: int
    columns: int
    precision: int
    components: int


def stream_size(stream: bytes) -> StreamSize | None:
    """Return what the first frame header says, or None if there is no sound one."""
    try:
        if stream[:2] == b"\xff\xd8":
            return _jpeg(stream)
        start = 0
        if stream[4:8] == b"jP  ":
            start = stream.find(b"\xff\x4f\xff\x51")
        return _jpeg2000(stream[start:]) if start >= 0 else None
    except (struct.error, IndexError):
        return None


def _jpeg(stream: bytes) -> StreamSize | None:
    at = 2
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker == 0xFF or marker in NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in START_OF_FRAME:
            precision, rows, columns, components = struct.unpack(">BHHB", stream[at + 4 : at + 10])
            return StreamSize(rows, columns, precision, components)
        at += 2 + struct.unpack(">H", stream[at + 2 : at + 4])[0]
    return None


def _jpeg2000(stream: bytes) -> StreamSize | None:
    if stream[:4] != b"\xff\x4f\xff\x51":
        return None
    right, bottom, left, top, tile_width, tile_height = struct.unpack(">6L", stream[8:32])
    components = struct.unpack(">H", stream[40:42])[0]
    rows, columns = bottom - top, right - left
    if min(rows, columns, tile_width, tile_height) < 1:
        return None
    if -(-rows // tile_height) * -(-columns // tile_width) > MAX_TILES:
        return None
    return StreamSize(rows, columns, (stream[42] & 0x7F) + 1, components)
