"""SEG, SR and summary image: every voxel, number, reference and name in them, read back by other means than our own."""

from __future__ import annotations

import io
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_files import CORONAL, SAGITTAL, Series, enhanced_dataset, save, transcode, write_medium, write_series
from hemolens.errors import ConfigError
from hemolens.geometry import Stack
from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import Findings
from hemolens.notes import QualityNote, Severity
from hemolens.reports.dicom_common import Origin, obstacle, origin_notes
from hemolens.reports.dicom_files import dicom_files
from hemolens.reports.dicom_seg import segmentation
from hemolens.reports.folder import write_reports
from hemolens.sources.study import read_volume
from hemolens.volume import LabelMap, SourceInfo, Volume
from predictions import analyzed, bleeding_head, phantom_head

SMALL = Series(slices=4, rows=7, columns=5)
TIMES = ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "SeriesDate", "SeriesTime")


@dataclass
class Written:
    """A scan, what was found in it, and the DICOM results."""

    volume: Volume
    label_map: LabelMap
    findings: Findings
    files: dict[str, bytes]

    @property
    def seg(self) -> Dataset:
        return pydicom.dcmread(io.BytesIO(self.files["seg.dcm"]))

    @property
    def sr(self) -> Dataset:
        return pydicom.dcmread(io.BytesIO(self.files["sr.dcm"]))


def blobs(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Labels of all subtypes; the first slice stays empty."""
    labels = np.random.default_rng(seed).integers(0, 3 * len(SUBTYPES), shape)
    labels[labels > len(SUBTYPES)] = 0
    labels[0] = 0
    return labels.astype(np.uint8)


def written(source: Path, labels: NDArray[np.uint8] | None = None, **options: Any) -> Written:
    volume = read_volume(source)
    return write(volume, blobs(volume.shape) if labels is None else labels, **options)


def write(volume: Volume, labels: NDArray[np.uint8], summary_image: bool = False, **options: Any) -> Written:
    _, label_map, findings = analyzed(volume, labels, **options)
    return Written(volume, label_map, findings, dicom_files(label_map, findings, summary_image=summary_image))


def sources(folder: Path) -> dict[str, Dataset]:
    files = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR"]
    return {ds.SOPInstanceUID: ds for ds in files}


def frame_groups(seg: Dataset, index: int) -> Callable[[str], Dataset]:
    """Look up a functional group of a frame: its own, else the shared one."""
    own, shared = seg.PerFrameFunctionalGroupsSequence[index], seg.SharedFunctionalGroupsSequence[0]
    return lambda name: (own if name in own else shared)[name].value[0]


def check_voxels(result: Written, folder: Path) -> None:
    """Each frame is the label map's slice of the image that it names, and lies where that image lies."""
    seg, by_uid, seen = result.seg, sources(folder), np.zeros(result.volume.shape, np.uint8)
    pixels = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    mask = pixels[: seg.NumberOfFrames * seg.Rows * seg.Columns].reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    subtype_of = {s.snomed_code: s.index for s in SUBTYPES}
    segments = {
        s.SegmentNumber: subtype_of[s.SegmentedPropertyTypeCodeSequence[0].CodeValue] for s in seg.SegmentSequence
    }
    names = list(zip(result.volume.source.sop_instance_uids, result.volume.source.origin.frame_numbers, strict=True))
    for index in range(seg.NumberOfFrames):
        group = frame_groups(seg, index)
        source = group("DerivationImageSequence").SourceImageSequence[0]
        place = names.index((source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")))
        seen[place] += mask[index] * segments[group("SegmentIdentificationSequence").ReferencedSegmentNumber]
        image = by_uid[source.ReferencedSOPInstanceUID]
        assert source.ReferencedSOPClassUID == image.SOPClassUID
        if "ReferencedFrameNumber" in source:
            of_frame = frame_groups(image, source.ReferencedFrameNumber - 1)
            position, plane, measures = (
                of_frame(n) for n in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
            )
        else:
            position = plane = measures = image
        orientation = group("PlaneOrientationSequence").ImageOrientationPatient
        assert np.allclose(orientation, plane.ImageOrientationPatient, atol=1e-4)
        # Exactly, where the source keeps to the 16 characters of a decimal string.
        told, true = group("PlanePositionSequence").ImagePositionPatient, position.ImagePositionPatient
        assert np.allclose(told, true, rtol=0, atol=1e-9)
        assert all(a == b for a, b in zip(told, true, strict=True) if len(str(b)) <= 16)
        assert group("PixelMeasuresSequence").PixelSpacing == measures.PixelSpacing
        assert group("PixelMeasuresSequence").SliceThickness == measures.SliceThickness
    assert np.array_equal(seen, result.label_map.labels)


def numbers(group: Any) -> dict[str, float]:
    return {m.name.value: float(m.value) for m in group.get_measurements()}


# -- the segmentation -------------------------------------------------------------------------------------------------


@st.composite
def series_of_any_pose(draw: st.DrawFn) -> Series:
    row, column = draw(st.sampled_from([((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), CORONAL, SAGITTAL]))
    angle = np.radians(draw(st.floats(-30, 30)))
    normal = np.cross(row, column)
    turned = np.cos(angle) * np.asarray(column) + np.sin(angle) * normal
    steps = draw(st.lists(st.sampled_from([1.25, 4.0, 5.0, 7.5]), min_size=2, max_size=5))
    return Series(
        slices=len(steps) + 1,
        rows=draw(st.integers(3, 9)),
        columns=draw(st.integers(3, 9)),
        row_direction=row,
        column_direction=tuple(float(f"{x:.6f}") for x in turned),
        along=tuple(normal) if draw(st.booleans()) else None,
        offsets_mm=tuple(np.cumsum([0.0, *steps]) * draw(st.sampled_from([1, -1]))),
        origin_mm=(draw(st.integers(-2000, 2000)) / 16, -110.5, draw(st.integers(-2000, 2000)) / 16),
        spacing_mm=draw(st.sampled_from([(10.0, 10.0), (12.5, 9.0)])),
    )


@given(series=series_of_any_pose(), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_every_voxel_lies_where_its_source_image_has_it(
    series: Series, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pose")
    write_series(folder, series)
    volume = read_volume(folder)
    _, label_map, findings = analyzed(volume, blobs(volume.shape, seed))
    found = segmentation(Origin(volume, findings), label_map)
    assert (found is not None) == bool(label_map.labels.any())
    if found is not None:
        check_voxels(Written(volume, label_map, findings, {"seg.dcm": found.content}), folder)
    shutil.rmtree(folder)


def test_highdicom_reads_the_label_map_back(tmp_path: Path) -> None:
    write_series(tmp_path, replace(SMALL, offsets_mm=(0, 5, 10, 17)))
    result = written(tmp_path)
    seg = highdicom.seg.Segmentation.from_dataset(result.seg)
    back = seg.get_pixels_by_source_instance(
        list(result.volume.source.sop_instance_uids), combine_segments=True, ignore_spatial_locations=False,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    index_of = {n: seg.get_segment_description(n).segmented_property_type.value for n in seg.segment_numbers}
    code_of = {s.index: s.snomed_code for s in SUBTYPES}
    for number in seg.segment_numbers:
        assert index_of[number] == code_of[int(np.unique(result.label_map.labels[back == number])[0])]
    assert np.array_equal(back > 0, result.label_map.labels > 0)


def test_small_differences_between_slices_stay_those_of_each_slice(tmp_path: Path) -> None:
    """Headers of one stack may differ in the last digits of direction and spacing, and in their thickness."""

    def change(index: int, ds: Dataset) -> None:
        ds.PixelSpacing = [10.0, 10.0 + 0.0004 * index]
        ds.SliceThickness = [5, 5, 5, 7][index]
        ds.ImageOrientationPatient = [1, 0, 0, 0, np.cos(5e-5 * index), np.sin(5e-5 * index)]

    write_series(tmp_path, replace(SMALL, offsets_mm=(0, 5, 10, 17)), change=change)
    result = written(tmp_path)
    check_voxels(result, tmp_path)
    shared = result.seg.SharedFunctionalGroupsSequence[0]
    assert "PixelMeasuresSequence" not in shared
    assert "PlaneOrientationSequence" not in shared


def test_several_multiframe_files_of_one_series(tmp_path: Path) -> None:
    for part in range(2):
        series = replace(SMALL, origin_mm=(0.0, 0.0, 20.0 * part))
        ds = enhanced_dataset(series)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{part + 1}"
        save(ds, tmp_path / f"{part}.dcm")
    result = written(tmp_path)
    check_voxels(result, tmp_path)
    (series,) = result.seg.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == 2
    (evidence,) = result.sr.CurrentRequestedProcedureEvidenceSequence
    counts = sorted(len(s.ReferencedSOPSequence) for s in evidence.ReferencedSeriesSequence)
    assert counts == [1, 2]


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless, "1.2.840.10008.1.2.2"])
def test_compressed_sources(syntax: str, tmp_path: Path) -> None:
    series = replace(SMALL, rows=16, columns=16)
    if syntax == "1.2.840.10008.1.2.2":  # big endian
        write_series(tmp_path, replace(series, syntax=syntax))
    else:
        for path in write_series(tmp_path, series):
            transcode(path, syntax)
    check_voxels(written(tmp_path), tmp_path)


def test_folder_zip_and_dicomdir_give_the_same_objects(tmp_path: Path) -> None:
    extra = {"StudyTime": "120000", "StudyID": "1"}
    paths = write_series(tmp_path / "folder", replace(SMALL, extra=extra))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"a/{path.name}")
    write_medium(tmp_path / "medium", paths)
    results = [written(tmp_path / name).files for name in ("folder", "scan.zip", "medium/DICOMDIR", "medium")]
    assert all(set(files) == {"seg.dcm", "sr.dcm"} for files in results)
    assert all(files == results[0] for files in results)


def test_segments_say_what_and_by_whom(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL)
    labels = np.zeros((4, 7, 5), np.uint8)
    labels[1, 1, 1] = labels[3, 5, 3] = 2
    labels[2, 2:4, 1:3] = 5
    result = written(tmp_path, labels)
    seg = highdicom.seg.Segmentation.from_dataset(result.seg)
    assert seg.segmentation_type.value == "BINARY"
    assert seg.ContentQualification == "RESEARCH"
    assert "research use only" in seg.SeriesDescription
    subdural, ventricular = (seg.get_segment_description(n) for n in (1, 2))
    assert (subdural.segment_label, subdural.segmented_property_type.value) == ("Subdural hemorrhage", "35486000")
    assert ventricular.segmented_property_type.value == "23276006"
    assert subdural.segmented_property_category.value == "49755003"
    color = highdicom.color.CIELabColor.from_dicom_value(subdural.RecommendedDisplayCIELabValue)
    assert color.to_rgb() == (0, 190, 110)
    algorithm = subdural.algorithm_identification
    assert (algorithm.name, algorithm.version) == ("hemolens test-net", result.findings.hemolens_version)
    assert algorithm.parameters == {
        "weights_sha256": "0" * 64, "study_threshold": "0.5", "notice": "Research use only. Not a medical device.",
    }  # fmt: skip
    assert seg.SoftwareVersions == [f"hemolens {result.findings.hemolens_version}", "test-net"]
    assert len({subdural.tracking_uid, ventricular.tracking_uid}) == 2


# -- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("reported")
    write_series(folder, replace(SMALL, slices=6))
    labels = np.zeros((6, 7, 5), np.uint8)
    labels[1:3, 1:4, 1:4] = 4
    labels[4:, 5:, 0] = 4
    labels[4, 1, 3:] = 2
    notes = (QualityNote("thick_slices", Severity.WARNING, "Slices are 9 mm thick", (2, 3)),)
    return written(folder, labels, notes=notes)


def test_the_report_has_the_numbers_of_the_findings(reported: Written) -> None:
    report = highdicom.sr.Comprehensive3DSR.from_dataset(reported.sr)
    (scan,) = report.content.get_image_measurement_groups()
    groups = report.content.get_volumetric_roi_measurement_groups()
    found, total = reported.findings.lesions, reported.findings.total
    assert len(groups) == len(found) == 3
    study = numbers(scan)
    assert study["111012"] == pytest.approx(100 * reported.findings.study.probability["any"], abs=1e-6)
    assert study["threshold"] == 100 * reported.findings.study.threshold
    assert study["118565006"] == pytest.approx(total.volume_ml, abs=1e-6)
    for subtype in SUBTYPES:
        told = reported.findings.study.probability[subtype.name]
        assert study[f"probability_{subtype.abbreviation}"] == pytest.approx(100 * told, abs=1e-6)
    (decision,) = scan.get_qualitative_evaluations()
    assert (decision.name.value, decision.value.meaning) == ("decision", "Positive")
    codes = {s.name: s.snomed_code for s in SUBTYPES}
    for group, lesion in zip(groups, found, strict=True):
        assert group.finding_type.value == codes[lesion.subtype]
        told = numbers(group)
        assert told["118565006"] == pytest.approx(lesion.volume_ml, abs=1e-6)
        assert told["112031"] == pytest.approx(lesion.mean_hu, abs=1e-6)
        assert told["111012"] == pytest.approx(100 * lesion.probability, abs=1e-6)
        assert [m.unit.value for m in group.get_measurements()] == ["cm3", "%", "[hnsf'U]"]
        (center,) = (i for i in group[0].ContentSequence if i.ValueType == "SCOORD3D")
        assert (center.GraphicType, center.ReferencedFrameOfReferenceUID) == ("POINT", "1.2.3.4.99")
        assert np.allclose(center.GraphicData, lesion.centroid_mm, atol=1e-4)


def test_the_volume_of_a_segment_is_what_its_lesions_add_up_to(reported: Written) -> None:
    seg, stack = reported.seg, reported.volume.require_stack()
    voxels = np.zeros(1 + len(seg.SegmentSequence))
    frames = highdicom.seg.Segmentation.from_dataset(seg)
    for index, frame in enumerate(frames.pixel_array):
        group = frame_groups(seg, index)
        spacing = [float(v) for v in group("PixelMeasuresSequence").PixelSpacing]
        extent = float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices)
        number = group("SegmentIdentificationSequence").ReferencedSegmentNumber
        voxels[number] += frame.sum() * np.prod(spacing) * extent / 1000
    by_subtype = reported.findings.total.by_subtype
    assert voxels[1:] == pytest.approx([by_subtype["subdural"], by_subtype["intraparenchymal"]])
    assert stack.is_regular


def test_lesions_refer_to_segment_frames_and_images(reported: Written) -> None:
    seg, sr = reported.seg, highdicom.sr.Comprehensive3DSR.from_dataset(reported.sr)
    uids = reported.volume.source.sop_instance_uids
    tracking = {s.SegmentNumber: s.TrackingUID for s in seg.SegmentSequence}
    subtypes = [lesion.subtype for lesion in reported.findings.lesions]
    groups = sr.content.get_volumetric_roi_measurement_groups()
    for group, lesion in zip(groups, reported.findings.lesions, strict=True):
        images = [i for i in group[0].ContentSequence if i.ValueType == "IMAGE"]
        by_name: dict[str, list[Dataset]] = {}
        for image in images:
            by_name.setdefault(image.ConceptNameCodeSequence[0].CodeValue, []).append(image.ReferencedSOPSequence[0])
        (segment,), (frames,) = by_name["121191"], by_name["121112"]
        assert {segment.ReferencedSOPInstanceUID, frames.ReferencedSOPInstanceUID} == {seg.SOPInstanceUID}
        assert "ReferencedFrameNumber" not in segment
        shown = []
        numbers = frames.ReferencedFrameNumber
        for number in [numbers] if isinstance(numbers, int) else numbers:
            look_up = frame_groups(seg, number - 1)
            assert look_up("SegmentIdentificationSequence").ReferencedSegmentNumber == segment.ReferencedSegmentNumber
            shown.append(look_up("DerivationImageSequence").SourceImageSequence[0].ReferencedSOPInstanceUID)
        assert shown == [uids[k] for k in lesion.slices]
        assert [s.ReferencedSOPInstanceUID for s in by_name["121233"]] == shown
        same = group.tracking_uid == tracking[segment.ReferencedSegmentNumber]
        assert same == (subtypes.count(lesion.subtype) == 1)
    assert len({group.tracking_uid for group in groups}) == 3
    (evidence,) = sr.CurrentRequestedProcedureEvidenceSequence
    named = {i.ReferencedSOPInstanceUID for s in evidence.ReferencedSeriesSequence for i in s.ReferencedSOPSequence}
    assert named == {*uids, seg.SOPInstanceUID}


def test_the_report_says_research_only_who_made_it_and_every_note(reported: Written) -> None:
    sr = reported.sr
    texts = [i.TextValue for i in sr.ContentSequence if i.ValueType == "TEXT"]
    assert "Research use only. Not a medical device." in texts
    assert "warning thick_slices: Slices are 9 mm thick (slices 2, 3)" in texts
    assert {"hemolens", "test-net", "0" * 64} <= set(texts)
    assert (sr.ContentTemplateSequence[0].TemplateIdentifier, sr.Modality) == ("1500", "SR")
    assert (sr.VerificationFlag, sr.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert sr.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99HEMOLENS"


def test_the_report_of_an_uncertain_scan_asks_for_a_human(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL)
    report = highdicom.sr.Comprehensive3DSR.from_dataset(written(tmp_path, study_band=(0.5, 1.0)).sr)
    (scan,) = report.content.get_image_measurement_groups()
    decision, human = scan.get_qualitative_evaluations()
    assert (decision.name.value, decision.value.meaning) == ("decision", "Positive")
    assert (human.name.value, human.value.meaning) == ("human_first", "Yes")


def test_a_negative_scan_gets_a_report_and_no_segmentation(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL)
    result = written(tmp_path, np.zeros((4, 7, 5), np.uint8))
    assert set(result.files) == {"sr.dcm"}
    report = highdicom.sr.Comprehensive3DSR.from_dataset(result.sr)
    (scan,) = report.content.get_image_measurement_groups()
    (decision,) = scan.get_qualitative_evaluations()
    assert decision.value.meaning == "Negative"
    assert numbers(scan)["118565006"] == 0
    assert not report.content.get_volumetric_roi_measurement_groups()


def test_a_slice_of_unknown_thickness_has_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path, replace(SMALL, slices=1, extra={"SliceThickness": None}))
    labels = np.zeros((1, 7, 5), np.uint8)
    labels[0, 2:5, 2:5] = 3
    result = written(tmp_path, labels)
    report = highdicom.sr.Comprehensive3DSR.from_dataset(result.sr)
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    assert set(numbers(group)) == {"111012", "112031"}
    measures = result.seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert "SliceThickness" not in measures


# -- the same again ---------------------------------------------------------------------------------------------------


def without_times(content: bytes) -> Dataset:
    ds = pydicom.dcmread(io.BytesIO(content))
    for keyword in TIMES:
        assert keyword in ds
        delattr(ds, keyword)
    return ds


def test_the_same_scan_gives_the_same_bytes_but_for_the_time(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL)
    first = written(tmp_path, summary_image=True)
    again = read_volume(tmp_path)
    same = dicom_files(LabelMap(first.label_map.labels, again), first.findings, summary_image=True)
    assert same == first.files
    later = replace(first.findings, created="2031-05-06T07:08:09+00:00", timing_s={"read": 9.0})
    files = dicom_files(LabelMap(first.label_map.labels, again), later, summary_image=True)
    assert set(files) == {"seg.dcm", "sr.dcm", "summary.dcm"}
    for name, content in files.items():
        assert content != first.files[name]
        assert without_times(content) == without_times(first.files[name])


def uids_in(files: dict[str, bytes]) -> set[str]:
    """UIDs of hemolens's own making."""
    found = set()
    for content in files.values():
        for element in pydicom.dcmread(io.BytesIO(content)).iterall():
            if element.VR == "UI" and str(element.value).startswith("2.25."):
                found.add(str(element.value))
    return found


def test_another_scan_model_or_version_gives_other_uids(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL)
    result = written(tmp_path)
    device = {i.UID for i in result.sr.ContentSequence if i.ValueType == "UIDREF"}
    own = uids_in(result.files) - device
    assert len(own) >= 10
    hu = result.volume.hu.copy()
    hu[0, 0, 0] += 1
    stack = result.volume.require_stack()
    moved = Stack(stack.positions_mm + 0.5, stack.row_directions, stack.column_directions, stack.spacings_mm, 5.0)
    model, source = result.findings.model, result.volume.source
    others = [
        (replace(result.volume, hu=hu), result.findings),
        (replace(result.volume, stack=moved), result.findings),
        (replace(result.volume, source=replace(source, series_uid="1.2.3.4.6")), result.findings),
        (result.volume, replace(result.findings, model=replace(model, sha256="1" * 64))),
        (result.volume, replace(result.findings, model=replace(model, card={"thresholds": {"mask": 0.4}}))),
        (result.volume, replace(result.findings, hemolens_version="99")),
    ]
    for volume, findings in others:
        files = dicom_files(LabelMap(result.label_map.labels, volume), findings)
        assert not uids_in(files) & own
    assert all(len(uid) <= 64 for uid in own)


# -- whose it is ------------------------------------------------------------------------------------------------------


def test_patient_and_study_are_those_of_the_source(tmp_path: Path) -> None:
    extra = {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "PatientBirthDate": "19510203", "PatientSex": "M", "PatientAge": "074Y", "AccessionNumber": "A-17",
        "ReferringPhysicianName": "Who^Doctor", "StudyID": "S1", "StudyTime": "101112.5", "OtherPatientNames": "Taro",
        "StudyDescription": "CT HEAD", "ClinicalTrialProtocolID": "P", "EthnicGroup": "x",
    }  # fmt: skip
    write_series(tmp_path, replace(SMALL, extra=extra))
    result = written(tmp_path, summary_image=True)
    source = next(iter(sources(tmp_path).values()))
    for name, content in result.files.items():
        ds = pydicom.dcmread(io.BytesIO(content))
        for keyword in (set(extra) | {"PatientID", "StudyDate", "StudyInstanceUID"}) - {"SpecificCharacterSet"}:
            assert ds[keyword].value == source[keyword].value, (name, keyword)
        assert str(ds.PatientName) == extra["PatientName"]
        assert ds.SpecificCharacterSet == "ISO_IR 192"
        assert ds.Manufacturer == "hemolens"


def test_what_the_source_lacks_stays_empty(tmp_path: Path) -> None:
    lacking = dict.fromkeys(("PatientName", "PatientID", "StudyDate"))
    write_series(tmp_path, replace(SMALL, extra={**lacking, "DeidentificationMethod": "", "PatientAge": ""}))
    result = written(tmp_path)
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
        assert result.seg[name].is_empty, name
        assert result.sr[name].is_empty, name
    assert "PatientAge" not in result.seg
    assert "DeidentificationMethod" not in result.seg


@pytest.mark.filterwarnings("ignore:The value length")
def test_what_breaks_the_standard_is_left_out_unless_archives_match_by_it(tmp_path: Path) -> None:
    def change(index: int, ds: Dataset) -> None:
        ds.add_new("PatientWeight", "LO", "70 kg")
        ds.add_new("PatientAge", "LO", "about 70")
        ds.AccessionNumber = "A-1 longer than sixteen"
        ds.PatientSex = "X"

    write_series(tmp_path, replace(SMALL, syntax="1.2.840.10008.1.2"), change=change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they would have the value in their text
        result = written(tmp_path)
    assert "PatientWeight" not in result.seg
    assert "PatientAge" not in result.seg
    assert (result.seg.AccessionNumber, result.sr.PatientSex) == ("A-1 longer than sixteen", "X")


def test_times_are_told_on_the_clock_of_the_source(tmp_path: Path) -> None:
    write_series(tmp_path, replace(SMALL, extra={"TimezoneOffsetFromUTC": "-0530"}))
    result = written(tmp_path)  # created at 03:04 UTC on 2026-01-02
    assert (result.seg.ContentDate, result.seg.ContentTime) == ("20260101", "213400")
    assert result.sr.TimezoneOffsetFromUTC == "-0530"


def test_no_identity_is_shown_by_whoever_prints_a_source(tmp_path: Path) -> None:
    write_series(tmp_path, replace(SMALL, patient="SECRET-1"))
    volume = read_volume(tmp_path)
    assert b"SECRET-1" in volume.source.origin.header
    for text in (repr(volume.source), str(volume.source), repr(volume)):
        assert "SECRET" not in text
        assert "Doe" not in text


# -- what cannot be told in DICOM -------------------------------------------------------------------------------------


def same_uid(_: int, ds: Dataset) -> None:
    ds.SOPInstanceUID = "1.2.3"


def other_frame(index: int, ds: Dataset) -> None:
    ds.FrameOfReferenceUID = f"1.2.3.{index}"


@pytest.mark.parametrize(
    ("changes", "change", "said"),
    [
        ({"study": "ID_1a2b"}, None, "Study Instance UID is no UID"),
        ({"series": "ID_1a2b"}, None, "Series Instance UID is no UID"),
        ({"extra": {"FrameOfReferenceUID": None}}, None, "no Frame of Reference UID"),
        ({"extra": {"FrameOfReferenceUID": "1.2.03"}}, None, "Frame of Reference UID is no UID"),
        ({"extra": {"SOPClassUID": None}}, None, ""),  # its file meta information still has it
        ({"extra": {"SOPInstanceUID": None}}, None, "SOP Instance UID"),
        ({}, same_uid, "SOP Instance UID"),
        ({}, other_frame, "no Frame of Reference UID, or not the same"),
    ],
)
def test_headers_that_allow_no_object_are_told(
    changes: dict[str, Any], change: Callable[[int, Dataset], None] | None, said: str, tmp_path: Path
) -> None:
    write_series(tmp_path, replace(SMALL, **changes), change=change)
    volume = read_volume(tmp_path)
    if not said:
        assert obstacle(volume) == ""
        return
    (note,) = origin_notes(volume)
    assert (note.code, note.severity) == ("no_dicom_results", Severity.INFO)
    assert said in note.message
    assert "ID_1a2b" not in note.message
    assert write(volume, blobs(volume.shape)).files == {}


def test_a_real_head_without_frame_of_reference_gets_the_note() -> None:
    volume = read_volume(str(get_testdata_file("693_UNCI.dcm", download=False)))
    assert [note.code for note in origin_notes(volume)] == ["no_dicom_results"]


def test_other_sources_have_neither_objects_nor_note() -> None:
    volume = replace(phantom_head(slices=4, size=16), source=SourceInfo("nifti", "x.nii"))
    labels = np.zeros(volume.shape, np.uint8)
    assert origin_notes(volume) == ()
    assert write(volume, labels).files == {}
    with pytest.raises(ConfigError, match="DICOM only; this is NIfTI"):
        write(volume, labels, summary_image=True)


def test_analyze_puts_the_note_among_the_findings(tmp_path: Path) -> None:
    from hemolens import analyze
    from samples import SERIES, head_hu

    write_series(tmp_path / "scan", replace(SERIES, study="ID_12"), head_hu() + 1024)
    result = analyze(tmp_path / "scan")
    assert [n.code for n in result.findings.quality].count("no_dicom_results") == 1
    assert not {"seg", "sr"} & set(result.save(tmp_path / "out"))


# -- the summary image, and the folder --------------------------------------------------------------------------------


def big_head(folder: Path) -> tuple[Volume, NDArray[np.uint8]]:
    volume, labels = bleeding_head(phantom_head(size=96, pixel_mm=2.6, slices=12, gap_mm=10.0))
    stack = volume.require_stack()
    series = Series(
        slices=12, rows=96, columns=96, spacing_mm=(2.6, 2.6), offsets_mm=tuple(10.0 * k for k in range(12)),
        origin_mm=tuple(float(v) for v in stack.positions_mm[0]),
    )  # fmt: skip
    write_series(folder, series, np.asarray(volume.hu, np.int64) + 1024)
    return read_volume(folder), labels


def test_the_summary_image_shows_outlines_and_no_identity(tmp_path: Path) -> None:
    volume, labels = big_head(tmp_path / "scan")
    result = write(volume, labels, summary_image=True)
    ds = pydicom.dcmread(io.BytesIO(result.files["summary.dcm"]))
    assert (ds.Modality, ds.BurnedInAnnotation, ds.ContentQualification) == ("OT", "NO", "RESEARCH")
    assert "research use only" in ds.SeriesDescription
    pixels = ds.pixel_array
    for subtype in SUBTYPES:
        drawn = bool((pixels == subtype.color_rgb).all(axis=-1).any())
        assert drawn == any(lesion.subtype == subtype.name for lesion in result.findings.lesions), subtype.name
    other = replace(volume.source, origin=replace(volume.source.origin, header=b""))
    assert obstacle(replace(volume, source=other))
    marked = pixels[:30, :].reshape(-1, 3)
    assert (marked == (255, 214, 10)).all(axis=1).sum() > 200  # the line "RESEARCH USE ONLY"


def test_a_summary_without_lesions_is_drawn_too(tmp_path: Path) -> None:
    volume, labels = big_head(tmp_path / "scan")
    result = write(volume, np.zeros_like(labels), summary_image=True)
    assert set(result.files) == {"sr.dcm", "summary.dcm"}


def test_the_folder_gets_them_with_the_rest(tmp_path: Path) -> None:
    volume, labels = big_head(tmp_path / "scan")
    prediction, label_map, findings = analyzed(volume, labels)
    written = write_reports(tmp_path / "out", volume, prediction, label_map, findings, summary_image=True)
    assert {k: written[k].name for k in ("seg", "sr", "summary")} == {
        "seg": "seg.dcm", "sr": "sr.dcm", "summary": "summary.dcm",
    }  # fmt: skip
    assert written["seg"].read_bytes() == dicom_files(label_map, findings)["seg.dcm"]
    prediction, label_map, findings = analyzed(volume, np.zeros_like(labels))
    write_reports(tmp_path / "out", volume, prediction, label_map, findings, overwrite=True)
    assert {p.name for p in (tmp_path / "out").glob("*.dcm")} == {"sr.dcm"}


def test_a_broken_header_costs_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hemolens.sources.dicom import origin

    write_series(tmp_path, SMALL)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(origin, "inflated", fail)
    volume = read_volume(tmp_path)
    (note,) = origin_notes(volume)
    assert "not at hand" in note.message
