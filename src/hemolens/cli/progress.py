"""Progress for people: on standard error, and only when that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STAGES = {
    "read": "Reading",
    "preprocess": "Preparing",
    "infer": "Looking for blood",
    "measure": "Measuring",
    "report": "Writing the report",
}

Progress = Callable[[str, float], None]


@contextmanager
def shown(title: str, *, quiet: bool) -> Iterator[Progress | None]:
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
