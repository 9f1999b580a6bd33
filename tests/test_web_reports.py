"""What can be taken home from a study: the files, the PDF and the pages that offer them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

pytest.importorskip("streamlit", reason="needs hemolens[web]")
pytest.importorskip("reportlab", reason="needs hemolens[web]")

from streamlit.testing.v1 import AppTest

from hemolens.errors import InputError
from hemolens.measurements.findings import NOTICE, volume_told
from hemolens.reports.as_json import from_plain
from hemolens.reports.pdf import render_pdf
from hemolens.volume import SourceInfo, Volume
from hemolens.web.reports import all_files, correction, downloads
from hemolens.web.session import Study
from web_cases import dicom_volume, head, study_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(dicom_volume(tmp_path_factory.mktemp("dicom")), "Scan / A")


def corrected(study: Study) -> Study:
    mine = study_of(study.volume, "Scan A")
    mine.correct(np.where(mine.labels == 2, 0, mine.labels).astype(np.uint8))
    return mine


def words_of(pdf: bytes) -> str:
    """Return the text of a PDF."""
    pypdf = pytest.importorskip("pypdf")
    return " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages).split())


def test_every_file_is_there_and_made_of_the_same_findings(study: Study) -> None:
    offered = {d.name: d for d in downloads(study)}
    assert next(d.name for d in downloads(study)) == "Scan___A-hemolens.zip"
    assert {name.removeprefix("Scan___A-") for name in offered} == {
        "hemolens.zip", "report.pdf", "report.html", "findings.json", "mask.nii.gz", "probability.nii.gz", "seg.dcm",
        "sr.dcm",
    }  # fmt: skip
    made = {name: one.make() for name, one in offered.items()}
    findings = from_plain(json.loads(made["Scan___A-findings.json"]))
    assert findings.total.volume_ml == pytest.approx(study.findings.total.volume_ml)
    assert pydicom.dcmread(BytesIO(made["Scan___A-seg.dcm"])).Modality == "SEG"
    assert pydicom.dcmread(BytesIO(made["Scan___A-sr.dcm"])).Modality == "SR"
    with zipfile.ZipFile(BytesIO(made["Scan___A-hemolens.zip"])) as archive:
        assert set(archive.namelist()) == {
            "report.pdf", "report.html", "findings.json", "mask.nii.gz", "probability.nii.gz", "seg.dcm", "sr.dcm",
        }  # fmt: skip
        assert archive.read("findings.json") == made["Scan___A-findings.json"]


def test_a_correction_is_offered_under_its_authors_name(study: Study) -> None:
    mine = corrected(study)
    nameless = {d.name for d in downloads(mine)}
    assert not any("dcm" in name for name in nameless)
    files = all_files(mine, "Ada Reader")
    assert "sr.dcm" not in files, "the structured report is the network's"
    seg = pydicom.dcmread(BytesIO(files["seg.dcm"]))
    assert str(seg.ContentCreatorName) == "Ada Reader"
    assert json.loads(files["correction.json"])["author"] == "Ada Reader"
    findings = from_plain(json.loads(files["findings.json"]))
    assert findings.quality[-1].code == "corrected"
    assert "Ada Reader" in findings.quality[-1].message
    assert {lesion.subtype for lesion in findings.lesions} == {"intraparenchymal"}
    single = {d.name: d for d in downloads(mine, "Ada Reader")}["Scan_A-seg.dcm"].make()
    assert single == files["seg.dcm"], "downloaded twice it is one object"
    with pytest.raises(InputError, match="Your name"):
        correction(mine, " ")


def test_a_new_change_is_a_new_object(study: Study) -> None:
    mine = corrected(study)
    first = correction(mine, "Ada").files()["seg.dcm"]
    mine.correct(np.where(head()[1] == 4, 1, 0).astype(np.uint8))
    second = correction(mine, "Ada").files()["seg.dcm"]
    assert pydicom.dcmread(BytesIO(first)).SOPInstanceUID != pydicom.dcmread(BytesIO(second)).SOPInstanceUID


def test_pictures_get_zips_of_masks_and_no_dicom() -> None:
    hu, labels = head()
    source = SourceInfo("images", "pictures", tuple(f"{k}.png" for k in range(len(hu))))
    found = study_of(Volume(np.clip(hu, -20, 100).astype(np.float32), None, source), "Pictures", labels=labels)
    offered = {d.name: d for d in downloads(found)}
    with zipfile.ZipFile(BytesIO(offered["Pictures-masks.zip"].make())) as archive:
        assert len(archive.namelist()) == len(hu)
    assert not any(name.endswith(".dcm") for name in offered)
    assert offered["Pictures-report.pdf"].make().startswith(b"%PDF")


def test_the_pdf_tells_the_result_on_every_page(study: Study) -> None:
    made = render_pdf(study.result.label_map, study.findings, "Müller × 李")
    assert made == render_pdf(study.result.label_map, study.findings, "Müller × 李"), (
        "the same findings, the same bytes"
    )
    told = words_of(made)
    assert "Hemorrhage likely" in told
    assert "Müller × ?" in told, "what the font lacks is shown as a question mark"
    volume = study.findings.lesions[0].volume_ml
    assert f"{volume:.1f} ml" in told
    assert f"All blood: {volume_told(study.findings.total)}." in told
    assert study.findings.model.sha256 in told.replace(" ", "")
    pages = len(re.findall(r"page \d+", told))
    assert told.count(NOTICE) >= pages >= 1


def test_the_pdf_of_many_lesions_runs_over_pages_and_cuts_its_table(study: Study) -> None:
    many = tuple(replace(study.findings.lesions[0], id=n) for n in range(1, 61))
    noted = study.findings.quality * 1
    findings = replace(study.findings, lesions=many[:2] + many[2:], quality=noted)
    told = words_of(render_pdf(study.result.label_map, findings))
    assert "30 smaller lesions stand in findings.json" in told
    assert "page 2" in told


@pytest.mark.parametrize("lesions", [2, 5, 8, 12, 16, 20, 24, 30])
def test_tables_of_the_pdf_are_whole_or_have_their_heads_again(study: Study, lesions: int) -> None:
    pypdf = pytest.importorskip("pypdf")
    many = tuple(replace(study.findings.lesions[0], id=n) for n in range(1, lesions + 1))
    pdf = render_pdf(study.result.label_map, replace(study.findings, lesions=many))
    pages = [" ".join(page.extract_text().split()) for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]
    (page,) = [page for page in pages if "Subtype Probability Outlined" in page]
    assert "Subtypes Subtype Probability Outlined Epidural" in page
    assert " All " in page.partition("Subtype Probability Outlined")[2], "the table ends on its page"
    for page in pages:
        rows = page.count("Intraparenchymal") - ("Subtype Probability" in page)
        assert ("Confidence Mean HU" in page) == (rows > 0)


def test_the_pdf_without_lesions(study: Study) -> None:
    empty = study_of(study.volume, labels=np.zeros_like(head()[1]))
    told = words_of(render_pdf(empty.result.label_map, empty.findings))
    assert "No lesion is outlined" in told
    assert "Slices with the highest scores" in told


def drawn(study: Study) -> AppTest:
    def script() -> None:
        from importlib import import_module

        import streamlit as st

        import_module("hemolens.web.reports").show(st.session_state["study"], st)

    app = AppTest.from_function(script, default_timeout=60)
    app.session_state["study"] = study
    return app.run()


def text_of(app: AppTest) -> str:
    return "\n".join(str(e.value) for kind in (app.markdown, app.caption, app.info) for e in kind)


def buttons_of(app: AppTest) -> list[Any]:
    return list(app.get("download_button"))


def test_the_page_offers_the_files_and_says_what_is_missing(study: Study, tmp_path: Path) -> None:
    app = drawn(study)
    assert not app.exception
    assert len(buttons_of(app)) == 8
    mine = corrected(study)
    app = drawn(mine)
    assert not app.exception
    assert "Type your name above" in text_of(app)
    before = len(buttons_of(app))
    app.text_input[0].set_value("Ada").run()
    assert not app.exception
    assert len(buttons_of(app)) == before + 1
    odd = study_of(dicom_volume(tmp_path, 3, extra={"FrameOfReferenceUID": None}))
    assert "DICOM SEG and SR cannot be written" in text_of(drawn(odd))
