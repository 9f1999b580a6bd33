"""The exception tree is what its drawing says, and every message is one line that can be acted on."""

from __future__ import annotations

import pickle
import re

import pytest

from hemolens import errors

TREE = {
    "HemolensError": "Exception",
    "InputError": "HemolensError",
    "GeometryError": "InputError",
    "DecodeError": "InputError",
    "SelectionError": "InputError",
    "OutputError": "HemolensError",
    "ConfigError": "HemolensError",
    "ModelError": "HemolensError",
    "QueueError": "HemolensError",
    "DivergedError": "HemolensError",
    "DependencyError": "HemolensError",
}


def exceptions() -> dict[str, type[Exception]]:
    return {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}


def test_the_tree() -> None:
    assert {name: cls.__base__.__name__ for name, cls in exceptions().items() if cls.__base__} == TREE


def test_the_drawing_shows_the_tree() -> None:
    """Indentation of the names in the module's docstring gives the same parents as the classes have."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([\s│├└─]*)(\w+Error)\b", line)
        if match:
            depth, name = len(match[1]), match[2]
            above = [(d, n) for d, n in above if d < depth]
            drawn[name] = above[-1][1] if above else "Exception"
            above.append((depth, name))
    assert drawn == TREE


@pytest.mark.parametrize("cls", [errors.InputError, errors.GeometryError, errors.DecodeError, errors.SelectionError])
def test_input_errors_name_source_problem_and_remedy(cls: type[errors.InputError]) -> None:
    error = cls("scan/1.dcm", "the pixel data is cut off", "Copy the file again.")
    assert str(error) == "scan/1.dcm: the pixel data is cut off. Copy the file again."
    assert (error.source, error.problem, error.remedy) == (
        "scan/1.dcm",
        "the pixel data is cut off",
        "Copy the file again.",
    )


def test_dependency_errors_say_what_to_run() -> None:
    assert "pip install 'hemolens[train]'" in str(errors.DependencyError("torch", "train"))


@pytest.mark.parametrize(
    "error",
    [errors.DecodeError("1.dcm", "is cut off", "Copy it again."), errors.DependencyError("torch", "train")],
    ids=lambda e: type(e).__name__,
)
def test_errors_survive_the_way_out_of_another_process(error: errors.HemolensError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
