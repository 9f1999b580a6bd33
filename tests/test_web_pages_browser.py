"""The pages that ask the shipped network, a trained run or a PACS service, in a real browser. Nothing is made up."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pacs_peers import Service, send, small_head
from pacs_peers import wait_for as wait_for_service
from training_cases import write_heads
from web_server import CHROMIUM, CHROMIUM_ARGS, need_browser, served, zip_of

pytestmark = pytest.mark.slow

WAIT = 240_000
STAGE = ".stage canvas"
SLICES = 6
AT_ONCE = "[completion]\nstable_age_s = 1.0\ninterval_s = 0.3\n"

Page = Any


@dataclass(frozen=True)
class Site:
    """A running app and what it was given."""

    page: Page
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One user with the coarse phantom head open, beside a run that was just trained and a service that got a scan."""
    need_browser()
    pytest.importorskip("torch", reason="needs hemolens[train]")
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("site")
    train(folder)
    running = Service(folder / "pacs", AT_ONCE)
    try:
        running.start()
        assert set(send(small_head(folder / "sent", 5, slices=SLICES), running.port)) == {0}
        wait_for_service(lambda: running.settled(1), "the analysis of what was sent", 240)
    finally:
        running.stop()
    small_head(folder / "head", 1, slices=SLICES)
    command = [
        sys.executable, "-m", "hemolens", "web", "--port", "PORT", "--runs", str(folder / "runs"),
        "--pacs", str(running.config), "--results", str(running.spool / "results"),
    ]  # fmt: skip
    with served(command=command) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.locator("input.pick").set_input_files([str(zip_of(folder / "head", folder / "head.zip"))])
        page.get_by_text("Probability of any hemorrhage").first.wait_for()
        yield Site(page, folder)
        chromium.close()


def train(folder: Path) -> None:
    """Leave a run of a few steps, and one of a network that can analyze a scan: the shipped one."""
    from hemolens.inference.registry import load_model

    model, copy = load_model(), folder / "runs" / "copy"
    copy.mkdir(parents=True)
    shutil.copy(model.path, copy / "model.onnx")
    (copy / "model.json").write_text(json.dumps({**model.card, "file": "model.onnx"}), encoding="utf-8")

    write_heads(folder / "heads")
    words = (
        "steps=4", "batch=4", "data.workers=0", "log_every=1", "validate_every=2", "preprocess.size=32",
        "network.width=2", "network.depth=2", "tensorboard=false",
    )  # fmt: skip
    # In a process of its own: beside a browser's connection in this one, a worker of pytest once ended without a word.
    line = ["train", "unet2d", "--data", str(folder / "heads"), "--run", str(folder / "runs" / "tiny"), "--quiet"]
    command = [sys.executable, "-m", "hemolens", *line, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def to(page: Page, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()
    still(page)


def still(page: Page) -> None:
    """Wait until nothing is being run for the page."""
    page.wait_for_timeout(300)
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
    )
    assert page.get_by_test_id("stException").count() == 0


def colors(place: Any) -> np.ndarray:
    """Return what a place of the page looks like, ``(rows, columns, 3)``."""
    return np.asarray(Image.open(BytesIO(place.screenshot())).convert("RGB")).astype(int)


def saturated(picture: np.ndarray) -> int:
    """Count the pixels that are far from gray."""
    return int(np.count_nonzero(np.ptp(picture, axis=-1) > 60))


def test_three_planes_and_the_head_in_space(site: Site) -> None:
    page = site.page
    to(page, "View")
    page.get_by_text("Three planes and 3D").click()
    for name in ("two", "solid"):
        page.locator(f".stage[aria-busy=false] canvas.{name}").wait_for()
    flat, round_ = page.locator(".stage:has(canvas.two)"), page.locator(".stage:has(canvas.solid)")
    for stage in (flat, round_):
        shown = colors(stage)
        assert saturated(shown) > 50, "no lesion is colored"
        assert np.count_nonzero((np.ptp(shown, axis=-1) < 40) & (shown.mean(axis=-1) > 40)) > 2000, "no head"
    before = colors(round_)
    page.locator("canvas.solid").focus()
    for _ in range(6):
        page.locator("canvas.solid").press("ArrowRight")
    page.wait_for_timeout(500)
    assert np.mean(np.abs(colors(round_) - before)) > 1, "the head did not turn"
    before = colors(flat)
    page.get_by_role("button", name="Bone", exact=True).click()
    page.wait_for_timeout(500)
    assert np.mean(np.abs(colors(flat) - before)) > 3, "the window did not change"
    page.get_by_text("Slices", exact=True).click()
    page.locator(STAGE).first.wait_for()


@pytest.mark.parametrize("method", ["Grad-CAM: ", "Occlusion: "])
def test_evidence_is_drawn_on_the_slices_that_were_asked(site: Site, method: str) -> None:
    page = site.page
    to(page, "Explain")
    page.get_by_role("combobox", name=re.compile("^Selected .*Method|^Method")).click()
    page.get_by_role("option", name=re.compile("^" + re.escape(method))).click()
    still(page)
    for number in (1, 2, 4, 5, 6):  # one slice is enough
        chosen = page.get_by_test_id("stMultiSelect").get_by_role("button", name=f"Remove {number}", exact=True)
        if chosen.count():
            chosen.click()
            chosen.wait_for(state="hidden")
            still(page)
    page.get_by_role("button", name="Show the evidence").click()
    page.get_by_text(re.compile(f"^{method[:-2]} for .any. on 1 slices?: yellow")).wait_for()
    still(page)
    page.get_by_label("Found: how it is drawn").select_option("hidden")
    page.wait_for_timeout(500)
    with_map = colored(page)
    page.get_by_label("Evidence: how it is drawn").select_option("hidden")
    page.wait_for_timeout(500)
    assert with_map > colored(page) + 200
    page.get_by_label("Evidence: how it is drawn").select_option("fill")
    page.get_by_label("Found: how it is drawn").select_option("both")


def colored(page: Page) -> int:
    """Count the pixels of the slice that are no gray."""
    return int(
        page.locator(STAGE).evaluate(
            """(canvas) => {
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                let found = 0;
                for (let i = 0; i < data.length; i += 4) {
                    const rgb = data.subarray(i, i + 3);
                    if (Math.max(...rgb) - Math.min(...rgb) > 12) found++;
                }
                return found;
            }"""
        )
    )


def test_a_result_beside_another_networks(site: Site) -> None:
    page = site.page
    to(page, "Compare")
    page.get_by_text("Another network", exact=True).click()
    page.get_by_role("combobox", name="Network").click()
    page.get_by_role("option", name="run copy").click()
    page.get_by_text("Volume, run copy").wait_for()
    still(page)
    assert "1.00" in page.get_by_test_id("stMetric").first.inner_text()  # the same network finds the same
    page.get_by_label("run copy: how it is drawn").wait_for()
    page.get_by_role("combobox", name="Network").click()
    page.get_by_role("option", name="run tiny").click()
    page.get_by_text("The model 'tiny' cannot analyze a scan").wait_for()


def test_a_mask_of_another_scan_is_refused_in_one_sentence(site: Site, tmp_path: Path) -> None:
    page = site.page
    to(page, "Compare")
    page.get_by_text("A mask that is true", exact=True).click()
    still(page)
    wrong = tmp_path / "wrong.nii.gz"
    wrong.write_bytes(b"no mask at all")
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(str(wrong))
    page.get_by_text(re.compile(r"^wrong\.nii\.gz: ")).wait_for()
    assert page.get_by_test_id("stException").count() == 0


def test_a_run_that_was_just_trained(site: Site) -> None:
    page = site.page
    to(page, "Training")
    page.get_by_role("table").filter(has_text="tiny").first.wait_for()
    assert "finished" in page.get_by_role("table").first.inner_text()
    page.get_by_text("Loss", exact=True).first.wait_for()
    to(page, "Models")
    page.get_by_text("What it cannot do").wait_for()
    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="run tiny").click()
    page.get_by_role("cell", name="SHA-256").wait_for()


def test_what_a_service_received_is_ranked_and_opened(site: Site) -> None:
    page = site.page
    to(page, "Worklist")
    page.get_by_role("table").filter(has_text="2.25.77.5").wait_for()
    to(page, "Most uncertain first")
    page.get_by_role("heading", name="Worklist", exact=True).wait_for()
    assert page.get_by_role("table").filter(has_text="2.25.77.5").count() == 1
    assert page.get_by_role("heading", name=re.compile("^Results in")).count() == 1
    to(page, "Worklist")
    page.get_by_role("button", name="Open it in the viewer").click()
    page.wait_for_url("**/view")
    page.get_by_text(re.compile(r"Slice \d+ / 6")).first.wait_for()
    assert page.get_by_test_id("stSidebar").get_by_text("2.25.77.5").count() == 1
