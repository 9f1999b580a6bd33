"""Everything that can be taken home from a study, each file made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hemolens.measurements.findings import Findings
from hemolens.reports.as_json import to_text
from hemolens.reports.dicom_common import obstacle
from hemolens.reports.dicom_files import dicom_files
from hemolens.reports.html import render_html
from hemolens.reports.nifti import mask_files, probability_files
from hemolens.reports.pdf import render_pdf
from hemolens.web.findings import findings_now, label_map_now
from hemolens.web.saving import Correction, author_name, zipped
from hemolens.web.session import Study

AUTHOR = "hemolens_author"
"""Where the pages keep the name of their reader."""


@dataclass(frozen=True)
class Download:
    """One file that can be downloaded."""

    name: str
    title: str
    mime: str
    make: Callable[[], bytes]


def downloads(study: Study, author: str = "") -> list[Download]:
    """Return what there is for a study as it stands.

    Of a corrected study the mask, the SEG and the numbers are those of the correction; a structured report is the
    network's own and left out then. The SEG of a correction needs an author.
    """
    findings, base = _signed(study, author), _stem(study)
    found = [
        Download("report.pdf", "Report to print (PDF)", "application/pdf", lambda: _pdf(study, findings)),
        Download("report.html", "Report to look at (HTML)", "text/html", lambda: _html(study, findings)),
        Download(
            "findings.json", "Findings for programs (JSON)", "application/json", lambda: to_text(findings).encode()
        ),
    ]
    found += _masks(study)
    found += _dicom(study, author)
    found = [Download(f"{base}-{d.name}", d.title, d.mime, d.make) for d in found]
    everything = Download(
        f"{base}-hemolens.zip", "Everything in one zip", "application/zip", lambda: zipped(all_files(study, author))
    )
    return [everything, *found]


def all_files(study: Study, author: str = "") -> dict[str, bytes]:
    """Return every file of a study: relative path → content."""
    findings = _signed(study, author)
    files = mask_files(label_map_now(study)) | probability_files(study.volume, study.prediction)
    files |= {
        "report.pdf": _pdf(study, findings), "report.html": _html(study, findings),
        "findings.json": to_text(findings).encode(),
    }  # fmt: skip
    if not study.corrected:
        return files | dicom_files(label_map_now(study), study.findings)
    return files | (correction(study, author).files() if author.strip() else {})


def correction(study: Study, author: str, *, subtypes_checked: bool = False) -> Correction:
    """Return the correction of a study as it stands, signed now.

    Raises
    ------
    InputError
        If the author has no usable name.
    """
    draft = study.extras.get("draft")
    return Correction(
        label_map_now(study),
        study.result.label_map.labels,
        study.findings,
        author,
        signing_time(study, author),
        draft.done if draft is not None else (),
        subtypes_checked,
    )


def signing_time(study: Study, author: str) -> datetime:
    """Return when the study as it stands was signed: the first time that this author asked for a file of it.

    So that the same correction downloaded twice is one object, not two.
    """
    key = (study.revision, author_name(author))
    kept = study.extras.get("signed")
    if kept is None or kept[0] != key:
        kept = (key, datetime.now(UTC).replace(microsecond=0))
        study.extras["signed"] = kept
    when: datetime = kept[1]
    return when


def show(study: Study, ui: Any) -> None:
    """Draw the page."""
    author = ""
    if study.corrected:
        ui.info("The outlines were corrected: masks and numbers below are those of the correction, under your name.")
        author = ui.text_input(
            "Your name or initials, for the DICOM SEG and the record",
            key=AUTHOR,
            max_chars=64,
            placeholder="Ada Reader",
        )
    ui.markdown("Each file is made when you press its button.")
    for number, one in enumerate(downloads(study, author)):
        ui.download_button(
            one.title,
            one.make,
            file_name=one.name,
            mime=one.mime,
            key=f"download-{study.id}-{study.revision}-{one.name}",
            icon=":material/download:",
            type="primary" if number == 0 else "secondary",
            on_click="ignore",
            width="stretch",
        )
    for line in missing(study, author):
        ui.caption(line)


def missing(study: Study, author: str) -> list[str]:
    """Say which files there are not, and what to do about it."""
    told = []
    if study.volume.source.kind != "dicom":
        told.append("DICOM SEG and SR need a DICOM scan: open the DICOM series to have them.")
    elif obstacle(study.volume):
        told.append(f"DICOM SEG and SR cannot be written: {obstacle(study.volume)}.")
    elif study.corrected and not author.strip():
        told.append("Type your name above to have the DICOM SEG of your correction.")
    if study.corrected and study.volume.source.kind == "dicom":
        told.append("The structured report (SR) tells the network's result alone; it is not offered for a correction.")
    return told


def _signed(study: Study, author: str) -> Findings:
    if study.corrected and author.strip():
        return correction(study, author).findings_after(study.prediction)
    return findings_now(study)


def _pdf(study: Study, findings: Findings) -> bytes:
    return render_pdf(label_map_now(study), findings, study.name)


def _html(study: Study, findings: Findings) -> bytes:
    return render_html(label_map_now(study), findings).encode()


def _masks(study: Study) -> list[Download]:
    if study.volume.source.kind == "images":
        return [
            Download("masks.zip", "Masks (PNG)", "application/zip", lambda: zipped(mask_files(label_map_now(study)))),
            Download(
                "probability.zip", "Probability of blood (PNG)", "application/zip",
                lambda: zipped(probability_files(study.volume, study.prediction)),
            ),
        ]  # fmt: skip
    return [
        Download(
            "mask.nii.gz", "Mask (NIfTI)", "application/gzip", lambda: mask_files(label_map_now(study))["mask.nii.gz"]
        ),
        Download(
            "probability.nii.gz", "Probability of blood (NIfTI)", "application/gzip",
            lambda: probability_files(study.volume, study.prediction)["probability.nii.gz"],
        ),
    ]  # fmt: skip


def _dicom(study: Study, author: str) -> list[Download]:
    if study.volume.source.kind != "dicom" or obstacle(study.volume):
        return []
    if study.corrected:
        if not author.strip() or not study.labels.any():
            return []
        signed = correction(study, author)
        return [Download("seg.dcm", "Mask (DICOM SEG)", "application/dicom", lambda: signed.files()["seg.dcm"])]
    kinds = {"seg.dcm": "Mask (DICOM SEG)", "sr.dcm": "Report (DICOM SR)"}
    if not study.labels.any():
        del kinds["seg.dcm"]

    def make(name: str) -> Callable[[], bytes]:
        return lambda: dicom_files(label_map_now(study), study.findings)[name]

    return [Download(name, title, "application/dicom", make(name)) for name, title in kinds.items()]


def _stem(study: Study) -> str:
    """Return the study's name as a file may be called."""
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in study.name).strip("._")
    return kept[:60] or "scan"
