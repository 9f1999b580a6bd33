"""Which slice, window or scan sample number ``i`` of a run is, and of what kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import ConfigError
from hemolens.sources.datasets.cases import Case, merged_findings
from hemolens.training.store import Item, Store
from hemolens.training.synthesis import SMALLEST_INSIDE

if TYPE_CHECKING:
    from hemolens.training.data import DataConfig

SampleKind = Literal["slice", "volume", "scan"]
MIX_KINDS = ("synthetic", "synthetic_phe", "clean", "clean_phe", "weak", "pseudo", "drawn")
PHE = "phe_sich"
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Drawn:
    """One sample to be read."""

    kind: str
    """One of `MIX_KINDS`."""
    element: int
    """Index in `Store.items`; for scans in `Store.cases`."""
    rng: Rng
    """For all else that is random about it."""


class Drawer:
    """Draws elements by kind; number ``i`` depends on the seed, ``i`` and what the store holds.

    Raises
    ------
    ConfigError
        If the store holds nothing whose share is above 0.
    """

    def __init__(self, store: Store, config: DataConfig, sample: SampleKind, seed: int) -> None:
        self.sampling, self.seed = config.sampling, seed
        shares = dict(zip(MIX_KINDS, config.shares, strict=True))
        if self.sampling != "mix":
            shares |= {"synthetic": 0.0, "synthetic_phe": 0.0}
        pools = _scan_pools(store) if sample == "scan" else _item_pools(store, whole=sample == "volume")
        self.pools = {kind: np.array(pools[kind], dtype=np.int64) for kind in MIX_KINDS if shares[kind] and pools[kind]}
        if not self.pools:
            wanted = ", ".join(kind for kind in MIX_KINDS if shares[kind])
            raise ConfigError(f"data: the training cases hold none of: {wanted}. Raise another share or add data.")
        weights = np.array([shares[kind] for kind in self.pools])
        self.weights = weights / weights.sum()
        self.elements = [
            (kind, int(e)) for kind in self.pools if not kind.startswith("synthetic") for e in self.pools[kind]
        ]
        clean = [k for k, (kind, _) in enumerate(self.elements) if kind.startswith("clean")]
        bleeding = [k for k, (kind, _) in enumerate(self.elements) if not kind.startswith("clean")]
        self.halves = [np.array(half) for half in (bleeding, clean) if half]
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        """Return how many there are, painted ones not counted."""
        return len(self.elements)

    def draw(self, number: int) -> Drawn:
        """Choose sample `number`."""
        rng = np.random.default_rng([self.seed, number])
        if self.sampling == "shuffle":
            kind, element = self.elements[self._shuffled(number)]
        elif self.sampling == "balanced":
            half = self.halves[number % len(self.halves)]
            kind, element = self.elements[int(half[rng.integers(len(half))])]
        else:
            kind = tuple(self.pools)[int(rng.choice(len(self.pools), p=self.weights))]
            element = int(self.pools[kind][rng.integers(len(self.pools[kind]))])
        return Drawn(kind, element, rng)

    def _shuffled(self, number: int) -> int:
        turn, place = divmod(number, len(self.elements))
        if self._order[0] != turn:
            self._order = (turn, np.random.default_rng([self.seed, turn, 7]).permutation(len(self.elements)))
        return int(self._order[1][place])


def _item_pools(store: Store, whole: bool) -> dict[str, list[int]]:
    """Sort slices by kind; with `whole`, bleeds are painted only into scans without any."""
    pools: dict[str, list[int]] = {kind: [] for kind in MIX_KINDS}
    for number, item in enumerate(store.items):
        case = store.cases[item.case]
        kind = _kind(item, case)
        if kind:
            pools[kind].append(number)
        paintable = item.skull_share >= SMALLEST_INSIDE and (not whole or case.findings[0] == 0)
        if kind in {"clean", "clean_phe"} and paintable:
            pools[kind.replace("clean", "synthetic")].append(number)
    return pools


def _scan_pools(store: Store) -> dict[str, list[int]]:
    """Sort scans by kind: clean as a whole, or by the best of what is known of their bleeding slices."""
    pools: dict[str, list[int]] = {kind: [] for kind in MIX_KINDS}
    found: dict[int, set[str]] = {number: set() for number in range(len(store.cases))}
    for item in store.items:
        found[item.case].add(_kind(item, store.cases[item.case]))
    for number, case in enumerate(store.cases):
        end = "_phe" if case.dataset == PHE else ""
        if case.findings[0] == 0:
            pools[f"clean{end}"].append(number)
            pools[f"synthetic{end}"].append(number)
        elif case.findings[0] == 1:
            pools[next((k for k in ("drawn", "pseudo") if k in found[number]), "weak")].append(number)
    return pools


def _kind(item: Item, case: Case) -> str:
    """Return the kind of a slice; empty where nothing is known of it."""
    if item.findings[0] == 0:
        return "clean_phe" if case.dataset == PHE else "clean"
    if item.mask_state in {"drawn", "pseudo"}:
        return item.mask_state
    return "weak" if item.findings[0] == 1 else ""


def window_findings(case: Case, rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return what is known of some slices of a case, of which `rows` are all findings.

    Where only the scan is labeled, what it has not, no part of it has; what it has may lie elsewhere, unless the slices
    are all that there are.
    """
    merged = merged_findings(rows)
    if case.scan_findings is None:
        return merged
    if len(rows) == len(case.slices):
        return case.scan_findings
    return tuple(0.0 if scan == 0 else own for own, scan in zip(merged, case.scan_findings, strict=True))
