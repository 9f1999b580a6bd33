"""What the HTTP API answers: the shapes that OpenAPI shows. Times are seconds since 1970; nothing names a patient."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, Field

from hemolens.measurements.findings import NOTICE
from hemolens.pacs.priors import Change
from hemolens.pacs.queue import Delivery, Job, QueueEvent
from hemolens.pacs.worklist import Entry


class JobModel(BaseModel):
    """One analysis of one series."""

    id: str
    study_uid: str
    series_uid: str
    state: str = Field(description="queued, running, done, failed (cannot be analyzed) or dead (tried too often)")
    error: str = Field(description="Why there is no result; empty if nothing went wrong")
    attempts: int
    model: str
    instances: int
    received_first: float
    received_last: float
    created: float
    started: float | None
    finished: float | None
    probability: float | None = Field(description="Of any hemorrhage, 0 to 1")
    volume_ml: float | None
    decision: str = Field(description="positive or negative at the model's threshold; empty without a result")
    partial: bool | None = Field(description="Whether part of the scan is missing from the result")
    prior_job: str | None

    @classmethod
    def of(cls, job: Job) -> JobModel:
        """Return what may be told of a job."""
        return cls(**{name: getattr(job, name) for name in cls.model_fields if name != "state"}, state=str(job.state))


class EntryModel(BaseModel):
    """One study on the worklist."""

    place: int = Field(description="1 is on top")
    urgency: str = Field(description="positive, no_answer, waiting or negative")
    study_uid: str
    job: JobModel
    updating: bool = Field(description="Images came after this result; another analysis is queued or failed")
    series: int
    waiting_s: float = Field(description="Since the last image arrived")
    turnaround_s: float | None = Field(description="From the last image to the result")
    delivery: str = Field(description="none, pending, delivered or undelivered")
    viewer_url: str = Field(description="Link to the study in a viewer; empty where none is configured")


class WorklistModel(BaseModel):
    """Studies in the order in which somebody should look."""

    now: float
    notice: str = NOTICE
    counts: dict[str, int] = Field(description="Entries by urgency")
    entries: list[EntryModel]


class DeliveryModel(BaseModel):
    """The sending of one object to one destination."""

    id: str
    destination: str
    sop_uid: str
    state: str
    attempts: int
    error: str
    finished: float | None
    committed: float | None = Field(description="When the peer committed to keep it")

    @classmethod
    def of(cls, delivery: Delivery) -> DeliveryModel:
        """Return what may be told of a delivery."""
        values = {name: getattr(delivery, name) for name in cls.model_fields if name != "state"}
        return cls(**values, state=str(delivery.state))


class ChangeModel(BaseModel):
    """What has changed since an earlier scan of the same patient."""

    prior_job: str
    prior_study_uid: str
    hours: float | None
    prior_volume_ml: float | None
    volume_ml: float | None
    difference_ml: float | None
    ratio: float | None
    growth: bool | None = Field(description="More than 6 mL or by more than a third")

    @classmethod
    def of(cls, change: Change) -> ChangeModel:
        """Return a change as it is."""
        return cls(**{name: getattr(change, name) for name in cls.model_fields})


class JobDetail(BaseModel):
    """One analysis with what became of it."""

    notice: str = NOTICE
    job: JobModel
    deliveries: list[DeliveryModel]
    change: ChangeModel | None


class EventModel(BaseModel):
    """Something that happened."""

    id: int
    at: float
    kind: str
    subject: str
    message: str


class EventsModel(BaseModel):
    """What happened after an event."""

    events: list[EventModel]

    @classmethod
    def of(cls, events: Iterable[QueueEvent]) -> EventsModel:
        """Return events as they are."""
        return cls(events=[EventModel(**{k: getattr(e, k) for k in EventModel.model_fields}) for e in events])


class RetryRequest(BaseModel):
    """What to try again."""

    ids: list[str] | None = Field(None, max_length=1000, description="Of jobs and deliveries; null for all")


class RetryAnswer(BaseModel):
    """How much was queued again."""

    queued: int


class StableRequest(BaseModel):
    """What the sender of a series knows of it."""

    instances: int = Field(ge=1, le=100_000, description="How many instances the series has where it comes from")


class HealthModel(BaseModel):
    """Whether the service runs, or can work."""

    status: str
    queue: bool = True
    spool: bool = True


def entry_model(place: int, entry: Entry, delivery: str, viewer_url: str) -> EntryModel:
    """Return a row of the worklist.

    Parameters
    ----------
    place
        From 1.
    delivery
        Where its results stand.
    viewer_url
        With ``{study}`` for the UID; empty for no link.
    """
    return EntryModel(
        place=place,
        urgency=entry.urgency.word,
        study_uid=entry.study_uid,
        job=JobModel.of(entry.job),
        updating=entry.updating,
        series=entry.series,
        waiting_s=entry.waiting_s,
        turnaround_s=entry.turnaround_s,
        delivery=delivery,
        viewer_url=viewer_url.replace("{study}", entry.study_uid) if viewer_url else "",
    )
