"""Slice pictures and the CT-ICH layout."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hemolens.errors import ConfigError, DecodeError, InputError, SelectionError
from hemolens.labels import FINDING_NAMES
from hemolens.notes import Severity
from hemolens.sources.codestream import StreamSize, stream_size
from hemolens.sources.datasets import ct_ich
from hemolens.sources.files import file_entry
from hemolens.sources.images import is_mask_name, natural_key, read_gray
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.volume import DisplayWindow, Volume

pytestmark = pytest.mark.filterwarnings("error")


def picture(number: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    return ((17 * number + 5 * y + 3 * x) % 256).astype(np.uint8)


def write(folder: Path, *names: str, size: tuple[int, int] = (12, 10)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number, size)).save(folder / name, quality=95)
    return folder


def codes(volume: Volume) -> dict[str, Severity]:
    return {n.code: n.severity for n in volume.notes}


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_levels_become_hounsfield_units_of_the_window(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png")
    volume = read_volume(tmp_path)
    # HU = pixel / 255 * 120 - 20, as CT-ICH's own description says.
    expected = np.stack([picture(0), picture(1)]) / 255 * 120 - 20
    np.testing.assert_allclose(volume.hu, expected, atol=1e-4)
    assert volume.hu.dtype == np.float32
    assert volume.source.window == DisplayWindow(40, 120)
    assert volume.stack is None
    assert codes(volume) == {
        "unknown_window": Severity.WARNING,
        "no_spacing": Severity.WARNING,
        "orientation_assumed": Severity.INFO,
    }


def test_another_window(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    volume = read_volume(tmp_path, ReadOptions(window=DisplayWindow(50, 100)))
    np.testing.assert_allclose(volume.hu[0], picture(0) / 255 * 100, atol=1e-4)
    assert "0 to 100 HU" in volume.notes[0].message


def test_all_256_levels_stay_apart(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "1.png")
    assert len(np.unique(read_volume(tmp_path).hu)) == 256


def test_natural_order(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "10.jpg", "2.JPG", "9.jpeg")
    volume = read_volume(tmp_path)
    assert volume.source.slice_names == ("1.jpg", "2.JPG", "9.jpeg", "10.jpg")
    assert volume.source.slice_numbers == (1, 2, 9, 10)
    assert sorted(["b2", "b10", "a", "b1x2", "b1x10"], key=natural_key) == ["a", "b1x2", "b1x10", "b2", "b10"]


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("12_HGE_Seg.jpg", True), ("12_hge_seg.png", True), ("a_mask.png", True), ("a-Mask.png", True),
        ("a_seg.png", True), ("mask.png", True), ("a label.png", True), ("12.jpg", False), ("unmask.png", False),
        ("segment12.jpg", False), ("mask_of_patient_12.jpg", False),
    ],
)  # fmt: skip
def test_mask_names(name: str, mask: bool) -> None:
    assert is_mask_name(name) is mask


def test_masks_are_not_slices(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg", "2_HGE_Seg.jpg")
    (tmp_path / "notes.txt").write_text("x")
    volume = read_volume(tmp_path)
    assert volume.source.slice_names == ("1.jpg", "2.jpg")
    assert volume.notes[-1].message == "2 left out: 1 mask, 1 of another kind"


def test_only_masks_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "1_mask.png", "2_mask.png")
    for path in (tmp_path, tmp_path / "1_mask.png"):
        with pytest.raises(SelectionError, match="only masks"):
            read_volume(path)


def test_one_picture(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    (tmp_path / "x.png").rename(tmp_path / "download")
    volume = read_volume(tmp_path / "download")
    assert volume.shape == (1, 12, 10)
    assert volume.source.slice_names == ("download",)


def test_told_spacing_makes_a_stack(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png", "3.png")
    volume = read_volume(tmp_path, ReadOptions(pixel_spacing_mm=0.4, slice_spacing_mm=5.0))
    stack = volume.require_stack()
    assert "no_spacing" not in codes(volume)
    np.testing.assert_allclose(stack.positions_mm[:, 2], [0, 5, 10])
    np.testing.assert_allclose(stack.voxel_volumes_ml, 0.4 * 0.4 * 5 / 1000)


def test_one_picture_of_known_pixels_has_areas_but_no_volume(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    volume = read_volume(tmp_path, ReadOptions(pixel_spacing_mm=0.4))
    assert volume.stack is not None
    assert not volume.has_volumes


@pytest.mark.parametrize(
    "options",
    [
        ReadOptions(pixel_spacing_mm=0.4), ReadOptions(slice_spacing_mm=5.0),
        ReadOptions(pixel_spacing_mm=0.0, slice_spacing_mm=5.0),
        ReadOptions(pixel_spacing_mm=float("nan"), slice_spacing_mm=5.0),
        ReadOptions(series_uid="1.2"), ReadOptions(patient="78"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path: Path, options: ReadOptions) -> None:
    write(tmp_path, "1.png", "2.png")
    with pytest.raises(ConfigError):
        read_volume(tmp_path, options)


def test_a_hole_in_the_numbers_is_partial_and_keeps_the_distance(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png", "3.png", "5.png", "6.png")
    volume = read_volume(tmp_path, ReadOptions(pixel_spacing_mm=0.4, slice_spacing_mm=5.0))
    assert codes(volume)["slices_missing"] is Severity.PARTIAL
    np.testing.assert_allclose(np.diff(volume.require_stack().positions_mm[:, 2]), [5, 5, 10, 5])


def test_scattered_numbers_are_no_hole(tmp_path: Path) -> None:
    write(tmp_path, "10.png", "20.png", "30.png", "31.png")
    assert "slices_missing" not in codes(read_volume(tmp_path))


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "slices", "1.png", "2.png")
    assert len(read_volume(tmp_path)) == 2
    write(tmp_path / "b", "1.png")
    with pytest.raises(SelectionError, match=r"2 folders \(a/slices, b\)"):
        read_volume(tmp_path)
    write(tmp_path, "7.png")
    volume = read_volume(tmp_path)
    assert volume.source.slice_names == ("7.png",)
    assert "3 picture in a folder below" in volume.notes[-1].message


def test_mixed_sizes_name_both(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    Image.fromarray(picture(0, (9, 10))).save(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"1\.png is 12 x 10, 2\.png is 9 x 10"):
        read_volume(tmp_path)


def gray_as(mode: str) -> Image.Image:
    return Image.fromarray(picture(3)).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_gray_in_any_clothes_is_accepted(tmp_path: Path, mode: str) -> None:
    gray_as(mode).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_gray(file_entry(tmp_path / "1.png")), picture(3))


def test_color_jpeg_of_gray_is_accepted(tmp_path: Path) -> None:
    gray_as("RGB").save(tmp_path / "1.jpg", quality=60)
    assert read_volume(tmp_path).shape == (1, 12, 10)


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    color = np.stack([picture(0), picture(0), picture(9)], axis=-1)
    clear = np.stack([picture(0)] * 3 + [np.full((12, 10), 128, np.uint8)], axis=-1)
    cases = {
        "color.png": (Image.fromarray(color), "in color"),
        "clear.png": (Image.fromarray(clear), "transparent"),
        "deep.png": (Image.fromarray(picture(0).astype(np.uint16) * 256), "16 bits"),
        "bits.png": (Image.fromarray(picture(0) > 99), "1 bits"),
    }
    for name, (image, match) in cases.items():
        image.save(tmp_path / name)
        with pytest.raises(InputError, match=match):
            read_volume(tmp_path / name)
    frames = [Image.fromarray(picture(k)) for k in range(3)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="animated"):
        read_volume(tmp_path / "moving.png")


@pytest.mark.parametrize("name", ["1.png", "1.jpg"])
@pytest.mark.parametrize("cut", [0.9, 0.5, 0.1])
def test_truncated_pictures(tmp_path: Path, name: str, cut: float) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(DecodeError, match="damaged"):
        read_volume(tmp_path)


def test_a_giant_png_is_refused_by_its_header(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    raw = bytearray((tmp_path / "1.png").read_bytes())
    raw[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "1.png").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="60000 x 60000 pixels"):
        read_volume(tmp_path)


def test_stream_sizes(tmp_path: Path) -> None:
    Image.fromarray(picture(0, (33, 21))).save(tmp_path / "1.jpg")
    Image.fromarray(picture(0, (33, 21))).save(tmp_path / "2.jpg", progressive=True)
    for name in ("1.jpg", "2.jpg"):
        assert stream_size((tmp_path / name).read_bytes()) == StreamSize(33, 21, 8, 1)
    j2k = (Path(__file__).parent / "data" / "htj2k_lossless.j2c").read_bytes()
    assert stream_size(j2k) == StreamSize(64, 48, 16, 1)
    for end in (0, 1, 3, 10, 30, 41):
        assert stream_size(j2k[:end]) is None
    assert stream_size(b"\xff\xd8" + b"\xff" * 50) is None
    tiled = bytearray(j2k)
    tiled[24:32] = (1).to_bytes(4, "big") * 2
    assert stream_size(bytes(tiled * 2)) == StreamSize(64, 48, 16, 1)  # 3,072 tiles of one pixel are allowed
    tiled[8:16] = (3000).to_bytes(4, "big") * 2
    assert stream_size(bytes(tiled)) is None


# --- CT-ICH -----------------------------------------------------------------------------------------------------------

COLUMNS = ("PatientNumber", "SliceNumber", "Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural",
           "Subdural", "No_Hemorrhage", "Fracture_Yes_No")  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a small data set in CT-ICH's layout: patient 49 bleeds on slices 2 and 3, one of them with a mask."""
    root = tmp_path / "download" / "ct_ich"
    for patient in ("049", "050", "125"):
        write(root / "Patients_CT" / patient / "brain", *[f"{n}.jpg" for n in range(1, 13)])
        write(root / "Patients_CT" / patient / "bone", *[f"{n}.jpg" for n in range(1, 13)])
    mask = np.zeros((12, 10), np.uint8)
    mask[4:9, 3:8] = 255
    Image.fromarray(mask).save(root / "Patients_CT" / "049" / "brain" / "2_HGE_Seg.jpg", quality=95)
    with (root / "hemorrhage_diagnosis.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for patient in (49, 50, 125):
            for n in range(1, 13):
                bleeds = patient == 49 and n in (2, 3)
                table.writerow([patient, n, 0, int(bleeds), 0, int(n == 2 and bleeds), 0, int(not bleeds), 0])
    return root


def test_root_patient_and_brain_folder_give_the_same_volume(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = root / "Patients_CT" / "049"
    monkeypatch.chdir(patient)
    ways = [
        (root, "49"), (root, "049"), (root.parent, " 49"), (root / "Patients_CT", "49"), (patient, None),
        (patient, "49"), (patient / "brain", None), (Path("brain"), None), (Path(), None),
    ]  # fmt: skip
    volumes = [read_volume(path, ReadOptions(patient=who)) for path, who in ways]
    for volume in volumes:
        np.testing.assert_array_equal(volume.hu, volumes[0].hu)
        assert volume.notes == volumes[0].notes
        assert volume.source == volumes[0].source
    assert volumes[0].source.slice_numbers == tuple(range(1, 13))
    assert volumes[0].source.slice_names[9] == "10.jpg"
    assert codes(volumes[0])["unknown_window"] is Severity.INFO  # the data set says which window it used


def test_choosing_a_patient(root: Path) -> None:
    with pytest.raises(SelectionError, match="--patient; here are: 049, 050, 125"):
        read_volume(root)
    with pytest.raises(SelectionError, match=r"no patient '51'. Near ones: 050"):
        read_volume(root, ReadOptions(patient="51"))
    with pytest.raises(SelectionError, match=r"no patient 'Doe'. Here are: 049, 050, 125"):
        read_volume(root, ReadOptions(patient="Doe"))
    with pytest.raises(SelectionError, match="holds patient 049, not 50"):
        read_volume(root / "Patients_CT" / "049", ReadOptions(patient="50"))
    with pytest.raises(ConfigError, match="CT-ICH"):
        read_volume(root, ReadOptions(patient="49", series_uid="1.2"))


def test_the_bone_window_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match="bone window"):
        read_volume(root / "Patients_CT" / "049" / "bone")


@pytest.mark.parametrize("number", [1, 6, 12])
def test_a_slice_that_the_table_names_and_that_is_not_there_is_partial(root: Path, number: int) -> None:
    (root / "Patients_CT" / "050" / "brain" / f"{number}.jpg").unlink()
    volume = read_volume(root, ReadOptions(patient="50"))
    assert len(volume) == 11
    assert codes(volume)["slices_missing"] is Severity.PARTIAL


def test_without_its_table_slices_can_still_be_read(root: Path) -> None:
    (root / ct_ich.LABELS_FILE).unlink()
    assert len(read_volume(root, ReadOptions(patient="50"))) == 12
    with pytest.raises(InputError, match="No such file"):
        ct_ich.read_labels(root)


def test_labels(root: Path) -> None:
    rows = ct_ich.read_labels(root.parent)
    assert len(rows) == 36
    assert (rows[1].patient, rows[1].slice_number) == ("049", 2)
    assert rows[1].findings == tuple(getattr(rows[1], name) for name in FINDING_NAMES)
    assert rows[1].findings == (True, True, False, False, True, False)
    assert not any(rows[0].findings)


def test_a_missing_mask_is_not_an_empty_one(root: Path) -> None:
    rows = ct_ich.read_labels(root)[:4]
    assert [ct_ich.mask_state(root, r) for r in rows] == ["empty", "drawn", "unknown", "empty"]
    empty, drawn, unknown, _ = (ct_ich.read_mask(root, r) for r in rows)
    assert empty is not None
    assert (empty.shape, empty.any()) == ((12, 10), False)
    assert drawn is not None
    assert drawn.sum() == 25
    assert unknown is None
    stray = root / "Patients_CT" / "049" / "brain" / "1_HGE_Seg.jpg"
    stray.write_bytes((root / "Patients_CT" / "049" / "brain" / "2_HGE_Seg.jpg").read_bytes())
    assert ct_ich.mask_state(root, rows[0]) == "unknown"


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"A,B\n1,2\n", b"PatientNumber,SliceNumber\n49,x\n", b"\0,\n1,2\n"])
def test_a_broken_table(root: Path, content: bytes) -> None:
    (root / ct_ich.LABELS_FILE).write_bytes(content)
    with pytest.raises(InputError):
        ct_ich.read_labels(root)


def test_find_root_refuses_other_folders(root: Path) -> None:
    for path in (root / "Patients_CT" / "049", root.parent.parent / "nowhere"):
        with pytest.raises(InputError, match="not the root of CT-ICH"):
            ct_ich.find_root(path)


def test_the_real_data_set(data: Path) -> None:
    root = data / "ct_ich"
    if not root.is_dir():
        pytest.skip("ct_ich is not among the real data")
    rows = ct_ich.read_labels(root)
    assert len(rows) == 1904
    assert len({r.patient for r in rows}) == 63
    states = [ct_ich.mask_state(root, r) for r in rows]
    assert (states.count("drawn"), states.count("unknown"), states.count("empty")) == (13, 235, 1656)
    volume = read_volume(root, ReadOptions(patient="78"))
    again = read_volume(root / "Patients_CT" / "078" / "brain")
    assert volume.shape == (31, 650, 650)
    np.testing.assert_array_equal(volume.hu, again.hu)
    truth = {(r.patient, r.slice_number): r for r in rows}
    assert all(("078", n) in truth for n in volume.source.slice_numbers)
    mask = ct_ich.read_mask(root, truth["078", 14])
    assert mask is not None
    assert mask.sum() == 2430
    raw = np.asarray(Image.open(root / "Patients_CT" / "078" / "brain" / "14.jpg"))
    np.testing.assert_allclose(volume.hu[13], raw / 255 * 120 - 20, atol=1e-4)
