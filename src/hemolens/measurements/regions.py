"""Connected regions of a mask on slices of any pose, spacing and distance, and which subtype each one is.

A region grows from *patches*: 8-connected pixels of one slice and one subtype. Patches of neighboring slices are
linked where they come near each other in the plane, measured in millimeters along the normal, so that gantry tilt and
a change of spacing or direction between slices neither tear a lesion apart nor glue two together.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hemolens.geometry import Stack
from hemolens.labels import SUBTYPES
from hemolens.volume import Volume

LINK_SLOPE = 0.5
"""Patches of neighboring slices belong together if they are no farther apart in the plane than this share of the
slices' distance: a sheet of blood that leans up to 27 degrees from the normal stays whole on 5 mm slices (a subdural
under the convexity shifts by 2 mm from slice to slice). On thin slices this falls below a pixel and plain
26-connectivity is left."""
LINK_MAX_GAP_MM = 12.0
"""Slices farther apart than this are not linked: two slices of 5 mm are missing between them, and what lies there is
not known."""
SPLIT_SHARE = 0.1
"""A connected region is split where each part of another subtype holds at least this share of it ..."""
SPLIT_ML = 1.0
"""... and at least this much: a bleed that breaks into the ventricle is two findings, a few voxels of doubt are not."""

EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class Scale:
    """What one voxel of each slice counts: milliliters where they are known, else pixels."""

    weights: NDArray[np.float64]
    """Size of one voxel of each slice, shape ``(slices,)``."""
    in_ml: bool

    @classmethod
    def of(cls, volume: Volume) -> Scale:
        """Read the scale off a volume."""
        if volume.has_volumes:
            return cls(volume.require_stack().voxel_volumes_ml, True)
        return cls(np.ones(len(volume)), False)


@dataclass(frozen=True, eq=False)
class Patches:
    """Every patch of a mask and what it touches.

    Parameters
    ----------
    map
        Number of the patch that each voxel belongs to, from 1; int32, shape of the volume; 0 is background.
    slices, subtypes, sizes
        Of each patch, shape ``(patches,)``; `sizes` as `Scale` counts.
    edges
        Pairs of patches (from 0) that touch in a slice or are linked across slices, shape ``(edges, 2)``.
    """

    map: NDArray[np.int32]
    slices: NDArray[np.int64]
    subtypes: NDArray[np.int64]
    sizes: NDArray[np.float64]
    edges: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.slices)

    def connected(self, *, same_subtype: bool = False) -> NDArray[np.int64]:
        """Return the number of the connected region of each patch, from 0."""
        edges = self.edges
        if same_subtype:
            edges = edges[self.subtypes[edges[:, 0]] == self.subtypes[edges[:, 1]]]
        return _components(len(self), edges)

    def paint(self, values: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return an array like the volume that holds `values` (one per patch), 0 outside the mask."""
        return np.concatenate([[0], values]).astype(np.uint16)[self.map]


def find_patches(labels: NDArray[np.uint8], stack: Stack | None, scale: Scale) -> Patches:
    """Divide a label map into patches and link them.

    Parameters
    ----------
    labels
        uint8, shape ``(slices, rows, columns)``; 0 is background, any other value a class of its own.
    stack
        Geometry, or None for plain 26-connectivity.
    scale
        How patches are weighed.
    """
    patch_map = np.zeros(labels.shape, dtype=np.int32)
    slices: list[int] = []
    subtypes: list[int] = []
    pixels: list[int] = []
    edges: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
    for k in np.flatnonzero(labels.any(axis=(1, 2))):
        box = ndimage.find_objects((labels[k] > 0).astype(np.int8))[0]
        for value in np.flatnonzero(np.bincount(labels[k][box].ravel())[1:]) + 1:
            found, count = ndimage.label(labels[k][box] == value, EIGHT)
            patch_map[k][box][found > 0] = found[found > 0] + len(slices)
            pixels += np.bincount(found.ravel())[1:].tolist()
            slices += [int(k)] * count
            subtypes += [int(value)] * count
        edges.append(_touching(patch_map[k][box]))
        if k and patch_map[k - 1].any():
            edges.append(_linked(patch_map[k - 1], patch_map[k], box, _Step.between(stack, int(k) - 1)))
    where = np.asarray(slices, dtype=np.int64)
    sizes = np.asarray(pixels, dtype=np.int64) * scale.weights[where]
    return Patches(patch_map, where, np.asarray(subtypes, dtype=np.int64), sizes, np.concatenate(edges))


def settle_subtypes(patches: Patches, split_size: float) -> NDArray[np.int64]:
    """Return one subtype per patch so that every connected region is of one subtype or split into substantial parts.

    Within a connected region the smallest part is merged into its largest neighbor, again and again, until each part
    left reaches both `SPLIT_SHARE` of the region and `split_size`. A part is of the subtype that holds most of its
    volume.

    Parameters
    ----------
    patches
        Patches by most likely subtype; a subtype above 5 has no vote.
    split_size
        `SPLIT_ML`, or as many pixels.

    Returns
    -------
    NDArray
        Shape ``(patches,)``, 1 to 5, or 0 where no patch of the region has a vote.
    """
    settled = np.zeros(len(patches), dtype=np.int64)
    if not len(patches):
        return settled
    regions, parts = patches.connected(), patches.connected(same_subtype=True)
    region_sizes = np.bincount(regions, weights=patches.sizes)
    votes = np.zeros((parts.max() + 1, len(SUBTYPES) + 1))
    valid = patches.subtypes <= len(SUBTYPES)
    np.add.at(votes, (parts[valid], patches.subtypes[valid]), patches.sizes[valid])
    sizes = np.bincount(parts, weights=patches.sizes).astype(np.float64)
    needed = np.zeros(len(sizes))
    needed[parts] = np.maximum(split_size, SPLIT_SHARE * region_sizes[regions])
    into = _merge_small(sizes, needed, votes, parts[patches.edges])
    return np.asarray(votes[into[parts]].argmax(axis=1))


def _merge_small(
    sizes: NDArray[np.float64],
    needed: NDArray[np.float64],
    votes: NDArray[np.float64],
    edges: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the part that each part ends in; adds up `sizes` and `votes` in place."""
    into = np.arange(len(sizes))
    neighbors: dict[int, set[int]] = defaultdict(set)
    for a, b in edges[edges[:, 0] != edges[:, 1]]:
        neighbors[int(a)].add(int(b))
        neighbors[int(b)].add(int(a))
    # A part without a vote cannot stand alone, whatever its size.
    small = [(float(sizes[i]), i) for i in range(len(sizes)) if sizes[i] < needed[i] or not votes[i].any()]
    heapq.heapify(small)
    while small:
        size, part = heapq.heappop(small)
        stale = into[part] != part or size != sizes[part]
        if stale or not neighbors[part]:
            continue
        host = max(neighbors[part], key=lambda other: (sizes[other], -other))
        into[into == part] = host
        sizes[host] += sizes[part]
        votes[host] += votes[part]
        for other in neighbors.pop(part):
            neighbors[other].discard(part)
            if other != host:
                neighbors[other].add(host)
                neighbors[host].add(other)
        if sizes[host] < needed[host] or not votes[host].any():
            heapq.heappush(small, (float(sizes[host]), host))
    return into


@dataclass(frozen=True, eq=False)
class _Step:
    """From the pixels of a slice to those of the one below it, along the normal."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    spacing: tuple[float, float]
    reach: float
    """In the unit of `spacing`."""

    @classmethod
    def between(cls, stack: Stack | None, below: int) -> _Step | None:
        """Return the step from slice `below` + 1 down to `below`, or None where they are too far apart to be linked."""
        if stack is None:
            return cls(np.eye(2), np.zeros(2), (1.0, 1.0), float(np.sqrt(2)))
        above = below + 1
        gap = float(stack.offsets_mm[above] - stack.offsets_mm[below])
        if gap > LINK_MAX_GAP_MM:
            return None
        to_below = np.stack([stack.column_directions[below], stack.row_directions[below]])
        spacing = stack.spacings_mm[below]
        steps = (
            np.stack([stack.column_directions[above], stack.row_directions[above]]) * stack.spacings_mm[above][:, None]
        )
        matrix = (to_below @ steps.T) / spacing[:, None]
        offset = to_below @ (stack.positions_mm[above] - stack.positions_mm[below]) / spacing
        reach = max(float(np.linalg.norm(spacing)), LINK_SLOPE * gap)
        return cls(matrix, offset, (float(spacing[0]), float(spacing[1])), reach)

    def offsets(self) -> NDArray[np.int64]:
        """Return every move in whole pixels that is no longer than `reach`, shape ``(moves, 2)``."""
        reach = self.reach * (1 + 1e-6)
        rows, columns = (int(reach / spacing) for spacing in self.spacing)
        moves = np.argwhere(np.ones((2 * rows + 1, 2 * columns + 1))) - (rows, columns)
        return np.asarray(moves[np.linalg.norm(moves * self.spacing, axis=1) <= reach])


def _touching(patch_slice: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the pairs of patches that touch within a slice, corners included."""
    p = patch_slice
    pairs = [
        (p[:, :-1], p[:, 1:]),
        (p[:-1], p[1:]),
        (p[:-1, :-1], p[1:, 1:]),
        (p[:-1, 1:], p[1:, :-1]),
    ]
    return _unique_pairs((a[(a != b) & (a > 0) & (b > 0)], b[(a != b) & (a > 0) & (b > 0)]) for a, b in pairs)


def _linked(
    below: NDArray[np.int32], above: NDArray[np.int32], box: tuple[slice, slice], step: _Step | None
) -> NDArray[np.int64]:
    """Return the pairs of patches of two neighboring slices that come within the step's reach.

    All patches of `above` lie in its `box`.
    """
    if step is None:
        return np.empty((0, 2), dtype=np.int64)
    # Where two patches do not lie over each other, the nearest pixel of the upper one is on its edge.
    corner = (box[0].start, box[1].start)
    everywhere, edge = np.argwhere(above[box]) + corner, np.argwhere(_edge(above[box])) + corner
    padded = np.pad(below, 1)
    limit = np.array(below.shape) + 1
    pairs = []
    for where, offsets in ((everywhere, np.zeros((1, 2), dtype=np.int64)), (edge, step.offsets())):
        seen = np.rint(where @ step.matrix.T + step.offset).astype(np.int64) + 1
        numbers = above[where[:, 0], where[:, 1]]
        for offset in offsets:
            row, column = np.clip(seen + offset, 0, limit).T
            under = padded[row, column]
            pairs.append((under[under > 0], numbers[under > 0]))
    return _unique_pairs(pairs)


def _edge(patch_slice: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the pixels of each patch that have another neighbor than itself."""
    p = np.pad(patch_slice, 1)
    center = p[1:-1, 1:-1]
    inner = (p[:-2, 1:-1] == center) & (p[2:, 1:-1] == center) & (p[1:-1, :-2] == center) & (p[1:-1, 2:] == center)
    return np.asarray((center > 0) & ~inner)


def _unique_pairs(pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]]) -> NDArray[np.int64]:
    """Return the distinct pairs, as patch indices from 0."""
    keys = [np.minimum(a, b).astype(np.int64) << 32 | np.maximum(a, b) for a, b in pairs]
    distinct = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *keys]))
    return np.stack([distinct >> 32, distinct & 0xFFFFFFFF], axis=1) - 1


def _components(nodes: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    graph = coo_matrix((np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
