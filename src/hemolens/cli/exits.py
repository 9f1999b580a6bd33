"""Exit codes, and the error for wrong usage that Typer cannot see by itself."""

from __future__ import annotations

import sys

DONE = 0
FAILED = 1
WRONG_USAGE = 2
PARTIAL = 3
INTERRUPTED = 130
"""What shells report for a process that Ctrl-C ended."""


def say(line: str) -> None:
    """Print one line, and only one, on standard error."""
    print("hemolens:", " ".join(line.split()), file=sys.stderr)


class WrongUsage(Exception):  # noqa: N818 - it is named for what happened
    """Options that do not go together.

    Parameters
    ----------
    verb
        The verb whose help says more.
    problem
        What is wrong and what to do, full sentences.
    """

    def __init__(self, verb: str, problem: str) -> None:
        self.verb = verb
        super().__init__(problem)


class Interrupted(Exception):  # noqa: N818 - it is named for what happened
    """Ctrl-C in a verb that can go on.

    Parameters
    ----------
    advice
        How to go on, full sentences; empty to say nothing, where another process of the same run says it.
    """
