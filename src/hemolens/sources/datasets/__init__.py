"""Public data sets, one adapter each: where their files lie and what their tables say."""

from __future__ import annotations

from hemolens.sources.datasets.cases import MaskState

__all__ = ["MaskState"]
