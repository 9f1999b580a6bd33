"""Thousands of damaged files: whatever is in them, reading ends soon with a `Volume` or with one of our own errors.

Every case is made from a seed, so a failure names what to run again: ``case("deflated", 123)``.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

import dicom_files as df
from hemolens.errors import DecodeError, HemolensError
from hemolens.sources.dicom import decoders
from hemolens.sources.dicom.decoders import FrameDecoder
from hemolens.sources.dicom.header import HEADER_TAGS, PIXEL_DATA, slice_headers
from hemolens.sources.dicom.tags import read_tags
from hemolens.sources.files import file_entry
from hemolens.sources.study import read_volume
from hemolens.volume import Volume

pytestmark = pytest.mark.filterwarnings("error")

LONGEST_SECONDS = 5.0
"""Of processor time for one case; an ordinary one takes 0.004 s. Waiting for ever is caught by pytest's own timeout."""
LONGEST_FRAME_SECONDS = 60.0
"""Of the clock for one compressed frame: a stuck decoder is stopped after 2 s and another one started."""
TINY = df.Series(slices=1, rows=10, columns=8)
CASES = {
    "explicit": 700, "implicit": 500, "big endian": 300, "deflated": 300, "bare": 400, "rle": 300, "enhanced": 300,
    "series": 300, "dicomdir": 150, "zip": 400, "nifti": 700, "nifti gz": 300, "nifti 2": 300, "png": 300, "jpeg": 400,
}  # fmt: skip
"""How many mutations of each kind of file."""
CODESTREAMS = {"jpeg ls": 100, "jpeg lossless": 100, "jpeg 2000": 100, "htj2k": 100}
"""How many mutations of each kind of compressed frame; each that ends its decoder costs the start of another."""


# --- one sound file of each kind --------------------------------------------------------------------------------------


def dicom_bytes(series: df.Series = TINY, encode: str | None = None, preamble: bool = True) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = df.write_series(Path(folder), series, preamble=preamble)[0]
        if encode is not None:
            df.transcode(path, encode)
        return path.read_bytes()


def enhanced_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return df.save(df.enhanced_dataset(df.Series(slices=3, rows=6, columns=5)), Path(folder) / "x").read_bytes()


def dicomdir_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        ids = {"StudyID": "1", "StudyTime": "120000", "AccessionNumber": "1"}
        paths = df.write_series(Path(folder) / "in", df.Series(slices=2, rows=4, columns=4, extra=ids))
        return (df.write_medium(Path(folder) / "cd", paths) / "DICOMDIR").read_bytes()


def htj2k_bytes() -> bytes:
    frame = (df.DATA / "htj2k_lossless.j2c").read_bytes()
    series = df.Series(slices=1, rows=64, columns=48, stored=16)
    with tempfile.TemporaryDirectory() as folder:
        return df.write_series(
            Path(folder), series, change=lambda _, ds: df.set_frame(ds, frame, HTJ2KLossless)
        )[0].read_bytes()  # fmt: skip


def nifti_bytes(version: int = 1) -> bytes:
    array = (np.arange(4 * 5 * 3).reshape(4, 5, 3) * 30 - 1000).astype(np.float32 if version == 2 else np.int16)
    return (nib.Nifti2Image if version == 2 else nib.Nifti1Image)(array, np.diag([0.5, 0.5, 5, 1])).to_bytes()


def picture_bytes(form: str) -> bytes:
    out = io.BytesIO()
    pixels = np.add.outer(np.arange(24), np.arange(20)).astype(np.uint8) * 5
    Image.fromarray(pixels).save(out, form, **({"progressive": True} if form == "JPEG" else {}))
    return out.getvalue()


def zip_bytes() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("S/1.dcm", dicom_bytes())
        archive.writestr("S/2.txt", b"hello")
    return out.getvalue()


MAKERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "explicit": ("x.dcm", dicom_bytes),
    "implicit": ("x.dcm", lambda: dicom_bytes(replace(TINY, syntax=ImplicitVRLittleEndian))),
    "big endian": ("x.dcm", lambda: dicom_bytes(replace(TINY, syntax=ExplicitVRBigEndian))),
    "deflated": ("x.dcm", lambda: dicom_bytes(encode=DeflatedExplicitVRLittleEndian)),
    "bare": ("x", lambda: dicom_bytes(preamble=False)),
    "rle": ("x.dcm", lambda: dicom_bytes(encode=RLELossless)),
    "enhanced": ("x.dcm", enhanced_bytes),
    "series": ("im014.dcm", dicom_bytes),
    "dicomdir": ("DICOMDIR", dicomdir_bytes),
    "zip": ("x.zip", zip_bytes),
    "nifti": ("x.nii", nifti_bytes),
    "nifti gz": ("x.nii.gz", lambda: gzip.compress(nifti_bytes())),
    "nifti 2": ("x.nii", lambda: nifti_bytes(2)),
    "png": ("x.png", lambda: picture_bytes("PNG")),
    "jpeg": ("x.jpg", lambda: picture_bytes("JPEG")),
    "jpeg ls": ("x.dcm", lambda: dicom_bytes(replace(TINY, stored=16), JPEGLSLossless)),
    "jpeg lossless": ("x.dcm", lambda: dicom_bytes(replace(TINY, stored=16), JPEGLosslessSV1)),
    "jpeg 2000": ("x.dcm", lambda: dicom_bytes(replace(TINY, stored=16, rows=64, columns=64), JPEG2000Lossless)),
    "htj2k": ("x.dcm", htj2k_bytes),
}


@lru_cache
def sound(kind: str) -> bytes:
    return MAKERS[kind][1]()


# --- mutations --------------------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def flip(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        raw[rng.randrange(low, len(raw))] ^= 1 << rng.randrange(8)
    return raw


def truncate(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    return raw[: rng.randrange(low, len(raw))]


def splice(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    source, target = rng.randrange(len(raw)), rng.randrange(low, len(raw))
    length = rng.choice([1, 2, 4, 8, 40, 200])
    return raw[:target] + raw[source : source + length] + raw[target + rng.choice([0, length]) :]


def set_field(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    """Write an extreme number over a field, as a hostile header does."""
    for _ in range(rng.choice([1, 1, 3])):
        width = rng.choice([1, 2, 4])
        at = rng.randrange(low, max(len(raw) - width, low + 1))
        value = rng.choice(EXTREMES) & (256**width - 1)
        raw[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
    return raw


def set_number(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    """Write a float or a number in digits over something."""
    at = rng.randrange(low, max(len(raw) - 8, low + 1))
    number = rng.choice([float("nan"), float("inf"), -1e38, 1e-38, 0.0, -1.0])
    patch = rng.choice([struct.pack("<f", number), f"{number:<8.3g}".encode(), struct.pack(">d", number)])
    raw[at : at + len(patch)] = patch
    return raw


def noise(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    at = rng.randrange(low, len(raw))
    length = rng.choice([1, 4, 16, 100])
    raw[at : at + length] = rng.randbytes(length)
    return raw


MUTATIONS = (flip, truncate, splice, set_field, set_number, noise)


def mutated(kind: str, seed: int) -> bytes:
    rng = random.Random(f"{kind} {seed}")
    raw = bytearray(sound(kind))
    # Often past the magic bytes, so that most cases get further than the question what kind of file this is.
    low = rng.choice([0, 132, 132]) if MAKERS[kind][0].endswith(".dcm") or kind == "dicomdir" else 0
    return bytes(mutate(raw, rng, low))


def mutate(raw: bytearray, rng: random.Random, low: int) -> bytearray:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        raw = rng.choice(MUTATIONS)(raw, rng, min(low, max(len(raw) - 2, 0)))
        if len(raw) < 2:
            break
    return raw


def case(kind: str, seed: int, folder: Path) -> str:
    """Read one mutation and return what came of it."""
    path = folder / MAKERS[kind][0]
    path.write_bytes(mutated(kind, seed))
    start = time.process_time()
    try:
        volume = read_volume(folder if kind == "series" else path)
    except HemolensError as error:
        outcome, text = type(error).__name__, str(error)
    except Exception as error:
        raise AssertionError(f"case({kind!r}, {seed}) ended with {type(error).__name__}: {error}") from error
    else:
        outcome, text = "Volume", " ".join(note.message for note in volume.notes)
        assert isinstance(volume, Volume)
        assert np.isfinite(volume.hu).all(), f"case({kind!r}, {seed}): not finite"
    seconds = time.process_time() - start
    assert seconds < LONGEST_SECONDS, f"case({kind!r}, {seed}) took {seconds:.1f} s"
    assert "\n" not in text, f"case({kind!r}, {seed}): more than one line"
    assert not any(identity in text for identity in ("Doe^Jane", "PATIENT-7")), f"case({kind!r}, {seed})"
    return outcome


def run(kind: str, count: int, folder: Path, first: int = 0) -> Counter[str]:
    """Read `count` mutations of one kind of file."""
    if kind == "series":
        df.write_series(folder, df.Series(slices=4, rows=10, columns=8))
    if kind == "dicomdir":
        df.write_series(folder / "PT000000" / "ST000000" / "SE000000", df.Series(slices=2, rows=4, columns=4))
        for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
            path.rename(path.with_name(f"IM00000{number}"))
    return Counter(case(kind, seed, folder) for seed in range(first, first + count))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_end_as_a_volume_or_as_our_own_error(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes = run(kind, CASES[kind], tmp_path)
    assert sum(outcomes.values()) == CASES[kind]
    # Both must occur, or the mutations are too weak or too strong to test anything.
    assert 0 < outcomes["Volume"] < CASES[kind], outcomes
    assert capfd.readouterr() == ("", "")


def run_codestreams(kind: str, count: int, first: int = 0) -> Counter[str]:
    """Decode `count` mutations of one frame, as `hemolens.sources.dicom.decode` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dcm"
        path.write_bytes(sound(kind))
        meta, tags = read_tags(file_entry(path), [*HEADER_TAGS, PIXEL_DATA], pixels=True)
        pixels = slice_headers(file_entry(path), meta, tags)[0].pixels
        data = tags.raw(PIXEL_DATA)
    assert pixels is not None
    assert data is not None
    frame = get_frame(data, 0, number_of_frames=1)
    outcomes: Counter[str] = Counter()
    with FrameDecoder(1) as decoder:
        for seed in range(first, first + count):
            rng = random.Random(f"{kind} {seed}")
            damaged = bytes(mutate(bytearray(frame), rng, rng.choice([0, 4, 60])))
            start = time.perf_counter()
            try:
                assert decoder.decode(damaged, pixels, "x.dcm").shape == (pixels.rows, pixels.columns)
                outcomes["array"] += 1
            except DecodeError as error:
                outcomes[error.problem] += 1
            seconds = time.perf_counter() - start
            assert seconds < LONGEST_FRAME_SECONDS, f"{kind}, seed {seed}: {seconds:.1f} s"
    return outcomes


@pytest.mark.parametrize("kind", CODESTREAMS)
def test_damaged_frames_cost_a_slice_at_most(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoders, "FRAME_SECONDS", 2.0)  # some streams make a decoder run for minutes
    monkeypatch.setattr(decoders, "MAX_LOST_WORKERS", 10**6)
    outcomes = run_codestreams(kind, CODESTREAMS[kind])
    assert 0 < outcomes["array"] < CODESTREAMS[kind], outcomes
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", MAKERS)
def test_the_sound_file_is_read(kind: str, tmp_path: Path) -> None:
    if kind == "dicomdir":
        run(kind, 0, tmp_path)
    path = tmp_path / MAKERS[kind][0]
    path.write_bytes(sound(kind))
    assert isinstance(read_volume(path), Volume)
