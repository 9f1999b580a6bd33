"""The first tutorial, taken step by step as it is written: how long the machine takes, from the start to a saved mask.

To see the seconds of each step:  python tests/test_web_tutorial.py
"""

from __future__ import annotations

import re
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test_web_pictures import middle_of_the_lesion
from web_server import CHROMIUM, CHROMIUM_ARGS, need_browser, served

WAIT = 180_000
GOAL_S = 180.0
"""What the issue asks: from the start of the app to a corrected mask."""
TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "first-correction.md"


def walk(folder: Path) -> dict[str, float]:
    """Do what the tutorial says; return the seconds of each step.

    Nothing waits for longer than the page needs: what is left of three minutes belongs to whoever reads.
    """
    from playwright.sync_api import expect, sync_playwright

    seconds: dict[str, float] = {}

    @contextmanager
    def step(title: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[title] = time.perf_counter() - started

    command = [sys.executable, "-m", "hemolens", "web", "--keep", str(folder / "mine"), "--port", "PORT"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_context(viewport={"width": 1280, "height": 960}, accept_downloads=True).new_page()
        page.set_default_timeout(WAIT)
        begun = time.perf_counter()
        with served(command=command, all_cores=True) as url:
            seconds["1. Start the app"] = time.perf_counter() - begun
            with step("2. Open the demo"):
                page.goto(url)
                page.get_by_role("button", name="Open the demo").click()
                page.get_by_text("Probability of any hemorrhage").first.wait_for()
            with step("3. Find a mistake"):
                page.get_by_role("button", name=re.compile("^2 · Epidural")).click()
                page.get_by_text("Slice 19 / 30").or_(
                    page.get_by_text(re.compile(r"Slice 1[6-9] / 30"))
                ).first.wait_for()
            with step("4. Correct it"):
                page.get_by_role("link", name="Correct", exact=True).click()
                page.get_by_role("toolbar", name="Correction tools").wait_for()
                page.get_by_role("button", name="Click", exact=True).click()
                page.get_by_label("Kind of hemorrhage for the tools").select_option("Subdural")
                page.locator(".waiting").first.wait_for(state="hidden")
                page.wait_for_timeout(300)  # the outlines are drawn
                row, column = middle_of_the_lesion(page)
                page.mouse.click(column, row)
                page.locator("li").get_by_text("Relabeled a lesion as subdural").wait_for()
            with step("5. Save it"):
                page.get_by_label("Your name or initials").fill("Ada Reader")
                page.get_by_label("Your name or initials").press("Enter")
                with page.expect_download() as caught:
                    page.get_by_role("button", name="Download mask, SEG and record").click()
                with zipfile.ZipFile(caught.value.path()) as archive:
                    assert {"correction.json", "mask.nii.gz", "seg.dcm"} <= set(archive.namelist())
                page.get_by_text("I have looked at every slice").click()
                add = page.get_by_role("button", name="Add to the training folder")
                expect(add).to_be_enabled()
                add.click()
                page.get_by_text("The scan is added: 1 scans of 1 patients").wait_for()
        browser.close()
    return seconds


@pytest.mark.slow
def test_a_stranger_corrects_a_mask_in_under_three_minutes(tmp_path: Path) -> None:
    need_browser()
    seconds = walk(tmp_path)
    headings = re.findall(r"^## (\d\. [^(\n]+?) *(?:\(|$)", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert list(seconds) == headings, "the steps are those of the page"
    assert (tmp_path / "mine" / "training").is_dir()
    assert sum(seconds.values()) < GOAL_S, seconds


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        told = walk(Path(made))
    for title, value in told.items():
        print(f"{title}: {value:.1f} s")
    print(f"all: {sum(told.values()):.1f} s")
