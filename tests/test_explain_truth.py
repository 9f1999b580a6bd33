"""Maps are scored against the true mask by a formula that chance cannot fool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from explain_cases import little_head
from hemolens.errors import InputError
from hemolens.explain.energy import energy_inside
from hemolens.explain.truth import TrueMask, read_truth
from hemolens.geometry import Stack
from hemolens.preprocessing.window import to_gray
from hemolens.reports.nifti import file_affine, file_order, mask_files
from hemolens.volume import LabelMap, SourceInfo, Volume
from phantom import ORIENTATIONS

# Energy


@pytest.mark.parametrize("weights", [None, np.array([1.0, 3.0, 0.5])])
def test_an_even_map_gets_what_chance_gives(weights: NDArray[np.float64] | None) -> None:
    head = np.zeros((3, 8, 8), dtype=bool)
    head[:, 1:7, 1:7] = True
    lesion = np.zeros_like(head)
    lesion[1, 2:4, 2:5] = True
    energy = energy_inside(head.astype(np.float32), lesion, head, weights)
    share = 6 / 108 if weights is None else 6 * 3.0 / (36 * 4.5)
    assert energy.inside == pytest.approx(share)
    assert energy.chance == pytest.approx(share)
    assert energy.ratio == pytest.approx(1)


def test_energy_outside_the_head_counts_against_the_map() -> None:
    head, lesion = np.zeros((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    head[:, :5], lesion[0, 0] = True, True
    values = np.zeros((10, 10), dtype=np.float32)
    values[0, 0] = values[9, 9] = 1
    energy = energy_inside(values, lesion, head)
    assert energy.inside == pytest.approx(0.5)
    assert energy.chance == pytest.approx(1 / 50)
    assert energy_inside(values * lesion, lesion, head).inside == pytest.approx(1)
    assert energy_inside(values * lesion, lesion, head).peak_inside is True
    assert energy_inside(values * ~lesion, lesion, head).inside == 0
    assert energy_inside(values * ~lesion, lesion, head).peak_inside is False


def test_without_lesion_or_map_the_score_is_undefined_not_zero() -> None:
    some, none = np.eye(4, dtype=bool), np.zeros((4, 4), dtype=bool)
    for values, lesion in ((some.astype(np.float32), none), (none.astype(np.float32), some)):
        energy = energy_inside(values, lesion, some)
        assert np.isnan(energy.inside)
        assert energy.peak_inside is None
    with pytest.raises(ValueError, match="negative"):
        energy_inside(-some.astype(np.float32), some, some)
    with pytest.raises(ValueError, match="shape"):
        energy_inside(some.astype(np.float32), some[:2], some)


# The true mask


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_a_mask_that_analyze_wrote_is_read_back(tmp_path: Path, kind: Any, orientation: Any) -> None:
    row, column = orientation
    step = tuple(4.0 * float(v) for v in np.cross(row, column))
    source = SourceInfo(kind, "none.nii.gz", ndarray_axes=(2, 0, 1), ndarray_flips=(True, False, True))
    volume = Volume(np.zeros((3, 4, 5), np.int16), Stack.regular(3, (1, 2, 3), row, column, (0.5, 0.7), step), source)
    labels = np.random.default_rng(0).integers(0, 6, volume.shape).astype(np.uint8)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(mask_files(LabelMap(labels, volume))["mask.nii.gz"])
    truth = read_truth(path, volume)
    assert np.array_equal(truth.labels, labels)
    assert truth.known.all()
    assert np.array_equal(truth.lesion("subdural"), labels == 2)
    assert np.array_equal(truth.lesion("any", 1), labels[1] > 0)
    moved = replace(volume, stack=Stack.regular(3, (1, 2, 9), row, column, (0.5, 0.7), step))
    with pytest.raises(InputError, match=r"lies 6\.0 mm away"):
        read_truth(path, moved)


def test_a_mask_of_one_label_stands_for_every_finding() -> None:
    truth = TrueMask.of(np.array([[[0, 255]]], dtype=np.uint8))
    assert truth.of_finding("subdural") == "any blood"
    assert truth.lesion("subdural").tolist() == [[[False, True]]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((5, 4, 2)), "is 5 x 4 x 2 voxels, the scan 5 x 4 x 3"),
        (np.full((5, 4, 3), 0.4), "other values than labels"),
        (np.full((5, 4, 3), np.nan), "other values than labels"),
        (np.full((5, 4, 3), -1.0), "other values than labels"),
    ],
)
def test_a_file_that_is_no_mask_of_the_scan_is_refused(tmp_path: Path, data: NDArray[np.float64], words: str) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), Stack.regular(3), SourceInfo("dicom", "x"))
    assert file_order(volume.hu, volume).shape == (5, 4, 3)
    nib.save(nib.Nifti1Image(data.astype(np.float32), file_affine(volume)), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=words):
        read_truth(tmp_path / "mask.nii.gz", volume)


def test_files_that_are_no_nifti_are_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), Stack.regular(3), SourceInfo("dicom", "x"))
    (tmp_path / "mask.nii").write_bytes(b"no")
    for name, words in (("mask.nii", "cannot be read"), ("absent.nii", "is not there"), (".", "is no NIfTI")):
        with pytest.raises(InputError, match=words):
            read_truth(tmp_path / name, volume)


def test_mask_pictures_belong_to_slices_by_name(tmp_path: Path) -> None:
    volume = little_head(3, 16)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[2:5, 3:6] = 255
    Image.fromarray(mask).save(tmp_path / "2_HGE_Seg.png")
    Image.fromarray(to_gray(volume.hu[0])).save(tmp_path / "1.png")
    truth = read_truth(tmp_path, volume)
    assert truth.known.tolist() == [False, True, False]
    assert np.array_equal(truth.labels[1], mask > 0)
    one = read_truth(
        tmp_path / "2_HGE_Seg.png", replace(volume, hu=volume.hu[:1], source=SourceInfo("images", "x", ("a.png",)))
    )
    assert one.known.all()


def test_wrong_mask_pictures_are_refused(tmp_path: Path) -> None:
    volume = little_head(2, 16)
    with pytest.raises(InputError, match="holds no mask named like a slice"):
        read_truth(tmp_path, volume)
    Image.fromarray(np.zeros((16, 8), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match="is 8 x 16 pixels, its slice 16 x 16"):
        read_truth(tmp_path, volume)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_truth(tmp_path, volume)
    slices = replace(volume, source=replace(volume.source, path_or_uid=str(tmp_path)))
    with pytest.raises(InputError, match="holds the slices and no masks"):
        read_truth(tmp_path, slices)
