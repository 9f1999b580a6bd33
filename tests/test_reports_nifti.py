from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image

from hemolens.reports.nifti import mask_files, picture_names, probability_files
from hemolens.sources.study import read_volume
from hemolens.volume import DisplayWindow, LabelMap, SourceInfo, Volume
from phantom import build_stack, frames, rotation_about, stacks
from predictions import predict, volume_of

LPS = np.array([-1.0, -1.0, 1.0])


def load(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def labels_like(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, shape).astype(np.uint8)


def write_ct(path: Path, affine: np.ndarray, shape: tuple[int, int, int], **codes: int) -> np.ndarray:
    """A NIfTI whose every voxel holds its own number, from air to bone."""
    numbers = (np.arange(np.prod(shape)).reshape(shape) - 1000).astype(np.int16)
    image = nib.Nifti1Image(numbers, affine)
    image.set_sform(affine, codes.get("sform", 1))
    image.set_qform(affine, codes.get("qform", 1), strip_shears=True)
    image.header["descrip"] = b"DOE^JOHN 1950"
    nib.save(image, path)
    return numbers


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASL", "SPR", "PIR", "LSA", "IRP"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_mask_lies_voxel_for_voxel_on_the_nifti_it_came_from(codes: str, ending: str, tmp_path: Path) -> None:
    shape = (7, 9, 11)
    ras = np.diag([0.5, 0.6, 5, 1.0])
    ras[:3, :3] = rotation_about([0, 0, 1], 4) @ ras[:3, :3]
    ras[:3, 3] = -40, -50, -20
    ornt = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = ras @ inv_ornt_aff(ornt, shape)
    path = tmp_path / f"scan{ending}"
    numbers = write_ct(path, affine, tuple(shape[int(a)] for a in np.argsort(ornt[:, 0])), sform=2, qform=0)
    volume = read_volume(path)
    # Label what lies in one corner of the file, found again by its values alone.
    chosen = np.zeros(numbers.shape, bool)
    chosen[1:3, 0:4, 2:] = True
    labels = np.where(np.isin(volume.hu, numbers[chosen]), 3, 0).astype(np.uint8)
    mask = load(mask_files(LabelMap(labels, volume))["mask.nii.gz"])
    assert np.array_equal(np.asarray(mask.dataobj), np.where(chosen, 3, 0))
    own = nib.load(path)
    assert np.array_equal(mask.affine, own.affine)
    for field in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b"):
        assert np.array_equal(mask.header[field], own.header[field]), field
    assert mask.get_data_dtype() == np.uint8


def test_nothing_else_of_the_source_header_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write_ct(path, np.diag([-0.5, -0.5, 5, 1]), (6, 6, 6))
    volume = read_volume(path)
    content = gzip.decompress(mask_files(LabelMap(np.zeros(volume.shape, np.uint8), volume))["mask.nii.gz"])
    assert b"DOE" not in content


def test_a_nifti_that_is_gone_still_gets_its_affine(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    affine = np.array([[0, -0.5, 0.1, 3], [-0.6, 0, 0, 5], [0, 0, 4, -7], [0, 0, 0, 1.0]])
    numbers = write_ct(path, affine, (6, 7, 8))
    volume = read_volume(path)
    path.unlink()
    mask = load(mask_files(LabelMap((volume.hu % 6).astype(np.uint8), volume))["mask.nii.gz"])
    assert np.array_equal(np.asarray(mask.dataobj), numbers % 6)
    assert np.allclose(mask.affine, affine, atol=1e-4)
    assert mask.header["sform_code"] == 1


def test_another_file_at_the_same_path_does_not_lend_its_header(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write_ct(path, np.diag([-0.5, -0.5, 5, 1]), (6, 6, 6))
    volume = read_volume(path)
    write_ct(path, np.diag([-3.0, -3.0, 9, 1]), (6, 6, 6))
    mask = load(mask_files(LabelMap(np.zeros(volume.shape, np.uint8), volume))["mask.nii.gz"])
    assert np.allclose(mask.affine, np.diag([-0.5, -0.5, 5, 1]), atol=1e-5)


@settings(max_examples=15)
@given(stacks(even=True, slices=(2, 8)), st.integers(0, 99))
def test_a_dicom_mask_has_each_voxel_where_the_stack_has_it(stack, seed: int) -> None:
    shape = (len(stack), 5, 6)
    volume = volume_of(shape, stack)
    labels = labels_like(shape, seed)
    files = mask_files(LabelMap(labels, volume))
    assert list(files) == ["mask.nii.gz"]
    mask = load(files["mask.nii.gz"])
    data = np.asarray(mask.dataobj)
    for k, r, c in [(0, 0, 0), (len(stack) - 1, 2, 5), (1, 4, 3)]:
        assert data[c, r, k] == labels[k, r, c]
        expected = stack.index_to_mm([k, r, c]) * LPS
        assert np.allclose(mask.affine @ [c, r, k, 1], [*expected, 1], atol=2e-3 + stack.positions_mm.max() * 1e-6)
    assert mask.header["sform_code"] == 1


@settings(max_examples=6)
@given(frames())
def test_the_qform_is_withheld_where_the_stack_is_sheared(frame) -> None:
    for lean, code in (((0.0, 0.0), 1), ((0.0, 0.33), 0)):
        stack = build_stack(frame, [5.0] * 5, (0.5, 0.5), lean=lean)
        volume = volume_of((6, 4, 4), stack)
        header = load(mask_files(LabelMap(labels_like(volume.shape), volume))["mask.nii.gz"]).header
        assert header["qform_code"] == code
        assert np.allclose(header.get_sform()[:3, 3], stack.positions_mm[0] * LPS, atol=1e-3)


def test_an_uneven_stack_keeps_every_layer_and_claims_no_place() -> None:
    stack = build_stack(np.eye(3), [4, 4, 1, 7, 7], (0.5, 0.4), lean=(0.0, 0.33), origin_mm=(-100, -90, 30))
    volume = replace(volume_of((6, 5, 7), stack), source=SourceInfo("dicom", "1.2", tuple("abcdef")))
    labels = labels_like(volume.shape)
    files = mask_files(LabelMap(labels, volume))
    mask = load(files["mask.nii.gz"])
    assert np.array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0), labels)
    assert (mask.header["sform_code"], mask.header["qform_code"]) == (0, 0)
    assert np.allclose(mask.header.get_zooms(), (0.4, 0.5, np.ptp(stack.offsets_mm) / 5))
    told = json.loads(files["mask_geometry.json"])["layers"]
    assert [layer["source"] for layer in told] == list("abcdef")
    for k, layer in enumerate(told):
        point = (
            np.array(layer["position_mm"])
            + 3 * layer["spacing_mm"][1] * np.array(layer["row_direction"])
            + 2 * layer["spacing_mm"][0] * np.array(layer["column_direction"])
        )
        assert np.allclose(point, stack.index_to_mm([k, 2, 3]), atol=1e-4)
    assert sum(layer["extent_mm"] for layer in told) == pytest.approx(stack.extents_mm.sum())


def test_slice_images_get_one_picture_each_empty_ones_too() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 2, 3] = 5
    source = SourceInfo("images", "folder", ("1.jpg", "2.jpg", "10.jpg"), window=DisplayWindow())
    volume = Volume(np.zeros(labels.shape, np.float32), None, source)
    files = mask_files(LabelMap(labels, volume))
    assert list(files) == ["masks/1.png", "masks/2.png", "masks/10.png"]
    pictures = [np.asarray(Image.open(io.BytesIO(content))) for content in files.values()]
    assert np.array_equal(np.stack(pictures), np.where(labels > 0, 255, 0))
    assert pictures[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("1.png", "1.jpg"), ["1.png", "1.jpg"]),
        (("a.png", "A.png"), ["000_a.png", "001_A.png"]),
        (("../../etc/x.png", "sub/y.png"), ["x", "y"]),
        (("..", "con\x00trol\n.png"), ["000", "con_trol_"]),
        (("slice.001.png", "slice.002.png"), ["slice.001", "slice.002"]),
        ((), ["0", "1"]),
    ],
)
def test_picture_names_are_safe_and_their_own(names: tuple[str, ...], expected: list[str]) -> None:
    volume = Volume(np.zeros((2, 3, 3), np.float32), None, SourceInfo("images", "folder", names))
    assert picture_names(volume) == expected


def test_probabilities_are_written_on_the_same_grid(tmp_path: Path) -> None:
    stack = build_stack(np.eye(3), [5.0] * 3, (0.5, 0.5))
    volume = volume_of((4, 6, 7), stack)
    prediction = predict(labels_like(volume.shape))
    prediction.blood[...] = np.random.default_rng(0).random(volume.shape)
    written = load(probability_files(volume, prediction)["probability.nii.gz"])
    mask = load(mask_files(LabelMap(prediction.subtype, volume))["mask.nii.gz"])
    assert np.array_equal(written.affine, mask.affine)
    assert np.allclose(written.get_fdata().transpose(2, 1, 0), prediction.blood.astype(float), atol=1e-4)
    images = replace(volume, stack=None, source=SourceInfo("images", "folder", tuple(f"{k}.png" for k in range(4))))
    files = probability_files(images, prediction)
    pixels = np.asarray(Image.open(io.BytesIO(files["probability/2.png"])))
    assert np.allclose(pixels / 255, prediction.blood[2].astype(float), atol=0.003)


def test_the_same_mask_is_the_same_file() -> None:
    volume = volume_of((4, 6, 7), build_stack(np.eye(3), [5.0] * 3, (0.5, 0.5)))
    mask = LabelMap(labels_like(volume.shape), volume)
    assert mask_files(mask) == mask_files(mask)


def test_nibabel_reads_the_orientation_that_was_meant() -> None:
    volume = volume_of((4, 6, 7), build_stack(np.eye(3), [5.0] * 3, (0.5, 0.5)))
    mask = load(mask_files(LabelMap(labels_like(volume.shape), volume))["mask.nii.gz"])
    assert np.array_equal(io_orientation(mask.affine), axcodes2ornt("LPS"))
