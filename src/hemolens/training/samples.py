"""One sample as arrays: read from the store, painted with bleeds, laid out as the network reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.labels import FINDING_NAMES
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN
from hemolens.training.augment import AugmentConfig, compress
from hemolens.training.draw import Drawn, SampleKind, window_findings
from hemolens.training.store import SampleVolume, Store
from hemolens.training.synthesis import Painted, SynthesisConfig, paint, paint_negatives

Arrays = dict[str, Any]
MASKED = frozenset({"pseudo", "drawn"})
"""Kinds whose blood is outlined, so that more can be painted beside it."""
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class SampleBuilder:
    """Reads and lays out samples."""

    store: Store
    repeat_center: float
    depth: int
    synthesis: SynthesisConfig
    augment: AugmentConfig
    sample: SampleKind
    channels: int

    def drawn(self, drawn: Drawn) -> Arrays:
        """Build a training sample."""
        if self.sample == "slice":
            return self._slice(drawn.element, drawn.kind, drawn.rng)
        if self.sample == "scan":
            return self._scan(drawn.element, self._start(drawn.element, None, drawn.rng), drawn.kind, drawn.rng)
        item = self.store.items[drawn.element]
        return self._window(item.case, self._start(item.case, item.position, drawn.rng), drawn.kind, drawn.rng)

    def at(self, element: int, start: int) -> Arrays:
        """Build a sample as it is: slice `element`, or the window of case `element` that starts at `start`."""
        if self.sample == "slice":
            return self._slice(element, "", None)
        if self.sample == "scan":
            return self._scan(element, None, "", None)
        return self._window(element, start, "", None)

    def _start(self, case: int, position: int | None, rng: Rng) -> int:
        """Choose a window of a case that shows slice `position`, or any."""
        last = max(self.store.length(case) - self.depth, 0)
        if position is None:
            return int(rng.integers(last + 1))
        low, high = max(position - self.depth + 1, 0), min(position, last)
        return int(rng.integers(min(low, last), high + 1))

    def _slice(self, element: int, kind: str, rng: Rng | None) -> Arrays:
        sample = self.store.sample(element)
        images, labels, findings = sample.images, sample.labels, sample.findings
        if rng is not None:
            if self.channels == 1 or rng.random() < self.repeat_center:
                images = images[[1, 1, 1]]
            painted = self._painted(images, sample.skull, kind, rng)
            if painted is not None:
                if painted.labels.any():
                    images = painted.images
                    findings = _with_painted(findings, painted.labels[1])
                    labels = _over(painted.labels[1], labels)
                else:
                    images = _around(labels, painted.images, images)
            images = images[1:2] if self.channels == 1 else images
            images = compress(images, self.augment, rng)
        elif self.channels == 1:
            images = images[1:2]
        return {
            "images": np.ascontiguousarray(images),
            "labels": labels,
            "inside": sample.inside,
            "findings": findings,
            "name": sample.name,
        }

    def _window(self, case: int, start: int, kind: str, rng: Rng | None) -> Arrays:
        """Show some slices of a case; beyond its end there is nothing, and nothing is known."""
        length = self.store.length(case)
        first = min(start, max(length - self.depth, 0))
        volume = self._volume(case, first, first + self.depth, kind, rng)
        labels = _padded(volume.labels, self.depth, UNKNOWN)
        if start > first:  # shown before, by the window before
            labels = np.concatenate([np.full_like(labels[: start - first], UNKNOWN), labels[start - first :]])
        known = window_findings(self.store.cases[case], volume.findings.tolist())
        # A scan's own label does not know what was painted.
        findings = _with_painted(np.array(known, dtype=np.float32), volume.labels)
        return {
            "images": _padded(volume.images, self.depth, 0)[None],
            "labels": labels,
            "inside": _padded(volume.inside, self.depth, 0),
            "findings": findings,
            "scan_findings": findings,
            "name": volume.names[0],
        }

    def _scan(self, case: int, start: int | None, kind: str, rng: Rng | None) -> Arrays:
        volume = self._volume(case, 0, None, kind, rng)
        seen = self.store.with_neighbors(case, volume.images)
        shown = slice(0, len(seen)) if start is None else slice(start, start + self.depth)
        depth = len(seen) if start is None else self.depth
        seen = seen[shown, 1:2] if self.channels == 1 else seen[shown]
        findings = volume.findings[shown]
        scan = window_findings(self.store.cases[case], findings.tolist())
        return {
            "images": _padded(seen, depth, 0),
            "findings": _padded(findings, depth, np.nan),
            "scan_findings": _with_painted(np.array(scan, dtype=np.float32), volume.labels[shown]),
            "name": volume.names[shown][0],
        }

    def _volume(self, case: int, start: int, stop: int | None, kind: str, rng: Rng | None) -> SampleVolume:
        volume = self.store.volume(case, start, stop)
        if rng is None:
            return volume
        images, labels, findings = volume.images, volume.labels, volume.findings
        usable = np.flatnonzero(volume.skull.mean(axis=(1, 2)) > 0)
        center = int(rng.choice(usable)) if usable.size else 0
        painted = self._painted(images, volume.skull, kind, rng, center)
        if painted is not None:
            if painted.labels.any():
                images = painted.images
                findings = np.stack([_with_painted(f, m) for f, m in zip(findings, painted.labels, strict=True)])
                labels = _over(painted.labels, labels)
            else:
                images = _around(labels, painted.images, images)
        return SampleVolume(
            compress(images, self.augment, rng), volume.inside, volume.skull, findings, labels, volume.names
        )

    def _painted(
        self, images: NDArray[np.uint8], skull: NDArray[np.bool_], kind: str, rng: Rng, center: int = 1
    ) -> Painted | None:
        beside = kind in MASKED and self.synthesis.beside > 0 and rng.random() < self.synthesis.beside
        if kind.startswith("synthetic") or beside:
            return paint(images, skull, self.synthesis, rng, center)
        if kind.startswith("clean"):
            return paint_negatives(images, skull, self.synthesis, rng, center)
        if kind in MASKED and self.synthesis.negative_beside > 0:
            decoys = replace(self.synthesis, hard_negative=self.synthesis.negative_beside)
            return paint_negatives(images, skull, decoys, rng, center)
        return None


def _with_painted(findings: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Add what the labels show to what is known of one slice or several."""
    there = [float((labels == k).any()) for k in range(1, len(FINDING_NAMES))]
    return np.where(np.array([max(there), *there]) > 0, np.float32(1), findings)


def _around(known: NDArray[np.uint8], painted: NDArray[np.uint8], images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Leave blood and edema that are outlined as they are: what is no blood hides none."""
    return np.where((known > 0) & (known != UNKNOWN), images, painted)


def _over(painted: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay painted labels over what was known: painted blood hides all, a painted rim of edema hides nothing."""
    hides = (painted > 0) & ((painted != EDEMA) | (known == 0))
    return np.where(hides, painted, known)


def _padded(array: NDArray[Any], length: int, value: float) -> NDArray[Any]:
    if len(array) == length:
        return np.ascontiguousarray(array)
    full = np.full((length, *array.shape[1:]), value, dtype=array.dtype)
    full[: len(array)] = array
    return full
