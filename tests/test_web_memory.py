"""What the web app's server holds in memory: not what is uploaded, and no scan of those who have gone."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("streamlit", reason="needs hemolens[web]")

from dicom_files import Series, write_series
from hemolens.web import server
from hemolens.web.house import LOADING_S, House, WebSettings
from hemolens.web.server import return_memory
from hemolens.web.session import put
from web_cases import dicom_volume, study_of
from web_server import BLOOD_HU, chromium, served, zip_of

MIB = 2**20
UPLOAD_BYTES = 2 * 2**30 + 5 * MIB
WAIT = 60_000

Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def server_at(url: str) -> psutil.Process:
    """Return the server that `served` started."""
    port = url.rpartition(":")[2]
    return next(one for one in psutil.Process().children() if port in one.cmdline())


@contextmanager
def watched(*processes: psutil.Process) -> Iterator[list[int]]:
    """Give the most bytes that each process held above what it had at the start; whole when the block has ended."""
    before = [one.memory_info().rss for one in processes]
    most, over = [0] * len(processes), threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for place, (one, had) in enumerate(zip(processes, before, strict=True)):
                most[place] = max(most[place], one.memory_info().rss - had)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def opened(browser: Any, url: str) -> Page:
    page = browser.new_context().new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.get_by_role("button", name="Choose files").wait_for()
    return page


@pytest.mark.slow
def test_an_upload_of_two_gigabytes_lies_on_disk_and_not_in_memory(browser: Any, tmp_path: Path) -> None:
    """It is taken whole, read, and refused in one sentence; meanwhile nobody holds more than a few pieces of it."""
    big = tmp_path / "big.zip"
    with big.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(UPLOAD_BYTES)  # sparse: the disk holds nothing of it, until the server has it
    with served() as url:
        page, server = opened(browser, url), server_at(url)
        started = time.monotonic()
        with watched(server, psutil.Process()) as most:
            page.locator("input.pick").set_input_files(str(big))
            page.get_by_text(re.compile(r"Sending big\.zip: .* of 2053 MB")).wait_for()
            page.get_by_text("big.zip: is no readable zip file.").wait_for()
        seconds = time.monotonic() - started
        page.context.close()
    print(
        f"{UPLOAD_BYTES / MIB:.0f} MiB in {seconds:.1f} s; server +{most[0] / MIB:.0f} MiB, test +{most[1] / MIB:.0f}"
    )
    # Held whole it would be 2053; what is on its way is a few pieces of the socket's and the file's buffers.
    assert most[0] < 64 * MIB
    assert most[1] < 64 * MIB


@pytest.mark.slow
def test_memory_is_flat_however_many_users_came_and_went(browser: Any, tmp_path: Path) -> None:
    """Each opens a scan of their own, looks at two pages and closes the tab; the room is emptied soon after."""
    series = Series(slices=30, rows=256, columns=256)
    hu = np.random.default_rng(0).integers(0, 60, (30, 256, 256))
    hu[10:20, 100:140, 100:140] = BLOOD_HU
    write_series(tmp_path / "head", series, hu if series.signed else hu + 1024)
    head = zip_of(tmp_path / "head", tmp_path / "head.zip")
    held = []
    with served(idle_s=2.0) as url:
        server = server_at(url)
        for _ in range(2 + 4):
            page = opened(browser, url)
            page.locator("input.pick").set_input_files(str(head))
            page.get_by_text(re.compile(r"Slice \d+ / 30")).first.wait_for()
            page.get_by_role("link", name="Report").click()
            page.get_by_role("heading", name="Report").first.wait_for()
            page.wait_for_timeout(1000)
            page.context.close()
            time.sleep(6)  # the room is emptied after 2 s, the page's session closed, and memory given back
            held.append(server.memory_info().rss / MIB)
    print(f"MiB after each user: {[round(one, 1) for one in held]}")
    # The first two load what all later ones use. As one array of numbers the scan is 7.5 MiB: four that stay are 30.
    assert held[-1] - held[1] < 5, held


@pytest.mark.slow
def test_a_page_that_loads_longer_than_a_room_may_be_idle_finds_its_room(browser: Any) -> None:
    """A busy computer or a slow line: from the cookie to the first run of the page it may take many seconds."""
    with served(idle_s=0.5) as url:
        page = browser.new_context().new_page()
        page.set_default_timeout(WAIT)
        held: list[Any] = []
        page.route("**/index.*.js", lambda route: held.append(route))
        with page.expect_request("**/index.*.js"):
            page.goto(url, wait_until="commit")
        page.wait_for_timeout(4000)  # the server looks for empty rooms every quarter of a second
        for route in held:
            route.continue_()
        page.get_by_role("button", name="Choose files").or_(page.get_by_text("Reload the page")).wait_for()
        assert page.get_by_role("button", name="Choose files").is_visible()
        page.context.close()
    assert held


def test_a_page_that_was_left_is_told_once_and_not_if_it_comes_back() -> None:
    now = [0.0]
    here = House(clock=lambda: now[0])
    room = here.room(None)
    for page in ("gone", "back"):
        here.enter(room, page)
        here.leave(room, page)
    assert here.pages_gone(60) == []
    now[0] = 30.0
    here.enter(room, "back")
    now[0] = 60.0
    assert here.pages_gone(60) == ["gone"]
    assert here.pages_gone(60) == []


def test_a_room_that_was_left_keeps_nothing_alive(tmp_path: Path) -> None:
    now = [0.0]
    here = House(WebSettings(idle_s=10.0), clock=lambda: now[0])
    room = here.room(None)
    here.enter(room)
    here.leave(room)
    put(room, study_of(dicom_volume(tmp_path)))
    study = weakref.ref(next(iter(room.studies.values())))
    volume = weakref.ref(study().volume)  # type: ignore[union-attr]  # it is alive
    now[0] = 9.0
    assert (here.sweep(), here.emptied) == (0, 0)
    now[0] = 11.0
    assert (here.sweep(), here.emptied) == (1, 1)
    return_memory()
    assert study() is None
    assert volume() is None


def test_a_room_waits_for_its_first_page_but_not_for_ever() -> None:
    now = [0.0]
    here = House(WebSettings(idle_s=10.0), clock=lambda: now[0])
    room = here.room(None)
    now[0] = LOADING_S
    assert (here.sweep(), here.known(room.token)) == (0, room)
    now[0] = LOADING_S + 1
    assert (here.sweep(), here.known(room.token)) == (1, None)


def test_a_page_that_came_back_unannounced_keeps_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reconnects without running its script anew, so the house has not heard of it."""
    closed: list[str] = []

    class Running:
        def is_active_session(self, session: str) -> bool:
            return session == "back"

        def close_session(self, session: str) -> None:
            closed.append(session)

    monkeypatch.setattr(server.runtime, "get_instance", Running)
    assert server._close_pages(["gone", "back"]) == 1
    assert closed == ["gone"]
