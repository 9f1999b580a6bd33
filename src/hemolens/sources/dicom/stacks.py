"""From a heap of slices to one ordered stack: split, sort, drop doubles, find gaps. Pure, no pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import GeometryError
from hemolens.geometry import Stack
from hemolens.sources.dicom.header import Pose, SliceHeader
from hemolens.sources.dicom.kernels import kernel_sharpness

SAME_DIRECTION = 2e-4
"""Largest difference of a direction's components in one stack, about 0.01 degrees: a fifth of what `Stack` takes."""
SAME_SPACING_MM = 1e-3
SAME_POSITION_MM = 0.01
"""Slices closer than this lie at one position: CT steps are never below 0.1 mm, headers give at least two decimals."""
GAP_RATIO = 1.6
"""A step this many times longer than those around it is a gap; 2 is one missing slice, 1.5 a common change of step."""
GAP_RUN = 2
"""A gap is at most this many such steps in a row; more are a change of spacing."""
SAME_STEP = 0.1
"""Relative difference up to which two steps count as equal."""
NUMBERED_SHARE = 0.5
"""Share of steps whose instance number changes by one from which larger jumps of the number are evidence."""


def split_stacks(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Group slices that have a pose by size, orientation and pixel spacing; the group of most positions first."""
    groups: list[tuple[SliceHeader, list[SliceHeader]]] = []
    for header in slices:
        home = next((members for anchor, members in reversed(groups) if _fits(anchor, header)), None)
        if home is None:
            groups.append((header, [header]))
        else:
            home.append(header)
    members = [m for _, m in groups]
    return sorted(members, key=lambda group: -len(position_groups(group)))


def _fits(a: SliceHeader, b: SliceHeader) -> bool:
    if a.pose is None or b.pose is None or a.pixels is None or b.pixels is None:
        return False
    if (a.pixels.rows, a.pixels.columns) != (b.pixels.rows, b.pixels.columns):
        return False
    directions = zip(
        (*a.pose.row_direction, *a.pose.column_direction),
        (*b.pose.row_direction, *b.pose.column_direction),
        strict=True,
    )
    spacings = zip(a.pose.spacing_mm, b.pose.spacing_mm, strict=True)
    return all(abs(x - y) <= SAME_DIRECTION for x, y in directions) and all(
        abs(x - y) <= SAME_SPACING_MM for x, y in spacings
    )


def offset_of(header: SliceHeader, normal: NDArray[np.float64]) -> float:
    """Return the position of a slice along `normal`, in mm."""
    return float(np.dot(pose_of(header).position_mm, normal))


def pose_of(header: SliceHeader) -> Pose:
    """Return the pose.

    Raises
    ------
    GeometryError
        If the slice has none.
    """
    if header.pose is None:
        raise GeometryError(header.entry.name, header.pose_problem, "Export the study with its geometry.")
    return header.pose


def position_groups(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Sort slices of one stack along their normal and group those at one position."""
    normal = pose_of(slices[0]).normal
    keyed = sorted(((offset_of(h, normal), h.entry.name, h.frame, h) for h in slices), key=lambda item: item[:3])
    groups: list[list[SliceHeader]] = []
    start = -np.inf
    for offset, _, _, header in keyed:
        if offset - start > SAME_POSITION_MM:
            groups.append([header])
            start = offset
        else:
            groups[-1].append(header)
    return groups


@dataclass(frozen=True)
class Ordered:
    """One slice per position, rising along the normal."""

    slices: tuple[SliceHeader, ...]
    doubled: tuple[int, ...]
    """Indices of positions that had more than one slice, copies of the same image not counted."""
    dropped: int
    """How many slices lost to another at their position."""


def order_slices(slices: Sequence[SliceHeader]) -> Ordered:
    """Order a stack and keep one slice per position, all of one variant (kernel, acquisition, kind) if possible.

    Two recordings at one position are two phases or two kernels in one series. The variant that covers most positions
    wins, then the softer kernel, then the earlier acquisition; so slices are not drawn from both in turn.
    """
    groups = position_groups(slices)
    coverage: dict[tuple[str, ...], int] = defaultdict(int)
    for group in groups:
        for variant in {_variant(h) for h in group}:
            coverage[variant] += 1

    def rank(header: SliceHeader) -> tuple[int, int, int, int, str, int]:
        return (
            -coverage[_variant(header)],
            -kernel_sharpness(header.kernel, header.description),
            header.acquisition_number or 0,
            header.instance_number or 0,
            header.entry.name,
            header.frame,
        )

    kept = tuple(min(group, key=rank) for group in groups)
    doubled = tuple(i for i, group in enumerate(groups) if len({h.sop_uid or h.entry.name for h in group}) > 1)
    return Ordered(kept, doubled, len(slices) - len(kept))


def _variant(header: SliceHeader) -> tuple[str, ...]:
    return (header.kernel, str(header.acquisition_number), *header.image_type)


def stack_of(slices: Sequence[SliceHeader]) -> Stack:
    """Build the geometry of ordered slices.

    Raises
    ------
    GeometryError
        If they contradict each other.
    """
    poses = [pose_of(h) for h in slices]
    return Stack(
        np.array([p.position_mm for p in poses]),
        np.array([p.row_direction for p in poses]),
        np.array([p.column_direction for p in poses]),
        np.array([p.spacing_mm for p in poses]),
        slices[0].thickness_mm,
    )


@dataclass(frozen=True)
class Gap:
    """A place where slices are missing."""

    before: int
    """Index of the slice below the gap."""
    missing: int
    """How many slices seem to be missing."""


def find_gaps(offsets_mm: NDArray[np.float64], numbers: Sequence[int | None] = ()) -> tuple[Gap, ...]:
    """Find gaps in a stack, and leave a change of spacing alone.

    A step is a gap if it is at least `GAP_RATIO` times the median of the three steps on either side and stands alone or
    in a pair: a scanner that changes its table step keeps to it for longer. Longer runs are gaps only if the instance
    numbers, which elsewhere rise by one, jump by just as much as the distance.

    Parameters
    ----------
    offsets_mm
        Positions along the normal, rising, shape ``(slices,)``.
    numbers
        Instance number of each slice, if there are any.
    """
    steps = np.diff(offsets_mm)
    jumps = _number_jumps(numbers, len(steps))
    gaps: list[Gap] = []
    for start, stop in _runs(steps):
        around = np.concatenate([steps[max(start - 3, 0) : start], steps[stop : stop + 3]])
        if not around.size:
            continue
        base = float(np.median(around))
        for i in range(start, stop):
            ratio = float(steps[i] / base)
            missing = max(round(ratio) - 1, 1)
            numbered = jumps is not None and jumps[i] == missing + 1 and abs(ratio - jumps[i]) <= SAME_STEP * ratio
            if ratio >= GAP_RATIO and (stop - start <= GAP_RUN or numbered):
                gaps.append(Gap(i, missing))
    return tuple(gaps)


def _runs(steps: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return ``(start, stop)`` of runs of nearly equal steps."""
    runs: list[tuple[int, int]] = []
    start = 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or abs(steps[i] - steps[start]) > SAME_STEP * max(steps[i], steps[start]):
            runs.append((start, i))
            start = i
    return runs


def _number_jumps(numbers: Sequence[int | None], count: int) -> NDArray[np.int64] | None:
    """Return by how much the instance number changes at each step, if that means anything."""
    known = [n for n in numbers if n is not None]
    if len(known) != count + 1 or count == 0:
        return None
    jumps = np.abs(np.diff(np.array(known, dtype=np.int64)))
    return jumps if float((jumps == 1).mean()) >= NUMBERED_SHARE else None


def is_uneven(offsets_mm: NDArray[np.float64], gaps: Sequence[Gap]) -> bool:
    """Whether the steps differ by more than 5 %, gaps left out."""
    at_gap = {gap.before for gap in gaps}
    steps = np.array([s for i, s in enumerate(np.diff(offsets_mm)) if i not in at_gap])
    return bool(len(steps) and np.ptp(steps) > 0.05 * np.median(steps))
