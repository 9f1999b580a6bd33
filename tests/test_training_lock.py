"""Two processes never train into one folder, and a killed one leaves it free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.errors import HemolensError, OutputError
from hemolens.training.checkpoint import CHECKPOINT
from hemolens.training.config import TrainConfig, load_preset
from hemolens.training.lock import LOCK, held
from hemolens.training.run import run_training
from hemolens.training.tune import default_space, tune

REFUSED = "another process is training here. Wait until it has ended, or name another folder."
HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
if os.fork() == 0:  # as a loader's worker, which outlives its parent for a while
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that keeps `folder`, with a child of its own."""
    command = [sys.executable, "-c", HOLDER, str(folder / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def config() -> TrainConfig:
    return load_preset("unet2d")


def test_a_folder_is_one_process_s_and_free_at_once_when_that_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(OutputError) as refused, held(tmp_path):
            pytest.fail("two hold one folder")
        assert str(refused.value) == f"{tmp_path}: {REFUSED}"
        process.kill()
        process.wait()
        with held(tmp_path):  # though the child of the killed one is still there
            assert [p.name for p in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_meanwhile_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends between the opening of its file and the locking: a third process would make a new one."""
    monkeypatch.setattr("fcntl.lockf", lambda *_: (tmp_path / LOCK).unlink())
    with pytest.raises(OutputError, match=REFUSED), held(tmp_path):
        pytest.fail("what is held is no file any more")


def test_a_run_and_a_search_are_refused_while_another_goes_on(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "study.db").touch()
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with holder(tmp_path):
        with pytest.raises(OutputError, match=REFUSED):
            run_training(config(), [], None, 0, tmp_path, resume=True)
        with pytest.raises(OutputError, match=REFUSED):
            tune(config(), default_space(config()), [], None, 0, tmp_path, trials=1)
        assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != LOCK} == before


def test_what_a_killed_process_left_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with pytest.raises(HemolensError, match="5 folds need"):  # the next thing that is missing here
        run_training(config(), [], None, 0, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / LOCK).exists()
