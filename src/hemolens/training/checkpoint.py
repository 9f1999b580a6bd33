"""Weights on disk: written whole or not at all, and read back only where they fit."""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hemolens.config import dotted, from_mapping, to_mapping
from hemolens.errors import ConfigError, HemolensError, InputError, ModelError, OutputError
from hemolens.models.network import Network
from hemolens.models.registry import build_network
from hemolens.training.config import TrainConfig, load_preset

CHECKPOINT = "checkpoint.pt"
"""Everything that a run needs to go on."""
BEST = "best.pt"
"""The weights that a run keeps."""
CONFIG = "config.toml"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, or leave the file that was there: power may fail and the disk may fill at any time.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    with disk_watched(path):
        write_whole(path, stream.getbuffer())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name, push it to the disk, and only then give it its name."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name, too, must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def disk_watched(path: Path) -> Iterator[None]:
    """Turn a failed write into one line that says what to do.

    Raises
    ------
    OutputError
        Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = "Free some space, then go on" if full else "Mend that, then go on"
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}). {remedy} with --resume: the last whole checkpoint is kept."
        ) from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises
    ------
    ModelError
        If it is not there, damaged, or no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        state = torch.load(path, map_location="cpu", weights_only=True) if broken is None else None
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such checkpoint.") from None
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError) as error:
        raise ModelError(f"{path}: is damaged or no checkpoint ({type(error).__name__}). Start anew.") from error
    if not isinstance(state, dict) or not {"config", "weights"} <= state.keys():
        raise ModelError(f"{path}: is damaged or no checkpoint of hemolens. Start anew.")
    return state


def load_weights(network: nn.Module, weights: dict[str, Any], source: Path) -> None:
    """Put weights into a network.

    Raises
    ------
    ModelError
        If they are those of another network.
    """
    own = network.state_dict()
    for name, value in own.items():
        if name not in weights or weights[name].shape != value.shape:
            what = "lacks" if name not in weights else "has another shape of"
            raise ModelError(
                f"{source}: is a checkpoint of another network (it {what} '{name}'). "
                "Use the network settings of its run, or another checkpoint."
            )
    extra = sorted(set(weights) - set(own))
    if extra:
        raise ModelError(
            f"{source}: is a checkpoint of another network (it has '{extra[0]}', which this one lacks). "
            "Use the network settings of its run, or another checkpoint."
        )
    network.load_state_dict(weights)


def load_run(run: Path) -> tuple[TrainConfig, Network]:
    """Return the settings of a run and its network with the weights that it kept, ready for use.

    Parameters
    ----------
    run
        Folder of a run, finished or not: where no weights are kept yet, the averaged ones of the last checkpoint.

    Raises
    ------
    InputError
        If `run` is no folder of a run.
    ModelError
        If the weights are missing or damaged.
    """
    if not (run / CONFIG).is_file():
        raise InputError(run, f"is no folder of a training run (it has no {CONFIG})", "Name the folder of --run.")
    config = load_preset(run / CONFIG)
    network = build_network(config.network, pretrained=False)
    load_weights(network, kept_weights(run), run)
    return config, network.eval()


def kept_weights(source: Path) -> dict[str, Any]:
    """Return the weights in a ``.pt`` file, or those that a run keeps.

    Raises
    ------
    InputError
        If there are none to be had.
    ModelError
        If they are damaged.
    """
    path = source
    if source.is_dir():
        path = source / BEST if (source / BEST).exists() else source / CHECKPOINT
    if not path.is_file() or path.suffix != ".pt":
        raise InputError(
            source,
            "holds no weights to go on from",
            f"Name the folder of a training run, which holds {BEST}, or a model that ships (hemolens models list).",
        )
    return dict(load_state(path)["weights"])


def check_same_run(state: dict[str, Any], config: TrainConfig, folder: Path) -> None:
    """Refuse to go on with other settings than the run began with.

    Raises
    ------
    ConfigError
        Naming the first setting that differs.
    """
    free = {"device", "nodes", "tensorboard", "log_every", "checkpoint_every"}
    begun = from_mapping(TrainConfig, state["config"], str(folder))  # settings that came later stand at their defaults
    was, now = dotted(to_mapping(begun)), dotted(to_mapping(config))
    free.add("data.workers")
    differing = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k) and k not in free)
    if differing:
        key = differing[0]
        if key.startswith("network."):
            raise ConfigError(
                f"{folder}: holds a checkpoint of another network ({key} was {was.get(key)!r}, not {now.get(key)!r}). "
                "Go on with the settings that it began with, or choose another folder."
            )
        raise ConfigError(
            f"{folder}: holds a run with other settings ({key} was {was.get(key)!r}, not {now.get(key)!r}). "
            "Go on with those, or choose another folder."
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "DefaultCPUAllocator")
    )


def memory_error(config: TrainConfig) -> HemolensError:
    """Say which settings to lower."""
    return HemolensError(
        f"There is not enough memory. Lower batch (now {config.batch}), preprocess.size (now "
        f"{config.preprocess.size}) or data.workers (now {config.data.workers}), or set precision to bf16."
    )
