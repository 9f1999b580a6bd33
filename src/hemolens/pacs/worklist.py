"""The order in which somebody should look: one row for each study, from what the queue knows. Pure functions.

1. Positive, the likelier first (in steps of ten percent, as finer ones mean nothing), then the larger, then those that
   wait longest.
2. No answer: what failed. Nobody has looked at these at all, so they stand above the negative.
3. Not ready: waiting or being analyzed.
4. Negative, in the order of the positive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from hemolens.pacs.queue import Job, JobState

STEP = 0.1
"""Of probability."""


class Urgency(IntEnum):
    """The four parts of the list, the first on top."""

    POSITIVE = 0
    NO_ANSWER = 1
    WAITING = 2
    NEGATIVE = 3

    @property
    def word(self) -> str:
        """As the API names it."""
        return self.name.lower()


@dataclass(frozen=True)
class Entry:
    """One study."""

    study_uid: str
    urgency: Urgency
    job: Job
    """The analysis that puts the study where it is."""
    updating: bool
    """Whether images came since, and another analysis of the series is on its way or failed."""
    series: int
    """How many series of the study were taken for analysis."""
    waiting_s: float
    """Since the last image arrived."""
    turnaround_s: float | None
    """From the last image to the result; None without one."""


def ordered(jobs: Iterable[Job], now: float) -> list[Entry]:
    """Return one entry for each study, the most urgent first.

    Parameters
    ----------
    jobs
        In any state and order. Of each series the newest result counts, and where there is none, the newest job.
    now
        Time by the clock of the queue.
    """
    by_study: dict[str, dict[str, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        by_study[job.study_uid][job.series_uid].append(job)
    return sorted((_entry(uid, list(series.values()), now) for uid, series in by_study.items()), key=_place)


def urgency(job: Job) -> Urgency:
    """Return in which part of the list a job stands."""
    if job.state is JobState.DONE:
        return Urgency.POSITIVE if job.positive else Urgency.NEGATIVE
    return Urgency.NO_ANSWER if job.state in {JobState.FAILED, JobState.DEAD} else Urgency.WAITING


def _entry(study_uid: str, series: Sequence[Sequence[Job]], now: float) -> Entry:
    candidates = [_of_series(study_uid, jobs, len(series), now) for jobs in series]
    return min(candidates, key=_place)


def _of_series(study_uid: str, jobs: Sequence[Job], series: int, now: float) -> Entry:
    newest = max(jobs, key=lambda job: (job.created, job.id))
    done = [job for job in jobs if job.state is JobState.DONE]
    told = max(done, key=lambda job: (job.created, job.id)) if done else newest
    turnaround = None if not done or told.finished is None else max(0.0, told.finished - told.received_last)
    return Entry(
        study_uid=study_uid,
        urgency=urgency(told),
        job=told,
        updating=told is not newest,
        series=series,
        waiting_s=max(0.0, now - told.received_last),
        turnaround_s=turnaround,
    )


def _place(entry: Entry) -> tuple[float, ...]:
    job = entry.job
    probability = round((job.probability or 0.0) / STEP) if entry.urgency in {Urgency.POSITIVE, Urgency.NEGATIVE} else 0
    volume = job.volume_ml or 0.0
    return (entry.urgency, -probability, -volume, -entry.waiting_s)
