"""What every network says, in one shape."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NetOutput(NamedTuple):
    """Logits; None for what a network does not tell."""

    mask: Tensor | None
    """Shape ``(n, m, h, w)`` or ``(n, m, d, h, w)``; m = 1 (blood) or 6 (blood, then the subtypes given blood)."""
    findings: Tensor | None
    """Shape ``(n, 6)`` in `FINDING_NAMES` order, of each slice or volume; ``(n, slices, 6)`` where scans are read."""
    scan: Tensor | None = None
    """Shape ``(n, 6)``, of each scan; only where scans are read."""
