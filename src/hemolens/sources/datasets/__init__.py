"""Public data sets, one adapter each: where their files lie and what their tables say."""

from __future__ import annotations

from typing import Literal

MaskState = Literal["drawn", "empty", "unknown"]
"""Whether a slice's blood is outlined, known to be absent, or present with no outline; unknown is never empty."""
