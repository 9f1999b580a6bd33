"""Choosing the axial head series: a table of studies, and every refusal with its one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage, MRImageStorage, SecondaryCaptureImageStorage

import dicom_files as df
from hemolens.errors import DecodeError, GeometryError, InputError, SelectionError
from hemolens.notes import Severity
from hemolens.sources.dicom.kernels import Sharpness, kernel_sharpness
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.volume import Volume

HEAD = df.Series(slices=20, rows=16, columns=16, spacing_mm=(14.0, 14.0))
THIN = replace(HEAD, offsets_mm=tuple(1.25 * k for k in range(77)), slices=77)


def note(volume: Volume, code: str) -> str:
    return next((n.message for n in volume.notes if n.code == code), "")


def write_study(folder: Path, *series: df.Series) -> None:
    """Write each series with a UID and number of its own, in a folder of its own."""
    for number, one in enumerate(series, 1):
        named = replace(one, series=f"1.2.3.{number}", number=number)
        df.write_series(folder / f"S{number}", named)


RIVALS = [
    # What the better series (second in the study) is, its rival, and why the rival loses.
    ("coronal", HEAD, replace(HEAD, row_direction=df.CORONAL[0], column_direction=df.CORONAL[1]), "not axial"),
    ("sagittal", HEAD, replace(HEAD, row_direction=df.SAGITTAL[0], column_direction=df.SAGITTAL[1]), "not axial"),
    ("bone kernel, GE", HEAD, replace(HEAD, kernel="BONEPLUS"), "sharper kernel"),
    ("bone kernel, Siemens", replace(HEAD, kernel="H31s"), replace(HEAD, kernel="H60s"), "sharper kernel"),
    ("bone kernel, Siemens, two values", replace(HEAD, kernel="Hr38f\\3"), replace(HEAD, kernel="Hr64h\\3"), "sharper"),
    ("bone kernel, Philips", replace(HEAD, kernel="UB"), replace(HEAD, kernel="YC"), "sharper kernel"),
    ("bone kernel, Canon", replace(HEAD, kernel="FC26"), replace(HEAD, kernel="FC30"), "sharper kernel"),
    ("bone by description", replace(HEAD, kernel="x"), replace(HEAD, kernel="x", description="Knochen 1mm"), "sharper"),
    ("bolus tracking, few slices", HEAD, replace(HEAD, slices=3), "fewer than 5 slices"),
    ("part of the head", HEAD, replace(HEAD, slices=6), "covers only part of the head"),
    ("bone kernel, but the whole head", replace(HEAD, kernel="BONE"), replace(HEAD, slices=6), "only part of the head"),
    ("CTA", HEAD, replace(HEAD, description="CTA Head"), "contrast medium"),
    ("contrast by tag", HEAD, replace(HEAD, extra={"ContrastBolusAgent": "Iohexol"}), "contrast medium"),
    ("MIP", HEAD, replace(HEAD, image_type=("DERIVED", "SECONDARY", "MIP")), "projection or map"),
    ("perfusion map", HEAD, replace(HEAD, description="RAPID Tmax"), "projection or map"),
    ("chest by body part", HEAD, replace(HEAD, description="", extra={"BodyPartExamined": "CHEST"}), "another part"),
    ("cervical spine", HEAD, replace(HEAD, description="C-Spine 2mm"), "another part of the body"),
    ("chest by its field", HEAD, replace(HEAD, spacing_mm=(30.0, 30.0)), "field of view"),
    ("yesterday", HEAD, replace(HEAD, study="1.2.3.0", extra={"StudyDate": "20260101"}), "an earlier study"),
    ("thin slices", HEAD, THIN, "unusual distance"),
    ("reformat", HEAD, replace(HEAD, image_type=("DERIVED", "SECONDARY", "AXIAL")), "derived"),
    ("fewer slices", HEAD, replace(HEAD, slices=18, offsets_mm=tuple(5.6 * k for k in range(18))), "fewer slices"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "better", "rival", "why"), RIVALS, ids=[r[0] for r in RIVALS])
def test_the_better_series_wins_and_the_note_says_why(
    tmp_path: Path, name: str, better: df.Series, rival: df.Series, why: str
) -> None:
    write_study(tmp_path, rival, better)
    volume = read_volume(tmp_path)
    assert volume.source.series_uid == "1.2.3.2"
    said = note(volume, "series_chosen")
    assert f"({better.slices} slices" in said
    assert why in said
    assert f"{rival.slices} other CT series" in note(volume, "files_skipped")


def test_of_equals_the_first_is_taken_whatever_the_folder_order(tmp_path: Path) -> None:
    df.write_series(tmp_path / "a", replace(HEAD, series="1.2.9", number=9))
    df.write_series(tmp_path / "b", replace(HEAD, series="1.2.3", number=3))
    assert read_volume(tmp_path).source.series_uid == "1.2.3"


def test_non_contrast_words_are_not_contrast(tmp_path: Path) -> None:
    write_study(tmp_path, replace(HEAD, description="CTA"), replace(HEAD, description="Head w/o contrast"))
    assert read_volume(tmp_path).source.series_description == "Head w/o contrast"


def test_what_is_no_series_of_slices_is_left_out_and_counted(tmp_path: Path) -> None:
    df.write_series(tmp_path, HEAD)
    scout = replace(HEAD, slices=2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), series="1.2.9", description="x")
    df.write_series(tmp_path, scout, prefix="scout")
    capture = replace(HEAD, slices=1, sop_class=SecondaryCaptureImageStorage, series="1.2.10")
    df.write_series(tmp_path, capture, prefix="capture")
    magnet = replace(HEAD, slices=3, sop_class=MRImageStorage, modality="MR", series="1.2.11", patient="OTHER")
    df.write_series(tmp_path, magnet, prefix="mr")
    df.write_series(tmp_path, replace(HEAD, slices=1, series="1.2.12"), prefix="rgb", change=make_color)
    df.save(dose_report(), tmp_path / "dose.dcm")
    (tmp_path / "readme.txt").write_text("hello")
    volume = read_volume(tmp_path)
    assert len(volume) == 20
    skipped = note(volume, "files_skipped")
    for part in ("2 localizer", "1 secondary capture", "3 MR image", "1 color image", "1 dose or other report",
                 "1 of another kind", "9 left out"):  # fmt: skip
        assert part in skipped
    assert all(n.severity is Severity.INFO for n in volume.notes)


def make_color(_: int, ds: Dataset) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0


def dose_report() -> Dataset:
    ds = df.slice_dataset(HEAD, 0, df.pattern(HEAD)[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    ds.Modality = "SR"
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData"):
        delattr(ds, keyword)
    return ds


def test_one_series_alone_needs_no_explanation(tmp_path: Path) -> None:
    df.write_series(tmp_path, HEAD)
    assert note(read_volume(tmp_path), "series_chosen") == ""


def test_two_studies_of_one_patient_are_a_warning(tmp_path: Path) -> None:
    write_study(tmp_path, HEAD, replace(HEAD, study="1.2.8", extra={"StudyDate": "20260301"}))
    volume = read_volume(tmp_path)
    assert volume.source.study_uid == "1.2.8"
    chosen = next(n for n in volume.notes if n.code == "series_chosen")
    assert chosen.severity is Severity.WARNING
    assert "2 studies" in chosen.message


def test_a_series_can_be_asked_for(tmp_path: Path) -> None:
    write_study(tmp_path, replace(HEAD, kernel="BONE"), HEAD)
    volume = read_volume(tmp_path, ReadOptions(series_uid="1.2.3.1"))
    assert volume.source.series_uid == "1.2.3.1"
    assert "asked for by its UID" in note(volume, "series_chosen")


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.3.10", ""])
def test_an_unknown_series_lists_those_that_are_there(tmp_path: Path, uid: str) -> None:
    write_study(tmp_path, HEAD, replace(HEAD, slices=6))
    with pytest.raises(SelectionError, match=r"1\.2\.3\.1, 1\.2\.3\.2"):
        read_volume(tmp_path, ReadOptions(series_uid=uid))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_two_patients_are_refused_without_naming_them(tmp_path: Path) -> None:
    write_study(tmp_path, HEAD, replace(HEAD, patient="SECRET-8", slices=7))
    with pytest.raises(SelectionError, match="2 patients") as caught:
        read_volume(tmp_path)
    text = str(caught.value)
    assert "--series" in text
    assert "1.2.3.1 (20 slices)" in text
    assert "1.2.3.2 (7 slices)" in text
    assert not any(identity in text for identity in ("SECRET", "PATIENT-7", "Doe"))
    assert "\n" not in text


def test_of_two_patients_one_can_be_asked_for(tmp_path: Path) -> None:
    write_study(tmp_path, HEAD, replace(HEAD, patient="OTHER", slices=7))
    assert len(read_volume(tmp_path, ReadOptions(series_uid="1.2.3.2"))) == 7


def test_two_patients_under_one_series_uid_are_refused(tmp_path: Path) -> None:
    df.write_series(tmp_path, HEAD)
    df.write_series(tmp_path, replace(HEAD, patient="OTHER"), prefix="x")
    for options in (ReadOptions(), ReadOptions(series_uid=HEAD.series)):
        with pytest.raises(SelectionError, match="2 patients"):
            read_volume(tmp_path, options)


def test_studies_without_any_identity_count_as_different_patients(tmp_path: Path) -> None:
    nameless = replace(HEAD, extra={"PatientID": None, "PatientName": ""})
    write_study(tmp_path, nameless, replace(nameless, study="1.2.8"))
    with pytest.raises(SelectionError, match="2 patients"):
        read_volume(tmp_path)


def test_a_patient_of_whom_there_are_only_scouts_does_not_count(tmp_path: Path) -> None:
    scout = replace(HEAD, patient="OTHER", slices=1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_study(tmp_path, HEAD, scout)
    assert len(read_volume(tmp_path)) == 20


def test_the_rsna_folder_holds_twelve_patients(data: Path) -> None:
    folder = data / "rsna_slices"
    if not folder.is_dir():
        pytest.skip("rsna_slices is not among the real data")
    with pytest.raises(SelectionError, match="12 patients") as caught:
        read_volume(folder)
    assert "ID_1e59488a44 (1 slices)" in str(caught.value)
    assert "ID_ce5f0b6c" not in str(caught.value)
    one = read_volume(folder, ReadOptions(series_uid="ID_1e59488a44"))
    assert one.source.slice_names == ("ID_0000aee4b.dcm",)


@pytest.mark.parametrize(
    ("series", "kind", "match"),
    [
        (replace(HEAD, modality="MR", sop_class=MRImageStorage), InputError, "MR images, not CT"),
        (replace(HEAD, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), SelectionError, "only localizers"),
        (replace(HEAD, description="Topogram 0.6 T20s"), SelectionError, "only localizers"),
        (replace(HEAD, sop_class=SecondaryCaptureImageStorage), InputError, "only secondary capture"),
        (replace(HEAD, extra={"PixelSpacing": None}), GeometryError, "Pixel Spacing missing"),
    ],
)
def test_nothing_to_read_is_named(tmp_path: Path, series: df.Series, kind: type[InputError], match: str) -> None:
    df.write_series(tmp_path, series)
    for options in (ReadOptions(), ReadOptions(series_uid=series.series)):
        with pytest.raises(kind, match=match):
            read_volume(tmp_path, options)


def test_an_mr_series_asked_for_by_uid_is_refused_though_there_is_a_ct(tmp_path: Path) -> None:
    df.write_series(tmp_path / "ct", HEAD)
    df.write_series(tmp_path / "mr", replace(HEAD, modality="MR", sop_class=MRImageStorage, series="1.2.9"))
    with pytest.raises(InputError, match="MR images"):
        read_volume(tmp_path, ReadOptions(series_uid="1.2.9"))


def test_only_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    (tmp_path / "b.dcm").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"a\.dcm, b\.dcm"):
        read_volume(tmp_path)


def test_a_report_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no DICOM images"):
        read_volume(df.save(dose_report(), tmp_path / "x.dcm"))


@pytest.mark.parametrize(
    ("kernel", "description", "sharpness"),
    [
        ("", "", Sharpness.UNKNOWN),
        ("STD+", "", Sharpness.SOFT),
        ("SOFT", "bone", Sharpness.SOFT),
        ("J30s", "", Sharpness.SOFT),
        ("J70h 3", "", Sharpness.SHARP),
        ("Qr40", "", Sharpness.SOFT),
        ("FC64", "", Sharpness.SOFT),
        ("FC81", "", Sharpness.SHARP),
        ("EDGE", "Brain", Sharpness.SHARP),
        ("L", "", Sharpness.SHARP),
        ("mystery", "Bone recon", Sharpness.SHARP),
        ("mystery", "trombone", Sharpness.UNKNOWN),
        ("mystery", "Brain 5.0", Sharpness.SOFT),
    ],
)
def test_kernels(kernel: str, description: str, sharpness: Sharpness) -> None:
    assert kernel_sharpness(kernel, description) is sharpness
