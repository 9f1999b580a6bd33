"""DICOM Structured Report: TID 1500 "Measurement Report" (PS3.16) as Comprehensive 3D SR.

Comprehensive 3D, because a lesion's place is a point in millimeters of the patient (SCOORD3D), which Enhanced and
Comprehensive SR cannot hold; dciodvfy and dcmtk take it like those.

One measurement group stands for the scan (probability, decision, threshold, total volume) and one for each lesion
(volume, mean HU, probability, center of mass), which refers to its segment, to the frames of the segmentation that show
it and to their source images. Numbers are those of ``findings.json``: probabilities times 100, as *Certainty of
Finding* is in percent, and milliliters as cubic centimeters, the unit of DICOM's context groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from hemolens.labels import EDEMA, SUBTYPES
from hemolens.measurements.findings import Findings
from hemolens.measurements.lesions import Lesion
from hemolens.notes import Severity
from hemolens.reports.dicom_common import (
    HEMORRHAGE,
    INTRACRANIAL,
    MANUFACTURER,
    PRIVATE_SCHEME,
    RESEARCH_ONLY,
    Origin,
    SourceFrame,
    algorithm_parameters,
    complete,
    encoded,
    one_line,
    subtype_code,
)
from hemolens.reports.dicom_seg import SEGMENTATION_STORAGE, Segmentation
from hemolens.sources.dicom.tags import quiet

if TYPE_CHECKING:
    from highdicom import sr

ABOUT_DELIVERY = frozenset({"series_chosen", "files_skipped"})
DECIMALS = 6
"""As in ``findings.json``."""
CENTER_OF_MASS = Code("128138", "DCM", "Center of Mass")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
VOLUME = Code("118565006", "SCT", "Volume")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
COMMENT = Code("121106", "DCM", "Comment")
CUBIC_CENTIMETER = Code("cm3", "UCUM", "cubic centimeter")
PERCENT = Code("%", "UCUM", "Percent")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
MEAN, TOTAL = Code("373098007", "SCT", "Mean"), Code("255619001", "SCT", "Total")
POSITIVE, NEGATIVE = Code("10828004", "SCT", "Positive"), Code("260385009", "SCT", "Negative")
DECISION = Code("decision", PRIVATE_SCHEME, "Decision at threshold")
THRESHOLD = Code("threshold", PRIVATE_SCHEME, "Threshold of decision")
HUMAN_FIRST = Code("human_first", PRIVATE_SCHEME, "Uncertain: a human should look first")
YES = Code("373066001", "SCT", "Yes")


def structured_report(origin: Origin, segmentation: Segmentation | None) -> bytes:
    """Return the report on a scan.

    Parameters
    ----------
    origin
        The scan and what was found.
    segmentation
        What the lesions refer to; None where nothing was outlined.
    """
    with quiet():
        from highdicom.sr import Comprehensive3DSR

        evidence = _evidence(origin, segmentation)
        dataset = Comprehensive3DSR(
            evidence=evidence,
            content=_content(origin, segmentation)[0],
            series_instance_uid=origin.uid("series", "SR"),
            series_number=1,
            sop_instance_uid=origin.uid("instance", "SR"),
            instance_number=1,
            is_complete=True,
        )
        complete(dataset, origin, "SR")
        # highdicom's mark of itself, with the time to the microsecond.
        del dataset.ContributingEquipmentSequence
        dataset.SeriesDescription = f"hemolens report ({RESEARCH_ONLY})"
        scheme = Dataset()
        scheme.CodingSchemeDesignator = PRIVATE_SCHEME
        scheme.CodingSchemeName = "hemolens"
        scheme.CodingSchemeResponsibleOrganization = "The hemolens contributors"
        dataset.CodingSchemeIdentificationSequence = [scheme]
        return encoded(dataset)


def _evidence(origin: Origin, segmentation: Segmentation | None) -> list[Dataset]:
    """Return stand-ins for everything that the report rests on, with the UIDs alone; identity comes later."""
    images = {frame.sop_instance_uid: frame.sop_class_uid for frame in origin.frames}
    told = [(str(origin.source.series_uid), instance, kind) for instance, kind in images.items()]
    if segmentation is not None:
        told.append((segmentation.series_instance_uid, segmentation.sop_instance_uid, SEGMENTATION_STORAGE))
    items = []
    for series, instance, kind in told:
        item = Dataset()
        item.StudyInstanceUID, item.SeriesInstanceUID = origin.source.study_uid, series
        item.SOPInstanceUID, item.SOPClassUID = instance, kind
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(item, keyword, None)
        item.StudyDate = item.StudyTime = None
        items.append(item)
    return items


def _content(origin: Origin, segmentation: Segmentation | None) -> sr.MeasurementReport:
    from highdicom import sr

    findings = origin.findings
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=origin.device_uid,
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=one_line(findings.model.name),
        serial_number=findings.model.sha256[:64],
    )
    groups: list[Any] = [_scan_group(origin)]
    if segmentation is not None:
        groups += [_lesion_group(origin, segmentation, lesion) for lesion in findings.lesions]
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=Code("303653007", "SCT", "CT of head"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept("en-US", "RFC5646", "English (United States)")
        ),
    )
    for text in _remarks(findings):
        report[0].ContentSequence.append(
            sr.TextContentItem(COMMENT, text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        )
    return report


def _remarks(findings: Findings) -> list[str]:
    """Return the notice and the quality notes, each as it stands in ``findings.json``.

    Those on what else lay beside the scan are left out: the same scan from another folder has the same report.
    """
    notes = []
    for note in findings.quality:
        if note.code in ABOUT_DELIVERY and note.severity is Severity.INFO:
            continue
        where = f" (slices {', '.join(map(str, note.slices))})" if note.slices else ""
        notes.append(f"{note.severity} {note.code}: {note.message}{where}")
    return [findings.notice, *notes]


def _scan_group(origin: Origin) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return the answer for the scan as a whole."""
    from highdicom import sr

    study, total = origin.findings.study, origin.findings.total
    values = [
        _measurement(CERTAINTY, 100 * study.probability["any"], PERCENT),
        _measurement(THRESHOLD, 100 * study.threshold, PERCENT),
    ]
    # Names of hemolens's own: a group "subdural hemorrhage, certainty 2 %" would be read as a finding of one.
    for subtype in SUBTYPES:
        name = Code(f"probability_{subtype.abbreviation}", PRIVATE_SCHEME, f"Probability of {subtype.name} hemorrhage")
        values.append(_measurement(name, 100 * study.probability[subtype.name], PERCENT))
    if total.volume_ml is not None:
        values.append(_measurement(VOLUME, total.volume_ml, CUBIC_CENTIMETER, TOTAL))
    edema = origin.findings.edema
    if edema is not None and edema.volume_ml is not None:
        name = Code(f"volume_{EDEMA.abbreviation}", PRIVATE_SCHEME, f"Volume of {EDEMA.title.lower()}")
        values.append(_measurement(name, edema.volume_ml, CUBIC_CENTIMETER, TOTAL))
    decision = POSITIVE if origin.findings.positive else NEGATIVE
    doubt = [sr.QualitativeEvaluation(HUMAN_FIRST, YES)] if study.uncertain else []
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(origin.uid("scan"), "scan"),
        finding_type=HEMORRHAGE,
        algorithm_id=_algorithm(origin.findings),
        finding_sites=[sr.FindingSite(INTRACRANIAL)],
        measurements=values,
        qualitative_evaluations=[sr.QualitativeEvaluation(DECISION, decision), *doubt],
        source_images=[sr.SourceImageForMeasurementGroup(*told) for told in _references(origin.frames)],
    )


def _lesion_group(
    origin: Origin, segmentation: Segmentation, lesion: Lesion
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return what was measured of one lesion."""
    from highdicom import sr

    name, uid = origin.tracking(lesion.subtype, lesion.id)
    subtype = next(s for s in SUBTYPES if s.name == lesion.subtype)
    values = [
        _measurement(CERTAINTY, 100 * lesion.probability, PERCENT),
        _measurement(ATTENUATION, lesion.mean_hu, HOUNSFIELD, MEAN),
    ]
    if lesion.volume_ml is not None:
        values.insert(0, _measurement(VOLUME, lesion.volume_ml, CUBIC_CENTIMETER))
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid, name),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=SEGMENTATION_STORAGE,
            sop_instance_uid=segmentation.sop_instance_uid,
            segment_number=segmentation.segment_of(lesion.subtype),
            source_images=[
                sr.SourceImageForSegmentation(*told)
                for told in _references([origin.frames[index] for index in lesion.slices])
            ],
        ),
        finding_type=subtype_code(subtype),
        algorithm_id=_algorithm(origin.findings),
        finding_sites=[sr.FindingSite(INTRACRANIAL)],
        measurements=values,
    )
    # A reference names segments or frames, never both (PS3.3 C.18.4); frames tell lesions of one subtype apart.
    frames = segmentation.frames_of(lesion.subtype, lesion.slices)
    group[0].ContentSequence.append(
        sr.SourceImageForMeasurementGroup(SEGMENTATION_STORAGE, segmentation.sop_instance_uid, frames)
    )
    if lesion.centroid_mm is not None:
        center = sr.Scoord3DContentItem(
            name=CENTER_OF_MASS,
            graphic_type=sr.GraphicTypeValues3D.POINT,
            graphic_data=np.array([lesion.centroid_mm]),
            frame_of_reference_uid=origin.frame_of_reference_uid,
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
        group[0].ContentSequence.append(center)
    return group


def _measurement(name: Code, value: float, unit: Code, derivation: Code | None = None) -> sr.Measurement:
    from highdicom import sr

    return sr.Measurement(name=name, value=round(value, DECIMALS), unit=unit, derivation=derivation)


def _algorithm(findings: Findings) -> sr.AlgorithmIdentification:
    from highdicom import sr

    return sr.AlgorithmIdentification(
        name=one_line(f"{MANUFACTURER} {findings.model.name}"),
        version=findings.hemolens_version,
        parameters=[f"{key}={value}" for key, value in algorithm_parameters(findings).items()],
    )


def _references(frames: Sequence[SourceFrame]) -> list[tuple[Any, ...]]:
    """Return SOP class, instance and frame numbers of each file that the frames lie in."""
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for frame in frames:
        told = numbers[(frame.sop_class_uid, frame.sop_instance_uid)]
        if frame.frame_number is not None:
            told.append(frame.frame_number)
    return [(*file, sorted(told) or None) for file, told in numbers.items()]
