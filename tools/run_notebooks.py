"""Run the notebooks on real data and keep what they show: python tools/run_notebooks.py DATA [NAME...]."""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
TIMEOUT_S = 600
"""For one cell."""
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Return a digest of the code alone: outputs that were kept with another one are stale."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(cells).encode()).hexdigest()


def run_notebook(path: Path, data: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in `folder` and return it with its outputs, the file itself unchanged.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata = {}
    told = os.environ.get("HEMOLENS_TEST_DATA")
    os.environ["HEMOLENS_TEST_DATA"] = str(data.resolve())
    try:
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(
            notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources, record_timing=False
        ).execute()
    finally:
        if told is None:
            del os.environ["HEMOLENS_TEST_DATA"]
        else:
            os.environ["HEMOLENS_TEST_DATA"] = told
    notebook.metadata = {
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},
        "hemolens": {"code_sha256": code_digest(notebook)},
    }
    return notebook


def main() -> None:
    """Run some notebooks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("names", nargs="*", help="such as segmentation; all if left out")
    asked = parser.parse_args()
    names = asked.names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        path, began = NOTEBOOKS / f"{name}.ipynb", time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = run_notebook(path, asked.data, Path(folder))
        nbformat.write(notebook, path)
        print(f"{name}: {time.monotonic() - began:.0f} s, {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
