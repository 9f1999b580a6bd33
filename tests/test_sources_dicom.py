"""DICOM to Volume: every pixel format, transfer syntax and geometry against hand-written maths or pydicom's own."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_rescale
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

import dicom_files as df
from hemolens.errors import DecodeError, GeometryError, HemolensError, InputError
from hemolens.geometry import unit
from hemolens.notes import Severity, is_partial
from hemolens.sources.dicom import decode as decode_module
from hemolens.sources.dicom import tags as tags_module
from hemolens.sources.dicom.decode import to_hounsfield
from hemolens.sources.dicom.header import PixelFormat
from hemolens.sources.dicom.stacks import find_gaps, is_uneven
from hemolens.sources.dicom.tags import Tags
from hemolens.sources.files import MAX_VOXELS, Entry
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.volume import AIR_HU, Volume

pytestmark = pytest.mark.filterwarnings("error")


def codes(volume: Volume) -> dict[str, Severity]:
    return {note.code: note.severity for note in volume.notes}


def expected_hu(series: df.Series) -> np.ndarray:
    return df.pattern(series) * float(series.slope) + float(series.intercept)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("12 bits unsigned", df.Series()),
        ("16 bits signed", df.Series(signed=True, stored=16, intercept=0)),
        ("12 bits signed", df.Series(signed=True, stored=12, intercept=0)),
        ("32 bits", df.Series(allocated=32, stored=32)),
        ("slope 2", df.Series(slope=2, intercept=-1500)),
        ("no rescue of fractions", df.Series(slope=0.5, intercept=-900.25)),
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_values_equal_slope_times_stored_plus_intercept(
    tmp_path: Path, name: str, series: df.Series, syntax: str
) -> None:
    series = replace(series, syntax=syntax)
    df.write_series(tmp_path, series)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, expected_hu(series))
    assert volume.hu.dtype == (np.float32 if "fractions" in name else np.int16)


LOSSLESS = (
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
)


@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_syntax_gives_the_same_voxels(tmp_path: Path, signed: bool) -> None:
    # One slice in each, which also shows that one series may mix them.
    series = df.Series(slices=len(LOSSLESS), signed=signed, stored=16, intercept=0 if signed else -1024)
    for path, syntax in zip(df.write_series(tmp_path, series), LOSSLESS, strict=True):
        df.transcode(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    volume = read_volume(tmp_path)
    for index, syntax in enumerate(LOSSLESS):
        np.testing.assert_array_equal(volume.hu[index], expected_hu(series)[index], err_msg=syntax)


def test_near_lossless_jpeg_ls_stays_within_its_bound(tmp_path: Path) -> None:
    series = df.Series(slices=1, stored=16)
    df.transcode(df.write_series(tmp_path, series)[0], JPEGLSNearLossless, near=3)
    error = np.abs(read_volume(tmp_path).hu - expected_hu(series))
    assert 0 < error.max() <= 3


def test_lossy_jpeg_2000_is_close(tmp_path: Path) -> None:
    series = df.Series(slices=1, rows=64, columns=64, stored=16, spacing_mm=(3.0, 3.0))
    y, x = np.mgrid[0:64, 0:64]
    smooth = (1024 + 400 * np.sin(x / 9) * np.cos(y / 7)).astype(np.int64)[None]
    df.write_series(tmp_path, series, smooth, change=lambda _, ds: df.compress_lossy_j2k(ds, 8))
    error = np.abs(read_volume(tmp_path).hu - (smooth - 1024))
    assert 0 < error.max() < 40


def test_htj2k(tmp_path: Path) -> None:
    cases = [
        ("htj2k_lossless.j2c", HTJ2KLossless, 0),
        ("htj2k_lossless.j2c", HTJ2KLosslessRPCL, 0),
        ("htj2k_lossy.j2c", HTJ2K, 41),
    ]
    stored = np.stack([df.htj2k_picture()] * 3)
    series = df.Series(slices=3, rows=64, columns=48, stored=16, spacing_mm=(4.0, 4.0))
    frames = [((df.DATA / file).read_bytes(), syntax) for file, syntax, _ in cases]
    df.write_series(tmp_path, series, stored, change=lambda k, ds: df.set_frame(ds, *frames[k]))
    error = np.abs(read_volume(tmp_path).hu - (stored - 1024)).max(axis=(1, 2))
    assert error.tolist() == [largest for _, _, largest in cases]


def test_many_compressed_slices_use_several_workers_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_module, "FRAMES_PER_WORKER", 4)
    series = df.Series(slices=9, stored=16)
    for path in df.write_series(tmp_path, series):
        df.transcode(path, JPEG2000Lossless)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, expected_hu(series))


def test_pixels_with_their_highest_bit_elsewhere(tmp_path: Path) -> None:
    # Old ACR-NEMA style: 12 bits at the top of the word, an overlay in the lowest four.
    series = df.Series(extra={"HighBit": 15})
    df.write_series(tmp_path, series, (df.pattern(series) << 4) | 0b1001)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, expected_hu(series))


def test_overlay_bits_above_the_stored_ones_are_cleared(tmp_path: Path) -> None:
    series = df.Series()
    df.write_series(tmp_path, series, df.pattern(series) | 0x8000)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, expected_hu(series))


def test_missing_rescale_is_noted(tmp_path: Path) -> None:
    series = df.Series(signed=True, stored=16, extra={"RescaleSlope": None, "RescaleIntercept": None})
    df.write_series(tmp_path, series)
    volume = read_volume(tmp_path)
    assert codes(volume)["rescale_assumed"] is Severity.WARNING
    np.testing.assert_array_equal(volume.hu, df.pattern(series))


def test_slices_may_differ_in_rescale(tmp_path: Path) -> None:
    def shift(index: int, ds: Dataset) -> None:
        ds.RescaleIntercept = -1000 - index

    df.write_series(tmp_path, change=shift)
    expected = df.pattern(df.Series()) - 1000 - np.arange(6)[:, None, None]
    np.testing.assert_array_equal(read_volume(tmp_path).hu, expected)


def test_values_beyond_int16_make_the_volume_float32(tmp_path: Path) -> None:
    series = df.Series(stored=16)
    stored = df.pattern(series)
    stored[3, 5, 5] = 60000
    df.write_series(tmp_path, series, stored)
    volume = read_volume(tmp_path)
    assert volume.hu.dtype == np.float32
    np.testing.assert_array_equal(volume.hu, stored - 1024)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("RescaleSlope", b"nan"), ("RescaleSlope", b"inf"), ("RescaleSlope", b"0"), ("RescaleIntercept", b"-1e300"),
     ("RescaleIntercept", b"none"), ("RescaleSlope", b"1e9")],
)  # fmt: skip
def test_a_rescale_that_cannot_be_is_refused(tmp_path: Path, keyword: str, value: bytes) -> None:
    paths = df.write_series(tmp_path, df.Series(slope="1.000000", intercept="-1024.000"))
    for path in paths:
        raw = path.read_bytes()
        old = b"1.000000" if keyword == "RescaleSlope" else b"-1024.000 "
        assert old in raw
        path.write_bytes(raw.replace(old, value.ljust(len(old))))
    with pytest.raises(DecodeError, match=r"no slice can be decoded.*Rescale"):
        read_volume(tmp_path)


# --- padding ----------------------------------------------------------------------------------------------------------


def plain_format(**changes: object) -> PixelFormat:
    plain = PixelFormat(
        rows=8, columns=8, allocated=16, stored=12, high_bit=11, signed=False, photometric="MONOCHROME2", samples=1,
        transfer_syntax="", little_endian=True, slope=1.0, intercept=-1024.0, padding=None, padding_limit=None,
        rescale_type="",
    )  # fmt: skip
    return replace(plain, **changes)


def words(value: int, corner: int) -> np.ndarray:
    """Return an 8 x 8 picture of `value` whose left column is `corner`, as unsigned words."""
    out = np.full((8, 8), value % 65536, dtype=np.uint16)
    out[:, 0] = corner % 65536
    return out


S16 = {"signed": True, "stored": 16, "high_bit": 15}
PADDING = [
    # name, format, stored tissue, stored padding, HU of the left column, HU of the rest
    ("none", plain_format(), 1064, 24, -1000, 40),
    ("GE: signed, -2000", plain_format(**S16, intercept=0.0, padding=b"\x30\xf8"), 40, -2000, AIR_HU, 40),
    ("GE: undeclared", plain_format(**S16), 1064, -2000, AIR_HU, 40),
    ("unsigned", plain_format(padding=b"\0\0"), 1064, 0, AIR_HU, 40),
    ("unsigned twin of -2000 in 12 bits", plain_format(padding=b"\x30\xf8"), 1064, 63536, AIR_HU, 40),
    ("that padding, but 2096 is bone here", plain_format(padding=b"\x30\xf8"), 1064, 2096, 1072, 40),
    ("range", plain_format(padding=b"\0\0", padding_limit=b"\x0a\0"), 1064, 7, AIR_HU, 40),
    ("range, its ends swapped", plain_format(padding=b"\x0a\0", padding_limit=b"\0\0"), 1064, 7, AIR_HU, 40),
    ("beyond the range", plain_format(padding=b"\0\0", padding_limit=b"\x0a\0"), 1064, 11, -1013, 40),
    ("big endian", plain_format(padding=b"\x00\x05", little_endian=False), 1064, 5, AIR_HU, 40),
    ("a tissue's value at the border", plain_format(padding=b"\x00\x04"), 1064, 1024, AIR_HU, 40),
    ("one byte is no word", plain_format(padding=b"\0"), 1064, 0, -1024, 40),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pixels", "tissue", "padding", "left", "rest"), PADDING, ids=[p[0] for p in PADDING])
def test_padding_becomes_air(
    name: str, pixels: PixelFormat, tissue: int, padding: int, left: float, rest: float
) -> None:
    found = to_hounsfield("x", words(tissue, padding), pixels)
    assert (found.hu[:, 0] == left).all()
    assert (found.hu[:, 1:] == rest).all()


def test_padding_that_equals_a_tissue_is_replaced_only_where_it_touches_the_border() -> None:
    picture = words(1064, 1024)
    picture[4, 4] = 1024  # cerebrospinal fluid of 0 HU, not padding
    found = to_hounsfield("x", picture, plain_format(padding=b"\x00\x04"))
    assert found.hu[4, 4] == 0
    assert (found.hu[:, 0] == AIR_HU).all()


def test_wrapped_unsigned_pixels_are_read_as_signed(tmp_path: Path) -> None:
    # As in part of the RSNA 2019 data: 12 bits, declared unsigned, intercept 0, air stored as 4096 - 1000.
    series = df.Series(intercept=0)
    hu = np.where(df.pattern(series) % 3 == 0, -1000, 40)
    df.write_series(tmp_path, series, hu % 4096)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert codes(volume)["rescale_assumed"] is Severity.WARNING


def test_bright_metal_is_not_taken_for_wrapped_pixels() -> None:
    picture = words(40, 40)
    picture[:2, :2] = 3000
    assert not to_hounsfield("x", picture, plain_format(intercept=0.0)).wrapped


# --- geometry ---------------------------------------------------------------------------------------------------------


@given(
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    tilt=st.floats(-30, 30),
    step=st.floats(0.5, 8),
    spacing=st.tuples(st.floats(0.3, 1.2), st.floats(0.3, 1.2)),
)
def test_positions_directions_and_tilt_survive(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, ...], tilt: float, step: float, spacing: tuple
) -> None:
    rx, ry, rz = np.radians(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    about_z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    turn = about_z @ about_y @ about_x
    lean = np.radians(tilt)
    series = df.Series(
        slices=3,
        row_direction=tuple(turn[:, 0]),
        column_direction=tuple(turn @ [0, np.cos(lean), np.sin(lean)]),
        along=tuple(turn[:, 2]),
        offsets_mm=(0.0, step, 2 * step),
        spacing_mm=spacing,
    )
    folder = tmp_path_factory.mktemp("pose")
    df.write_series(folder, series, preamble=False)
    stack = read_volume(folder).require_stack()
    np.testing.assert_allclose(stack.positions_mm, df.positions(series), atol=1e-6)
    np.testing.assert_allclose(stack.row_directions[0], unit(series.row_direction), atol=1e-6)
    np.testing.assert_allclose(stack.column_directions[2], unit(series.column_direction), atol=1e-6)
    np.testing.assert_allclose(stack.spacings_mm, [spacing] * 3)
    assert stack.tilt_deg == pytest.approx(abs(tilt), abs=1e-4)


@pytest.mark.parametrize("directions", [df.AXIAL, df.CORONAL, df.SAGITTAL, ((1.0, 0, 0), (0, -1.0, 0))])
def test_slices_rise_along_their_normal_whatever_the_file_names(tmp_path: Path, directions: tuple) -> None:
    series = df.Series(slices=12, row_direction=directions[0], column_direction=directions[1])
    df.write_series(tmp_path, series)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, expected_hu(series))
    assert (np.diff(volume.require_stack().offsets_mm) > 0).all()
    assert volume.source.slice_numbers == tuple(range(1, 13))
    assert volume.source.slice_names[1] == "im007.dcm"


def test_source_names_everything_but_the_patient(tmp_path: Path) -> None:
    df.write_series(tmp_path)
    volume = read_volume(tmp_path)
    source = volume.source
    assert (source.kind, source.path_or_uid, source.series_uid, source.study_uid) == (
        "dicom", "1.2.3.4.5", "1.2.3.4.5", "1.2.3.4",
    )  # fmt: skip
    assert source.sop_instance_uids == tuple(f"1.2.3.4.5.{k}" for k in range(1, 7))
    assert source.frame_of_reference_uid == "1.2.3.4.99"
    assert source.series_description == "Head 5mm"
    assert volume.require_stack().thickness_mm == 5.0
    everything = repr(volume.source) + repr(volume.notes)
    assert "Doe" not in everything
    assert "PATIENT-7" not in everything


@pytest.mark.parametrize(
    ("keyword", "word"),
    [("ImagePositionPatient", "Position"), ("ImageOrientationPatient", "Orientation"), ("PixelSpacing", "Spacing")],
)
@pytest.mark.parametrize("slices", [1, 4])
def test_missing_geometry_is_refused_even_for_one_slice(tmp_path: Path, keyword: str, word: str, slices: int) -> None:
    df.write_series(tmp_path, df.Series(slices=slices, extra={keyword: None}))
    with pytest.raises(GeometryError, match=word):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImageOrientationPatient", [2, 0, 0, 0, 2, 0]),
        ("PixelSpacing", [0, 0.5]),
        ("PixelSpacing", [-0.5, 0.5]),
        ("ImagePositionPatient", [0, 0, 1e30]),
        ("ImageOrientationPatient", [1, 0, 0]),
    ],
)
def test_geometry_that_cannot_be_is_refused(tmp_path: Path, keyword: str, value: list[float]) -> None:
    df.write_series(tmp_path, df.Series(extra={keyword: value}))
    with pytest.raises(GeometryError):
        read_volume(tmp_path)


# --- order, gaps, doubles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "gaps"),
    [
        ("even", [5] * 10, []),
        ("one missing", [5, 5, 5, 10, 5, 5], [(3, 1)]),
        ("two missing at one place", [5, 5, 15, 5, 5], [(2, 2)]),
        ("missing at two places side by side", [5, 5, 5, 10, 10, 5, 5, 5], [(3, 1), (4, 1)]),
        ("second slice missing", [10, 5, 5, 5], [(0, 1)]),
        ("last but one missing", [5, 5, 5, 10], [(3, 1)]),
        ("GE: thin base, thick vertex, a short step between", [4.0] * 13 + [1.08] + [7.0] * 13, []),
        ("thin to thick without a short step", [4.0] * 6 + [7.0] * 6, []),
        ("doubling of the step", [5.0] * 6 + [10.0] * 6, []),
        ("doubling, then a gap", [5.0] * 6 + [10.0] * 4 + [20.0] + [10.0] * 4, [(10, 1)]),
        ("every third missing", [5, 10, 5, 10, 5, 10, 5], [(1, 1), (3, 1), (5, 1)]),
        ("jitter of the table", [5.0, 5.1, 4.9, 5.0, 5.2], []),
        ("two slices", [5], []),
    ],
)
def test_gaps_are_told_from_changes_of_spacing(name: str, steps: list[float], gaps: list[tuple[int, int]]) -> None:
    offsets = np.concatenate([[0.0], np.cumsum(steps)])
    assert [(g.before, g.missing) for g in find_gaps(offsets)] == gaps


def test_instance_numbers_unmask_a_long_gap() -> None:
    offsets = np.array([0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 65, 70, 75, 80], dtype=float)
    numbers = [1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 14, 15, 16, 17]
    assert [g.before for g in find_gaps(offsets, numbers)] == [6, 7, 8]
    assert find_gaps(offsets, list(range(1, 15))) == ()


@pytest.mark.parametrize(("steps", "uneven"), [([5] * 5, False), ([5, 5.1, 5], False), ([4, 4, 7, 7], True)])
def test_uneven(steps: list[float], uneven: bool) -> None:
    assert is_uneven(np.concatenate([[0.0], np.cumsum(steps)]), ()) is uneven


def test_a_missing_slice_is_partial_and_located(tmp_path: Path) -> None:
    series = df.Series(slices=8)
    df.write_series(tmp_path, series, skip=[3])
    volume = read_volume(tmp_path)
    note = next(n for n in volume.notes if n.code == "slices_missing")
    assert note.severity is Severity.PARTIAL
    assert note.slices == (2, 3)
    assert is_partial(volume.notes)
    assert "uneven_spacing" not in codes(volume)
    np.testing.assert_array_equal(volume.hu, np.delete(expected_hu(series), 3, axis=0))


def test_a_change_of_spacing_is_a_warning_not_a_gap(tmp_path: Path) -> None:
    offsets = (0.0, 4.0, 8.0, 12.0, 16.0, 17.1, 24.1, 31.1, 38.1, 45.1)
    df.write_series(tmp_path, df.Series(slices=10, offsets_mm=offsets))
    volume = read_volume(tmp_path)
    assert codes(volume) == {"uneven_spacing": Severity.WARNING}
    np.testing.assert_allclose(np.diff(volume.require_stack().offsets_mm), np.diff(offsets))


def test_copies_of_a_file_are_harmless(tmp_path: Path) -> None:
    paths = df.write_series(tmp_path)
    (tmp_path / "again").mkdir()
    for path in paths[:3]:
        (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
    volume = read_volume(tmp_path)
    assert len(volume) == 6
    assert codes(volume)["duplicate_slices"] is Severity.INFO


def test_two_acquisitions_in_one_series_are_not_mixed(tmp_path: Path) -> None:
    first = df.Series(slices=8, extra={"AcquisitionNumber": 1})
    second = replace(first, slices=5, extra={"AcquisitionNumber": 2})
    df.write_series(tmp_path, first)

    def renumber(index: int, ds: Dataset) -> None:
        ds.SOPInstanceUID = f"9.9.{index}"
        ds.InstanceNumber = index + 101

    df.write_series(tmp_path, second, df.pattern(second) + 7, change=renumber, prefix="b")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, expected_hu(first))
    note = next(n for n in volume.notes if n.code == "duplicate_slices")
    assert (note.severity, note.slices) == (Severity.WARNING, (0, 1, 2, 3, 4))


def test_of_two_kernels_in_one_series_the_soft_one_is_taken(tmp_path: Path) -> None:
    bone = df.Series(kernel="BONE")
    df.write_series(tmp_path, bone, df.pattern(bone) + 7, change=lambda i, ds: setattr(ds, "SOPInstanceUID", f"8.{i}"))
    df.write_series(tmp_path, df.Series(kernel="SOFT"), prefix="s")
    np.testing.assert_array_equal(read_volume(tmp_path).hu, expected_hu(bone))


@pytest.mark.parametrize(
    "odd",
    [
        {"rows": 30},
        {"spacing_mm": (9.0, 9.0)},
        {"column_direction": (0.0, float(np.cos(0.3)), float(np.sin(0.3)))},
    ],
)
def test_slices_of_another_geometry_are_left_out_and_partial(tmp_path: Path, odd: dict) -> None:
    series = df.Series()
    df.write_series(tmp_path, series)
    df.write_series(tmp_path, replace(series, slices=2, origin_mm=(-120, -110, 80), **odd), prefix="odd")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, expected_hu(series))
    assert codes(volume)["mixed_geometry"] is Severity.PARTIAL


def test_scouts_inside_the_series_are_no_loss(tmp_path: Path) -> None:
    scout = df.Series(slices=1, row_direction=df.CORONAL[0], column_direction=df.CORONAL[1])
    df.write_series(tmp_path)
    df.write_series(tmp_path, scout, prefix="unmarked")
    df.write_series(tmp_path, replace(scout, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), prefix="marked")
    volume = read_volume(tmp_path)
    assert len(volume) == 6
    assert codes(volume)["mixed_geometry"] is Severity.INFO
    assert not is_partial(volume.notes)


def test_slices_without_a_position_are_left_out_and_partial(tmp_path: Path) -> None:
    def lose(index: int, ds: Dataset) -> None:
        if index == 5:
            del ds.ImagePositionPatient

    df.write_series(tmp_path, change=lose)
    volume = read_volume(tmp_path)
    assert len(volume) == 5
    assert codes(volume)["mixed_geometry"] is Severity.PARTIAL


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0.999, 0.7, 0.3, 0.05])
def test_a_truncated_slice_is_left_out_and_named(tmp_path: Path, cut: float) -> None:
    series = df.Series()
    path = df.write_series(tmp_path, series)[2]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(cut * len(raw))])
    volume = read_volume(tmp_path)
    note = next(n for n in volume.notes if n.code == "slices_unreadable")
    assert note.severity is Severity.PARTIAL
    assert path.name in note.message
    np.testing.assert_array_equal(volume.hu, np.delete(expected_hu(series), 2, axis=0))
    assert volume.source.slice_numbers == (1, 2, 4, 5, 6)


@pytest.mark.parametrize("cut", [0.9, 0.3, 0.05])
def test_a_truncated_file_alone_is_an_error(tmp_path: Path, cut: float) -> None:
    path = df.write_series(tmp_path, df.Series(slices=1))[0]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(DecodeError, match=str(path.name)):
        read_volume(path)


def test_a_decoder_that_dies_costs_its_slice_only(tmp_path: Path) -> None:
    series = df.Series(slices=4, stored=16)
    paths = [df.transcode(p, JPEGLosslessSV1) for p in df.write_series(tmp_path, series)]
    raw = bytearray(paths[1].read_bytes())
    start = raw.index(b"\xff\xc4")  # the Huffman table: GDCM ends its process over many broken ones
    raw[start + 4 : start + 24] = b"\xff" * 20
    paths[1].write_bytes(bytes(raw))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, np.delete(expected_hu(series), 1, axis=0))
    assert codes(volume)["slices_unreadable"] is Severity.PARTIAL


def test_a_codestream_of_another_size_never_reaches_a_decoder(tmp_path: Path) -> None:
    path = df.transcode(df.write_series(tmp_path, df.Series(slices=1, stored=16))[0], JPEGLSLossless)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\xff\xf7")
    raw[at + 5 : at + 9] = (9000).to_bytes(2, "big") * 2
    path.write_bytes(bytes(raw))
    with pytest.raises(DecodeError, match="declares 24 x 20 pixels but holds 9000 x 9000"):
        read_volume(path)


def test_a_deflated_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = df.write_series(tmp_path, df.Series(slices=1, syntax=DeflatedExplicitVRLittleEndian))[0]
    raw = path.read_bytes()
    end = 144 + int.from_bytes(raw[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    element = b"\x09\x00\x10\x00OB\0\0" + (2**31 - 2).to_bytes(4, "little")
    bomb = packer.compress(element) + b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    path.write_bytes(raw[:end] + bomb)
    unpacked: list[int] = []
    inflate = tags_module.inflated

    def measured(stream: BinaryIO, limit: int) -> BinaryIO:
        out = inflate(stream, limit)
        unpacked.append(len(out.getvalue()))
        return out

    monkeypatch.setattr(tags_module, "inflated", measured)
    with pytest.raises(DecodeError):
        read_volume(path)
    assert end < max(unpacked) <= tags_module.MAX_INFLATED_HEADER + end


def test_a_giant_image_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    def swell(_: int, ds: Dataset) -> None:
        ds.Rows = ds.Columns = 65535

    path = df.write_series(tmp_path, df.Series(slices=1), change=swell)[0]
    with pytest.raises(InputError, match=f"{MAX_VOXELS:,} voxels"):
        read_volume(path)


def test_a_private_transfer_syntax_is_refused_by_name(tmp_path: Path) -> None:
    path = df.write_series(tmp_path, df.Series(slices=1, syntax="1.2.840.113619.9.9.9"))[0]
    with pytest.raises(DecodeError, match=r"transfer syntax 1\.2\.840\.113619\.9\.9\.9"):
        read_volume(path)


# --- habits of real archives ------------------------------------------------------------------------------------------


def test_files_without_preamble_suffix_or_valid_uids(tmp_path: Path) -> None:
    series = df.Series(series="ID_12ab", study="ID_34cd", extra={"WindowCenter": ["00036", "00036"]})
    for path in df.write_series(tmp_path, series, preamble=False):
        path.rename(path.with_suffix(""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, expected_hu(series))
    assert volume.source.series_uid == "ID_12ab"


@pytest.mark.parametrize("cut", [0.995, 0.6, 0.2])
def test_damage_is_told_in_notes_and_not_by_pydicoms_warnings(tmp_path: Path, cut: float) -> None:
    paths = df.write_series(tmp_path, df.Series(slices=3, stored=16))
    df.transcode(paths[1], RLELossless)  # a frame of unknown length, whose end is looked for
    raw = paths[1].read_bytes()
    paths[1].write_bytes(raw[: int(cut * len(raw))])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        volume = read_volume(tmp_path)
    assert [str(warning.message) for warning in seen] == []
    assert codes(volume)["slices_unreadable"] is Severity.PARTIAL


def test_warning_filters_are_left_as_they_were(tmp_path: Path) -> None:
    df.write_series(tmp_path)
    before = list(warnings.filters)
    read_volume(tmp_path)
    assert list(warnings.filters) == before


def test_no_identity_reaches_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    df.write_series(tmp_path, df.Series(patient="1.2.bad\\uid", series="no uid Doe"))
    caplog.clear()
    read_volume(tmp_path)
    assert "Doe" not in caplog.text


def test_images_without_a_class_count_by_modality(tmp_path: Path) -> None:
    def strip(_: int, ds: Dataset) -> None:
        del ds.SOPClassUID
        del ds.file_meta.MediaStorageSOPClassUID

    df.write_series(tmp_path, change=strip, preamble=False)
    assert len(read_volume(tmp_path)) == 6


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_enhanced_ct(tmp_path: Path, syntax: str) -> None:
    series = df.Series(slices=5, offsets_mm=(20.0, 15.0, 10.0, 5.0, 0.0), stored=16)
    ds = df.enhanced_dataset(series)
    path = df.save(ds, tmp_path / "enhanced.dcm")
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
        df.save(ds, path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, expected_hu(series)[::-1])
    np.testing.assert_allclose(volume.require_stack().positions_mm, df.positions(series)[::-1])
    assert volume.source.slice_names == tuple(f"enhanced.dcm#{k}" for k in (5, 4, 3, 2, 1))


def test_a_multi_frame_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    read = decode_module.read_tags

    def counted(entry: Entry, tags: list[int], pixels: bool = False) -> tuple[Tags, Tags]:
        opened.append(pixels)
        return read(entry, tags, pixels)

    monkeypatch.setattr(decode_module, "read_tags", counted)
    read_volume(df.save(df.enhanced_dataset(df.Series(slices=9)), tmp_path / "x.dcm"))
    assert opened == [True]


def test_multi_frame_without_a_place_for_each_frame_is_refused(tmp_path: Path) -> None:
    ds = df.enhanced_dataset(df.Series(slices=3))
    del ds.PerFrameFunctionalGroupsSequence
    with pytest.raises(GeometryError, match="several frames"):
        read_volume(df.save(ds, tmp_path / "x.dcm"))


def test_progress_rises_to_one(tmp_path: Path) -> None:
    df.write_series(tmp_path)
    seen: list[float] = []
    read_volume(tmp_path, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 10


def test_text_of_the_header_stays_on_one_line_and_keeps_its_letters(tmp_path: Path) -> None:
    def rename(_: int, ds: Dataset) -> None:
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SeriesDescription = "Sch\u00e4del\n\x1b[31m nativ"

    df.write_series(tmp_path, change=rename)
    (tmp_path / "im000.dcm").rename(tmp_path / "im\n0\udcff.dcm")
    source = read_volume(tmp_path).source
    assert source.series_description == "Sch\u00e4del??[31m nativ"
    assert source.slice_names[0] == "im?0?.dcm"


def test_library_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = df.transcode(df.write_series(tmp_path, df.Series(slices=1, stored=16))[0], JPEGLosslessSV1)
    raw = path.read_bytes()
    path.write_bytes(raw[:-300] + bytes(300))
    with pytest.raises(HemolensError):
        read_volume(path)
    assert capfd.readouterr() == ("", "")


# --- real files -------------------------------------------------------------------------------------------------------


def test_tilted_ge_series(data: Path) -> None:
    folder = data / "dicom_head_tilted"
    if not folder.is_dir():
        pytest.skip("dicom_head_tilted is not among the real data")
    volume = read_volume(folder)
    stack = volume.require_stack()
    assert volume.shape == (28, 512, 512)
    assert volume.hu.dtype == np.int16
    assert stack.tilt_deg == pytest.approx(18.5, abs=1e-3)
    table_steps = np.diff(stack.positions_mm[:, 2])
    np.testing.assert_allclose(table_steps[:13], 4.22, atol=1e-6)
    np.testing.assert_allclose(table_steps[13], 1.14, atol=1e-6)
    np.testing.assert_allclose(table_steps[14:], 7.38, atol=1e-6)
    assert codes(volume) == {
        "files_skipped": Severity.INFO,  # the license beside the slices
        "uneven_spacing": Severity.WARNING,
        "gantry_tilt": Severity.INFO,
        "padding_replaced": Severity.INFO,
    }
    for index in (0, 14, 27):
        ds = pydicom.dcmread(folder / volume.source.slice_names[index])
        expected = apply_rescale(ds.pixel_array, ds)
        assert (ds.pixel_array == -1500).any()
        expected[ds.pixel_array == -1500] = AIR_HU
        np.testing.assert_array_equal(volume.hu[index], expected)
        np.testing.assert_allclose(stack.positions_mm[index], [float(x) for x in ds.ImagePositionPatient])


def test_each_rsna_slice(data: Path) -> None:
    folder = data / "rsna_slices"
    files = sorted(folder.glob("*.dcm"))
    if not files:
        pytest.skip("rsna_slices is not among the real data")
    for path in files:
        volume = read_volume(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path)
            expected = apply_rescale(ds.pixel_array, ds)
            assert volume.source.series_uid == ds.SeriesInstanceUID
        expected[expected < -1500] = AIR_HU
        np.testing.assert_array_equal(volume.hu[0], expected)
        assert volume.require_stack().spacings_mm[0, 0] == float(ds.PixelSpacing[0])
        assert volume.hu.min() >= -1500


@pytest.mark.parametrize(
    ("name", "reference"),
    [("693_UNCR.dcm", "693_UNCR.dcm"), ("693_J2KR.dcm", "693_UNCR.dcm"), ("693_UNCI.dcm", "693_UNCI.dcm")],
)
def test_head_slices_of_pydicom_data(name: str, reference: str) -> None:
    path = get_testdata_file(name, download=False)
    plain = get_testdata_file(reference, download=False)
    if path is None or plain is None:
        pytest.skip("pydicom-data is not installed")
    ds = pydicom.dcmread(plain)
    expected = apply_rescale(ds.pixel_array, ds)
    assert (expected < -3000).any()  # padding of -2000, which the lossy copy has smeared
    expected[expected < -1500] = AIR_HU
    np.testing.assert_array_equal(read_volume(path).hu[0], expected)


def test_lossy_head_slice_of_pydicom() -> None:
    plain = get_testdata_file("693_UNCI.dcm", download=False)
    if plain is None:
        pytest.skip("pydicom-data is not installed")
    lossy = read_volume(get_testdata_file("693_J2KI.dcm", download=False)).hu.astype(float)
    error = np.abs(lossy - read_volume(plain).hu)
    assert np.median(error) < 5


def test_j2k_whose_stream_forgets_its_sign() -> None:
    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    volume = read_volume(path)
    ds = pydicom.dcmread(path)
    expected = ds.pixel_array.astype(float)
    expected[expected < -1500] = AIR_HU
    np.testing.assert_array_equal(volume.hu[0], expected)
    normal = volume.require_stack().normal
    assert np.degrees(np.arccos(normal[2])) == pytest.approx(22.0, abs=0.01)


def test_sequences_of_unknown_type() -> None:
    path = get_testdata_file("explicit_VR-UN.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    volume = read_volume(path)
    assert volume.shape == (1, 512, 512)
    np.testing.assert_allclose(volume.require_stack().normal, [0, 0, -1])


def test_options_that_dicom_cannot_honor_are_refused(tmp_path: Path) -> None:
    df.write_series(tmp_path)
    for options in (ReadOptions(patient="7"), ReadOptions(pixel_spacing_mm=0.5)):
        with pytest.raises(HemolensError, match="this is DICOM"):
            read_volume(tmp_path, options)
