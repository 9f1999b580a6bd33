"""Runs as processes: killed, interrupted, and several that share a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.training.checkpoint import load_state  # noqa: E402
from training_cases import write_heads  # noqa: E402

SETTINGS = {
    "steps": "80", "batch": "4", "data.workers": "1", "checkpoint_every": "1", "log_every": "7", "validate_every": "50",
    "tensorboard": "false", "preprocess.size": "32", "network.width": "2", "network.depth": "2",
    "network.norm": "group",
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def command(data: Path, run: Path, *more: str, torchrun: int = 0, **settings: str) -> list[str]:
    runner = [sys.executable]
    if torchrun:
        runner += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(torchrun)]
    where = ["--data", str(data), "-o", str(run), "--cache", str(data / "cache")]
    train = ["-m", "hemolens", "train", "unet2d", *where]
    changed = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
    return [*runner, *train, *(f"{key}={value}" for key, value in changed.items()), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start(words: list[str], children: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    children.append(process)
    return process


def hear_interrupts() -> None:
    """Undo what a shell does to the jobs that it puts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "checkpoint.pt").exists() and load_state(run / "checkpoint.pt")["state"]["step"] >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"no checkpoint of step {step}: {process.communicate() if process.poll() is not None else 'slow'}")


def finish(words: list[str], children: list[subprocess.Popen[str]]) -> str:
    process = start(words, children)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def final(run: Path) -> torch.Tensor:
    return torch.cat([v.double().flatten() for v in load_state(run / "checkpoint.pt")["learning"].values()])


def test_a_run_that_was_killed_and_interrupted_ends_with_the_same_weights(
    data: Path, children: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """kill -9 early, Ctrl-C later, then SIGTERM, then on to the end; against a run that nobody disturbed."""
    run = tmp_path / "run"
    first = start(command(data, run), children)
    wait_for(run, 5, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    killed_at = load_state(run / "checkpoint.pt")["state"]["step"]
    assert 5 <= killed_at < 80

    reached = killed_at
    for end in (signal.SIGINT, signal.SIGTERM):
        again = start(command(data, run, "--resume"), children)
        wait_for(run, reached + 5, again)
        os.killpg(again.pid, end)  # to the process and its workers, as a terminal and a service manager do
        _, err = again.communicate(timeout=60)
        assert again.returncode == 130, err
        line = f"Go on with the same command and --resume; {run} holds the last whole checkpoint."
        assert err.splitlines()[-1] == f"hemolens: interrupted. {line}", err
        assert "Traceback" not in err
        reached = load_state(run / "checkpoint.pt")["state"]["step"]
        assert reached < 80

    finish(command(data, run, "--resume"), children)
    finish(command(data, tmp_path / "whole"), children)
    assert torch.equal(final(run), final(tmp_path / "whole"))
    assert len((run / "log.csv").read_text().splitlines()) == len(
        (tmp_path / "whole" / "log.csv").read_text().splitlines()
    )


def test_two_processes_learn_what_one_learns(data: Path, children: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """The same batch, shared: group normalization and no dropout, so that nothing else differs but rounding."""
    settings = {
        "steps": "12", "validate_every": "6", "network__dropout": "0", "network__findings_head": "true",
        "loss__weak_top": "0.2", "loss__mask_tversky": "0.5", "optimizer__rate": "3e-3", "data__weak": "1",
    }  # fmt: skip
    finish(command(data, tmp_path / "one", **settings), children)
    told = finish(command(data, tmp_path / "two", torchrun=2, **settings), children)
    assert told.count("Trained for 12 steps") == 1
    one, two = (load_state(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert one["state"]["step"] == two["state"]["step"] == 12
    fresh = load_fresh(tmp_path / "one")
    moved = (final(tmp_path / "one") - fresh).norm()
    assert (final(tmp_path / "one") - final(tmp_path / "two")).norm() < 1e-3 * moved
    for key in ("best", "best_step"):
        assert one["state"][key] == pytest.approx(two["state"][key], rel=1e-4)
    rows = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1])


def load_fresh(run: Path) -> torch.Tensor:
    """The weights that a run began with."""
    from hemolens.models.registry import build_network
    from hemolens.training.config import load_preset

    config = load_preset(run / "config.toml")
    torch.manual_seed(config.seed)
    return torch.cat([v.double().flatten() for v in build_network(config.network).state_dict().values()])


def test_a_batch_that_cannot_be_shared_is_refused(
    data: Path, children: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(command(data, tmp_path / "run", torchrun=2, batch="5"), children)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "hemolens: batch=5 cannot be shared by 2 processes: make it a multiple of 2." in err
