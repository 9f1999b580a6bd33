"""The DICOM objects that stand beside the other results of a DICOM scan."""

from __future__ import annotations

from hemolens.errors import ConfigError
from hemolens.measurements.findings import Findings
from hemolens.reports.dicom_common import Origin, obstacle
from hemolens.reports.dicom_seg import segmentation
from hemolens.reports.dicom_sr import structured_report
from hemolens.reports.dicom_summary import summary_image as draw_summary
from hemolens.volume import LabelMap


def dicom_files(label_map: LabelMap, findings: Findings, *, summary_image: bool = False) -> dict[str, bytes]:
    """Return the DICOM results: file name → content.

    A report always, a segmentation where something was outlined. Nothing for a scan that is no DICOM, or whose headers
    allow none; `dicom_common.origin_notes` says so in the findings.

    Parameters
    ----------
    label_map, findings
        What was found, and with it the scan.
    summary_image
        Whether to add a picture of the result.

    Raises
    ------
    ConfigError
        If a picture is asked for and the scan is no DICOM.
    """
    kind = label_map.volume.source.kind
    if kind != "dicom":
        if summary_image:
            named = {"nifti": "NIfTI", "images": "pictures"}[kind]
            raise ConfigError(f"A summary image can be written for DICOM only; this is {named}.")
        return {}
    if obstacle(label_map.volume):
        return {}
    origin = Origin(label_map.volume, findings)
    found = segmentation(origin, label_map)
    contents = {"sr.dcm": structured_report(origin, found)}
    if found is not None:
        contents["seg.dcm"] = found.content
    if summary_image:
        contents["summary.dcm"] = draw_summary(origin, label_map)
    return contents
