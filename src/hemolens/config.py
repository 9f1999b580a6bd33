"""Configuration as frozen dataclasses, loaded strictly: an unknown key is an error that suggests the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from hemolens.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the frozen dataclass `cls` from plain values, nested dataclasses and tuples included.

    Parameters
    ----------
    cls
        A dataclass.
    values
        Keys are field names; missing keys take the field's default.
    where
        Prefix for messages, such as ``"train.optimizer"``.

    Raises
    ------
    ConfigError
        For an unknown key (with the nearest known one), a missing key or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a table of settings, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    built: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(f"{name}: no such setting.{suggestion(str(key), fields)}")
        built[key] = _convert(hints[key], value, name)
    missing = [
        n
        for n, f in fields.items()
        if n not in built and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where or cls.__name__}: missing {', '.join(missing)}.")
    try:
        return cls(**built)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain values that `from_mapping` reads back to an equal one."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with keys such as ``optimizer.rate``: what `with_overrides` takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(dotted(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def with_overrides(config: T, overrides: Mapping[str, Any]) -> T:
    """Return `config` with dotted keys replaced, such as ``{"optimizer.rate": 1e-3}``.

    A table that is one of several kinds starts from the defaults of its new ``kind`` when that is among the keys.
    """
    values = to_mapping(config)
    for dotted, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".kind")):
        *parents, leaf = dotted.split(".")
        table = values
        for parent in parents:
            inner = table.get(parent)
            if not isinstance(inner, dict):
                raise ConfigError(f"{dotted}: no such setting.{suggestion(parent, table)}")
            table = inner
        if leaf not in table:
            raise ConfigError(f"{dotted}: no such setting.{suggestion(leaf, table)}")
        if leaf == "kind" and parents and table[leaf] != value and len(_choices(_hint_at(config, parents))) > 1:
            table.clear()
            table[leaf] = value
            values = to_mapping(from_mapping(type(config), values))
        else:
            table[leaf] = value
    return from_mapping(type(config), values)


def suggestion(word: str, known: typing.Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` or the list of known words, for the end of a message."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(names)}."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _choices(hint: Any) -> list[Any]:
    """Return the members of a union, None left out, or the hint itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [a for a in typing.get_args(hint) if a is not type(None)]
    return [hint]


def _hint_at(config: Any, parents: list[str]) -> Any:
    for parent in parents[:-1]:
        config = getattr(config, parent)
    return typing.get_type_hints(type(config))[parents[-1]] if dataclasses.is_dataclass(config) else None


def _of_kind(choices: list[Any], value: Any, name: str) -> Any:
    """Return the dataclass of a tagged union that `value`, an instance or a mapping with its ``kind``, belongs to."""
    for cls in choices:
        if isinstance(value, cls):
            return cls
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: expected a table of settings, got {value!r}")
    known = {cls.kind: cls for cls in choices}
    if "kind" not in value:
        raise ConfigError(f"{name}: missing kind. Known: {', '.join(sorted(known))}.")
    if value["kind"] not in known:
        raise ConfigError(f"{name}.kind: there is no '{value['kind']}'.{suggestion(str(value['kind']), known)}")
    return known[value["kind"]]


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        choices = _choices(hint)
        return _convert(choices[0] if len(choices) == 1 else _of_kind(choices, value, name), value, name)
    if origin is typing.Literal:
        if type(value) is int and str(value) in args:  # precision=32 on a command line is meant as the word
            return str(value)
        if not any(value == a and type(value) is type(a) for a in args):
            raise ConfigError(f"{name}: {value!r} is none of the choices.{suggestion(str(value), map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_mapping(hint, value, name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name}: expected a list, got {value!r}.")
        variable = len(args) == 2 and args[1] is Ellipsis
        if not variable and len(value) != len(args):
            raise ConfigError(f"{name}: expected {len(args)} values, got {len(value)}.")
        inner = [args[0]] * len(value) if variable else list(args)
        return tuple(_convert(a, v, f"{name}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict:
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{name}: expected {hint.__name__}, got {value!r}.")
    return value
