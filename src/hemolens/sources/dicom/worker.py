"""The other side of `hemolens.sources.dicom.decoders`: a small process that decodes frames until its input ends.

It exists because the native decoders cannot be trusted with hostile bytes: fed with damaged frames, GDCM 3.2 ends the
whole process, and CharLS and OpenJPEG can run for minutes. Here that costs one slice.

A request is the length and text of a JSON object, then the frame; an answer is a status byte, a length and the words.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any, BinaryIO

PREFERRED_PLUGINS = ("pylibjpeg", "gdcm")
"""OpenJPEG was the faster and the sturdier of the two; GDCM does JPEG and JPEG-LS, which it does not."""
DONE, FAILED = b"\0", b"\1"


def main() -> None:
    """Serve standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a native library prints must not end up among the answers
    requests = sys.stdin.buffer
    from pydicom.pixels.decoders.base import get_decoder  # loaded before the first request is timed

    _answer(answers, DONE, b"")
    while len(head := requests.read(8)) == 8:
        header_length, frame_length = struct.unpack(">LL", head)
        options = json.loads(requests.read(header_length))
        frame = requests.read(frame_length)
        try:
            words = _decode(get_decoder, frame, options)
        except BaseException as error:  # noqa: BLE001  Rust decoders panic with a BaseException
            _answer(answers, FAILED, type(error).__name__.encode())
            continue
        _answer(answers, DONE, words)


def _answer(answers: BinaryIO, status: bytes, payload: bytes) -> None:
    answers.write(status + struct.pack(">L", len(payload)) + payload)
    answers.flush()


def _decode(get_decoder: Any, frame: bytes, options: dict[str, Any]) -> bytes:
    """Return the frame's words, little endian, as wide as Bits Allocated, before unused bits are cleared."""
    from pydicom.encaps import encapsulate

    decoder = get_decoder(options.pop("transfer_syntax"))
    plugin = next((p for p in PREFERRED_PLUGINS if p in decoder.available_plugins), "")
    array, _ = decoder.as_array(
        encapsulate([frame]),
        index=0,
        decoding_plugin=plugin,
        raw=True,
        number_of_frames=1,
        samples_per_pixel=1,
        pixel_keyword="PixelData",
        correct_unused_bits=False,
        **options,
    )
    return bytes(array.astype(f"<i{options['bits_allocated'] // 8}", copy=False).tobytes())
