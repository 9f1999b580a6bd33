"""What is purged from the spool, and what a purge that died midway has left."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import PurePosixPath

from hemolens.errors import QueueError
from hemolens.pacs.queue import Queue
from hemolens.pacs.spool import Spool

LOGGER = logging.getLogger("hemolens.pacs.retention")
DAY_S = 86400.0


def purge(queue: Queue, spool: Spool, days: float) -> int:
    """Remove instances and results of series that have owed nothing for so many days; return how many series.

    The rows of series and analyses stay: what was found can still be listed, and the same scan sent again is not
    analyzed and delivered a second time. Failed and dead deliveries keep their series here.
    """
    purged = 0
    for series in queue.purgeable(queue.now() - days * DAY_S):
        folder = str(PurePosixPath(spool.path_of(series.study_uid, series.series_uid, "")).parent)
        try:
            jobs = queue.expire(series.series_uid, series.instances, partial(spool.bury, folder))
        except QueueError:
            recover(queue, spool)
            raise
        if jobs is None:
            continue
        spool.empty_trash(folder)
        for job in jobs:
            spool.remove_results(job)
        purged += 1
    if purged:
        LOGGER.info("purged %d series", purged)
    return purged


def recover(queue: Queue, spool: Spool) -> None:
    """Put right what a process that was killed during a purge has left."""
    restored = spool.unbury(queue.known_paths())
    if restored:
        LOGGER.warning("brought back %d instances from a purge that was not finished", restored)
