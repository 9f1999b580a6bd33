"""Ctrl-C and a polite kill: both end a command, and neither gets lost."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_S = 0.05
_ASKED = threading.Event()
"""Set once the command was told to end."""


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for a polite kill, too, and again where Python had to drop one.

    An interrupt that arrives while Python runs a finalizer or a weak reference's callback, as the import system's own
    after every module, has nowhere to go: Python reports it to `sys.unraisablehook` and the command would run on.
    """
    _ASKED.clear()
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _on_end)
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background job ignores it
    if heard:
        signal.signal(signal.SIGINT, _on_end)
    told_before = sys.unraisablehook
    coming: list[threading.Timer] = []

    def hook(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # Later, from a thread: what is raised inside of this hook would be dropped as well.
            again = threading.Timer(AGAIN_S, _thread.interrupt_main)
            again.daemon = True
            coming.append(again)
            again.start()
        else:
            told_before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = told_before
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for again in coming:  # a command that has ended is not interrupted any more
            again.cancel()


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Take whatever error follows an interrupt for the interrupt: on its way out it may be replaced.

    PyTorch raises an error from a signal handler when one of its workers, which hear a Ctrl-C, too, ends first.
    """
    try:
        yield
    except Exception as error:
        if not _ASKED.is_set():
            raise
        raise KeyboardInterrupt from error


def _on_end(number: int, frame: FrameType | None) -> None:
    _ASKED.set()
    if hasattr(signal, "SIGCHLD"):  # no worker's end is news any more; by default, Python would tell of a race
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
    raise KeyboardInterrupt
