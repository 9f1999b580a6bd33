"""The notebooks run on real data as they stand, and what is kept in them is what this very code has shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000
"""Bytes of a notebook, pictures included."""
PATH = re.compile(r"(?<![\w.:/<)])/(?:[\w.@+-]+/)+[\w.@+-]*|\b[A-Z]:\\\\?\w|/(?:home|root|tmp|work|Users)\b")
"""An absolute path on some machine."""


def tools() -> Any:
    import run_notebooks

    return run_notebooks


@pytest.fixture(autouse=True)
def tools_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: Any) -> Iterator[str]:
    """Everything that outputs say in words."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from output.get("traceback", [])
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def shape(cell: Any) -> list[str]:
    """What kinds of output a cell has, in order; a stream counts once."""
    kinds = [output.get("name") or "+".join(sorted(output.get("data", {}))) for output in cell.outputs]
    return [kind for place, kind in enumerate(kinds) if place == 0 or kind != "stdout" or kinds[place - 1] != kind]


def check_outputs(notebook: Any) -> None:
    """No errors, no warnings, no paths, and no pictures but PNG."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert output.get("name") != "stderr", output
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
    for text in texts(notebook):
        assert "Traceback" not in text
        assert not PATH.search(text), text


def test_both_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["classification", "segmentation"]


@pytest.mark.parametrize(
    "text",
    ["saved to /srv/data/x.png", "'/opt/hemolens'", "(/home/anna/data)", "C:\\Users\\anna", "see /tmp", "/work/a/b"],
)
def test_a_path_would_be_found(text: str) -> None:
    assert PATH.search(text)


@pytest.mark.parametrize("text", ["ct_ich/049#14", "sensitivity 3/4 and 1/2/3", "CC BY-NC-SA 4.0", "https://a.org/b/c"])
def test_what_is_no_path_is_left_alone(text: str) -> None:
    assert not PATH.search(text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_kept_from_a_whole_run_of_this_very_code(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["hemolens"]["code_sha256"] == tools().code_digest(notebook), (
        "the code has changed since: run python tools/run_notebooks.py DATA"
    )
    check_outputs(notebook)
    pictures = [o.data["image/png"] for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 5
    everything = "\n".join(cell.source for cell in notebook.cells)
    assert "Research use only" in everything
    assert "hemolens data fetch" in everything
    assert "docs/explanation/students.md" in everything


def test_a_digest_is_of_the_code_alone() -> None:
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    digest = tools().code_digest(notebook)
    code_cells(notebook)[0].outputs = []
    notebook.cells[0].source += "More words."
    assert tools().code_digest(notebook) == digest
    code_cells(notebook)[0].source += "\n"
    assert tools().code_digest(notebook) != digest


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_on_real_data(
    path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch", "monai", "matplotlib", "nbclient", "ipykernel"):
        pytest.importorskip(module)
    before = path.read_bytes()
    ran, kept = tools().run_notebook(path, data, tmp_path), nbformat.read(path, as_version=4)
    assert path.read_bytes() == before
    check_outputs(ran)
    assert [cell.source for cell in ran.cells] == [cell.source for cell in kept.cells]
    for own, shown in zip(code_cells(ran), code_cells(kept), strict=True):
        assert shape(own) == shape(shown), own.source
    assert any("val_" in log.read_text("utf-8") for log in (tmp_path / "runs").rglob("log.csv"))
