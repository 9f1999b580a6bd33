"""`hemolens models`: which networks ship with the package, and what their cards say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

models = typer.Typer(help="Show the networks that ship with hemolens.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
WIDEST = 100
"""Lists of plain values stay on one line up to this many characters."""


@models.command("list")
def list_names(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the models; the first is the one that is used unless told otherwise."""
    from hemolens.inference.registry import list_models

    rows = [
        {"name": model.name, "title": str(model.card.get("title", "")), "sha256": model.sha256}
        for model in list_models()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for number, row in enumerate(rows):
        print("  ".join([row["name"], row["sha256"][:12], row["title"], "(default)" if number == 0 else ""]).rstrip())


@models.command()
def show(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Model; without it, the default one.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a model's card: data, split, metrics, calibration, limits, license; the network file is checked too."""
    from hemolens.inference.registry import load_model

    model = load_model(name)
    model.verified_bytes()
    if as_json:
        print(json.dumps(without_nan(model.card), indent=2, allow_nan=False))
        return
    for line in outline(model.card):
        print(line)


def outline(card: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a nested mapping as indented lines, ``key: value``."""
    for key, value in card.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from outline(value, indent + "  ")
        elif isinstance(value, list) and (_nested(value) or len(str(value)) > WIDEST):
            yield f"{indent}{key}:"
            for item in value:
                yield from _item(item, indent + "  ")
        else:
            yield f"{indent}{key}: {_plain(value)}"


def _item(item: Any, indent: str) -> Iterator[str]:
    if not isinstance(item, Mapping):
        yield f"{indent}- {_plain(item)}"
        return
    if {"on", "metric", "value", "low", "high", "n", "unit"} <= item.keys():
        interval = f"{_plain(item['low'])} to {_plain(item['high'])}"
        measured = f"{_plain(item['value'])} ({interval}; {item['n']} {item['unit']})"
        yield f"{indent}- {item['on']}: {item['metric']}: {measured}"
        return
    lines = list(outline(item, indent + "  "))
    yield f"{indent}- {lines[0].strip()}" if lines else f"{indent}-"
    yield from lines[1:]


def _nested(values: list[Any]) -> bool:
    return any(isinstance(v, (Mapping, list)) for v in values)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def without_nan(value: Any) -> Any:
    """Return plain values with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
