"""`hemolens doctor`: what is installed, what would be used, and what to do about the rest."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from typing import Annotated

import typer

from hemolens import __version__
from hemolens.cli import exits
from hemolens.cli.terminal import plain_console

MODULES: Mapping[str, str] = {
    "pillow": "PIL",
    "python-gdcm": "gdcm",
    "pylibjpeg-openjpeg": "openjpeg",
    "pylibjpeg-rle": "rle",
}
"""Distribution → module, where the names differ."""

SYNTAXES: Mapping[str, str] = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
"""Compressed transfer syntaxes that CT comes in (PS3.5 A.4); the others need no decoder."""


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    MISSING = "missing"
    """Not there and not needed for analyzing scans."""
    BROKEN = "broken"
    """Needed, and absent or not working."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    part: str
    name: str
    state: State
    detail: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Say what is installed, which runtime and weights are used, and what is missing.

    Exit codes: 0 scans can be analyzed, 1 something that is needed is broken.
    """
    checks = list(diagnose())
    broken = any(check.state is State.BROKEN for check in checks)
    if as_json:
        diagnosis = {"hemolens_version": __version__, "ok": not broken, "checks": [asdict(c) for c in checks]}
        print(json.dumps(diagnosis, indent=2))
    else:
        _show(checks)
    raise typer.Exit(exits.FAILED if broken else exits.DONE)


def diagnose() -> Iterator[Check]:
    """Yield everything that doctor knows, part by part."""
    yield Check("machine", "hemolens", State.OK, __version__)
    yield Check("machine", "Python", State.OK, f"{platform.python_version()} ({sys.executable})")
    yield Check("machine", "system", State.OK, f"{platform.system()} {platform.machine()}, {_cores()} cores")
    try:
        required, extras = _requirements(metadata.requires("hemolens") or ())
    except metadata.PackageNotFoundError:
        required, extras = [], {}
        yield Check("core", "package", State.BROKEN, "hemolens runs from its source, not installed", "pip install -e .")
    core = [_core_check(requirement) for requirement in required]
    yield from core
    if all(check.state is State.OK for check in core):  # what follows would only stumble over the same stone
        yield from _decoder_checks()
        yield from _runtime_checks()
        yield from _model_checks()
    for extra, wanted in extras.items():
        if extra != "all":  # the sum of the others
            yield _extra_check(extra, wanted)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _requirements(lines: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split what the package metadata requires into core and extras, such as ``{"train": ["torch>=2.8"]}``."""
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if extra is None:
            core.append(requirement)
        elif not requirement.startswith("hemolens["):
            extras.setdefault(extra[1], []).append(requirement)
    return core, extras


def _split(requirement: str) -> tuple[str, str]:
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(.*)", requirement)
    return (match[1], match[2].strip("() ")) if match else (requirement, "")


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version keeps to bounds such as ``>=2.8,<2.14``; other kinds of bounds are not judged."""
    have = _numbers(version)
    for bound in filter(None, (b.strip() for b in bounds.split(","))):
        wanted = _numbers(bound)
        if (bound.startswith(">=") and have < wanted) or (bound.startswith("<") and bound[1] != "=" and have >= wanted):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.search(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in match[0].split(".")] if match else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _core_check(requirement: str) -> Check:
    name, bounds = _split(requirement)
    version = _version(name)
    remedy = f"pip install '{requirement}'"
    if version is None:
        return Check("core", name, State.BROKEN, "not installed", remedy)
    if not satisfies(version, bounds):
        return Check("core", name, State.BROKEN, f"{version}, but {bounds} is needed", remedy)
    try:
        importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # noqa: BLE001 - a broken binary package can raise anything; saying so is our job
        return Check("core", name, State.BROKEN, f"{version}, but importing it fails: {_first_line(error)}", remedy)
    return Check("core", name, State.OK, version)


def _extra_check(extra: str, wanted: list[str]) -> Check:
    versions = {name: _version(name) for name, _ in map(_split, wanted)}
    unfit = [n for n, bounds in map(_split, wanted) if (v := versions[n]) is None or not satisfies(v, bounds)]
    if unfit:
        return Check("extras", extra, State.MISSING, f"wants {', '.join(unfit)}", f"pip install 'hemolens[{extra}]'")
    return Check("extras", extra, State.OK, ", ".join(f"{n} {v}" for n, v in versions.items()))


def _decoder_checks() -> Iterator[Check]:
    from pydicom.pixels.decoders.base import get_decoder

    absent = [name for uid, name in SYNTAXES.items() if not get_decoder(uid).is_available]
    if absent:
        remedy = "pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle python-gdcm"
        yield Check("core", "DICOM decoders", State.BROKEN, f"no decoder for {', '.join(absent)}", remedy)
    else:
        yield Check("core", "DICOM decoders", State.OK, f"all {len(SYNTAXES)} compressed transfer syntaxes of CT")


def _runtime_checks() -> Iterator[Check]:
    from hemolens.inference.runtime import available_runtimes

    installed = available_runtimes()
    remedy = "pip install onnxruntime"
    if not installed:
        yield Check("analysis", "runtime", State.BROKEN, "none is installed", remedy)
    else:
        others = f" (also installed: {', '.join(installed[1:])})" if installed[1:] else ""
        yield Check("analysis", "runtime", State.OK, f"{installed[0]} {_version(installed[0])}{others}")


def _model_checks() -> Iterator[Check]:
    """Check the hash of every network, and open the default one as an analysis would."""
    from hemolens.errors import HemolensError
    from hemolens.inference.registry import list_models
    from hemolens.inference.runtime import open_runtime

    remedy = "pip install --force-reinstall hemolens"
    try:
        found = list_models()
    except HemolensError as error:
        yield Check("analysis", "models", State.BROKEN, str(error), remedy)
        return
    if not found:
        yield Check("analysis", "models", State.BROKEN, "no network came with the package", remedy)
    for number, model in enumerate(found):
        try:
            model.verified_bytes()
            how = f", opened by {open_runtime(model).name}" if number == 0 else ""
        except Exception as error:  # noqa: BLE001 - a runtime that cannot open a file raises its own kinds of error
            yield Check("analysis", model.name, State.BROKEN, _first_line(error), remedy)
        else:
            yield Check("analysis", model.name, State.OK, f"SHA-256 {model.sha256[:12]} as its card says{how}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _show(checks: list[Check]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = plain_console()
    colors = {State.OK: "green", State.MISSING: "yellow", State.BROKEN: "red"}
    for part in dict.fromkeys(check.part for check in checks):
        table = Table(title=part, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
        for check in checks:
            if check.part == part:
                state = f"[{colors[check.state]}]{check.state}[/]"
                table.add_row(state, escape(check.name), escape(check.detail), escape(check.remedy))
        console.print(table)
        console.print()
    broken = [check.name for check in checks if check.state is State.BROKEN]
    console.print(f"Broken: {', '.join(broken)}." if broken else "Scans can be analyzed.")
