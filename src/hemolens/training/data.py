"""Batches for training and validation: chosen by kind, painted with bleeds, put together in worker processes.

Sample number ``i`` of a run depends on the seed and ``i`` alone. Step ``s`` of a run with a global batch of ``B``
covers the numbers ``s * B`` to ``s * B + B - 1``, and process ``r`` of ``w`` takes the ``r``-th part of them: so the
number of processes or workers does not change what is learned from, and a run can go on anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hemolens.errors import ConfigError, HemolensError
from hemolens.training.augment import AugmentConfig
from hemolens.training.draw import MIX_KINDS, Drawer, SampleKind
from hemolens.training.samples import SampleBuilder
from hemolens.training.store import Store
from hemolens.training.synthesis import SynthesisConfig

Batch = dict[str, Any]
"""One batch.

``images``
    Float gray 0-255: ``(n, c, h, w)`` for slices, ``(n, 1, d, h, w)`` for volumes, ``(n, s, c, h, w)`` for scans.
``labels``
    int64, ``(n, h, w)`` or ``(n, d, h, w)``; 0, subtype 1-5, 6 blood of unknown subtype, 7 edema, 255 unknown: a
    slice of unknown mask is 255 throughout. Not there for scans.
``inside``
    Float, as `labels`: 1 where blood may be (everywhere where the skull is not closed). Not there for scans.
``findings``
    ``(n, 6)`` or, for scans, ``(n, s, 6)``: 1, 0 or NaN for unknown. For volumes: of the slices that are shown.
``scan_findings``
    ``(n, 6)``, for volumes (then equal to ``findings``) and scans.
``names``
    List of ``"ct_ich/049#14"``; for volumes and scans of the first slice.
``number``
    int64 ``(n,)``.
"""


@dataclass(frozen=True)
class DataConfig:
    """What a run learns from, and how often.

    Shares are normalized over the kinds that the data hold.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    sampling: Literal["mix", "balanced", "shuffle"] = "mix"
    """``mix``: kinds by their shares; ``balanced``: bleeding and clean in turns; ``shuffle``: every slice once in each
    pass. For the latter two, a share of 0 leaves a kind out, and the synthetic kinds take no part."""
    synthetic: float = 0.36
    """Bleeds painted into bleed-free slices of any data set but PHE-SICH."""
    synthetic_phe: float = 0.08
    """The same for PHE-SICH, whose display window is free."""
    clean: float = 0.26
    """Bleed-free slices of any data set but PHE-SICH."""
    clean_phe: float = 0.0
    """Bleed-free slices of PHE-SICH."""
    weak: float = 0.14
    """Slices with hemorrhage and an unknown mask: only the label of the slice teaches."""
    pseudo: float = 0.16
    """Slices with a derived mask."""
    drawn: float = 0.16
    """Slices with a drawn mask of blood."""
    repeat_center: float = 0.4
    """Chance that a sample shows its middle slice three times, as a lone slice does."""
    depth: int = 16
    """Slices in one sample of a network that reads volumes or scans."""
    workers: int = 1
    """Processes that put batches together; 0 does it in the training process."""

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ValueError("shares must be at least 0 and not all 0")
        if not 0 <= self.repeat_center <= 1:
            raise ValueError("repeat_center must be from 0 to 1")
        if self.depth < 1 or self.workers < 0:
            raise ValueError("depth must be at least 1, workers at least 0")

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order of `MIX_KINDS`."""
        return tuple(float(getattr(self, kind)) for kind in MIX_KINDS)


def open_batches(
    store: Store,
    config: DataConfig,
    synthesis: SynthesisConfig,
    augment: AugmentConfig,
    *,
    sample: SampleKind,
    channels: int,
    batch: int,
    seed: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield training batches without end; pass each through `hemolens.training.augment.augment_batch`.

    Parameters
    ----------
    store
        Training cases only.
    config, synthesis, augment
        What to draw, what to paint; of `augment` only JPEG is done here.
    sample, channels
        What the network reads (``network.sample``, ``network.channels``).
    batch
        Global batch; each process gets ``batch / world``.
    seed, start_step
        Of the run; a run that goes on starts where it was.
    shard
        Rank and number of processes.

    Raises
    ------
    ConfigError
        If the batch cannot be shared out evenly, or no sample is of a kind whose share is above 0.
    HemolensError
        If a slice cannot be read or a worker dies.
    """
    rank, world = shard
    if batch % world:
        raise ConfigError(f"batch: {batch} cannot be shared out among {world} processes. Use a multiple of {world}.")
    drawer = Drawer(store, config, sample, seed)
    builder = SampleBuilder(store, config.repeat_center, config.depth, synthesis, augment, sample, channels)
    each = batch // world
    return _deliver(_Steps(drawer, builder, batch, rank * each, each), itertools.count(start_step), config.workers)


def ordered_batches(
    store: Store,
    config: DataConfig,
    *,
    sample: SampleKind,
    channels: int,
    batch: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield every slice once, in order, unchanged: for validation.

    Volumes come in windows of ``config.depth`` slices; where the last one of a case overlaps the one before, the labels
    of what was shown already are 255. A scan comes whole, alone in its batch.
    """
    still = SampleBuilder(store, 0.0, config.depth, SynthesisConfig(), AugmentConfig(enabled=False), sample, channels)
    places = _places(store, config.depth, sample)
    each = 1 if sample == "scan" else batch
    groups = [places[k : k + each] for k in range(0, len(places), each)]
    for index in range(shard[0], len(groups), shard[1]):
        samples = [still.at(*place) for place in groups[index]]
        numbers = range(index * each, index * each + len(samples))
        yield _finished(_collated(samples, numbers))


def epoch_steps(store: Store, config: DataConfig, *, sample: SampleKind, batch: int) -> int:
    """Return how many steps show as many samples as there are slices (scans) of the kinds that `config` asks for."""
    return -(-len(Drawer(store, config, sample, 0)) // batch)


def _places(store: Store, depth: int, sample: SampleKind) -> list[tuple[int, int]]:
    """Return what `SampleBuilder.at` takes for every slice, window or scan."""
    if sample == "slice":
        return [(number, 0) for number in range(len(store.items))]
    if sample == "scan":
        return [(case, 0) for case in range(len(store.cases))]
    places = []
    for case in range(len(store.cases)):
        length = store.length(case)
        places += [(case, start) for start in range(0, length, depth)]
    return places


class _Steps(Dataset[Any]):
    """One process's part of each step's batch."""

    def __init__(self, drawer: Drawer, builder: SampleBuilder, batch: int, first: int, each: int) -> None:
        self.drawer, self.builder = drawer, builder
        self.batch, self.first, self.each = batch, first, each

    def __getitem__(self, step: int) -> Batch | HemolensError:
        """Return the batch of a step; an error crosses from the worker as a value, so that it stays one line."""
        start = step * self.batch + self.first
        numbers = range(start, start + self.each)
        try:
            return _collated([self.builder.drawn(self.drawer.draw(n)) for n in numbers], numbers)
        except HemolensError as error:
            return error


def _deliver(steps: _Steps, order: Iterable[int], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        steps, batch_size=None, sampler=order, num_workers=workers, prefetch_factor=3 if workers else None
    )
    batches = iter(loader)
    while True:
        try:
            made = next(batches)
        except RuntimeError as error:
            instead = worker_ended(error)
            if instead is None:
                raise
            raise instead from error
        if isinstance(made, HemolensError):
            raise made
        yield _finished(made)


def worker_ended(error: RuntimeError) -> BaseException | None:
    """Return what to raise for PyTorch's word that a worker was ended from outside; None for any other error.

    That word comes at any place of the main process, for PyTorch says it in a signal handler. A polite end (SIGTERM, as
    a service manager sends it to all processes of a run at once) is an interruption, as it is in the main process.
    """
    if "DataLoader worker" not in str(error):
        return None
    if "signal: Terminated" in str(error):
        return KeyboardInterrupt()
    problem = "a process that puts batches together was killed, most likely for want of memory"
    return HemolensError(f"{problem}. Lower data.workers, batch or data.depth.")


def _collated(samples: Sequence[dict[str, Any]], numbers: Sequence[int]) -> Batch:
    batch: Batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0] if key != "name"}
    return {**batch, "names": [s["name"] for s in samples], "number": torch.tensor(list(numbers), dtype=torch.int64)}


def _finished(batch: Batch) -> Batch:
    """Widen what crossed from the worker as bytes."""
    wide = {"images": torch.float32, "inside": torch.float32, "labels": torch.int64}
    return {key: value.to(wide[key]) if key in wide else value for key, value in batch.items()}
