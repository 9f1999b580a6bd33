"""The exceptions that hemolens raises on purpose, and nothing else.

::

    HemolensError
    ├── InputError            what was given cannot be used; names the file, what is wrong, what to do
    │   ├── GeometryError     positions, directions or spacings are missing or contradict each other
    │   ├── DecodeError       a file is damaged or its pixels cannot be decoded
    │   └── SelectionError    nothing, or more than one thing, fits what was asked for
    ├── OutputError           the result cannot be written
    ├── ConfigError           a setting is unknown or out of range
    ├── ModelError            weights or their card are missing, damaged or do not fit
    ├── QueueError            the queue of the PACS service cannot be used
    ├── DivergedError         the loss of a training run became NaN or infinite
    └── DependencyError       an optional part of hemolens is not installed

Every front-end turns a `HemolensError` into one line; any other exception is a bug.
"""

from __future__ import annotations

from pathlib import Path


class HemolensError(Exception):
    """The root: one line that a user can act on."""


class InputError(HemolensError):
    """Something that was given to hemolens cannot be used.

    Parameters
    ----------
    source
        The file, folder or UID that is at fault.
    problem
        What is wrong with it, without a full stop.
    remedy
        What the user can do, a full sentence.
    """

    def __init__(self, source: str | Path, problem: str, remedy: str) -> None:
        self.source = str(source)
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{source}: {problem}. {remedy}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Survive the way out of another process."""
        return type(self), (self.source, self.problem, self.remedy)


class GeometryError(InputError):
    """Positions, directions or spacings are missing or contradict each other."""


class DecodeError(InputError):
    """A file is damaged or its pixels cannot be decoded."""


class SelectionError(InputError):
    """Nothing, or more than one thing, fits what was asked for."""


class OutputError(HemolensError):
    """The result cannot be written where it was asked for."""


class ConfigError(HemolensError):
    """A setting is unknown or out of range."""


class ModelError(HemolensError):
    """Weights or their card are missing, damaged or do not fit this version."""


class QueueError(HemolensError):
    """The queue of the PACS service cannot be opened, read or written."""


class DivergedError(HemolensError):
    """The loss or the gradient of a training run became NaN or infinite."""


class DependencyError(HemolensError):
    """An optional part of hemolens is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"This needs {package}, which is not installed. Run: pip install 'hemolens[{extra}]'")

    def __reduce__(self) -> tuple[type[DependencyError], tuple[str, str]]:
        """Survive the way out of another process."""
        return type(self), (self.package, self.extra)
