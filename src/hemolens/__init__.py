"""hemolens finds, classifies, outlines and measures intracranial hemorrhage on head CT.

>>> import hemolens
>>> result = hemolens.analyze("path/to/dicom-folder")  # doctest: +SKIP
>>> result.findings.study.probability["any"], result.save("OUT")  # doctest: +SKIP

Research use only: not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hemolens.analysis import AnalyzeOptions, Result, analyze
    from hemolens.errors import HemolensError
    from hemolens.geometry import Stack
    from hemolens.inference.predictor import Predictor
    from hemolens.inference.registry import list_models, load_model
    from hemolens.labels import SUBTYPES
    from hemolens.measurements.findings import Findings
    from hemolens.notes import QualityNote
    from hemolens.sources.study import ReadOptions, read_volume
    from hemolens.volume import DisplayWindow, LabelMap, Volume

__version__ = "0.1.0"
__all__ = [
    "SUBTYPES",
    "AnalyzeOptions",
    "DisplayWindow",
    "Findings",
    "HemolensError",
    "LabelMap",
    "Predictor",
    "QualityNote",
    "ReadOptions",
    "Result",
    "Stack",
    "Volume",
    "__version__",
    "analyze",
    "list_models",
    "load_model",
    "read_volume",
]

_HOMES = {
    "analysis": ("AnalyzeOptions", "Result", "analyze"),
    "errors": ("HemolensError",),
    "geometry": ("Stack",),
    "inference.predictor": ("Predictor",),
    "inference.registry": ("list_models", "load_model"),
    "labels": ("SUBTYPES",),
    "measurements.findings": ("Findings",),
    "notes": ("QualityNote",),
    "sources.study": ("ReadOptions", "read_volume"),
    "volume": ("DisplayWindow", "LabelMap", "Volume"),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that ``import hemolens`` and ``hemolens --help`` stay light."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hemolens.{module}"), name)
    raise AttributeError(f"module 'hemolens' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
