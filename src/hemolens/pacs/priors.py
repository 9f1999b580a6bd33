"""Earlier scans of the same patient: which one counts, and by how much the blood has changed.

Patients are compared by the salted hash that the queue keeps, never by name. A change of volume is told only between
two scans whose volumes were measured; whether it is more than the measurement's own error is left to the reader, beside
the figure that the literature calls growth: more than 6 mL or by more than a third (Dowlatshahi et al., Neurology 2011;
76:1238).
"""

from __future__ import annotations

from dataclasses import dataclass

from hemolens.pacs.queue import Job, JobState, Queue

GROWTH_ML = 6.0
GROWTH_RATIO = 1 / 3


@dataclass(frozen=True)
class Change:
    """What has changed since an earlier scan."""

    prior_job: str
    prior_study_uid: str
    hours: float | None
    """Between the two scans; None where a header does not tell when it was made."""
    prior_volume_ml: float | None
    volume_ml: float | None
    difference_ml: float | None
    ratio: float | None
    """Volume now over volume then; None where there was none."""
    growth: bool | None
    """Whether it grew by more than 6 mL or a third; None where it cannot be told."""


def link(queue: Queue, job: Job) -> Job | None:
    """Record the last analyzed scan of the same patient that was made before this one, and return it.

    Other series of the same study do not count: they show the same bleed at the same time.
    """
    before = moment(job)
    for _ in range(100):  # series of one study; each step goes strictly back in time
        prior = queue.prior(job.patient_key, before)
        if prior is None:
            return None
        if prior.study_uid != job.study_uid:
            queue.link_prior(job.id, prior.id)
            return prior
        before = moment(prior)
    return None


def moment(job: Job) -> float:
    """Return when a scan was made, or else when it arrived."""
    return job.acquired if job.acquired is not None else job.received_first


def change(job: Job, prior: Job) -> Change:
    """Return what has changed between two analyzed scans of one patient.

    Raises
    ------
    ValueError
        If they are not of the same patient, or one of them is not done.
    """
    if job.patient_key != prior.patient_key:
        raise ValueError("the scans are of two patients")
    if job.state is not JobState.DONE or prior.state is not JobState.DONE:
        raise ValueError("one of the scans has no result")
    known = job.acquired is not None and prior.acquired is not None
    now, then = job.volume_ml, prior.volume_ml
    measured = now is not None and then is not None
    difference = now - then if now is not None and then is not None else None
    ratio = now / then if now is not None and then else None
    growth = None
    if measured and difference is not None:
        growth = difference > GROWTH_ML or (ratio is not None and ratio > 1 + GROWTH_RATIO)
    return Change(
        prior_job=prior.id,
        prior_study_uid=prior.study_uid,
        hours=(moment(job) - moment(prior)) / 3600 if known else None,
        prior_volume_ml=then,
        volume_ml=now,
        difference_ml=difference,
        ratio=ratio,
        growth=growth,
    )
