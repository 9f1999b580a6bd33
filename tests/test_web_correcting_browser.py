"""From an opened scan to a corrected mask in a training folder, and through every other page, in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_files import Series, write_series
from web_server import BLOOD_HU, CHROMIUM, CHROMIUM_ARGS, need_browser, served, zip_of

pytestmark = pytest.mark.slow

ROWS, COLUMNS, SLICES = 32, 40, 5
WAIT = 120_000
STAGE = ".stage canvas"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def page(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One user with one scan open, whose single bleed is at rows 8 to 13 and columns 10 to 17 of slices 2 to 5."""
    need_browser()
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("dicom")
    hu = np.full((SLICES, ROWS, COLUMNS), 30)
    hu[1:, 8:14, 10:18] = BLOOD_HU
    series = Series(slices=SLICES, rows=ROWS, columns=COLUMNS, spacing_mm=(5.0, 5.0))
    write_series(folder / "head", series, hu + 1024)
    with served(keep=str(kept), runs=str(kept)) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = chromium.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True).new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.locator("input.pick").set_input_files([str(zip_of(folder / "head", folder / "head.zip"))])
        page.get_by_text("Hemorrhage likely").first.wait_for()
        yield page
        chromium.close()


def to(page: Any, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()
    still(page)


def still(page: Any) -> None:
    page.wait_for_timeout(500)
    page.wait_for_function("() => !document.querySelector('[data-testid=stStatusWidget]')")
    assert page.get_by_test_id("stException").count() == 0


def press_at(page: Any, row: float, column: float) -> None:
    """Press on a pixel of the shown slice."""
    box = page.locator(STAGE).bounding_box()
    size = min(box["width"] / COLUMNS, box["height"] / ROWS)
    left, top = box["x"] + (box["width"] - COLUMNS * size) / 2, box["y"] + (box["height"] - ROWS * size) / 2
    page.mouse.click(left + (column + 0.5) * size, top + (row + 0.5) * size)
    still(page)


def the_findings_jump_to_the_lesion(page: Any) -> None:
    still(page)
    page.locator(STAGE).press("Home")
    page.get_by_text("Slice 1 / 5").first.wait_for()
    page.get_by_role("button", name=re.compile("^1 · Intraparenchymal")).click()
    page.get_by_text(re.compile(r"Slice [2-5] / 5")).first.wait_for()
    assert page.get_by_role("table").filter(has_text="ABC/2").count() == 1


def a_click_relabels_and_undo_takes_it_back(page: Any) -> None:
    to(page, "Correct")
    page.locator(STAGE).press("End")
    page.get_by_role("button", name="Click", exact=True).click()
    page.get_by_label("Kind of hemorrhage for the tools").select_option("Epidural")
    press_at(page, 10, 13)
    page.locator("li").get_by_text("Relabeled a lesion as epidural (slices 2 to 5)").wait_for()
    page.get_by_test_id("stMain").get_by_role("button", name="Undo").last.click()
    page.locator("li").get_by_text("Relabeled a lesion").wait_for(state="hidden")
    press_at(page, 28, 36)
    page.get_by_role("alert").get_by_text("Draw it with the brush").wait_for()
    press_at(page, 10, 13)
    page.locator("li").get_by_text("Relabeled a lesion as epidural (slices 2 to 5)").wait_for()


def the_corrected_mask_is_saved_with_its_author(page: Any, kept: Path) -> None:
    to(page, "Correct")
    page.get_by_text("Type your name first").wait_for()
    page.get_by_label("Your name or initials").fill("Ada Reader")
    page.get_by_label("Your name or initials").press("Enter")
    still(page)
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download mask, SEG and record").click()
    with zipfile.ZipFile(caught.value.path()) as archive:
        assert sorted(archive.namelist()) == ["correction.json", "mask.nii.gz", "seg.dcm"]
        assert json.loads(archive.read("correction.json"))["author"] == "Ada Reader"
        seg = pydicom.dcmread(io.BytesIO(archive.read("seg.dcm")))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Epidural hemorrhage"]
    assert int(seg.pixel_array.sum()) == 4 * 6 * 8
    shutil.copy(caught.value.path(), kept / "saved.zip")
    page.get_by_text("I have looked at every slice").click()
    still(page)
    page.get_by_text("I vouch for the subtypes, too").click()
    still(page)
    page.get_by_role("button", name="Add to the training folder").click()
    page.get_by_text("The scan is added: 1 scans of 1 patients").wait_for()
    from hemolens.sources.datasets.opening import open_datasets

    (dataset,) = open_datasets(kept / "training")
    labels = dataset.labels(dataset.cases[0])
    assert (labels[1:, 8:14, 10:18] > 0).all()
    assert np.count_nonzero(labels) == 4 * 6 * 8


def a_saved_correction_is_gone_on_with(page: Any, kept: Path, tmp_path: Path) -> None:
    """Start over, take the zip up again, erase on top of it; undo leads back step by step."""
    to(page, "Correct")
    main = page.get_by_test_id("stMain")
    page.get_by_role("button", name="Keep on the server").click()
    page.get_by_text(re.compile("^Saved in ")).wait_for()
    main.get_by_role("button", name="Start over").click()
    page.locator("li").get_by_text("Relabeled a lesion").wait_for(state="hidden")
    still(page)
    before = colored(page)
    page.get_by_text("Go on with a saved correction").click()
    upload = main.get_by_test_id("stFileUploaderDropzoneInput")
    wrong = tmp_path / "wrong.zip"
    wrong.write_bytes(b"no zip")
    upload.set_input_files(str(wrong))
    page.get_by_role("button", name="Take it over", exact=True).click()
    page.get_by_text(re.compile(r"^wrong\.zip: .*no readable zip")).wait_for()
    upload.set_input_files(str(kept / "saved.zip"))
    page.get_by_text("saved.zip").first.wait_for()
    still(page)
    page.get_by_role("button", name="Take it over", exact=True).click()
    taken = page.locator("li").get_by_text(re.compile(r"^Took over the correction by Ada Reader, saved 20"))
    taken.wait_for()
    still(page)
    page.locator(STAGE).press("End")
    red = colored(page)
    assert red[0] > red[2] + 30, "it is epidural again"
    assert before[2] > before[0] + 30, "it was intraparenchymal"
    page.get_by_role("button", name="Click", exact=True).click()
    page.get_by_label("Kind of hemorrhage for the tools").select_option("Nothing: remove it")
    press_at(page, 10, 13)
    page.locator("li").get_by_text("Erased a lesion").wait_for()
    for gone in (page.locator("li").get_by_text("Erased a lesion"), taken):
        main.get_by_role("button", name="Undo").last.click()
        gone.wait_for(state="hidden")
        still(page)
    page.get_by_role("button", name="Take this one over").click()  # the one that the server keeps
    taken.wait_for()
    still(page)


def colored(page: Any) -> list[float]:
    """Return the mean color of the pixels of the shown slice that are no gray."""
    page.wait_for_timeout(300)
    found: list[float] = page.locator(STAGE).evaluate(
        """(canvas) => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const sum = [0, 0, 0];
            let n = 0;
            for (let i = 0; i < data.length; i += 4) {
                const rgb = [data[i], data[i + 1], data[i + 2]];
                if (Math.max(...rgb) - Math.min(...rgb) > 40) { n++; rgb.forEach((v, c) => { sum[c] += v; }); }
            }
            return sum.map((v) => v / Math.max(1, n));
        }"""
    )
    return found


PAGES = (
    ("Compare", "Give the mask of this scan"),
    ("Explain", "A map shows where in the image"),
    ("Report", "The outlines were corrected"),
    ("Most uncertain first", "Correcting what the network is least sure of"),
    ("Worklist", "hemolens web --pacs pacs.toml"),
    ("Training", "holds no training run"),
    ("Models", "What it cannot do"),
)


def every_other_page_is_there(page: Any) -> None:
    for name, told in PAGES:
        to(page, name)
        page.get_by_text(told).first.wait_for()


def a_mask_is_compared_and_the_report_is_a_pdf(page: Any, kept: Path) -> None:
    to(page, "Compare")
    (mask,) = (kept / "training/masks").glob("*.nii.gz")
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(str(mask))
    page.get_by_text("Dice of all blood").wait_for()
    still(page)
    assert "1.00" in page.get_by_test_id("stMetric").first.inner_text()
    to(page, "Report")
    with page.expect_download() as caught:
        page.get_by_role("button", name="Report to print (PDF)").click()
    assert Path(caught.value.path()).read_bytes().startswith(b"%PDF")


def test_a_reader_corrects_saves_goes_on_and_prints(page: Any, kept: Path, tmp_path: Path) -> None:
    """One test, for each step goes on where the one before left the page: workers that share tests would part them."""
    the_findings_jump_to_the_lesion(page)
    a_click_relabels_and_undo_takes_it_back(page)
    the_corrected_mask_is_saved_with_its_author(page, kept)
    a_saved_correction_is_gone_on_with(page, kept, tmp_path)
    every_other_page_is_there(page)
    a_mask_is_compared_and_the_report_is_a_pdf(page, kept)
