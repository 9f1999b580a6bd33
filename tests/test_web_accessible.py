"""The web app without a mouse, for a screen reader, and on a tablet: the real app and its demo in a real browser."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="needs hemolens[web]")

from hemolens.web.pages import PAGES
from web_cases import dicom_volume, study_of, worklist_service, write_evaluation, write_run
from web_server import CHROMIUM, CHROMIUM_ARGS, need_browser, served

pytestmark = pytest.mark.slow

WAIT = 180_000
DESK = {"width": 1280, "height": 960}
PATHS = ["start", *[page.path for page in PAGES]]
STAGE = ".stage canvas"
DEEP = """
    let at = document.activeElement;
    while (at && at.shadowRoot && at.shadowRoot.activeElement) at = at.shadowRoot.activeElement;
"""
"""Script that finds what has the focus, inside of components too."""

PRIMARY = "rgb(209, 64, 58)"
"""The color of the theme, which a field's border takes when it has the focus."""

Page = Any


@dataclass(frozen=True)
class Site:
    """A running app that has something to show on every page, and a browser."""

    url: str
    browser: Any
    folder: Path

    def page(self, **options: Any) -> Page:
        """Open the app as a new user."""
        page = self.browser.new_context(**options).new_page()
        page.set_default_timeout(WAIT)
        page.goto(self.url)
        page.get_by_role("button", name="Choose files").wait_for()
        return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need_browser()
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("site")
    write_run(folder / "runs" / "mine")
    write_evaluation(folder / "runs" / "mine-scores")
    study_of(dicom_volume(folder / "dicom")).result.save(folder / "results" / "earlier")
    with worklist_service() as (host, _), sync_playwright() as playwright:
        command = [
            sys.executable, "-m", "hemolens", "web", "--port", "PORT", "--keep", str(folder / "kept"),
            "--runs", str(folder / "runs"), "--results", str(folder / "results"), "--pacs", f"http://:se%2Fcret@{host}",
        ]  # fmt: skip
        with served(command=command) as url:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
            yield Site(url, chromium, folder)
            chromium.close()


@pytest.fixture(scope="module")
def demo(site: Site) -> Page:
    """A page with the demo open."""
    page = site.page(viewport=DESK)
    page.get_by_role("button", name="Open the demo").click()
    page.get_by_text("Probability of any hemorrhage").first.wait_for()
    still(page)
    return page


def still(page: Page) -> None:
    """Wait until nothing is being run for the page."""
    page.wait_for_timeout(400)
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
    )
    page.wait_for_timeout(300)
    assert page.get_by_test_id("stException").count() == 0


def to(page: Page, path: str) -> None:
    """Go to a page, whether or not its menu is folded away."""
    nav = page.get_by_test_id("stSidebarNav").locator("a")
    link = nav.first if path == "start" else nav.and_(page.locator(f"[href$='/{path}']"))
    link.evaluate("(link) => link.click()")
    page.wait_for_url(re.compile(rf"/{path}$") if path != "start" else re.compile(r"/(start)?$"))
    still(page)


# --- without a mouse -------------------------------------------------------------------------------------------------


def focused(page: Page) -> str:
    """Return how what has the focus is called."""
    return str(
        page.evaluate(
            f"""() => {{ {DEEP}
                if (!at) return "";
                const label = at.labels && at.labels[0] ? at.labels[0].innerText : "";
                const leaf = at.matches("a, button, summary, label"); // the text of a whole region is no name
                return at.getAttribute("aria-label") || label || (leaf && at.innerText) || at.tagName;
            }}"""
        )
    )


def tab_to(page: Page, name: str, key: str = "Tab", most: int = 90) -> None:
    """Press Tab until something of this name has the focus, and see that it shows."""
    for _ in range(most):
        page.keyboard.press(key)
        if re.search(name, focused(page)):
            break
    else:
        raise AssertionError(f"{most} times {key}, and {name!r} never got the focus; it is on {focused(page)!r}")
    shows = page.evaluate(
        f"""() => {{ {DEEP}
            for (let one = at, n = 0; one && n < 4; one = one.parentElement, n++) {{
                const style = getComputedStyle(one);
                const lined = style.outlineStyle !== "none" && style.outlineWidth !== "0px";
                if (lined || style.boxShadow !== "none" || style.borderTopColor === "{PRIMARY}") return true;
            }}
            return false;
        }}"""
    )
    assert shows, f"nothing shows that {name!r} has the focus"


def heard(page: Page) -> str:
    """Return what the viewer last let a screen reader say."""
    page.wait_for_timeout(450)
    return str(page.locator(".hl > [role=status]").text_content())


def slice_shown(page: Page) -> int:
    page.wait_for_timeout(150)
    found = re.search(r"Slice (\d+) /", str(page.locator(".corner.tl").text_content()))
    assert found
    return int(found[1])


def test_from_an_empty_page_to_a_saved_correction_by_keys_alone(site: Site) -> None:
    page = site.page(viewport=DESK, accept_downloads=True)
    keys = page.keyboard
    tab_to(page, "^Choose files$")
    with page.expect_file_chooser():
        keys.press("Space")  # the very first Enter that Playwright sends counts as no act of the user
    tab_to(page, "Open the demo")
    keys.press("Enter")
    page.get_by_text("Probability of any hemorrhage").first.wait_for()
    still(page)

    # Look: slices, windows, lesions, HU.
    tab_to(page, "^Slice .* of 30, probability of hemorrhage")
    keys.press("Home")
    assert slice_shown(page) == 1
    keys.press("ArrowDown")
    keys.press("PageDown")
    assert slice_shown(page) == 7
    assert heard(page).startswith("Slice 7 of 30, probability of hemorrhage")
    keys.press("3")
    page.get_by_text("L 600  W 2800").wait_for()
    keys.press("1")
    keys.press("n")
    begun = slice_shown(page)
    assert begun > 7
    keys.press("Enter")
    found = re.fullmatch(
        r"Cursor on: arrow keys move it, with Shift 10 pixels, Escape ends it\. "
        r"Row (\d+), column (\d+): (\d+) HU, Found: \w+",
        heard(page),
    )
    assert found, heard(page)
    row, column, hu = (int(text) for text in found.groups())
    assert 40 < hu < 100  # it stands in a bleed
    keys.press("ArrowDown")
    keys.press("Shift+ArrowLeft")
    assert heard(page).startswith(f"Row {row + 1}, column {column - 10}: ")
    keys.press("PageDown")
    assert slice_shown(page) == begun + 1
    keys.press("Escape")
    assert heard(page) == "Cursor off: arrow keys change the slice."
    keys.press("ArrowUp")
    assert slice_shown(page) == begun

    # Correct: the lesion of the list, relabeled; then a stroke, and a part of it erased.
    tab_to(page, "Correct", "Shift+Tab")
    keys.press("Enter")
    page.get_by_role("toolbar", name="Correction tools").wait_for()
    still(page)
    tab_to(page, "Go to a lesion")
    keys.press("Enter")
    tab_to(page, "^Go to lesion 2: epidural")
    keys.press("Enter")
    still(page)
    tab_to(page, "^Click$", "Shift+Tab")
    keys.press("Enter")
    tab_to(page, "^Kind of hemorrhage for the tools$")
    keys.type("Sub")
    keys.type("d")
    assert page.get_by_label("Kind of hemorrhage for the tools").input_value() == "2"
    tab_to(page, "^Slice .* of 30, probability of hemorrhage")
    keys.press("Enter")
    for _ in range(4):
        if heard(page).endswith("Outlines: Epidural"):
            break
        keys.press("n")
    assert heard(page).endswith("Outlines: Epidural")
    keys.press("Enter")
    page.locator("li").get_by_text("Relabeled a lesion as subdural").wait_for()
    still(page)
    page.wait_for_function(
        "() => [...document.querySelectorAll('*')].some((one) => one.shadowRoot?.querySelector('.hl > [role=status]')"
        "?.textContent.startsWith('Change 1: Relabeled a lesion as subdural'))"
    )
    assert "probability of hemorrhage" in focused(page), "the picture keeps the focus"
    for key, moves in (("b", 20), ("e", 4)):
        keys.press(key)
        keys.press("Enter")
        for _ in range(moves):
            keys.press("ArrowRight")
        assert re.search("Painting|Erasing", heard(page))
        keys.press("Enter")
        page.locator("li").get_by_text("Painted subdural" if key == "b" else "Erased with the brush").wait_for()
        still(page)
    keys.press("Control+z")
    page.locator("li").get_by_text("Erased with the brush").wait_for(state="hidden")
    still(page)

    # Save.
    tab_to(page, "^Your name or initials")
    keys.type("Ada Reader")
    keys.press("Enter")
    page.get_by_role("button", name="Download mask, SEG and record").wait_for()
    still(page)
    tab_to(page, "^I have looked at every slice")
    keys.press("Space")
    still(page)
    tab_to(page, "Download mask, SEG and record")
    with page.expect_download() as caught:
        keys.press("Enter")
    with zipfile.ZipFile(caught.value.path()) as archive:
        record = json.loads(archive.read("correction.json"))
    assert record["author"] == "Ada Reader"
    assert [edit["kind"] for edit in record["edits"]] == ["relabel lesion", "brush"]
    assert record["edits"][1]["voxels"] > 20
    tab_to(page, "Add to the training folder")
    keys.press("Enter")
    page.get_by_text("The scan is added: 1 scans of 1 patients").wait_for()
    assert (site.folder / "kept" / "training").is_dir()
    page.context.close()


# --- for a screen reader ---------------------------------------------------------------------------------------------


STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
STREAMLITS_OWN = {
    # Streamlit puts a <div> with a heading between the list of its menu and the items; the links have names.
    "list": "[data-testid=stSidebarNavItems]",
    "listitem": "[data-testid=stSidebarNavItems] li",
    # Vega draws the points of a curve as marks without names; the same numbers stand in the table of the log.
    "svg-img-alt": "[data-testid=stVegaLiteChart] g[role=graphics-symbol]",
}
"""What is wrong in elements that Streamlit makes and we cannot change: rule, and the elements where it is allowed."""


def violations(page: Page) -> list[str]:
    """Return what axe-core finds on the page beside `STREAMLITS_OWN`, one line for each element."""
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found: list[str] = page.evaluate(
        """async ([tags, allowed]) => {
            const told = await axe.run(document, { runOnly: tags, resultTypes: ["violations"], elementRef: true });
            if (!told.passes.length) return ["axe looked at nothing"];
            return told.violations.flatMap((one) => one.nodes
                .filter((node) => !(allowed[one.id] && node.element.matches(allowed[one.id])))
                .map((node) => `${one.id}: ${node.html.slice(0, 160)} (${node.failureSummary.split("\\n")[1]})`));
        }""",
        [STANDARD, STREAMLITS_OWN],
    )
    return found


def test_axe_finds_what_is_wrong(site: Site) -> None:
    """The audit below can fail: inside of components, too."""
    page = site.page()
    assert violations(page) == []
    page.locator(".drop").evaluate("(box) => { box.insertAdjacentHTML('beforeend', '<input>'); }")
    page.locator(".drop .limit").evaluate("(line) => { line.style.color = '#333'; line.style.opacity = 1; }")
    assert sorted(line.split(":")[0] for line in violations(page)) == ["color-contrast", "label"]
    page.context.close()


@pytest.mark.parametrize("path", PATHS)
def test_every_page_keeps_to_wcag(demo: Page, path: str) -> None:
    demo.set_viewport_size(DESK)
    to(demo, path)
    for fold in demo.get_by_test_id("stMain").locator("summary").all():
        fold.click()
    still(demo)
    assert violations(demo) == []
    assert sideways(demo) <= 0


def test_the_planes_keep_to_wcag(demo: Page) -> None:
    demo.set_viewport_size(DESK)
    to(demo, "view")
    demo.get_by_text("Three planes and 3D").click()
    demo.locator(".stage[aria-busy=false] canvas.solid").wait_for()
    assert violations(demo) == []
    demo.get_by_text("Slices", exact=True).click()
    demo.locator(STAGE).first.wait_for()


# --- on a tablet -----------------------------------------------------------------------------------------------------


CUT = """() => {
    const found = [];
    const scrolls = (one) => /auto|scroll|hidden|clip/.test(getComputedStyle(one).overflowX);
    const walk = (one, held) => {
        const box = one.getBoundingClientRect(), style = getComputedStyle(one);
        const unseen = style.display === "none" || style.visibility === "hidden";
        if (unseen || /inset|rect/.test(style.clipPath + style.clip)) return;
        const name = `${one.tagName} ${one.className?.toString().slice(0, 40)} ${one.innerText?.slice(0, 40)}`;
        if (box.width && !held && (box.right > innerWidth + 1 || box.left < -1)) found.push(`outside: ${name}`);
        const text = /^(P|TD|TH|BUTTON|SUMMARY|LABEL|H1|H2|H3|H4|LI)$/.test(one.tagName);
        if (text && style.overflowX !== "visible" && one.scrollWidth > one.clientWidth + 1) found.push(`cut: ${name}`);
        const holds = held || (scrolls(one) && one.dataset.testid !== "stMain");
        for (const child of (one.shadowRoot || one).children) walk(child, holds);
    };
    walk(document.querySelector("[data-testid=stMain]"), false);
    return found;
}"""
"""Script that tells what reaches beyond the window, or is cut off in a box that does not scroll."""


def sideways(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    parts = "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
    return int(page.evaluate(f"() => Math.max(...{parts}.map((one) => one.scrollWidth - one.clientWidth))"))


@pytest.mark.parametrize("width", [768, 1024])
def test_nothing_is_cut_off_on_a_tablet(demo: Page, width: int) -> None:
    for path in PATHS:
        to(demo, path)
        demo.set_viewport_size({"width": width, "height": 1024})
        still(demo)
        assert sideways(demo) <= 0, path
        assert demo.evaluate(CUT) == [], path


def test_the_menu_of_a_tablet_unfolds(site: Site) -> None:
    page = site.page(viewport={"width": 768, "height": 1024}, has_touch=True)
    page.get_by_test_id("stExpandSidebarButton").tap()
    page.get_by_role("link", name="Models", exact=True).tap()
    page.get_by_text("What it cannot do").wait_for()
    still(page)
    assert page.get_by_test_id("stMain").get_by_text("What it cannot do").is_visible()
    page.context.close()
