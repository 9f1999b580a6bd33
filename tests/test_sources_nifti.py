"""NIfTI to Volume: every orientation against nibabel's own affine, every dtype, every refusal."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemolens.errors import ConfigError, DecodeError, GeometryError, InputError, SelectionError
from hemolens.notes import Severity
from hemolens.sources import nifti
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.volume import AIR_HU, Volume

pytestmark = pytest.mark.filterwarnings("error")

ORIENTATIONS = ["".join(o) for o in itertools.product("RL", "AP", "SI")]
ALL_48 = ["".join(p) for o in ORIENTATIONS for p in itertools.permutations(o)]


def scan(shape: tuple[int, ...] = (5, 6, 7), dtype: str = "int16") -> np.ndarray:
    """Return voxels that are all different, with air among them."""
    return (np.arange(np.prod(shape)).reshape(shape) - 1000).astype(dtype)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    image = nib.Nifti1Image(array, np.diag([0.5, 0.6, 5.0, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def back(volume: Volume) -> np.ndarray:
    """Put a volume back on the grid of its file by the recorded steps, as the mask writer does."""
    source = volume.source
    flipped = np.flip(volume.hu, [i for i, flip in enumerate(source.ndarray_flips) if flip])
    return np.transpose(flipped, np.argsort(source.ndarray_axes))


def code_of(volume: Volume, code: str) -> Severity | None:
    return next((n.severity for n in volume.notes if n.code == code), None)


def check_geometry(volume: Volume, array: np.ndarray, affine: np.ndarray) -> None:
    """Every voxel keeps its value and its place: nibabel's RAS affine, turned to LPS, is the reference."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij"), axis=-1)
    mm = volume.require_stack().index_to_mm(index.astype(float))
    ras = mm * [-1, -1, 1]
    ijk = nib.affines.apply_affine(np.linalg.inv(affine), ras)
    np.testing.assert_allclose(ijk, np.rint(ijk), atol=1e-4)
    i, j, k = np.moveaxis(np.rint(ijk).astype(int), -1, 0)
    np.testing.assert_array_equal(volume.hu, array[i, j, k])
    np.testing.assert_array_equal(back(volume), array)


@pytest.mark.parametrize("orientation", ALL_48)
def test_all_48_orientations(tmp_path: Path, orientation: str) -> None:
    array = scan()
    to = nib.orientations.axcodes2ornt(orientation)
    affine = np.diag([0.5, 0.6, 5.0, 1.0])
    affine[:3, 3] = [9, -7, 30]
    image = nib.Nifti1Image(array, affine)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), to))
    assert "".join(nib.aff2axcodes(turned.affine)) == orientation
    nib.save(turned, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    check_geometry(volume, np.asarray(turned.dataobj), turned.affine)
    stack = volume.require_stack()
    np.testing.assert_allclose(stack.row_directions[0], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(stack.column_directions[0], [0, 1, 0], atol=1e-9)
    assert volume.shape == (7, 6, 5)


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    zooms=st.tuples(*[st.floats(0.3, 6)] * 3),
    shear=st.floats(-0.5, 0.5),
    mirrored=st.booleans(),
)
def test_any_oblique_grid(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    zooms: tuple[float, ...],
    shear: float,
    mirrored: bool,
) -> None:
    turn = nib.eulerangles.euler2mat(*np.radians(angles))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(zooms)
    if mirrored:
        affine[:3, 0] *= -1
    # Gantry tilt shears along the slices: the file axis nearest to the head-foot line.
    slice_axis = int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])
    other = (slice_axis + 1) % 3
    affine[:3, slice_axis] += shear * zooms[slice_axis] * affine[:3, other] / zooms[other]
    affine[:3, 3] = [3, -70, 20]
    array = scan((3, 4, 5))
    folder = tmp_path_factory.mktemp("oblique")
    path = save(folder / "x.nii", array, affine)
    saved = nib.load(path).affine  # float32 in the file
    try:
        volume = read_volume(path)
    except GeometryError as error:
        # A sheared, strongly oblique grid can have its sheared axis nearest to another direction; that is refused.
        assert "right angles" in str(error)  # noqa: PT017
        assert shear != 0
        return
    check_geometry(volume, array, saved)
    assert (np.diff(volume.require_stack().offsets_mm) > 0).all()


def test_gantry_tilt_of_converted_dicom_is_noted(tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.radians(18.5))
    volume = read_volume(save(tmp_path / "x.nii", scan(), affine))
    assert volume.require_stack().tilt_deg == pytest.approx(18.5, abs=1e-3)
    assert code_of(volume, "gantry_tilt") is Severity.INFO


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("int16", "int16"), ("uint8", "int16"), ("int8", "int16"), ("uint16", "int16"), ("int32", "int16"),
     ("int64", "int16"), ("float32", "int16"), ("float64", "int16"), (">i2", "int16"), (">f4", "int16")],
)  # fmt: skip
def test_whole_numbers_become_int16(tmp_path: Path, dtype: str, kept: str) -> None:
    array = scan().astype(dtype) if np.dtype(dtype).kind != "u" else (scan() + 1000).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    image = nib.Nifti1Image(array, np.eye(4), header, dtype=np.dtype(dtype).newbyteorder("="))
    nib.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert volume.hu.dtype == kept
    np.testing.assert_array_equal(back(volume), array)


def test_fractions_become_float32(tmp_path: Path) -> None:
    array = scan(dtype="float64") + 0.25
    volume = read_volume(save(tmp_path / "x.nii", array))
    assert volume.hu.dtype == np.float32
    np.testing.assert_array_equal(back(volume), array.astype(np.float32))


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1.0, -1024.0, "int16"), (2.0, 0.0, "int16"), (0.5, 3.0, "float32"),
                                      (0.0, 7.0, "int16"), (float("nan"), 0.0, "int16")],
)  # fmt: skip
def test_scaling(tmp_path: Path, slope: float, intercept: float, dtype: str) -> None:
    array = scan()
    path = save(tmp_path / "x.nii", array)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, intercept], dtype="<f4").tobytes()
    path.write_bytes(bytes(raw))
    volume = read_volume(path)
    assert volume.hu.dtype == dtype
    np.testing.assert_allclose(back(volume), nib.load(path).get_fdata())  # slope 0 or NaN means no scaling


def test_scaling_of_narrow_types_does_not_wrap(tmp_path: Path) -> None:
    array = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    path = save(tmp_path / "x.nii", array)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([10, -1000], dtype="<f4").tobytes()
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(back(read_volume(path)), array.astype(int) * 10 - 1000)


def test_nan_and_infinity_become_air_with_a_note(tmp_path: Path) -> None:
    array = scan(dtype="float32")
    array[0, 0, 0], array[1, 2, 3], array[4, 4, 4] = np.nan, np.inf, -np.inf
    volume = read_volume(save(tmp_path / "x.nii", array))
    assert code_of(volume, "non_finite") is Severity.WARNING
    expected = np.where(np.isfinite(array), array, AIR_HU)
    np.testing.assert_array_equal(back(volume), expected)
    assert volume.hu.dtype == np.int16


def test_mostly_nan_is_refused(tmp_path: Path) -> None:
    array = scan(dtype="float32")
    array[:3] = np.nan
    with pytest.raises(InputError, match="60% of its voxels are NaN"):
        read_volume(save(tmp_path / "x.nii", array))


@pytest.mark.parametrize(("shift", "warned"), [(0, False), (1000, True), (400, False), (600, True)])
def test_what_shows_no_air_is_suspected(tmp_path: Path, shift: int, warned: bool) -> None:
    volume = read_volume(save(tmp_path / "x.nii", scan() + np.int16(shift)))
    assert (code_of(volume, "modality") is Severity.WARNING) is warned


# --- containers -------------------------------------------------------------------------------------------------------


def test_gzip_nifti2_other_names_folder_and_extension(tmp_path: Path) -> None:
    array = scan()
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "one.nii.gz")
    nib.save(nib.Nifti2Image(array, np.eye(4)), tmp_path / "two.nii")
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "three.nii")
    (tmp_path / "four.dat").write_bytes((tmp_path / "one.nii.gz").read_bytes())
    for name in ("one.nii.gz", "two.nii", "three.nii", "four.dat"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(back(volume), array)
        assert (volume.source.kind, volume.source.path_or_uid) == ("nifti", str(tmp_path / name))
        assert volume.source.slice_names == ()
    with pytest.raises(SelectionError, match="3 NIfTI files"):
        read_volume(tmp_path)
    for name in ("two.nii", "three.nii"):
        (tmp_path / name).unlink()
    volume = read_volume(tmp_path)
    assert volume.source.path_or_uid == str(tmp_path / "one.nii.gz")
    assert code_of(volume, "files_skipped") is Severity.INFO


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    array = scan()
    np.testing.assert_array_equal(back(read_volume(save(tmp_path / "x.nii", array[..., None, None]))), array)


def test_a_single_slice_has_its_thickness(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "x.nii", scan((5, 6, 1))))
    assert volume.shape == (1, 6, 5)
    assert volume.require_stack().thickness_mm == pytest.approx(5.0)
    assert volume.has_volumes


def test_qform_alone_is_enough_and_sform_wins(tmp_path: Path) -> None:
    array, turned = scan(), np.diag([-0.5, -0.6, 5.0, 1.0])
    image = nib.Nifti1Image(array, turned)
    image.set_sform(None, 0)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "q.nii")
    check_geometry(read_volume(tmp_path / "q.nii"), array, turned)
    image.set_sform(np.diag([0.7, 0.7, 3.0, 1.0]), 2)
    nib.save(image, tmp_path / "s.nii")
    assert read_volume(tmp_path / "s.nii").require_stack().spacings_mm[0].tolist() == pytest.approx([0.7, 0.7])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_no_orientation_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan(), None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "x.nii")
    with pytest.raises(GeometryError, match="no orientation"):
        read_volume(tmp_path / "x.nii")


def broken_affine(kind: str) -> np.ndarray:
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    if kind == "zero":
        affine[:3] = 0
    elif kind == "singular":
        affine[:3, 2] = affine[:3, 1]
    elif kind == "nan":
        affine[0, 0] = np.nan
    elif kind == "huge":
        affine[0, 0] = 1e30
    elif kind == "in-plane shear":
        affine[0, 1] = 0.2
    return affine


@pytest.mark.parametrize(
    ("kind", "match"),
    [("zero", "zero"), ("singular", "singular"), ("nan", "not finite"), ("huge", "absurd"),
     ("in-plane shear", "right angles")],
)  # fmt: skip
def test_affines_that_cannot_be(tmp_path: Path, kind: str, match: str) -> None:
    path = save(tmp_path / "x.nii", scan())
    raw = bytearray(path.read_bytes())
    raw[280:328] = broken_affine(kind)[:3].astype("<f4").tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(GeometryError, match=match) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_a_quaternion_that_is_none(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", scan(), sform_code=0, qform_code=1)
    raw = bytearray(path.read_bytes())
    raw[254:256] = b"\0\0"
    raw[252:254] = b"\1\0"
    raw[256:268] = np.array([3, 3, 3], dtype="<f4").tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(GeometryError, match="no rotation"):
        read_volume(path)


def test_layouts_that_are_no_scan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 dimensions, 5 x 6 x 7 x 2"):
        read_volume(save(tmp_path / "4d.nii", scan((5, 6, 7, 2))))
    with pytest.raises(InputError, match="complex"):
        read_volume(save(tmp_path / "complex.nii", scan(dtype="complex64")))
    rgb = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="colors"):
        read_volume(save(tmp_path / "rgb.nii", rgb))
    with pytest.raises(InputError, match="shape"):
        read_volume(save(tmp_path / "2d.nii", scan((5, 6))))
    nib.save(nib.Nifti1Pair(scan(), np.eye(4)), tmp_path / "pair.hdr")
    for path in (tmp_path / "pair.hdr",):
        with pytest.raises(InputError, match="two-file"):
            read_volume(path)
    nib.save(nib.AnalyzeImage(scan(), np.eye(4)), tmp_path / "analyze.hdr")
    with pytest.raises(InputError, match="two-file"):
        read_volume(tmp_path / "analyze.hdr")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("cut", [0.9, 0.5, 0.2])
def test_truncated(tmp_path: Path, name: str, cut: float) -> None:
    rng = np.random.default_rng(0)
    path = save(tmp_path / name, rng.integers(-1000, 1000, (20, 20, 20)).astype(np.int16))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(DecodeError, match="cut short"):
        read_volume(path)


def test_a_flipped_bit_inside_a_gzip_does_not_pass_for_anatomy(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", scan((30, 30, 30)))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(DecodeError):
        read_volume(path)


def test_a_header_that_asks_for_too_much_is_refused_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", scan())
    raw = bytearray(path.read_bytes())
    raw[40:48] = np.array([3, 30000, 30000, 30000], dtype="<i2").tobytes()
    (tmp_path / "big.nii").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="more than"):
        read_volume(tmp_path / "big.nii")
    raw = bytearray(path.read_bytes())
    raw[108:112] = np.array([1e9], dtype="<f4").tobytes()
    (tmp_path / "far.nii").write_bytes(bytes(raw))
    with pytest.raises(DecodeError, match="puts its voxels at byte"):
        read_volume(tmp_path / "far.nii")


def test_a_gzip_bomb_is_not_unpacked_further_than_the_header_asks_for(tmp_path: Path) -> None:
    plain = save(tmp_path / "x.nii", scan()).read_bytes()
    for megabytes in (0, 4):
        with gzip.open(tmp_path / "x.nii.gz", "wb") as stream:
            stream.write(plain + bytes(900) + megabytes * bytes(2**20))
        if megabytes:
            with pytest.raises(DecodeError, match="goes on long after"):
                read_volume(tmp_path / "x.nii.gz")
        else:
            np.testing.assert_array_equal(back(read_volume(tmp_path / "x.nii.gz")), scan())


def test_voxels_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "CHUNK_BYTES", 100)
    for name in ("x.nii", "x.nii.gz"):
        np.testing.assert_array_equal(back(read_volume(save(tmp_path / name, scan()))), scan())


def test_options_that_nifti_cannot_honor_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", scan())
    for options in (ReadOptions(series_uid="1.2"), ReadOptions(patient="7"), ReadOptions(slice_spacing_mm=5.0)):
        with pytest.raises(ConfigError, match="this is NIfTI"):
            read_volume(path, options)


def test_progress_rises_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    read_volume(save(tmp_path / "x.nii", scan()), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_library_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_volume(save(tmp_path / "x.nii", scan(), pixdim=[1, -0.5, 0, 5, 0, 0, 0, 0], descrip=b"\xff\xfe"))
    assert capfd.readouterr() == ("", "")
