"""The web app as a user meets it: page, upload to findings, scrolling, ten users at once, and a large upload.

A real server (``hemolens web``) and a real Chromium on the same machine. Processor seconds of the server stand beside
the wall clock, and the machine's load is written down: on a busy machine the wall clock says little.

Run:  python benchmarks/bench_web.py [--repeats 3] [--upload-gib 2]
Writes benchmarks/results/web.json with a description of the machine.
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
    for (let i = 0; i < 31; i++) await turn(-110);
    const times = [];
    for (const by of [110, -110]) for (let i = 0; i < 31; i++) {
        const start = performance.now();
        await turn(by);
        times.push(performance.now() - start);
    }
    return times;
}"""
"""Turns the wheel through the scan and back; each turn waits until its slice has been drawn."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--upload-gib", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {"machine": machine(), "load_before": os.getloadavg(), **measure(Path(folder), arguments)}
    results["load_after"] = os.getloadavg()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "web.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return every figure."""
    from playwright.sync_api import sync_playwright

    series = folder / "series"
    series.mkdir()
    write_series(series)
    scan = Path(shutil.make_archive(str(folder / "scan"), "zip", series))
    command = [sys.executable, "-m", "hemolens", "web", "--port", "PORT"]
    results: dict[str, Any] = {}
    with served(command=command) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        server = listener(int(url.rsplit(":", 1)[1]))
        time.sleep(5)  # the network is loaded in the background
        pages: list[dict[str, Any]] = []
        scans: list[dict[str, Any]] = []
        for _ in range(arguments.repeats):
            context = browser.new_context(viewport={"width": 1400, "height": 1000})
            page = context.new_page()
            page.set_default_timeout(WAIT)
            pages.append(clocked(server, lambda page=page: ready(page, url)))
            scans.append(clocked(server, lambda page=page: findings(page, scan)))
            times = page.locator(".stage canvas").evaluate(SCROLL)
            results.setdefault("slices_per_s", []).append(round(1000 / statistics.median(times), 1))
            context.close()
        results.update(page_ready=pages, upload_of_32_slices_to_findings=scans)
        results["ten_pages_at_once"] = clocked(server, lambda: crowd(browser, url))
        results["large_upload"] = large_upload(url, server, arguments.upload_gib)
        browser.close()
    return results


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
