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


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for a polite kill, too, and again where Python had to drop one.

    An interrupt that arrives while Python runs a finalizer or a weak reference's callback, as the import system's own
    after every module, has nowhere to go: Python reports it to `sys.unraisablehook` and the command would run on.
    """
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _on_terminate)
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
        for again in coming:  # a command that has ended is not interrupted any more
            again.cancel()


def _on_terminate(number: int, frame: FrameType | None) -> None:
    if hasattr(signal, "SIGCHLD"):  # PyTorch raises from there when a worker, which is told to end, too, ends first
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise KeyboardInterrupt
