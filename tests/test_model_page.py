"""The model card in the documentation says what the cards of the package say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from PIL import Image

from hemolens.inference.registry import list_models

ROOT = Path(__file__).resolve().parents[1]


def script(folder: str, name: str) -> ModuleType:
    """Import a script that is no part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_cards() -> None:
    tool = script("tools", "make_model_page")
    assert tool.PAGE.read_text("utf-8") == tool.page(list_models()), "run tools/make_model_page.py"
    shown = [tool.picture_path(name) for name, _, _ in tool.SHOWN if tool.picture_path(name).exists()]
    assert len(shown) >= 3
    for path in shown:
        assert path.name in tool.PAGE.read_text("utf-8")
        with Image.open(path) as picture:
            assert picture.width == tool.WIDTH


def test_the_robustness_page_is_that_of_the_results_and_of_the_model_that_ships() -> None:
    bench = script("benchmarks", "robustness")
    results = json.loads(bench.RESULTS.read_text("utf-8"))
    text = bench.PAGE.read_text("utf-8")
    assert text == bench.filled(text, results), "run benchmarks/robustness.py --page"
    assert results["sha256"] == list_models()[0].sha256
    assert results["outlined"] == list_models()[0].thresholds.mask_told
    assert set(results["rows"]) == {"none", *(c.name for c in bench.CORRUPTIONS)}
