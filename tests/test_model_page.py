"""The model card in the documentation says what the cards of the package say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hemolens.inference.registry import DEFAULT_MODEL, list_models
from scripts import script


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


def test_the_comparison_of_painted_bleeds_is_that_of_the_results() -> None:
    bench = script("benchmarks", "synthesis")
    text = bench.PAGE.read_text("utf-8")
    assert text == bench.filled(text, json.loads(bench.RESULTS.read_text("utf-8"))), (
        "run benchmarks/synthesis.py --page"
    )


def test_the_curve_in_the_log_is_that_of_its_table() -> None:
    tool = script("tools", "make_experiments_curve")
    log = tool.LOG.read_text("utf-8")
    table = tool.read_table(log)
    with Image.open(tool.PICTURE) as picture:
        assert picture.text["Description"] == table.digest, "run tools/make_experiments_curve.py"
    assert f"({tool.PICTURE.name})" in log
    assert len(table.shipped()) == len(re.findall(r"\bship(?:s|ped)\b", table.text))
    assert f"`{DEFAULT_MODEL}`" in table.text


def test_a_table_of_the_log_is_read_as_it_stands(tmp_path: Path) -> None:
    tool = script("tools", "make_experiments_curve")
    head = f"| # | step | {' | '.join(tool.GOALS)} |\n|---|---|---|---|---|---|---|\n"
    rows = "| 1 | first, shipped | 0.5 | 0.1 | 0.9 | 4.5 % | - |\n| 2 | second | 0.6 | - | 0.95 | 3 % | 0.4 |\n"
    table = tool.read_table(f"# Log\n\n| no | table |\n\n{tool.HEADING}\n\n{head}{rows}\n## More\n\n| other |\n")
    assert table.points("clean slices over 50 mm²") == ([1, 2], [4.5, 3.0])
    assert table.points("CT-ICH 77-79, pooled Dice") == ([1], [0.1])
    assert table.points("edema, pooled Dice") == ([2], [0.4])
    assert table.shipped() == {1}
    tool.draw(table, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.text["Description"] == table.digest


def test_what_is_measured_on_a_bleed_is_what_was_drawn() -> None:
    """A bar of blood, 100 by 20 pixels, 50 gray values above the brain, its right edge 10 pixels off the bone."""
    bench = script("benchmarks", "synthesis")
    rng = np.random.default_rng(0)
    image = np.full((224, 224), 255.0)
    skull = np.zeros((224, 224), bool)
    skull[12:212, 12:212] = True
    image[skull] = 110
    lesion = np.zeros_like(skull)
    lesion[60:160, 182:202] = True
    image[lesion] = 160
    image[skull] += rng.normal(0, 4, (224, 224))[skull]
    found = bench.measured(np.clip(np.rint(image), 0, 255).astype(np.uint8), lesion, skull)
    pixel_mm = 222 / 224
    assert found["brightness"] == pytest.approx(50, abs=1)
    assert found["edge"] == pytest.approx(50, abs=1)
    assert found["noise"] == pytest.approx(4, abs=0.5)
    assert found["unevenness"] < 2
    assert found["area_mm2"] == pytest.approx(2000 * pixel_mm**2)
    assert found["elongation"] == pytest.approx(5, rel=0.01)
    assert found["solidity"] == pytest.approx(1)
    assert found["depth_mm"] == pytest.approx(20.5 * pixel_mm, abs=1)
    assert bench.measured(np.uint8(image), lesion & False, skull) is None
    beside_bone = image.copy()
    beside_bone[60:160, 202:204] = 200  # in part bone: no tissue that blood is told from
    found = bench.measured(np.clip(np.rint(beside_bone), 0, 255).astype(np.uint8), lesion, skull)
    assert found["edge"] == pytest.approx(50, abs=1)
    ring = np.hypot(*(np.mgrid[:224, :224] - 112)) < 40
    assert bench.solidity(ring) > 0.97
    assert bench.solidity(ring & (np.hypot(*(np.mgrid[:224, :224] - 112)) > 36)) < 0.3
