"""What goes into the viewer and what comes back: overlays and events, on the grid of the scan. Knows no browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.labels import SUBTYPES

Rgb = tuple[int, int, int]
Style = Literal["fill", "outline", "both", "hidden"]
Tool = Literal["brush", "erase", "pick"]

SUBTYPE_COLORS: Mapping[int, Rgb] = {s.index: s.color_rgb for s in SUBTYPES}
SUBTYPE_TITLES: Mapping[int, str] = {s.index: s.title for s in SUBTYPES}
HEAT: tuple[Rgb, ...] = ((0, 0, 0), (120, 28, 109), (237, 105, 37), (252, 255, 164))
"""Black, purple, orange, light yellow: rises in lightness, so it reads without color vision."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """Something that is drawn over the scan, on the scan's own grid.

    Parameters
    ----------
    name
        Short and different for each overlay of one viewer: letters, digits, ``-`` and ``_``.
    title
        For people.
    values
        Shape of the scan: uint8 labels (0 is nothing), or floats from 0 to 1 (NaN is nothing).
    colors
        Labels: color of each label, default those of the subtypes. Floats: ignored; see `ramp`.
    titles
        Labels: what each one is called.
    ramp
        Floats: colors from 0 to 1, evenly spaced; the value is the opacity as well.
    style
        How it is shown at first; the user may change it.
    opacity
        Of the filling at first, 0 to 1.
    dashed
        Outlines are dashed, as for a truth beside a finding.
    editable
        Whether tools change this overlay: what is drawn shows in it at once. One at most.
    """

    name: str
    title: str
    values: NDArray[Any]
    colors: Mapping[int, Rgb] = field(default_factory=lambda: dict(SUBTYPE_COLORS))
    titles: Mapping[int, str] = field(default_factory=lambda: dict(SUBTYPE_TITLES))
    ramp: tuple[Rgb, ...] = HEAT
    style: Style = "both"
    opacity: float = 0.35
    dashed: bool = False
    editable: bool = False

    def __post_init__(self) -> None:
        if not self.name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in self.name):
            raise ValueError(f"'{self.name}' cannot name an overlay: use letters, digits, - and _")
        if self.values.ndim != 3:
            raise ValueError(f"an overlay has slices, rows and columns, not the shape {self.values.shape}")
        if not 0 <= self.opacity <= 1:
            raise ValueError("opacity is a number from 0 to 1")
        if self.editable and not self.is_labels:
            raise ValueError("only labels can be edited")

    @property
    def is_labels(self) -> bool:
        """Whether the values are labels and not shades."""
        return not np.issubdtype(self.values.dtype, np.floating)


@dataclass(frozen=True, eq=False)
class ViewerEvent:
    """One thing that the user did with a tool. Each is returned once."""

    kind: Literal["stroke", "pick", "slice", "undo", "redo"]
    """`stroke`: brush or eraser was drawn; `pick`: a place was clicked; `slice`: scrolling came to rest (only where
    asked for)."""
    slice: int
    """From 0, in the order of the volume."""
    tool: Tool | None = None
    label: int = 0
    """1 to 5: the subtype chosen in the toolbar; for the eraser 0."""
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    """Shape ``(n, 2)``: fractional row and column of the *source* slice, where 0, 0 is the center of its first pixel.
    A stroke goes through them in their order; a pick has one."""
    radius: tuple[float, float] = (0.0, 0.0)
    """Of the brush, in source rows and columns; a circle in millimeters."""

    @property
    def row(self) -> int:
        """Of the first point."""
        return int(np.floor(self.points[0, 0] + 0.5))

    @property
    def column(self) -> int:
        """Of the first point."""
        return int(np.floor(self.points[0, 1] + 0.5))


def label_overlay(
    labels: NDArray[np.uint8], name: str = "found", title: str = "Found", *, editable: bool = False
) -> Overlay:
    """Return the overlay of a label map, in the colors of the subtypes."""
    return Overlay(name, title, labels, editable=editable)
