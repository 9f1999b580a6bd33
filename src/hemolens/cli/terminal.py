"""What people see: tables on standard output; progress on standard error, and only when that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

STAGES = {
    "read": "Reading",
    "preprocess": "Preparing",
    "infer": "Looking for blood",
    "measure": "Measuring",
    "report": "Writing the report",
}

Progress = Callable[[str, float], None]


@contextmanager
def progress_shown(title: str, *, quiet: bool) -> Iterator[Progress | None]:
    """Yield a function for ``(stage, fraction done)``, or None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.fields[title]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(STAGES["read"], total=1.0, title=title)

        def tell(stage: str, fraction: float) -> None:
            bars.update(task, description=STAGES.get(stage, stage), completed=fraction)

        yield tell


def plain_console() -> Console:
    """Return a console for standard output that never breaks a table row in a pipe, which has no width."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)
