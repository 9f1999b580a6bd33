"""The web app as a user meets it: page, upload to findings, scrolling, ten users, a refresh, a large upload.

A real server (``hemolens web``) and a real Chromium on the same machine. Processor seconds of the server stand beside
the wall clock, and the machine's load is written down: on a busy machine the wall clock says little.

Run:  python benchmarks/bench_web.py [--repeats 5] [--upload-gib 2] [--parts one ten pages upload]
Writes benchmarks/results/web.json with a description of the machine; parts that are not run keep their figures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from bench_analyze import RESULTS, machine, write_series  # noqa: E402

from web_server import CHROMIUM, CHROMIUM_ARGS, served  # noqa: E402

WAIT = 600_000
SCROLL = """async (canvas) => {
    const root = canvas.getRootNode(), corner = root.querySelector(".corner.tl");
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const turn = async (by) => {
        const before = corner.textContent;
        canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: by, bubbles: true, cancelable: true }));
        for (let i = 0; i < 200 && corner.textContent === before; i++) await frame();
    };
    canvas.focus();
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true, composed: true }));
    for (let i = 0; i < 200 && !corner.textContent.startsWith("Slice 1 "); i++) await frame();
    const times = [];
    for (const by of [110, -110]) for (let i = 0; i < 31; i++) {
        const start = performance.now();
        await turn(by);
        times.push(performance.now() - start);
    }
    return times;
}"""
"""Turns the wheel through the scan and back; each turn waits until its slice has been drawn."""


PARTS = ("one", "pages", "ten", "upload")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--upload-gib", type=float, default=2.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


def note(**values: Any) -> None:
    """Write figures as soon as they are there."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "web.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    told = kept | {"machine": machine()} | values
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(values), flush=True)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Measure and write every part that was asked for."""
    from playwright.sync_api import sync_playwright

    series = folder / "series"
    series.mkdir()
    write_series(series)
    scan = Path(shutil.make_archive(str(folder / "scan"), "zip", series))
    command = [sys.executable, "-m", "hemolens", "web", "--port", "PORT"]
    with served(command=command, all_cores=True) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        server = listener(int(url.rsplit(":", 1)[1]))
        time.sleep(8)  # the network is loaded in the background
        if "one" in arguments.parts:
            one_user(browser, url, server, scan, arguments.repeats)
        if "pages" in arguments.parts:
            note(ten_pages_at_once={**clocked(server, lambda: crowd(browser, url)), "load": load()})
        if "upload" in arguments.parts:
            note(large_upload=large_upload(url, server, arguments.upload_gib))
        if "ten" in arguments.parts:
            note(ten_users_drop_a_scan_at_once={**crowd_of_scans(browser, url, scan), "load": load()})
        browser.close()


def one_user(browser: Any, url: str, server: int, scan: Path, repeats: int) -> None:
    """Measure what one user waits for, each time in a new browser context."""
    pages: list[dict[str, Any]] = []
    scans: list[dict[str, Any]] = []
    speeds: list[float] = []
    for _ in range(repeats):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        page = context.new_page()
        page.set_default_timeout(WAIT)
        pages.append(clocked(server, lambda page=page: ready(page, url)))
        scans.append(clocked(server, lambda page=page: findings(page, scan)))
        times = page.locator(".stage canvas").evaluate(SCROLL)
        speeds.append(round(1000 / statistics.median(times), 1))
        context.close()
        note(page_ready=pages, upload_of_32_slices_to_findings=scans, slices_per_s=speeds, load_one_user=load())
    note(refresh_in_mid_analysis=refreshed(browser, url, scan))


def load() -> float:
    """Return how many processes have wanted a core, the mean of the last minute."""
    return round(os.getloadavg()[0], 2)


def ready(page: Any, url: str) -> None:
    """Open the page until it can be used."""
    page.goto(url)
    page.get_by_role("button", name="Choose files").wait_for()


def findings(page: Any, scan: Path) -> None:
    """Drop a scan until picture and findings stand."""
    page.locator("input.pick").set_input_files(str(scan))
    page.get_by_text(re.compile(r"Slice \d+ / 32")).first.wait_for()
    page.get_by_text("Probability of any hemorrhage").first.wait_for()


def crowd(browser: Any, url: str) -> None:
    """Open ten pages of ten users, all of them before the first is ready."""
    contexts = [browser.new_context() for _ in range(10)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(WAIT)
        page.goto(url, wait_until="commit")
    for page in pages:
        page.get_by_role("button", name="Choose files").wait_for()
    for context in contexts:
        context.close()


def crowd_of_scans(browser: Any, url: str, scan: Path) -> dict[str, Any]:
    """Let ten users drop a scan within a moment; return when each had findings, and what a click took meanwhile."""
    contexts = [browser.new_context() for _ in range(10)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(WAIT)
        ready(page, url)
    started = time.perf_counter()
    for page in pages:
        page.locator("input.pick").set_input_files(str(scan))
    pages[-1].get_by_text(re.compile("waiting for|step")).first.wait_for()
    clicked = time.perf_counter()
    pages[-1].get_by_role("link", name="Models", exact=True).click()
    pages[-1].get_by_text("What it cannot do").wait_for()
    click = time.perf_counter() - clicked
    pages[-1].get_by_role("link", name="Open", exact=True).click()
    done = []
    for page in pages:
        page.get_by_text("Probability of any hemorrhage").first.wait_for()
        done.append(round(time.perf_counter() - started, 2))
    for context in contexts:
        context.close()
    return {"findings_after_s": done, "another_page_meanwhile_s": round(click, 2)}


def refreshed(browser: Any, url: str, scan: Path) -> dict[str, Any]:
    """Reload the page in mid-analysis; return when its progress stood again, and when the findings did."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT)
    ready(page, url)
    page.locator("input.pick").set_input_files(str(scan))
    page.get_by_text(re.compile("step [123] of 4")).first.wait_for()
    started = time.perf_counter()
    page.reload()
    page.get_by_text(re.compile("step . of 4|Probability of any hemorrhage")).first.wait_for()
    again = time.perf_counter() - started
    page.get_by_text("Probability of any hemorrhage").first.wait_for()
    found = time.perf_counter() - started
    scans = page.locator("[data-testid=stSidebar] [role=radiogroup] label").count()
    context.close()
    return {"page_again_s": round(again, 2), "findings_s": round(found, 2), "scans_open": scans}


def large_upload(url: str, server: int, gib: float) -> dict[str, Any]:
    """Send one large file, and see how the server's memory grows."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=600)
    connection.request("GET", "/", headers={"accept": "text/html"})
    answer = connection.getresponse()
    answer.read()
    cookie = (answer.getheader("set-cookie") or "").split(";")[0]
    size, before, started = int(gib * 2**30), memory_mib(server), time.perf_counter()

    def body() -> Iterator[bytes]:
        piece = os.urandom(2**20)
        for _ in range(size // len(piece)):
            yield piece

    path = "/hemolens/upload/benchmark1?name=large.zip"
    connection.request("POST", path, body=body(), headers={"cookie": cookie, "content-length": str(size)})
    status = connection.getresponse().status
    seconds = time.perf_counter() - started
    after = memory_mib(server)
    dropped = http.client.HTTPConnection(host, timeout=600)
    dropped.request("DELETE", "/hemolens/upload/benchmark1", headers={"cookie": cookie})
    dropped.getresponse().read()
    return {
        "gib": gib,
        "status": status,
        "seconds": round(seconds, 1),
        "mib_per_s": round(size / 2**20 / seconds),
        "memory_before_mib": before,
        "memory_after_mib": after,
    }


def clocked(server: int, what: Callable[[], object]) -> dict[str, float]:
    """Return wall-clock seconds and the server's processor seconds of a call."""
    used, started = processor_s(server), time.perf_counter()
    what()
    return {
        "wall_s": round(time.perf_counter() - started, 2),
        "server_processor_s": round(processor_s(server) - used, 2),
    }


def listener(port: int) -> int:
    """Return the process that was started for this port."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"web" in words and str(port).encode() in words:
                return int(entry.name)
    raise SystemExit("the server is not running")


def processor_s(pid: int) -> float:
    """Return the processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> int:
    """Return the most memory that a process has held so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) // 1024 if found else 0


if __name__ == "__main__":
    main()
