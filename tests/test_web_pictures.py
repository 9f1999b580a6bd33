"""The pictures of the web app in the docs are what the app shows: taken again from the demo, and compared loosely.

To write them anew:  python tests/test_web_pictures.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from web_server import CHROMIUM, CHROMIUM_ARGS, need_browser, served

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURES = {
    "start": DOCS / "how-to" / "web-start.png",
    "view": DOCS / "tutorials" / "first-correction-view.png",
    "done": DOCS / "tutorials" / "first-correction-done.png",
    "space": DOCS / "how-to" / "web-3d.png",
    "compare": DOCS / "how-to" / "web-compare.png",
    "explain": DOCS / "how-to" / "web-explain.png",
}
SIZE = {"width": 1280, "height": 960}
LIMIT = 6.0
"""Mean difference of grays (0 to 255) at 64 x 48: fonts and rounding give less than 2, another page more than 8."""
WAIT = 300_000


def take(folder: Path) -> None:
    """Walk through the demo and take every picture."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "hemolens", "web", "--port", "PORT"]
    with served(command=command) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_context(viewport=SIZE).new_page()
        page.set_default_timeout(WAIT)

        def shoot(name: str) -> None:
            page.mouse.move(640, 3)
            still(page)
            # Buttons that are pressed scroll into view, by how much depends on when the page was drawn.
            page.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 0)")
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{name}.png")

        page.goto(url)
        page.get_by_role("button", name="Choose files").wait_for()
        shoot("start")
        page.get_by_role("button", name="Open the demo").click()
        page.get_by_text("Probability of any hemorrhage").first.wait_for()
        shoot("view")
        walk(page, shoot)
        browser.close()


def walk(page: Any, shoot: Callable[[str], None]) -> None:
    """Look at the open demo from all sides, and correct it."""
    page.get_by_text("Three planes and 3D").click()
    for name in ("two", "solid"):
        page.locator(f".stage[aria-busy=false] canvas.{name}").wait_for()
    shoot("space")
    page.get_by_role("link", name="Explain", exact=True).click()
    page.get_by_role("button", name="Show the evidence").click()
    page.get_by_text(re.compile("yellow is the strongest")).wait_for()
    shoot("explain")
    page.get_by_role("link", name="Compare", exact=True).click()
    page.get_by_text("Dice of all blood").wait_for()
    page.get_by_role("button", name=re.compile("^Found where there is none, 1: slice")).click()
    still(page)
    assert pixels_like(page, (255, 60, 160)) > 50, "what is found where there is nothing is outlined in pink"
    shoot("compare")
    page.get_by_role("link", name="Correct", exact=True).click()
    page.get_by_role("toolbar", name="Correction tools").wait_for()
    still(page)
    page.get_by_text("Go to a lesion").click()
    page.get_by_role("button", name=re.compile("^Go to lesion 2: epidural")).click()
    still(page)
    page.get_by_text("Go to a lesion").click()
    page.get_by_role("button", name="Click", exact=True).click()
    page.get_by_label("Kind of hemorrhage for the tools").select_option("Subdural")
    row, column = middle_of_the_lesion(page)
    page.mouse.click(column, row)
    page.locator("li").get_by_text("Relabeled a lesion as subdural").wait_for()
    shoot("done")


def middle_of_the_lesion(page: Any) -> tuple[float, float]:
    """Return where on the page the reddest part of the slice is: the epidural overlay."""
    box = page.locator(".stage canvas").bounding_box()
    row, column = page.locator(".stage canvas").evaluate(
        """(canvas) => {
            const { width, height } = canvas, data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            const found = [];
            for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
                const at = 4 * (y * width + x);
                if (data[at] - Math.max(data[at + 1], data[at + 2]) > 50) found.push([y / height, x / width]);
            }
            return found[Math.floor(found.length / 2)];
        }"""
    )
    return box["y"] + row * box["height"], box["x"] + column * box["width"]


def pixels_like(page: Any, color: tuple[int, int, int]) -> int:
    """Count the pixels of the slice that are about this color."""
    return int(
        page.locator(".stage canvas").evaluate(
            """(canvas, color) => {
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                let found = 0;
                for (let i = 0; i < data.length; i += 4) {
                    if (color.every((v, c) => Math.abs(data[i + c] - v) < 60)) found++;
                }
                return found;
            }""",
            list(color),
        )
    )


def still(page: Any) -> None:
    """Wait until nothing is being run for the page, and what it drew is there."""
    page.wait_for_timeout(500)
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
    )
    page.wait_for_timeout(700)


def gray(path: Path) -> np.ndarray:
    """Return a picture small and gray."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((64, 48), Image.Resampling.BOX)).astype(float)


def difference(one: Path, other: Path) -> float:
    """Return the mean difference of two pictures, in grays."""
    return float(np.mean(np.abs(gray(one) - gray(other))))


def test_no_picture_could_stand_for_another() -> None:
    """The limit tells pages apart: that of another page would be found out."""
    for name, path in PICTURES.items():
        assert path.stat().st_size < 150_000
        for other, there in PICTURES.items():
            assert name == other or difference(path, there) > LIMIT, (name, other)


@pytest.mark.slow
def test_the_pictures_in_the_docs_are_what_the_app_shows(tmp_path: Path) -> None:
    need_browser()
    pytest.importorskip("torch", reason="needs hemolens[train]")
    take(tmp_path)
    found = {name: difference(path, tmp_path / f"{name}.png") for name, path in PICTURES.items()}
    assert all(value < LIMIT for value in found.values()), found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        take(Path(made))
        for name, path in PICTURES.items():
            shot = Image.open(Path(made) / f"{name}.png").convert("RGB")
            shot.quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
