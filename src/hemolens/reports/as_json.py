"""``findings.json``: written, read back, and described by a JSON Schema that ships in the package."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from hemolens.config import from_mapping
from hemolens.errors import ConfigError, InputError
from hemolens.measurements.findings import SCHEMA_VERSION, Findings
from hemolens.notes import Severity

DECIMALS = 6
"""Of every number in the file: a billionth of a liter, a nanometer."""
PAIRED = frozenset({"volume_ml", "area_px", "blood_area_mm2", "blood_area_px", "left_out_ml", "left_out_px"})
"""Keys of which one of two units is there; the other is left out rather than null."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``findings.json``."""
    text = files("hemolens.reports").joinpath("findings.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def to_mapping(findings: Findings) -> dict[str, Any]:
    """Return the findings as the plain values that ``findings.json`` holds."""
    values: dict[str, Any] = _plain(findings)
    # A card is written by whoever trained the model and may hold NaN for an undefined metric.
    values["model"]["card"] = _without_nan(values["model"]["card"])
    return values


def to_text(findings: Findings) -> str:
    """Return the text of ``findings.json``.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    return json.dumps(to_mapping(findings), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_findings(path: str | Path) -> Findings:
    """Read ``findings.json``.

    Raises
    ------
    InputError
        If the file cannot be read, is not JSON, is of a newer schema or does not keep to it.
    """
    try:
        values = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Name a findings.json.") from error
    except ValueError as error:
        raise InputError(path, "is not JSON", "Name a findings.json that hemolens wrote.") from error
    return from_plain(values, str(path))


def from_plain(values: Any, name: str = "findings") -> Findings:
    """Build findings from the plain values of ``findings.json``.

    Raises
    ------
    InputError
        If they are of a newer schema or do not keep to it; `name` is named.
    """
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InputError(
            name, f"has schema version {version!r}, not {SCHEMA_VERSION}", "Read it with the hemolens that wrote it."
        )
    try:
        findings = from_mapping(Findings, _with_absent(values))
        notes = tuple(replace(note, severity=Severity(note.severity)) for note in findings.quality)
    except (ConfigError, ValueError) as error:
        raise InputError(
            name, f"is no findings.json ({str(error).rstrip('.')})", "Name one that hemolens wrote."
        ) from error
    return replace(findings, quality=notes)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        entries = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: _plain(v) for name, v in entries if v is not None or name not in PAIRED}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return round(value, DECIMALS)
    return str(value) if isinstance(value, Severity) else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_absent(values: dict[str, Any]) -> dict[str, Any]:
    """Put None for the unit of each pair that the file leaves out."""

    def complete(table: Any, *pair: str) -> Any:
        return {**dict.fromkeys(pair), **table} if isinstance(table, dict) else table

    def complete_all(tables: Any, *pair: str) -> Any:
        return [complete(t, *pair) for t in tables] if isinstance(tables, list) else tables

    absent = {
        "slices": complete_all(values.get("slices"), "blood_area_mm2", "blood_area_px"),
        "lesions": complete_all(values.get("lesions"), "volume_ml", "area_px"),
        "total": complete(values.get("total"), "volume_ml", "area_px", "left_out_ml", "left_out_px"),
        "edema": complete(values.get("edema"), "volume_ml", "area_px"),
    }
    return {key: absent.get(key, value) for key, value in values.items()}
