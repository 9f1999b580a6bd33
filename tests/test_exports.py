"""The public names: all there, all documented, none loaded before it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import hemolens


def test_about_fifteen_names_are_public() -> None:
    assert 12 <= len(hemolens.__all__) <= 18
    assert sorted(hemolens.__all__) == sorted(dir(hemolens))


@pytest.mark.parametrize("name", [n for n in hemolens.__all__ if n not in ("__version__", "SUBTYPES")])
def test_each_is_there_and_documented(name: str) -> None:
    thing = getattr(hemolens, name)
    assert thing.__name__ == name
    assert inspect.getdoc(thing)


def test_every_home_is_listed() -> None:
    told = {name for names in hemolens._HOMES.values() for name in names}
    assert told == set(hemolens.__all__) - {"__version__"}


def test_the_call_stays_a_call_whatever_was_imported_first() -> None:
    code = "import hemolens.analysis, hemolens.cli.analyze, hemolens; assert inspect.isfunction(hemolens.analyze)"
    subprocess.run([sys.executable, "-c", f"import inspect; {code}"], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        hemolens.analyse  # noqa: B018
