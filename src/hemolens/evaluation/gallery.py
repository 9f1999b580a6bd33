"""The slices worth looking at, kept while scans stream by: a bounded number of them, however many scans there are."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation.metrics import dice_score
from hemolens.evaluation.scored import Compared
from hemolens.inference.evidence import as_told
from hemolens.preprocessing.window import to_gray

Mask = NDArray[np.bool_]
Gray = NDArray[np.uint8]

PANEL_SIZE = 320
TILE_SIZE = 200
MOST_TILES = 40
GROUPS: tuple[tuple[str, str, int], ...] = (
    ("best", "Best outlines", 3),
    ("typical", "Picked at random", 4),
    ("worst", "Worst outlines", 4),
    ("false", "Most outlined where there is no blood", 3),
    ("missed", "Blood with the lowest score", 3),
    ("alarm", "No blood, with the highest score", 3),
)
"""Name, title, and how many are kept."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice as it is shown: seen from the feet, face up, cropped as the network saw it."""

    id: str
    gray: Gray
    true: Mask | None
    """None where the mask is not known."""
    found: Mask | None
    """None where nothing was outlined, or the model outlines nothing."""
    dice: float
    score: float
    """Raw score for any hemorrhage, to rank by."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan for the montage, lowest slice first; of long ones every so-manieth slice."""

    id: str
    tiles: tuple[Picture, ...]
    slices: int


@dataclass(eq=False)
class Gallery:
    """Keeps pictures of one set of cases."""

    outlines: bool
    """Whether the model outlines blood."""
    _kept: dict[str, list[tuple[float, str, Picture]]] = field(default_factory=dict)
    _loose: list[tuple[float, str, Picture]] = field(default_factory=list)
    _scan: tuple[float, str, Scan] | None = None

    def see(self, slices: Sequence[Compared]) -> None:
        """Look at the scored slices of one case."""
        for shown in slices:
            for name, worth in self._worth(shown):
                self._offer(name, worth, shown)
        if len(slices) > 1:
            self._offer_scan(slices)
        elif slices:
            self._keep(self._loose, MOST_TILES, -_lot(slices[0]), slices[0], TILE_SIZE)

    def pictures(self) -> list[tuple[str, str, list[Picture]]]:
        """Return name, title and pictures of each group that has any, the best of its kind first; none twice."""
        seen: set[str] = set()
        shown = []
        for name, title, _ in GROUPS:
            kept = [p for _, _, p in sorted(self._kept.get(name, []), key=lambda k: (-k[0], k[1])) if p.id not in seen]
            seen |= {p.id for p in kept}
            if kept:
                shown.append((name, title, kept))
        return shown

    def montage(self) -> Scan | None:
        """Return the scan with most blood, or a random choice of slices where there are no scans."""
        if self._scan is not None:
            return self._scan[2]
        tiles = tuple(p for _, _, p in sorted(self._loose, key=lambda k: k[1]))
        return Scan("", tiles, len(tiles)) if tiles else None

    def _worth(self, shown: Compared) -> list[tuple[str, float]]:
        """Return the groups that a slice may belong to, and how much it belongs there."""
        bleeding = shown.case.slices[shown.index].findings[0]
        score = float(as_told(shown.evidence))
        worth = []
        if self.outlines and shown.true is not None and shown.true.any():
            found = shown.outline()
            both = 0 if found is None else int((found & shown.true).sum())
            dice = dice_score(both, 0 if found is None else int(found.sum()), int(shown.true.sum()))
            # Among equals (many are 0) the one with most blood says most.
            size = shown.true.mean()
            worth += [("best", dice), ("worst", size - dice), ("typical", -_lot(shown))]
        elif self.outlines and shown.true is not None:
            found = shown.outline()
            if found is not None:
                worth.append(("false", float(found.mean())))
        if bleeding == 1.0 and np.isfinite(score):
            worth.append(("missed", -score))
        elif bleeding == 0.0 and np.isfinite(score):
            worth.append(("alarm", score))
        return worth

    def _offer(self, name: str, worth: float, shown: Compared) -> None:
        most = next(count for group, _, count in GROUPS if group == name)
        self._keep(self._kept.setdefault(name, []), most, worth, shown, PANEL_SIZE)

    def _keep(
        self, heap: list[tuple[float, str, Picture]], most: int, worth: float, shown: Compared, size: int
    ) -> None:
        """Put a slice on a heap of at most so many; it is drawn only if it stays."""
        name = shown.case.slice_id(shown.index)
        if len(heap) < most:
            heapq.heappush(heap, (worth, name, draw(shown, size)))
        elif (worth, name) > heap[0][:2]:
            heapq.heapreplace(heap, (worth, name, draw(shown, size)))

    def _offer_scan(self, slices: Sequence[Compared]) -> None:
        drawn = sum(float(s.true.sum()) for s in slices if s.true is not None)
        bleeding = sum(s.case.slices[s.index].findings[0] == 1.0 for s in slices)
        worth, name = drawn or bleeding / 1000, slices[0].case.id
        if self._scan is None or (worth, name) > self._scan[:2]:
            shown = [slices[i] for i in _spread(len(slices), MOST_TILES)]
            self._scan = (worth, name, Scan(name, tuple(draw(s, TILE_SIZE) for s in shown), len(slices)))


def draw(shown: Compared, size: int) -> Picture:
    """Render a slice with its masks on the network's crop, at `size` pixels."""
    turn, crop = shown.prepared.orientation.apply, replace(shown.prepared.crop, size=size)

    def mask(source: Mask | None) -> Mask | None:
        return None if source is None else np.asarray(crop.extract(turn(source[None])[0]) >= 0.5)

    gray = crop.extract(turn(to_gray(shown.volume.hu[shown.index : shown.index + 1]))[0])
    found = shown.outline()
    dice = float("nan")
    if shown.true is not None:
        both = 0 if found is None else int((found & shown.true).sum())
        dice = dice_score(both, 0 if found is None else int(found.sum()), int(shown.true.sum()))
    return Picture(
        shown.case.slice_id(shown.index),
        np.clip(np.rint(gray), 0, 255).astype(np.uint8),
        mask(shown.true),
        mask(found),
        dice,
        float(as_told(shown.evidence)),
    )


def _lot(shown: Compared) -> float:
    """Return a number from 0 to 1 that hangs on the slice's name alone: a draw that comes out the same every time."""
    digest = hashlib.sha256(shown.case.slice_id(shown.index).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices below `count`, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
