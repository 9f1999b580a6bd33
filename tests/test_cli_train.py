"""`hemolens train` and `hemolens tune`: what they print, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.cli import exits  # noqa: E402
from hemolens.cli.main import main  # noqa: E402
from hemolens.cli.training import clock, line_of  # noqa: E402
from hemolens.sources.datasets.opening import open_datasets  # noqa: E402
from hemolens.sources.splits import Fold, make_split, write_split  # noqa: E402
from hemolens.training import run as running  # noqa: E402
from hemolens.training.loop import Progress  # noqa: E402
from training_cases import write_heads  # noqa: E402

QUICK = (
    "steps=4", "batch=4", "data.workers=0", "log_every=2", "validate_every=2", "preprocess.size=32", "network.width=2",
    "network.depth=2", "tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(heads: Path, cache: Path) -> Any:
    def go(*words: str, preset: str = "unet2d", data: Path = heads) -> int:
        return main(["train", preset, "--data", str(data), "--cache", str(cache), *words])

    return go


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("hemolens: ")
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.slow
def test_a_run_tells_how_far_it_is_and_what_it_kept(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*QUICK) == exits.DONE
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("train")]
    assert [line.split("  ")[0] for line in lines] == ["train 2/4", "train 4/4"]
    assert "loss" in lines[0]
    assert lines[0].endswith(" left")
    assert told.out.splitlines()[0].startswith("Trained for 4 steps. Kept: weights of step ")
    assert "Research use only" in told.out
    assert told.out.splitlines()[-1] == f"Model: {Path('runs/unet2d/model.json')}"
    assert (tmp_path / "runs/unet2d/curves.png").stat().st_size > 1000

    assert train(*QUICK) == exits.FAILED
    assert "runs/unet2d: holds a training run already. Go on with --resume" in one_line(capsys)
    assert train("--resume", "--json", "--quiet", *QUICK) == exits.DONE
    told = capsys.readouterr()
    assert told.err == ""
    result = json.loads(told.out)
    assert result["step"] == 4
    assert result["select"] == "loss"
    assert result["last"]["val_loss"] >= result["best"]

    assert train("--resume", *QUICK, "network.norm=none") == exits.WRONG_USAGE
    assert "holds a checkpoint of another network (network.norm was 'batch', not 'none')" in one_line(capsys)


@pytest.mark.parametrize(
    ("preset", "words", "code", "message"),
    [
        ("unet2", (), 2, "There is no preset called 'unet2'. Did you mean 'unet2d'?"),
        ("unet2d", ("optimizer.rat=1",), 2, "optimizer.rat: no such setting. Did you mean 'rate'?"),
        ("unet2d", ("rate",), 2, "'rate' is no setting: write key=value"),
        ("unet2d", ("seed=x",), 2, "seed: expected int, got 'x'."),
        ("none.toml", (), 2, "none.toml: cannot be read (No such file or directory)."),
        ("unet2d", ("--split", "none.json"), 1, "none.json: cannot be read as a split. Make one with"),
        ("unet2d", ("--fold", "7"), 2, "The split has folds 0 to 4; there is no fold 7."),
        ("unet2d", ("--datasets", "rsna"), 1, "holds no rsna. Here are: folder."),
        ("unet2d", ("start=nowhere",), 1, "nowhere: holds no weights to go on from. Name the folder of a training run"),
        ("unet2d", ("network.kind=unet4d",), 2, "network.kind: there is no 'unet4d'. Did you mean 'unet"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    train: Any, preset: str, words: tuple[str, ...], code: int, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train("--quiet", "--run", str(tmp_path / "run"), *QUICK, *words, preset=preset) == code
    assert message in one_line(capsys)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("device=cuda", "--run", str(tmp_path / "run")) == exits.WRONG_USAGE
    assert "device is cuda, but torch finds no GPU here. Set device=cpu" in one_line(capsys)


def test_data_that_cannot_be_used_are_told(
    train: Any, heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    run = ("--quiet", "--run", str(tmp_path / "run"), *QUICK)
    assert train(*run, data=tmp_path / "empty") == exits.FAILED
    assert "empty: holds no data set that hemolens knows" in one_line(capsys)

    datasets = open_datasets(heads)
    split = make_split(datasets)
    write_split(replace(split, datasets={"rsna": ("a",)}, folds=(Fold(("rsna/a",), (), ()),)), tmp_path / "rsna.json")
    assert train(*run, "--split", str(tmp_path / "rsna.json")) == exits.WRONG_USAGE
    assert "The split was made for rsna, not for folder." in one_line(capsys)

    clean = tuple(c.group for c in datasets[0].cases if c.findings[0] == 0.0)
    write_split(replace(split, folds=(Fold(clean[:2], clean[2:4], ()),)), tmp_path / "clean.json")
    assert train(*run, "--split", str(tmp_path / "clean.json")) == exits.WRONG_USAGE
    assert "Fold 0 of the split has no hemorrhage in its train side" in one_line(capsys)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = write_heads(tmp_path / "heads")
    broken = heads / "images/p00/01.png"
    broken.write_bytes(broken.read_bytes()[:60])
    words = ["train", "unet2d", "--data", str(heads), "--run", str(tmp_path / "run"), "--quiet", *QUICK]
    assert main(words) == exits.FAILED
    assert "folder/p00, 01.png: is damaged or no picture" in one_line(capsys)


def test_an_interrupted_run_says_how_to_go_on(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "train", interrupt)
    assert train("--quiet", "--run", str(tmp_path / "run"), *QUICK) == exits.INTERRUPTED
    assert "interrupted. Go on with the same command and --resume" in one_line(capsys)


def test_an_error_on_the_way_out_of_an_interrupt_does_not_hide_it(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch raises such an error when one of its workers hears the Ctrl-C first."""
    heard_before = signal.getsignal(signal.SIGCHLD)

    def interrupted(*_: Any, **__: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    monkeypatch.setattr(running, "train", interrupted)
    try:
        assert train("--quiet", "--run", str(tmp_path / "run"), *QUICK) == exits.INTERRUPTED
    finally:
        signal.signal(signal.SIGCHLD, heard_before)
    assert "interrupted. Go on with the same command and --resume" in one_line(capsys)


def test_too_little_memory_says_what_to_lower(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(running, "train", full)
    assert train("--quiet", "--run", str(tmp_path / "run"), *QUICK) == exits.FAILED
    assert "not enough memory. Lower batch (now 4), preprocess.size (now 32) or data.workers" in one_line(capsys)


def test_a_search_tells_its_best_and_goes_on(
    heads: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "unet2d", "--data", str(heads), "--cache", str(cache), "--run", str(tmp_path / "tune"), *QUICK[1:]]
    words += ["steps=2", "optimizer.rate=1e-4..1e-2", "--trials"]
    assert main([*words, "1"]) == exits.DONE
    told = capsys.readouterr()
    assert any(line.startswith("trial 1/1  train 2/2") for line in told.err.splitlines())
    assert told.out.splitlines()[0] == "1 trials reached their end, 0 were pruned."
    assert f"hemolens train {tmp_path / 'tune' / 'best.toml'} --data {heads}" in told.out
    assert main([*words, "2", "--json", "--quiet"]) == exits.DONE
    told = capsys.readouterr()
    assert told.err == ""
    assert json.loads(told.out)["finished"] == 2
    assert main([*words, "3", "--quiet", "optimizer.momentum=0.8"]) == exits.WRONG_USAGE
    assert "holds a search with other settings" in one_line(capsys)
    assert main([*words, "3", "--quiet", "batch=9..3"]) == exits.WRONG_USAGE
    assert "batch" in one_line(capsys)


def test_progress_is_one_line_with_the_time_left() -> None:
    progress = Progress("train", 120, 2400, 60.0, done_before=20)
    assert (
        line_of(progress, {"loss": 0.5312, "val_dice": 0.4}) == "train 120/2400  loss 0.531  val_dice 0.400  22:48 left"
    )
    assert line_of(Progress("prepare", 37, 100, 1.0), {}) == "decoding 37 %"
    assert line_of(Progress("export", 9, 9, 1.0), {}, "trial 1/3") == "trial 1/3  exporting the model"
    assert line_of(Progress("train", 1, 9, 0.0, done_before=1), {}) == "train 1/9"
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


PAGE = Path(__file__).resolve().parents[1] / "docs/how-to/train.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, but for a few steps at a small size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(heads)
    lines = re.findall(r"^hemolens (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(lines) >= 7
    small = dict(word.split("=") for word in QUICK)
    for line in lines:
        words = shlex.split(line)
        if words[0] != "data":
            given = {word.split("=")[0] for word in words if "=" in word}
            words = [word for word in words if not word.startswith(("epochs=", "network.width="))]
            shape = {"network.width", "network.depth"}  # of a U-Net
            left = given | shape if "effunet2d" in words else given - {"network.width"}
            words += [f"{key}={value}" for key, value in small.items() if key not in left]
        assert main([*words, "--quiet"]) == exits.DONE, (line, capsys.readouterr().err)
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {
        "unet2d", "longer", "unet2d-fold1", "unet2d-tune", "best", "second", "own", "third",
    }  # fmt: skip
