from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from hemolens.geometry import Stack
from hemolens.measurements.quality import (
    BODY_MM,
    METAL_HU,
    MIN_SLICES,
    THICK_MM,
    VESSEL_ML,
    assess,
)
from hemolens.measurements.survey import Survey
from hemolens.notes import QualityNote, Severity
from hemolens.preprocessing.window import to_gray, to_hu
from hemolens.volume import DisplayWindow, SourceInfo, Volume
from phantom import build_stack
from predictions import phantom_head


def codes(volume: Volume) -> list[str]:
    return [note.code for note in assess(volume)]


def note(volume: Volume, code: str) -> QualityNote:
    return next(n for n in assess(volume) if n.code == code)


def as_images(volume: Volume) -> Volume:
    """The same scan as 8-bit slice images of the brain window, without geometry."""
    return Volume(to_hu(to_gray(volume.hu)), None, SourceInfo("images", "slices", window=DisplayWindow()))


def restacked(volume: Volume, stack: Stack) -> Volume:
    return replace(volume, stack=stack)


@pytest.fixture(scope="module")
def head() -> Volume:
    return phantom_head()


@pytest.fixture(scope="module")
def fine() -> Volume:
    return phantom_head(size=256, pixel_mm=1.0)


@pytest.fixture(scope="module")
def tilted(data: Path) -> Volume:
    """The GE series, read here by hand: quality is judged apart from the reader."""
    folder = data / "dicom_head_tilted"
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}")
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    files.sort(
        key=lambda f: float(
            np.cross(f.ImageOrientationPatient[:3], f.ImageOrientationPatient[3:]) @ f.ImagePositionPatient
        )
    )
    hu = np.stack([f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in files])
    stack = Stack(
        np.array([f.ImagePositionPatient for f in files], float),
        np.array([f.ImageOrientationPatient[:3] for f in files], float),
        np.array([f.ImageOrientationPatient[3:] for f in files], float),
        np.array([f.PixelSpacing for f in files], float),
    )
    return Volume(np.maximum(hu, -1024).astype(np.int16), stack, SourceInfo("dicom", "tilted"))


def painted(volume: Volume, changes: np.ndarray, value: int) -> Volume:
    hu = volume.hu.copy()
    hu[changes] = value
    return replace(volume, hu=hu)


def vessels(volume: Volume) -> np.ndarray:
    """Tubes that run through the brain from slice to slice, as arteries and deep veins do, and two in the plane."""
    inside = np.repeat(np.repeat(Survey(volume).inside, Survey(volume).stride, 1), Survey(volume).stride, 2)
    full = np.zeros(volume.shape, bool)
    full[:, : inside.shape[1], : inside.shape[2]] = inside[:, : volume.shape[1], : volume.shape[2]]
    tubes = np.zeros(volume.shape, bool)
    mm = volume.stack.spacings_mm[0, 0]
    for k in np.flatnonzero(full.any(axis=(1, 2))):
        center = np.argwhere(full[k]).mean(axis=0)
        y, x = np.indices(volume.shape[1:])
        for i in range(8):
            angle = i * np.pi / 4 + 0.1 * k
            at = center + np.array([np.sin(angle), np.cos(angle)]) * 35 / mm
            tubes[k] |= np.hypot(y - at[0], x - at[1]) * mm < 2.0
    return tubes & full


def test_an_ordinary_head_raises_nothing(head: Volume) -> None:
    assert codes(head) == []
    assert codes(as_images(head)) == []


def test_turned_and_flipped_heads_raise_nothing(head: Volume) -> None:
    s = head.stack
    upside_down = Stack(s.positions_mm * (1, 1, -1), s.row_directions * -1, s.column_directions, s.spacings_mm)
    assert upside_down.normal[2] == -1
    assert codes(restacked(head, upside_down)) == []
    assert codes(replace(head, hu=head.hu.swapaxes(1, 2).copy())) == []


def test_too_few_slices_are_told_by_number_or_by_height(head: Volume) -> None:
    def part(low: int, high: int, step: float = 5.0) -> Volume:
        return Volume(
            head.hu[low:high], Stack.regular(high - low, spacing_mm=(2, 2), step_mm=(0, 0, step)), head.source
        )

    assert "too_few_slices" in codes(part(10, 10 + MIN_SLICES - 1, 12.0))
    assert "too_few_slices" in codes(part(10, 20))
    assert note(part(16, 17), "too_few_slices").message.startswith("Only 1 slice:")
    assert "too_few_slices" not in codes(part(4, 30))


def test_thick_slices_are_named_and_a_gap_is_not_thickness(head: Volume) -> None:
    def spaced(gaps: list[float]) -> Volume:
        return restacked(head, build_stack(np.eye(3), gaps, (2, 2)))

    n = len(head) - 1
    assert "thick_slices" not in codes(spaced([THICK_MM - 0.1] * n))
    assert note(spaced([THICK_MM + 0.1] * n), "thick_slices").slices == ()
    assert note(spaced([5.0] * 10 + [10.0] * (n - 10)), "thick_slices").slices == tuple(range(11, n + 1))
    assert "thick_slices" not in codes(spaced([5.0] * 10 + [20.0] + [5.0] * (n - 11)))


def test_slices_far_from_axial_are_told_whichever_way_they_run(head: Volume) -> None:
    def leaning(degrees: float) -> list[str]:
        a = np.radians(degrees)
        frame = np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]])
        return codes(restacked(head, build_stack(frame, [5.0] * (len(head) - 1), (2, 2))))

    assert "not_axial" not in leaning(30)
    assert "not_axial" in leaning(40)
    assert "not_axial" in leaning(90)
    assert "not_axial" not in leaning(180)


def test_a_magnetic_resonance_image_does_not_look_like_ct(head: Volume) -> None:
    rng = np.random.default_rng(0)
    mr = np.where(head.hu > -500, 600 + 200 * rng.random(head.shape), 20 * rng.random(head.shape)).astype(np.int16)
    assert codes(replace(head, hu=mr)) == ["modality"]
    assert "No air" in note(replace(head, hu=mr), "modality").message


def test_a_masked_brain_does_not_look_like_ct(head: Volume) -> None:
    brain = np.where(head.hu == 35, 35, -1000).astype(np.int16)
    assert codes(replace(head, hu=brain)) == ["modality"]
    assert "No bone" in note(replace(head, hu=brain), "modality").message


def test_a_small_ring_of_bone_in_a_neck_is_no_head() -> None:
    head = phantom_head()
    neck = np.full(head.shape, -1000, np.int16)
    y, x = np.indices(head.shape[1:]) * 2.0 - 127.0
    neck[:, np.hypot(y, x) < 65] = 40
    neck[:, (np.hypot(y - 10, x) < 20) & (np.hypot(y - 10, x) > 10)] = 700
    assert "not_a_head" in codes(replace(head, hu=neck))
    assert "not_a_head" in codes(as_images(replace(head, hu=neck)))


def test_a_chest_is_told_by_its_width_and_by_its_lungs(head: Volume) -> None:
    def chest(width: float) -> Volume:
        shape = (30, 200, 200)
        pixel = 2.0
        y, x = np.indices(shape[1:]) * pixel - 200
        hu = np.full(shape, -1000, np.int16)
        hu[:, (x / width) ** 2 + (y / (0.7 * width)) ** 2 < 0.25] = 40
        for side in (-1, 1):
            hu[:, ((x + side * width / 4) / (0.16 * width)) ** 2 + (y / (0.22 * width)) ** 2 < 1] = -850
        hu[:, np.hypot(y - 0.28 * width, x) < 20] = 500
        return Volume(hu, Stack.regular(30, spacing_mm=(pixel, pixel), step_mm=(0, 0, 5)), head.source)

    assert "wider" in note(chest(BODY_MM + 20), "field_of_view").message
    child = note(chest(220), "field_of_view")
    assert "lungs" in child.message
    assert child.severity is Severity.WARNING
    assert child.slices == tuple(range(30))


def test_a_head_in_a_wide_field_is_remarked_and_not_warned() -> None:
    wide = note(phantom_head(size=200, pixel_mm=2.0), "field_of_view")
    assert wide.severity is Severity.INFO
    assert "400 mm" in wide.message


@pytest.mark.parametrize("images", [False, True])
def test_a_head_that_the_border_cuts_is_told(head: Volume, images: bool) -> None:
    from_side = replace(head, hu=head.hu[:, :, 40:].copy())
    cut = note(as_images(from_side) if images else from_side, "cropped_head")
    assert "border" in cut.message
    assert len(head) // 2 in cut.slices
    assert 0 not in cut.slices


def test_a_head_that_the_scanners_circle_cuts_is_told() -> None:
    """Far off center, toward a corner: away from every border, yet beyond the circle that is reconstructed."""
    head = phantom_head(scale=0.75)
    aside = np.roll(head.hu, (-25, -25), axis=(1, 2))
    assert "cropped_head" not in codes(replace(head, hu=aside))
    y, x = np.indices(aside.shape[1:]) - 63.5
    aside[:, np.hypot(y, x) > 64] = -1000
    assert "cropped_head" in codes(replace(head, hu=aside))


def test_a_missing_top_or_base_is_told_in_either_order(head: Volume) -> None:
    def part(low: int, high: int, down: bool) -> Volume:
        s = head.stack
        turn = -1 if down else 1
        stack = Stack(
            s.positions_mm[low:high] * (1, 1, turn),
            s.row_directions[low:high] * turn,
            s.column_directions[low:high],
            s.spacings_mm[low:high],
        )
        return Volume(head.hu[low:high], stack, head.source)

    n = len(head)
    assert "The top of" in note(part(0, n // 2 + 2, False), "cropped_head").message
    assert "The base of" in note(part(0, n // 2 + 2, True), "cropped_head").message
    assert "The base of" in note(part(n // 2 - 2, n, False), "cropped_head").message
    assert "top and the base" in note(part(n // 2 - 6, n // 2 + 6, False), "cropped_head").message


def test_metal_is_found_where_it_is_and_a_hot_pixel_is_not_metal(head: Volume, fine: Volume) -> None:
    clip = np.zeros(head.shape, bool)
    clip[12, 60:62, 60] = clip[14, 70, 70:72] = True
    found = note(painted(head, clip, METAL_HU), "metal_suspected")
    assert found.slices == (12, 14)
    assert "metal_suspected" not in codes(painted(head, clip, METAL_HU - 1))
    hot = np.zeros(fine.shape, bool)
    hot[12, 100, 100] = True
    assert "metal_suspected" not in codes(painted(fine, hot, 3071))


def test_contrast_in_vessels_is_suspected_and_calcification_is_not(fine: Volume) -> None:
    assert "contrast_suspected" in codes(painted(fine, vessels(fine), 220))
    assert "contrast_suspected" not in codes(painted(fine, vessels(fine), 90))
    plexus = np.zeros(fine.shape, bool)
    for k in range(16, 22):
        plexus[k, 120:128, 100:108] = plexus[k, 120:128, 150:158] = True
    assert plexus.sum() * 0.005 > VESSEL_ML
    assert "contrast_suspected" not in codes(painted(fine, plexus, 300))


def test_clipped_images_are_not_judged_by_values_that_they_cannot_hold(fine: Volume) -> None:
    metal = np.zeros(fine.shape, bool)
    metal[12, 60:70, 60:70] = True
    both = painted(painted(fine, vessels(fine), 220), metal, 3071)
    assert {"contrast_suspected", "metal_suspected"} <= set(codes(both))
    assert not {"contrast_suspected", "metal_suspected", "modality"} & set(codes(as_images(both)))


def test_an_uneven_dicom_stack_says_what_its_mask_file_lacks(head: Volume) -> None:
    uneven = restacked(head, build_stack(np.eye(3), [5.0] * 10 + [4.0] * (len(head) - 11), (2, 2)))
    assert "mask_geometry.json" in note(uneven, "uneven_spacing").message
    assert note(uneven, "uneven_spacing").severity is Severity.INFO
    tilt = restacked(head, build_stack(np.eye(3), [5.0] * (len(head) - 1), (2, 2), lean=(0.0, 0.3)))
    assert codes(tilt) == []


def test_the_tilted_series_raises_only_what_is_so(tilted: Volume) -> None:
    assert codes(tilted) == ["uneven_spacing"]


def test_contrast_and_metal_painted_into_the_tilted_series_are_found(tilted: Volume) -> None:
    assert "contrast_suspected" in codes(painted(tilted, vessels(tilted), 200))
    blood = np.zeros(tilted.shape, bool)
    blood[14:20, 200:260, 220:280] = True
    assert "contrast_suspected" not in codes(painted(tilted, blood, 75))
    coil = np.zeros(tilted.shape, bool)
    coil[12, 240:246, 250:256] = True
    assert note(painted(tilted, coil, 3071), "metal_suspected").slices == (12,)


def test_parts_of_the_tilted_series_are_told(tilted: Volume) -> None:
    s = tilted.stack
    low = Stack(s.positions_mm[:18], s.row_directions[:18], s.column_directions[:18], s.spacings_mm[:18])
    assert "The top of" in note(Volume(tilted.hu[:18], low, tilted.source), "cropped_head").message
    cut = replace(tilted, hu=tilted.hu[:, :, 180:].copy())
    assert "border" in note(cut, "cropped_head").message


def test_ordinary_slice_images_raise_no_false_warning(data: Path) -> None:
    """Every tenth patient of CT-ICH, among them a child with open sutures (85)."""
    root = data / "ct_ich" / "Patients_CT"
    if not root.is_dir():
        pytest.skip(f"real test data not found at {root}")
    folders = [*sorted(root.iterdir())[::10], root / "085"]
    raised: Counter[str] = Counter()
    for folder in folders:
        files = [f for f in (folder / "brain").glob("*.jpg") if f.stem.isdigit()]
        files.sort(key=lambda f: int(f.stem))
        gray = np.stack([np.asarray(Image.open(f).convert("L")) for f in files])
        raised.update(codes(Volume(to_hu(gray), None, SourceInfo("images", folder.name, window=DisplayWindow()))))
    assert len(folders) > 5
    assert not raised
