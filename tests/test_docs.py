"""The documentation is complete and true: verbs, options and codes are all there, links resolve, snippets run."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import hemolens
from hemolens.cli import exits
from hemolens.cli.main import app, main
from hemolens.inference.registry import load_model
from hemolens.notes import CODES, Severity
from samples import make_samples

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PYTHON = re.compile(r"(?:<!-- run(?P<run>: demo)? -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def verbs(command: Any = None, path: str = "hemolens") -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from verbs(inner, f"{path} {name}")


def section(page: str, title: str) -> str:
    """Text under the heading that starts with `title`, or an empty string."""
    match = re.search(rf"^## {re.escape(title)}(?: [^a-z\n][^\n]*)?\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return match[1] if match else ""


@pytest.mark.parametrize(("path", "command"), list(verbs()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_verb_and_option_is_documented(path: str, command: Any) -> None:
    if path in {"hemolens models", "hemolens data", "hemolens pacs"}:  # hold verbs only
        return
    text = section((ROOT / "docs/reference/cli.md").read_text("utf-8"), path)
    assert text, f"docs/reference/cli.md has no section '## {path}'"
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("-") and option not in {"--help", "-h"}:
                assert f"`{option}`" in text, f"{option} is missing"


def shell_lines(page: Path) -> Iterator[str]:
    """Commands in the page's shell snippets, without comments."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        for line in block.splitlines():
            yield re.sub(r"\s+#.*$", "", line).strip()


HEMOLENS_LINES = [
    (page, re.sub(r"^\S*hemolens ", "", line.split("|")[0]))
    for page in PAGES
    for line in shell_lines(page)
    if re.match(r"\S*hemolens ", line)
]


ANALYZE_LINES = {line: page for page, line in HEMOLENS_LINES if line.startswith("analyze ")}
"""Each once, however many pages print it."""


@pytest.mark.parametrize(("page", "line"), HEMOLENS_LINES, ids=lambda v: v if isinstance(v, str) else v.stem)
def test_command_lines_in_the_pages_are_understood(page: Path, line: str) -> None:
    """Options and arguments parse; those that analyze a scan are run below."""
    command, words = typer.main.get_command(app), shlex.split(line)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    with pytest.raises(typer.Exit) if "completion" in line else contextlib.nullcontext():
        command.make_context("hemolens", words)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small scans under the names that the pages use."""
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder)
    model, run = load_model(), folder / "RUN"  # a run folder as training leaves it, with the shipped network
    run.mkdir()
    shutil.copy(model.path, run / "model.onnx")
    (run / "model.json").write_text(json.dumps({**model.card, "file": "model.onnx"}), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", ANALYZE_LINES)
def test_command_lines_that_analyze_run(
    line: str, samples: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(samples)
    assert main(shlex.split(line)) in {exits.DONE, exits.PARTIAL}
    told = capfd.readouterr()
    assert told.err == ""
    if "--json" in line:
        assert json.loads(told.out)["slices"]
    else:
        assert "Report: OUT" in told.out
        shutil.rmtree("OUT")


def test_no_option_is_named_that_is_not_there() -> None:
    known = {option for _, command in verbs() for p in command.params for option in p.opts} | {"--help", "-h"}
    for page in PAGES:
        for option in re.findall(r"`(--[a-z][a-z-]*)", page.read_text("utf-8")):
            assert option in known, f"{page_id(page)}: {option}"


def test_every_quality_code_is_documented_with_its_meaning() -> None:
    page = (ROOT / "docs/reference/quality.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(page, "Codes"), re.MULTILINE))
    assert rows == CODES
    assert all(f"| `{severity}` |" in page for severity in Severity)


def test_the_accuracy_in_the_readme_is_that_of_the_card() -> None:
    """Each row's score and interval stand in the card, rounded."""
    card = load_model().card
    text = (ROOT / "README.md").read_text("utf-8").split("<!-- accuracy: begin")[1].split("<!-- accuracy: end")[0]
    rows = re.findall(r"^\| [^|]* \| ([\d.]+)( %)? \| ([\d.]+) to ([\d.]+)(?: %)? \| (\d+)", text, re.MULTILINE)
    assert len(rows) >= 5
    assert card["name"] in text
    for score, percent, low, high, count in rows:
        scale, digits = (100, 1) if percent else (1, 2)
        told = {
            (*(f"{scale * m[key]:.{digits}f}" for key in ("value", "low", "high")), str(m["n"]))
            for m in card["metrics"]
            if m["low"] is not None  # of one patient there is no interval
        }
        assert (score, low, high, count) in told


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs/reference/python.md").read_text("utf-8")
    named = {
        re.match(r"\w+", entry)[0]
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for entry in re.findall(r"`(\w[^`]*)`", row)
    }
    assert named == set(hemolens.__all__)


def test_every_key_of_the_findings_is_documented() -> None:
    from hemolens.reports.as_json import schema

    page = (ROOT / "docs/reference/findings.md").read_text("utf-8")
    table = set(re.findall(r"`([\w.\[\]]+)`", page))
    words = {part.removesuffix("[]") for entry in table for part in entry.split(".")}
    top = schema()["properties"]
    assert set(top) <= words
    for name in ("input", "model", "study", "total"):
        assert set(top[name]["properties"]) <= words, name
    for name in ("slices", "lesions", "quality"):
        assert set(top[name]["items"]["properties"]) <= words, name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    for match in LINK.finditer(page.read_text("utf-8")):
        target = match["target"].split("#")[0]
        if target and not re.match(r"https?://", target):
            assert (page.parent / target).exists(), f"{match[0]} leads nowhere"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            targets = (m["target"].split("#")[0] for m in LINK.finditer(page.read_text("utf-8")))
            todo += [(page.parent / t).resolve() for t in targets if t.endswith(".md") and "://" not in t]
    assert set(PAGES) <= reached


def test_make_targets_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)", page.read_text("utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page_id(page)}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_snippets_at_least_parse(page: Path) -> None:
    for match in PYTHON.finditer(page.read_text("utf-8")):
        compile(match["code"], page_id(page), "exec")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `hemolens analyze --demo` has run."""
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, "-m", "hemolens", "analyze", "--demo", "-q"], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- run" in p.read_text("utf-8")], ids=page_id)
def test_marked_snippets_run(page: Path, demo_folder: Path) -> None:
    """`<!-- run -->` and `<!-- run: demo -->` stand before snippets that are run, each page's in one go."""
    snippets = [m["code"] for m in PYTHON.finditer(page.read_text("utf-8")) if m[0].startswith("<!-- run")]
    assert snippets
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)], cwd=demo_folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_readme_python_call_runs(demo_folder: Path) -> None:
    """As printed, but for the path of the scan."""
    from hemolens.demo import demo_source

    (code,) = [m["code"] for m in PYTHON.finditer((ROOT / "README.md").read_text("utf-8"))]
    code = code.replace('"path/to/dicom-folder"', repr(str(demo_source()))).replace('"OUT"', '"from-python"')
    done = subprocess.run([sys.executable, "-c", code], cwd=demo_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (demo_folder / "from-python" / "report.html").is_file()
