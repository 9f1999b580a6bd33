"""Which slices a network that reads across slices is shown at a time, and how its answers are joined."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


def stacks(slices: int, step: int) -> Iterator[Indices]:
    """Yield the indices of every `step`-th slice, beginning with each of the first `step` ones.

    So slices lie as far apart as the network knows them, and each is shown once.
    """
    for first in range(min(step, slices)):
        yield np.arange(first, slices, step)


def windows(slices: int, depth: int) -> list[slice]:
    """Return windows of `depth` slices, evenly spread, neighbors sharing at least half; one if `slices` are fewer."""
    if slices <= depth:
        return [slice(0, slices)]
    count = 1 + -(-(slices - depth) // max(depth // 2, 1))
    starts = np.rint(np.linspace(0, slices - depth, count)).astype(int)
    return [slice(start, start + depth) for start in starts.tolist()]


def pieces(slices: int, longest: int) -> list[slice]:
    """Cut `slices` into the fewest parts of about equal length, none over `longest`."""
    count = max(1, -(-slices // longest))
    edges = np.rint(np.linspace(0, slices, count + 1)).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


class Averaged:
    """The mean of overlapping windows' answers, shape ``(slices, …)``."""

    def __init__(self, slices: int) -> None:
        self._slices = slices
        self._sum: NDArray[np.float32] | None = None
        self._count = np.zeros(slices, dtype=np.float32)

    def add(self, members: Indices, values: NDArray[np.float32]) -> None:
        """Add one answer about the slices `members`, shape ``(members or more, …)``; what lies beyond is padding."""
        if self._sum is None:
            self._sum = np.zeros((self._slices, *values.shape[1:]), dtype=np.float32)
        self._sum[members] += values[: len(members)]
        self._count[members] += 1

    def mean(self) -> NDArray[np.float32]:
        """Return the mean, shape ``(slices, …)``."""
        if self._sum is None or not self._count.all():
            raise ValueError("the windows do not cover every slice")
        return self._sum / self._count.reshape(-1, *[1] * (self._sum.ndim - 1))
