"""One training run, from data sets and a split to a folder with weights, logs, curves and a model: the one call."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hemolens.config import dotted, suggestion, to_mapping
from hemolens.errors import ConfigError, OutputError
from hemolens.inference.registry import load_model, model_names
from hemolens.models.network import Network
from hemolens.models.rebuild import loosen, rebuild_network
from hemolens.models.registry import build_network
from hemolens.models.run_card import write_run_card
from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.splits import Fold, Split, make_split, read_split, write_split
from hemolens.training.checkpoint import (
    BEST,
    CHECKPOINT,
    CONFIG,
    disk_watched,
    kept_weights,
    load_state,
    load_weights,
    memory_error,
    out_of_memory,
    write_whole,
)
from hemolens.training.config import TrainConfig, save_config
from hemolens.training.data import worker_ended
from hemolens.training.devices import open_fabric
from hemolens.training.lock import LOCK, held
from hemolens.training.logs import CURVES_NAME, draw_curves
from hemolens.training.loop import Job, Outcome, Progress, Tell, train
from hemolens.training.provenance import data_told, identity, session
from hemolens.training.store import Store, build_store

PROVENANCE = "provenance.json"
SPLIT = "split.json"
CACHE = "cache"
SETTLING = 48
"""Slices that the normalization of a model that ships is set by, before it learns on."""
FREELY_SET = ("network.imagenet", "network.dropout", "network.frozen_stages")
"""Settings in which a run may differ from the model that it starts from."""
UNLIKE = {"slice_head": "head"}
"""Parts that may begin anew, and the setting that says what they are."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run leaves."""

    folder: Path
    config: TrainConfig
    network: Network
    """With the weights that were kept, on the CPU, ready for use."""
    step: int
    """The last one."""
    stopped_early: bool
    best: float | None
    """The score that the kept weights were chosen by (`TrainConfig.select`); None for ``last``."""
    best_step: int
    rows: tuple[Mapping[str, float], ...]
    """The log; values that were not measured at a step are absent."""
    model: Path | None
    """``model.json`` beside ``model.onnx``, for `hemolens.inference.registry.load_model`."""


def run_training(
    config: TrainConfig,
    datasets: Sequence[DataSet],
    split: Split | None,
    fold: int,
    out: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    progress: Tell | None = None,
    export: bool = True,
) -> RunResult:
    """Train on one fold and write everything into `out`.

    Parameters
    ----------
    config
        Every setting; see `hemolens.training.config.load_preset`.
    datasets
        From `hemolens.sources.datasets.opening.open_datasets`.
    split
        Who is trained, validated and tested on; None makes one by patients (stratified, from ``config.seed``), which
        is written into `out`.
    fold
        Which fold of it, from 0.
    out
        Folder of the run.
    resume
        Go on from the last whole checkpoint in `out`; the weights end up as if the run had never stopped. Without one
        the run begins anew.
    cache
        Folder for decoded slices, which runs may share; ``out/cache`` if None.
    progress
        Called after every step.
    export
        Draw the curves and write ``model.onnx`` and its card at the end.

    Raises
    ------
    ConfigError
        For settings that do not fit the data, the machine, or the run that `out` holds.
    InputError
        For data or a split that cannot be used.
    OutputError
        If `out` holds a run already (and `resume` is off), another process trains there, or it cannot be written.
    DivergedError
        If the loss becomes NaN or infinite; the batch is written down.
    HemolensError
        If memory runs out.
    """
    try:
        return _run(config, datasets, split, fold, out, resume, cache, progress, export)
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise memory_error(config) from error
        instead = worker_ended(error) if isinstance(error, RuntimeError) else None
        if instead is None:
            raise
        raise instead from error


def _run(
    config: TrainConfig, datasets: Sequence[DataSet], split: Split | None, fold: int, out: Path, resume: bool,
    cache: Path | None, progress: Tell | None, export: bool,
) -> RunResult:  # fmt: skip
    with ExitStack() as stack:
        fabric = open_fabric(config)
        if fabric.is_global_zero:
            _open_folder(out, resume=resume)
            stack.enter_context(held(out))
            if split is None:
                own_split(config, datasets, out / SPLIT)
        fabric.barrier()
        split = split or read_split(out / SPLIT)
        chosen = split.fold(fold)
        _check_data(config, datasets, split, chosen)
        torch.manual_seed(config.seed)
        network = first_network(config)
        data = replace(config.data, depth=network.depth) if network.sample == "volume" else config.data
        stores = _stores(
            config, datasets, split, chosen, cache or out / CACHE, progress if fabric.is_global_zero else None
        )
        if _from_shipped(config):
            settle(network, stores[0])
        if fabric.is_global_zero:
            _write_beginning(config, datasets, split, fold, out, resume=resume)
        fabric.barrier()
        job = Job(config, data, *stores, identity(datasets, chosen), out, fabric)
        outcome = train(job, network, resume=resume, tell=progress)
        return _finish(job, outcome, progress, export=export)


def _open_folder(out: Path, *, resume: bool) -> None:
    """Make the folder of the run, and refuse one that holds something else."""
    with disk_watched(out):
        out.mkdir(parents=True, exist_ok=True)
    begun = (out / CHECKPOINT).exists() or (out / BEST).exists()
    if begun and not resume:
        raise OutputError(f"{out}: holds a training run already. Go on with --resume, or name another folder.")
    if not (out / CONFIG).exists() and any(p.name not in (CACHE, LOCK, SPLIT) for p in out.iterdir()):
        raise OutputError(f"{out}: is not empty and holds no training run. Name another folder.")
    for left in out.glob("*.part"):  # of a write that power cut short
        left.unlink()


def own_split(config: TrainConfig, datasets: Sequence[DataSet], path: Path) -> Path:
    """Write a split by patients, unless there is one at `path` already.

    Data sets that teach by derived masks are always trained on, those for research use only are always tested on.
    """
    if not path.exists():
        derived = {d.name for d in datasets if any(s.mask_state == "pseudo" for c in d.cases for s in c.slices)}
        reserved = {d.name for d in datasets if not d.trainable and not config.research_data}
        if len(derived | reserved) == len(datasets):  # nothing would be left to validate on
            derived = set()
        write_split(make_split(datasets, seed=config.seed, train_only=derived - reserved, test_only=reserved), path)
    return path


def _check_data(config: TrainConfig, datasets: Sequence[DataSet], split: Split, fold: Fold) -> None:
    split.check(datasets, partial=True)
    here = {d.name for d in datasets}
    used = {member.partition("/")[0] for member in (*fold.train, *fold.validation)}
    if used - here:
        raise ConfigError(f"The split also needs {', '.join(sorted(used - here))}, which is not here.")
    kept = sorted(d.name for d in datasets if not d.trainable and any(m.startswith(f"{d.name}/") for m in fold.train))
    if kept and not config.research_data:
        raise ConfigError(
            f"{kept[0]} is for research use only, and weights trained on it are, too. Set research_data=true to allow "
            "that, or leave it out of the training side of the split."
        )
    if not fold.train:
        raise ConfigError("The training side of this fold is empty.")
    if not fold.validation and config.select != "last":
        raise ConfigError("This fold has no validation side: set select=last, which needs none.")


def first_network(config: TrainConfig) -> Network:
    """Return the network as a run begins with it; one that starts from a model that ships is still to `settle`."""
    network = build_network(config.network, pretrained=not config.start)
    try:
        network.interface.check(config.preprocess)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.start:
        given = _shipped_weights(config) if _from_shipped(config) else kept_weights(Path(config.start))
        load_weights(network, _partly(given, network, config.start_anew), Path(config.start))
    return network


def settle(network: Network, store: Store) -> None:
    """Set the normalization of a network from a model that ships by training slices, which will go on changing it."""
    shown = np.linspace(0, len(store.items) - 1, min(SETTLING, len(store.items))).astype(int)
    images = np.stack([store.sample(int(k)).images for k in shown]).astype(np.float32)
    loosen(network.eval(), torch.from_numpy(images[:, 1:2] if network.channels == 1 else images))


def _from_shipped(config: TrainConfig) -> bool:
    return bool(config.start) and not Path(config.start).exists() and config.start in model_names()


def _shipped_weights(config: TrainConfig) -> dict[str, Any]:
    """Return the weights of the model of that name, or say which settings its network needs."""
    rebuilt = rebuild_network(load_model(config.start))
    own, other = (dotted({"network": to_mapping(c)}) for c in (config.network, rebuilt.config))
    parts = tuple(f"network.{UNLIKE[name]}" for name in config.start_anew if name in UNLIKE)
    differing = [k for k, v in other.items() if own.get(k) != v and not k.startswith((*FREELY_SET, *parts))]
    if differing:
        settings = " ".join(f"{key}={json.dumps(other[key])}" for key in differing)
        raise ConfigError(f"start: {config.start} is another network. Set {settings}.")
    return rebuilt.state_dict()


def _partly(weights: dict[str, Any], network: Network, anew: Sequence[str]) -> dict[str, Any]:
    """Return weights to start from, with the network's own in those parts that begin anew."""
    parts = [name for name, _ in network.named_children()]
    for part in anew:
        if part not in parts:
            raise ConfigError(f"start_anew: the network has no part '{part}'.{suggestion(part, parts)}")

    def is_anew(name: str) -> bool:
        return name.partition(".")[0] in anew

    own = {name: value for name, value in network.state_dict().items() if is_anew(name)}
    return {**{name: value for name, value in weights.items() if not is_anew(name)}, **own}


def _stores(
    config: TrainConfig, datasets: Sequence[DataSet], split: Split, fold: Fold, folder: Path, progress: Tell | None
) -> tuple[Store, Store | None]:
    """Decode the training and the validation side."""
    began = time.monotonic()
    sides = [side for side in (fold.train, fold.validation) if side]
    made = []
    for number, side in enumerate(sides):

        def told(share: float, number: int = number) -> None:
            if progress:
                done = round(100 * (number + share) / len(sides))
                progress(Progress("prepare", done, 100, time.monotonic() - began))

        workers = max(config.data.workers, 1)
        made.append(
            build_store(datasets, side, config.preprocess, folder, unit=split.unit, workers=workers, progress=told)
        )
    return made[0], made[1] if len(made) > 1 else None


def _write_beginning(
    config: TrainConfig, datasets: Sequence[DataSet], split: Split, fold: int, out: Path, *, resume: bool
) -> None:
    """Write the settings, the split and where the run comes from."""
    path = out / PROVENANCE
    with disk_watched(out / CONFIG):
        if not (resume and (out / CHECKPOINT).exists()):
            save_config(config, out / CONFIG)
        if not (out / SPLIT).exists():
            write_split(split, out / SPLIT)
        sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"] if resume and path.exists() else []
        told = {"seed": config.seed, **data_told(datasets, split, fold), "sessions": [*sessions, session()]}
        write_whole(path, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def _finish(job: Job, outcome: Outcome, progress: Tell | None, *, export: bool) -> RunResult:
    """Take the weights that are kept; draw the curves and export the model, if asked for."""
    config, out, state = job.config, job.out, outcome.state
    best = load_state(out / BEST)
    network = outcome.average.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    load_weights(network, best["weights"], out / BEST)
    model = None
    if job.fabric.is_global_zero and export:
        if progress:
            progress(Progress("export", state.step, state.step, state.seconds))
        draw_curves(outcome.rows, out / CURVES_NAME, f"{config.network.kind}: {out.name}")
        told = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
        model = write_run_card(network, config.preprocess, out, told)
    job.fabric.barrier()
    return RunResult(
        out, config, network.eval(), state.step, state.stopped, best["score"], int(best["step"]),
        tuple(outcome.rows), model,
    )  # fmt: skip
