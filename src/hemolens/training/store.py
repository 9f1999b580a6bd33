"""Decoded cases: read and cropped once by the very preprocessing that a network meets in use, then kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.sources.datasets.cases import Case, DataSet, MaskState


@dataclass(frozen=True, slots=True)
class Item:
    """One slice of a store: what can be told without reading it."""

    case: int
    """Index in `Store.cases`."""
    index: int
    """Slice of its case."""
    findings: tuple[float, ...]
    """1, 0 or NaN for unknown, in `hemolens.labels.FINDING_NAMES` order."""
    mask_state: MaskState
    skull_share: float
    """Share of the crop inside a skull that is closed without guessing; a slice of much less cannot be painted."""
    blood_pixels: int
    """Of the mask on the network's grid; 0 where the mask is unknown."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice with its neighbors and what is known of it, on the network's grid."""

    images: NDArray[np.uint8]
    """Shape ``(3, h, w)``: below, the slice, above."""
    inside: NDArray[np.bool_]
    """Where blood may be: inside the skull, or everywhere where that is not known."""
    skull: NDArray[np.bool_]
    """Inside of the skull as far as it is closed: where bleeds are painted."""
    findings: NDArray[np.float32]
    """1, 0 or NaN for unknown, shape ``(6,)``."""
    labels: NDArray[np.uint8]
    """0, subtype 1-5, 6 blood of unknown subtype, 7 edema, 255 unknown."""
    name: str
    """``"ct_ich/049#14"``."""


@dataclass(frozen=True, eq=False)
class SampleVolume:
    """Some neighboring slices of one case."""

    images: NDArray[np.uint8]
    """Shape ``(slices, h, w)``."""
    inside: NDArray[np.bool_]
    skull: NDArray[np.bool_]
    findings: NDArray[np.float32]
    """Shape ``(slices, 6)``."""
    labels: NDArray[np.uint8]
    names: tuple[str, ...]


class Store:
    """Decoded slices on disk, in the network's order of slices; only what is asked for is ever in memory."""

    cases: tuple[Case, ...]
    items: tuple[Item, ...]
    """Every slice of every member, case by case."""
    folder: Path
    preprocess: PreprocessConfig

    def sample(self, number: int) -> Sample:
        """Read slice `number` of `items` and its neighbors."""
        raise NotImplementedError

    def volume(self, case: int, start: int = 0, stop: int | None = None) -> SampleVolume:
        """Read slices `start` to `stop` of a case."""
        raise NotImplementedError


def build_store(
    datasets: Sequence[DataSet],
    members: Collection[str] | None,
    preprocess: PreprocessConfig,
    folder: Path,
    *,
    unit: Literal["patient", "slice"] = "patient",
    workers: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Store:
    """Decode every case of the members that is not in `folder` yet, and open all of them.

    Parameters
    ----------
    datasets
        Opened data sets.
    members
        Groups (``"ct_ich/049"``), or with `unit` ``"slice"`` slices (``"ct_ich/049#14"``), as in a
        `hemolens.sources.splits.Fold`; None for everything.
    preprocess
        What the network sees.
    folder
        Of the cache; may be shared by runs, also at the same time.
    unit
        What `members` names.
    workers
        Processes that decode.
    progress
        Called with the share that is done.

    Raises
    ------
    InputError
        If a member is in no data set, or a file cannot be read.
    OutputError
        If `folder` cannot be written.
    """
    raise NotImplementedError
