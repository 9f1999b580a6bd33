"""``hemolens explain``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explain_cases import little_head, save_pictures, save_run
from hemolens.cli import exits
from hemolens.cli.explain import parse_slices
from hemolens.cli.main import main
from hemolens.inference.registry import DEFAULT_MODEL
from hemolens.models.cnn2d import CNN2dConfig
from hemolens.models.unet2d import UNet2dConfig


@pytest.mark.slow
def test_the_demo_is_explained_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["explain", DEFAULT_MODEL, "--demo", "--slices", "11-12", "-o", str(out)]) == exits.DONE
    told = capsys.readouterr()
    assert told.err == ""
    assert "above chance on 2, peak inside on 2" in told.out
    assert "Research use only" in told.out
    assert main(["explain", DEFAULT_MODEL, "--demo", "--slices", "11", "-o", str(out)]) == exits.FAILED
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["011.png", "012.png"]


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_a_run_folder_explains_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    torch.manual_seed(1)
    run = save_run(tmp_path / "run", CNN2dConfig(widths=(4, 8), hidden=8))
    pictures = save_pictures(tmp_path / "scan", little_head(3, 64))
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:30, 20:30] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "2.png")
    words = ["explain", str(run), str(pictures), "-o", str(tmp_path / "out"), "--truth", str(tmp_path / "masks")]
    assert main([*words, "--method", method]) == exits.DONE
    assert capsys.readouterr().err == ""
    assert sorted(p.name for p in (tmp_path / "out" / "heatmap").iterdir()) == ["1.png", "2.png", "3.png"]
    with Image.open(tmp_path / "out" / "heatmap" / "2.png") as heatmap:
        assert heatmap.size == (64, 64)
    told = json.loads((tmp_path / "out" / "explain.json").read_text("utf-8"))
    assert told["model"]["name"] == "run"
    assert told["truth"]["slices_known"] == 1
    assert (told["patch_px"] is None) == (method == "gradcam")
    assert main([*words, "--slices", "2", "--overwrite"]) == exits.DONE
    assert "nothing to score" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out" / "overlays").iterdir()] == ["3.png"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--slices", "2-3"], exits.FAILED, "has no slice 3. Its 3 slices are numbered 0 to 2."),
        (["--layer", "blocks.9"], exits.WRONG_USAGE, "run has no layer 'blocks.9'. Did you mean 'blocks."),
        (["--layer", "slice_head"], exits.FAILED, "Layer 'slice_head' holds no features over the image"),
        (["--method", "occlusion", "--patch", "65"], exits.WRONG_USAGE, "patch must be at most 64 pixels for run"),
        (["--truth", "absent.png"], exits.FAILED, "absent.png: is not there"),
    ],
)
def test_what_does_not_fit_the_network_or_the_scan_gets_one_clear_line(
    words: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", CNN2dConfig(widths=(4, 8), hidden=8))
    pictures = save_pictures(tmp_path / "scan", little_head(3, 64))
    assert main(["explain", str(run), str(pictures), "-o", str(tmp_path / "out"), *words]) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert told in line
    assert not (tmp_path / "out").exists()


def test_a_network_without_findings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path / "run", UNet2dConfig(width=2, depth=2))
    assert main(["explain", str(run), "--demo", "-o", str(tmp_path / "out")]) == exits.FAILED
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "tells no findings" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--demo", "--finding", "subdurall"], exits.WRONG_USAGE, "Did you mean 'subdural'?"),
        (["--demo", "--method", "gradcm"], exits.WRONG_USAGE, "Did you mean 'gradcam'?"),
        (["--demo", "--slices", "8-x"], exits.WRONG_USAGE, "'8-x' is no slice number or range"),
        (["--demo", "--slices", "9-8"], exits.WRONG_USAGE, "write 8-9"),
        (["--demo", "--method", "occlusion", "--layer", "encoder"], exits.WRONG_USAGE, "Leave one of them out"),
        (["--demo", "--patch", "20"], exits.WRONG_USAGE, "--method occlusion"),
        ([], exits.WRONG_USAGE, "Name a SOURCE, or use --demo"),
        (["scan", "--demo"], exits.WRONG_USAGE, "Name a SOURCE, or use --demo"),
        (["--demo", "--truth", "x.nii"], exits.WRONG_USAGE, "brings its own scan"),
        (["absent.nii.gz"], exits.FAILED, "absent.nii.gz"),
        (["--demo", "--window-width", "0"], exits.WRONG_USAGE, "--window-width"),
    ],
)
def test_wrong_input_gets_one_clear_line(
    words: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", DEFAULT_MODEL, *words, "-o", str(tmp_path / "out")]) == code
    line = capsys.readouterr().err
    assert line.startswith("hemolens: ")
    assert line.count("\n") == 1
    assert told in line
    assert not (tmp_path / "out").exists()


def test_models_and_folders_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{DEFAULT_MODEL}0", "--demo", "-o", str(tmp_path / "out")]) == exits.FAILED
    assert f"Did you mean '{DEFAULT_MODEL}'?" in capsys.readouterr().err
    assert main(["explain", str(tmp_path), "--demo", "-o", str(tmp_path / "out")]) == exits.FAILED
    assert "holds no model.json" in capsys.readouterr().err
    assert main(["explain", DEFAULT_MODEL, "--demo"]) == exits.WRONG_USAGE
    assert "Missing -o OUT" in capsys.readouterr().err
    scan = save_pictures(tmp_path / "scan", little_head(1, 64))
    assert main(["explain", DEFAULT_MODEL, str(scan), "-o", str(tmp_path), "--overwrite"]) == exits.FAILED
    assert "holds the scan itself" in capsys.readouterr().err


def test_slice_lists() -> None:
    assert parse_slices("3") == [3]
    assert parse_slices("8-10, 20,8") == [8, 9, 10, 20, 8]
