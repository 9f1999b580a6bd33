"""Fixtures for every test, and the rule that tests on real data may not quietly go missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# Shared machines are slow at times: no deadline. In CI the examples are fixed, so red means the change is at fault.
settings.register_profile(
    "house", deadline=None, derandomize=IN_CI, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("house")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real head CTs that lies beside the project; never part of it."""
    told = os.environ.get("HEMOLENS_TEST_DATA")
    root = Path(told) if told else ROOT.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"real test data not found at {root}; set HEMOLENS_TEST_DATA to its folder")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests with a browser first, while their process has run nothing else.

    Late in a long run, a worker that drove a browser (Playwright switches stacks by greenlets) was twice ended by a
    segmentation fault, in two tests that pass by themselves.
    """
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "need_browser"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI, turn the skip of a test that wants real data into a failure: a green run must have seen the data."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and "data" in getattr(item, "fixturenames", ()):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped for missing data, which CI does not accept: {report.longrepr}"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a worker of pytest-xdist ended that ended in the middle: below 0 is the signal."""
    if error:
        try:
            told = f"ended with exit code {node.gateway._io.popen.wait(10)}"
        except subprocess.TimeoutExpired:
            told = "is still there"
        print(f"{node.gateway.id} {told}", file=sys.stderr)
