"""Batches for training and validation: chosen by kind, painted with bleeds, put together in worker processes.

Sample number ``i`` of a run depends on the seed and ``i`` alone. Step ``s`` of a run with a global batch of ``B``
covers the numbers ``s * B`` to ``s * B + B - 1``, and process ``r`` of ``w`` takes the ``r``-th part of them: so neither
the number of processes nor of workers changes what is learned from, and a run can go on anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE  # noqa: F401
from hemolens.training.augment import AugmentConfig
from hemolens.training.mixture import (  # noqa: F401  # until the loop has moved
    KINDS,
    Mixture,
    Sample,
    load_ct_ich,
    load_phe_sich,
)
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
SampleKind = Literal["slice", "volume", "scan"]
MIX_KINDS = ("synthetic", "synthetic_phe", "clean", "clean_phe", "weak", "pseudo", "drawn")


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
    raise NotImplementedError


def ordered_batches(
    store: Store,
    config: DataConfig,
    *,
    sample: SampleKind,
    channels: int,
    batch: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield every slice once, in order, unchanged: for validation. A scan comes whole, alone in its batch."""
    raise NotImplementedError


def epoch_steps(store: Store, config: DataConfig, *, sample: SampleKind, batch: int) -> int:
    """Return how many steps one pass takes (`shuffle`: over every sample; else over as many as there are)."""
    raise NotImplementedError
