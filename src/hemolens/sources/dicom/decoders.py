"""Compressed frames to stored words, in processes of their own so that no damaged file can take hemolens down."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import threading
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from hemolens.errors import DecodeError
from hemolens.sources.codestream import stream_size
from hemolens.sources.dicom.header import PixelFormat

COMPRESSED = frozenset(
    str(uid)
    for uid in (
        HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit,
        JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless, RLELossless,
    )
)  # fmt: skip
FRAME_SECONDS = 20.0
"""A frame takes about 0.03 s; a decoder that is still busy after this long is caught in a damaged one."""
START_SECONDS = 60.0
"""For a worker to load its decoders: 0.3 s, unless the machine is very busy."""
MAX_LOST_WORKERS = 3
"""After this many crashed or stuck decoders the remaining frames of a reading are given up."""
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hemolens.sources.dicom.worker import main; main()"
REMEDY = "Export the study again, uncompressed if you can."


class _WorkerLostError(Exception):
    """The worker has crashed or was stopped."""


class Worker:
    """One decoding process."""

    def __init__(self) -> None:
        # -P keeps the working directory out of the import path; the parent's own path is handed over instead.
        command = [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path)]
        problem = "the process that decodes compressed images does not start"
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise DecodeError("decoder", problem, REMEDY) from error
        try:
            self._exchange(b"", START_SECONDS)
        except _WorkerLostError as error:
            self.close()
            raise DecodeError("decoder", problem, REMEDY) from error

    def decode(self, frame: bytes, pixels: PixelFormat) -> bytes:
        """Return the words of one frame.

        Raises
        ------
        DecodeError
            If the decoder refuses the frame.
        _WorkerLostError
            If the process crashed or had to be stopped.
        """
        options = json.dumps({"transfer_syntax": pixels.transfer_syntax, **pixel_options(pixels)}).encode()
        return self._exchange(struct.pack(">LL", len(options), len(frame)) + options + frame, FRAME_SECONDS)

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            head = self._process.stdout.read(5)
            status, length = struct.unpack(">BL", head)
            payload = self._process.stdout.read(length)
            if len(payload) != length:
                raise _WorkerLostError
        except (OSError, ValueError, struct.error) as error:
            raise _WorkerLostError from error
        finally:
            watchdog.cancel()
        if status:
            raise DecodeError("frame", f"the decoder refused it ({payload.decode('ascii', 'replace')})", REMEDY)
        return payload

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.kill()
        self._process.wait()


class FrameDecoder:
    """A few workers that are started when first needed and replaced when one is lost. Use as a context.

    Parameters
    ----------
    workers
        Most processes at a time.
    """

    def __init__(self, workers: int) -> None:
        self._idle: SimpleQueue[Worker | None] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._workers = workers
        self._lost = 0

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(self._workers):
            worker = self._idle.get()
            if worker is not None:
                worker.close()

    def decode(self, frame: bytes, pixels: PixelFormat, name: str) -> NDArray[np.unsignedinteger]:
        """Decode one frame; may be called from several threads.

        Parameters
        ----------
        frame
            The codestream.
        pixels
            What the file says of it.
        name
            The file, for messages.

        Returns
        -------
        array
            Words as wide as Bits Allocated, shape ``(rows, columns)``; unused bits are not cleared.

        Raises
        ------
        DecodeError
            If the codestream is damaged or contradicts the file.
        """
        if pixels.transfer_syntax == RLELossless:
            return _as_words(_decode_rle(frame, pixels, name), pixels, name)
        _check_stream(frame, pixels, name)
        worker = self._idle.get()
        try:
            if self._lost >= MAX_LOST_WORKERS:
                raise DecodeError(name, "was given up, because others stopped the decoder", REMEDY)
            worker = worker or self._started()
            words = worker.decode(frame, pixels)
        except _WorkerLostError:
            self._lost += 1
            if worker is not None:
                worker.close()
            worker = None
            raise DecodeError(name, "is so damaged that its decoder stopped", REMEDY) from None
        except DecodeError as error:
            raise DecodeError(name, error.problem, error.remedy) from None
        finally:
            self._idle.put(worker)
        return _as_words(words, pixels, name)

    def _started(self) -> Worker:
        try:
            return Worker()
        except DecodeError:
            self._lost += 1
            raise


def _as_words(words: bytes, pixels: PixelFormat, name: str) -> NDArray[np.unsignedinteger]:
    if len(words) != pixels.rows * pixels.columns * pixels.allocated // 8:
        raise DecodeError(name, "decodes to another size than it declares", REMEDY)
    return np.frombuffer(words, dtype=f"<u{pixels.allocated // 8}").reshape(pixels.rows, pixels.columns)


def _decode_rle(frame: bytes, pixels: PixelFormat, name: str) -> bytes:
    """Decode PS3.5 Annex G with pydicom's own decoder: pure Python, so it is safe here and needs no process."""
    decoder: Any = get_decoder(RLELossless)
    try:
        array, _ = decoder.as_array(
            encapsulate([frame]),
            index=0,
            decoding_plugin="pydicom",
            raw=True,
            number_of_frames=1,
            samples_per_pixel=1,
            pixel_keyword="PixelData",
            correct_unused_bits=False,
            **pixel_options(pixels),
        )
    except Exception as error:  # pydicom raises a dozen kinds on damaged segments
        raise DecodeError(name, "its run-length code is damaged", REMEDY) from error
    return bytes(array.tobytes())


def pixel_options(pixels: PixelFormat) -> dict[str, Any]:
    """Return what pydicom's decoders want to know."""
    return {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "photometric_interpretation": pixels.photometric,
        "pixel_representation": int(pixels.signed),
    }


def _check_stream(frame: bytes, pixels: PixelFormat, name: str) -> None:
    size = stream_size(frame)
    if size is None:
        raise DecodeError(name, "its compressed image has no sound header", REMEDY)
    if (size.rows, size.columns, size.components) != (pixels.rows, pixels.columns, 1):
        found = f"{size.rows} x {size.columns} pixels of {size.components} values"
        raise DecodeError(name, f"declares {pixels.rows} x {pixels.columns} pixels but holds {found}", REMEDY)
    if size.precision > pixels.allocated:
        raise DecodeError(name, f"holds {size.precision} bits in pixels of {pixels.allocated}", REMEDY)
