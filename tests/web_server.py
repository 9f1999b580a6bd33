"""The web app in a process of its own with a made-up analysis: what is at 65 HU is blood. For browser tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
CHROMIUM = "/usr/bin/chromium"
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BLOOD_HU = 65
SLOW_S = 6.0
TESTS = Path(__file__).resolve().parent


def need_browser() -> None:
    """Skip where Chromium or Playwright are missing; in CI that is a failure."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        missing = "playwright is not installed"
    else:
        missing = "" if Path(CHROMIUM).exists() else f"there is no {CHROMIUM}; run tools/install_system.sh"
    if missing:
        (pytest.fail if IN_CI else pytest.skip)(missing)


@contextmanager
def served(
    *arguments: str, command: list[str] | None = None, all_cores: bool = False, **settings: Any
) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = command or [sys.executable, str(TESTS / "web_server.py"), str(port), json.dumps(settings)]
    full = [part.replace("PORT", str(port)) for part in [*started, *arguments]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    if all_cores:
        del env["OMP_NUM_THREADS"]
    said = tempfile.TemporaryFile("w+")  # no pipe: a full one would stop the server  # noqa: SIM115 - closed below
    server = subprocess.Popen(full, env=env, stdout=said, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/_stcore/health") or server.poll() is not None, 120)
        if server.poll() is not None:
            said.seek(0)
            pytest.fail(said.read())
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)
        said.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """Run Chromium until the block ends."""
    need_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


def answers(url: str) -> bool:
    """Whether something answers at this address."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """Wait until `what` is true; fails when it never is."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return found


def made_up(order: Any, tell: Callable[[str, float], None], predictor: object) -> Any:
    """Read the scan in earnest; call every voxel at `BLOOD_HU` blood. Named "slow", it takes `SLOW_S`."""
    from dataclasses import replace

    from hemolens.analysis import Result
    from hemolens.sources.study import read_volume
    from hemolens.web import jobs
    from predictions import analyzed

    for stage in jobs.STAGES:
        for step in range(10):
            tell(stage, step / 10)
            time.sleep(SLOW_S / 40 if "slow" in order.name else 0.005)
    volume = read_volume(order.path, order.options)
    if volume.source.kind != "dicom":
        volume = replace(volume, source=replace(volume.source, path_or_uid=order.name))
    labels = np.where(volume.hu == BLOOD_HU, 4, 0).astype(np.uint8)
    prediction, label_map, findings = analyzed(volume, labels)
    return Result(volume, prediction, label_map, findings)


def zip_of(folder: Path, target: Path) -> Path:
    """Zip a folder."""
    return Path(shutil.make_archive(str(target.with_suffix("")), "zip", folder))


def main(port: int, settings: Mapping[str, Any]) -> None:
    """Serve with the made-up analysis."""
    from hemolens.web import jobs
    from hemolens.web.house import WebSettings
    from hemolens.web.server import serve

    jobs.analyze_named = made_up
    jobs.Office._load = lambda self: None  # type: ignore[assignment,method-assign,return-value]
    folders = {name: Path(told) for name, told in settings.items() if name in {"keep", "runs", "results"}}
    serve(WebSettings(**{**settings, **folders}), port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
