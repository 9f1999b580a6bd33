"""The web app in a real browser: which way pictures stand, every way to move, and everything that can go wrong.

Scans are read in earnest; what is at 65 HU is called a bleed (see `web_server`), but for the tests at the end.
"""

from __future__ import annotations

import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_files import Series, write_series
from web_server import BLOOD_HU, chromium, need_browser, served, wait_for, zip_of

ROWS, COLUMNS, SLICES = 32, 40, 5
WAIT = 60_000
STAGE = ".stage canvas"
ORIENTATIONS = {
    "ordinary": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "mirrored and upside down": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "turned": ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
}

Page = Any


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    need_browser()
    with served(max_upload_bytes=8 * 2**20) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def new_page(browser: Any, url: str) -> Iterator[Callable[[], Page]]:
    """Open pages of different users; what their scripts complain of fails the test, and so does a call elsewhere."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def make() -> Page:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((url, "blob:", "data:")) else complaints.append(r.url))
        page.goto(url)
        page.get_by_role("button", name="Choose files").wait_for()
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


def hu_of(series: Series) -> np.ndarray:
    """HU that differ everywhere and belong to a place in the patient, not in the file; one bleed on the left side."""
    k, r, c = np.mgrid[0 : series.slices, 0 : series.rows, 0 : series.columns]
    directions = np.array([series.column_direction, series.row_direction])
    x, y, _ = np.moveaxis(r[..., None] * directions[0] + c[..., None] * directions[1], -1, 0)
    x, y = (x - x.min()).astype(int), (y - y.min()).astype(int)
    hu = (7 * x + 13 * y + 5 * k) % 60
    return np.where((abs(x - 28) < 5) & (abs(y - 10) < 4) & (k > 0), BLOOD_HU, hu)


def dicom(folder: Path, row: Any = (1.0, 0.0, 0.0), column: Any = (0.0, 1.0, 0.0)) -> Path:
    turned = row[0] == 0.0
    rows, columns = (COLUMNS, ROWS) if turned else (ROWS, COLUMNS)
    series = Series(
        slices=SLICES, rows=rows, columns=columns, row_direction=row, column_direction=column, spacing_mm=(5.0, 5.0),
        along=(0.0, 0.0, 1.0),
    )  # fmt: skip
    write_series(folder, series, hu_of(series) + 1024 if not series.signed else hu_of(series))
    return folder


def give(page: Page, *paths: Path) -> None:
    page.locator("input.pick").set_input_files([str(path) for path in paths])


def opened(page: Page) -> Page:
    page.locator(STAGE).wait_for()
    page.get_by_text(re.compile(r"Slice \d+ / \d+")).first.wait_for()
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
    )
    settle(page)
    return page


def settle(page: Page) -> None:
    """Wait until the picture has been drawn."""
    page.locator(".waiting").first.wait_for(state="hidden")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(60)


def picture(page: Page) -> np.ndarray:
    """Return the color in the middle of every pixel of the shown slice, ``(rows, columns, 3)``."""
    settle(page)
    flat = page.locator(STAGE).evaluate(
        """(canvas, [rows, columns]) => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const size = Math.min(canvas.width / columns, canvas.height / rows);
            const left = (canvas.width - columns * size) / 2, top = (canvas.height - rows * size) / 2, found = [];
            for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
                const at = 4 * (Math.floor(top + (y + .5) * size) * canvas.width + Math.floor(left + (x + .5) * size));
                found.push(data[at], data[at + 1], data[at + 2]);
            }
            return found;
        }""",
        [ROWS, COLUMNS],
    )
    return np.array(flat).reshape(ROWS, COLUMNS, 3)


def corner(page: Page, name: str) -> str:
    return str(page.locator(f".corner.{name}").text_content())


def slice_shown(page: Page) -> int:
    settle(page)
    match = re.search(r"Slice (\d+) /", corner(page, "tl"))
    assert match
    return int(match[1])


def expected(k: int) -> np.ndarray:
    """HU of a slice as a radiologist sees it: left of the picture is the patient's right, its top the face."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    hu = (7 * x + 13 * y + 5 * k) % 60
    return np.where((abs(x - 28) < 5) & (abs(y - 10) < 4) & (k > 0), BLOOD_HU, hu)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_pixel_is_where_the_patient_has_it(new_page: Callable[[], Page], tmp_path: Path, name: str) -> None:
    page = new_page()
    give(page, zip_of(dicom(tmp_path / "head", *ORIENTATIONS[name]), tmp_path / "head.zip"))
    opened(page)
    page.locator(STAGE).press("h")  # nothing over the scan
    page.locator(STAGE).press("Home")
    for k in range(SLICES):
        assert slice_shown(page) == k + 1
        place = SLICES - 1 - k if name == "turned" else k  # there the slices run toward the feet
        gray = np.round(np.clip(expected(place) / 80 * 255, 0, 255))
        shown = picture(page)
        assert np.abs(shown - gray[..., None]).max() <= 1, f"slice {k}"
        page.locator(STAGE).press("ArrowDown")
    assert [page.locator(f".letter.{side}").text_content() for side in "lrtb"] == ["R", "L", "A", "P"]
    # The filling lies on the bleed and nowhere else.
    page.locator(STAGE).press("h")
    for key in ("Home", "ArrowDown", "ArrowDown"):
        page.locator(STAGE).press(key)
    with_overlay = picture(page)
    colored = np.ptp(with_overlay, axis=-1) > 6
    assert np.array_equal(colored, expected(2) == BLOOD_HU)


@pytest.mark.slow
def test_ways_to_move_and_to_look(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    give(page, *sorted(dicom(tmp_path / "head").iterdir()))
    opened(page)
    stage = page.locator(STAGE)
    stage.press("Home")
    stage.hover()
    page.mouse.wheel(0, 110)
    assert slice_shown(page) == 2
    page.mouse.wheel(0, -110)
    assert slice_shown(page) == 1
    stage.press("End")
    assert slice_shown(page) == SLICES
    page.get_by_role("slider", name="Slice", exact=True).fill("3")
    assert slice_shown(page) == 3
    box = page.locator(".strip").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 1.5 / SLICES, box["y"] + 10)
    assert slice_shown(page) == 2
    stage.press("Home")
    stage.press("n")  # to the bleed, which begins in the second slice
    assert slice_shown(page) == 2

    for name, shown in (
        ("Bone", "L 600  W 2800"),
        ("Subdural", "L 75  W 215"),
        ("Stroke", "L 35  W 35"),
        ("Brain", "L 40  W 80"),
    ):
        page.get_by_role("button", name=name, exact=True).click()
        settle(page)
        assert corner(page, "br") == shown
        assert page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
    page.get_by_label("Window level in Hounsfield units").fill("50")
    page.get_by_label("Window level in Hounsfield units").press("Enter")
    settle(page)
    assert corner(page, "br") == "L 50  W 80"

    box = stage.bounding_box()
    size = min(box["width"] / COLUMNS, box["height"] / ROWS)
    left, top = box["x"] + (box["width"] - COLUMNS * size) / 2, box["y"] + (box["height"] - ROWS * size) / 2
    page.mouse.move(left + 28.5 * size, top + 10.5 * size)
    settle(page)
    assert corner(page, "bl").startswith("65 HU")
    assert "Intraparenchymal" in corner(page, "bl")
    page.mouse.move(left + 3.5 * size, top + 2.5 * size)
    settle(page)
    assert corner(page, "bl").startswith(f"{expected(1)[2, 3]} HU")
    page.mouse.down()
    page.mouse.move(left + 3.5 * size + 40, top + 2.5 * size + 20, steps=4)
    page.mouse.up()
    settle(page)
    level, width = (int(v) for v in re.findall(r"-?\d+", corner(page, "br")))
    assert level > 50
    assert width > 80


@pytest.mark.slow
def test_scrolling_stays_in_the_browser(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    give(page, zip_of(dicom(tmp_path / "head"), tmp_path / "head.zip"))
    opened(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    quiet_since, until = time.monotonic(), time.monotonic() + 30
    while time.monotonic() - quiet_since < 3:  # parts of the page may still be on their way
        assert time.monotonic() < until, f"the page never rests: {asked}"
        page.wait_for_timeout(250)
        if asked:
            asked.clear()
            quiet_since = time.monotonic()
    for key in ("Home", "ArrowDown", "ArrowDown", "End", "ArrowUp"):
        page.locator(STAGE).press(key)
    assert slice_shown(page) == SLICES - 1
    assert not asked


def scans_open(page: Page) -> list[str]:
    return [str(t) for t in page.locator("[data-testid=stSidebar] label p").all_text_contents()]


@pytest.mark.slow
def test_wrong_files_are_one_sentence(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    note = tmp_path / "note.txt"
    note.write_text("This is no scan.")
    give(page, note)
    page.get_by_text("note.txt: is no scan that hemolens knows. Give a DICOM folder").wait_for()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and then nothing of the kind")
    give(page, broken)
    page.get_by_text("broken.zip: is no readable zip file.").wait_for()
    big = tmp_path / "big.zip"
    big.write_bytes(bytes(9 * 2**20))
    give(page, big)
    page.get_by_text("These files are larger than 0.00781 GiB together.").wait_for()
    empty = tmp_path / "empty.dcm"
    empty.touch()
    give(page, empty)
    page.get_by_text("These files are empty.").wait_for()
    give(page, zip_of(dicom(tmp_path / "head"), tmp_path / "good.zip"))  # and the page still works
    opened(page)


@pytest.mark.slow
def test_a_zip_that_climbs_out_of_its_folder_writes_nothing(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    files = sorted(dicom(tmp_path / "head").iterdir())
    target = tmp_path / "climbed.dcm"
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        for file in files:
            archive.write(file, f"../../../../../../..{target.with_name(file.name)}")
        archive.write(files[0], "/etc/hemolens-evil.dcm")
    give(page, evil)
    page.locator(STAGE).or_(page.get_by_text("evil.zip:")).first.wait_for()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.zip", "head"]
    assert not Path("/etc/hemolens-evil.dcm").exists()


@pytest.mark.slow
def test_a_refresh_in_mid_analysis_loses_nothing(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    give(page, zip_of(dicom(tmp_path / "head"), tmp_path / "slow.zip"))
    page.get_by_text(re.compile(r"slow\.zip: .*step 2 of 4")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"slow\.zip: .*step \d of 4")).wait_for()
    opened(page)
    page.reload()  # and the study is still there
    opened(page)
    assert any("slow.zip" in name for name in scans_open(page))


@pytest.mark.slow
def test_an_upload_goes_on_while_another_page_is_looked_at(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page, held = new_page(), []
    page.route("**/hemolens/upload/**", lambda route: held.append(route))
    give(page, zip_of(dicom(tmp_path / "head"), tmp_path / "late.zip"))
    page.get_by_text("Sending late.zip").wait_for()
    page.get_by_role("link", name="Models", exact=True).click()
    page.get_by_text("What it cannot do").wait_for()
    for route in held:
        route.continue_()
    page.wait_for_timeout(500)
    page.get_by_role("link", name="Open", exact=True).click()
    opened(page)
    assert any("late.zip" in name for name in scans_open(page))


@pytest.mark.slow
def test_an_analysis_can_be_stopped(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    give(page, zip_of(dicom(tmp_path / "head"), tmp_path / "slow.zip"))
    page.get_by_text(re.compile(r"slow\.zip: .*step 1 of 4")).wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text(re.compile(r"slow\.zip: .*step")).wait_for(state="hidden")
    assert not any("slow.zip" in name for name in scans_open(page))


@pytest.mark.slow
def test_users_see_their_own_scans_only(new_page: Callable[[], Page], tmp_path: Path) -> None:
    pages = [new_page() for _ in range(3)]
    for number, page in enumerate(pages):
        give(page, zip_of(dicom(tmp_path / f"head{number}"), tmp_path / f"user{number}.zip"))
    for number, page in enumerate(pages):
        page.bring_to_front()
        opened(page)
        assert [name for name in scans_open(page) if "user" in name] == [f"user{number}.zip"]
    sent = pages[1].evaluate(
        "async (path) => (await fetch(path)).status",
        pages[0].evaluate(
            "() => performance.getEntriesByType('resource').map((e) => e.name).find((n) => n.includes('/scan/'))"
        ),
    )
    assert sent == 404


@pytest.mark.slow
def test_a_second_scan_is_shown_beside_the_first(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    for name in ("first.zip", "second.zip"):
        page.get_by_role("link", name="Open", exact=True).click()
        page.get_by_role("button", name="Choose files").wait_for()
        give(page, zip_of(dicom(tmp_path / name[:-4]), tmp_path / name))
        opened(page)
    page.get_by_label("Beside it").click()
    page.get_by_role("option", name="first.zip").click()
    page.locator(STAGE).nth(1).wait_for()
    page.get_by_role("button", name="Close this scan").click()
    page.locator(STAGE).nth(1).wait_for(state="hidden")
    wait_for(lambda: [name for name in scans_open(page) if name.endswith(".zip")] == ["first.zip"], 30)


@pytest.mark.slow
def test_a_stroke_reaches_python_and_comes_back(new_page: Callable[[], Page], tmp_path: Path) -> None:
    page = new_page()
    give(page, zip_of(dicom(tmp_path / "head", *ORIENTATIONS["turned"]), tmp_path / "head.zip"))
    opened(page)
    page.get_by_role("link", name="Correct").click()
    page.get_by_role("toolbar", name="Correction tools").wait_for()
    opened(page)
    stage = page.locator(STAGE)
    stage.press("Home")
    stage.press("b")
    page.get_by_label("Kind of hemorrhage for the tools").select_option("Subdural")
    page.get_by_label("Brush width in millimeters").fill("10")
    before = picture(page)
    box = stage.bounding_box()
    size = min(box["width"] / COLUMNS, box["height"] / ROWS)
    left, top = box["x"] + (box["width"] - COLUMNS * size) / 2, box["y"] + (box["height"] - ROWS * size) / 2
    page.mouse.move(left + 8.5 * size, top + 20.5 * size)
    page.mouse.down()
    page.mouse.move(left + 14.5 * size, top + 20.5 * size, steps=6)
    page.mouse.up()
    page.mouse.move(left + 2, top + 2)
    page.wait_for_timeout(1500)
    page.wait_for_function("() => !document.querySelector('[data-testid=stStatusWidget]')")
    page.get_by_role("link", name="View").click()
    opened(page)
    page.locator(STAGE).press("Home")
    after = picture(page)
    changed = np.abs(after - before).max(axis=-1) > 6
    rows, columns = np.nonzero(changed)
    assert set(rows) <= {19, 20, 21}
    assert {20} <= set(rows)
    assert set(range(8, 15)) <= set(columns) <= set(range(7, 17))
    green = after[20, 11]
    assert green[1] > green[0]


@pytest.mark.slow
def test_a_closed_tab_is_forgotten(browser: Any, tmp_path: Path) -> None:
    with served(idle_s=12.0) as url:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.get_by_role("button", name="Choose files").wait_for()
        give(page, zip_of(dicom(tmp_path / "head"), tmp_path / "head.zip"))
        opened(page)

        def room_is_there() -> bool:
            return bool(context.request.post(f"{url}/hemolens/upload/abcdefgh?name=x", data=b"x").status == 200)

        page.wait_for_timeout(15_000)  # longer than a room stays that nobody is in
        assert room_is_there()
        page.close()
        wait_for(lambda: not room_is_there(), 90)
        context.close()


@pytest.mark.slow
def test_the_demo_and_a_real_scan_by_the_shipped_network(browser: Any, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hemolens", "web", "--port", "PORT"]
    need_browser()
    with served(command=command) as url:
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        page = context.new_page()
        page.set_default_timeout(180_000)
        page.goto(url)
        page.get_by_role("button", name="Open the demo").click()
        opened(page)
        assert re.match(r"Slice \d+ / 30", corner(page, "tl"))
        strip = str(page.locator(".strip").get_attribute("aria-label"))
        assert "each of 30 slices" in strip
        assert int(re.findall(r"(\d+) %", strip)[0]) >= 90
        page.get_by_role("link", name="Open", exact=True).click()
        page.get_by_role("button", name="Choose files").wait_for()
        give(page, zip_of(data / "dicom_head_tilted", tmp_path / "tilted.zip"))
        page.get_by_text("tilted.zip").first.wait_for()
        page.wait_for_url("**/view")
        opened(page)
        page.get_by_text("Slice 1").or_(page.get_by_text(re.compile(r"Slice \d+ / 28"))).first.wait_for()
        assert [page.locator(f".letter.{side}").text_content() for side in "lr"] == ["R", "L"]
        context.close()
