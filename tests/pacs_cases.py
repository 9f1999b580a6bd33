"""A queue as a morning in a hospital leaves it: studies in every state, made through the queue's own methods."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from hemolens.pacs.config import PacsConfig
from hemolens.pacs.queue import InstanceKind, Job, Letter, Outcome, Queue, Received, open_queue

ROOT_UID = "1.2.826.0.1.3680043.10.1"


@dataclass(frozen=True)
class Case:
    """One series."""

    number: int
    probability: float | None = None
    """None: no result."""
    volume_ml: float | None = 0.0
    patient: str = ""
    study: int | None = None
    error: str = ""
    retry_in_s: float | None = None
    partial: bool = False
    delivery: str = "done"
    acquired: float | None = None

    @property
    def series_uid(self) -> str:
        return f"{ROOT_UID}.{self.number}.2"

    @property
    def study_uid(self) -> str:
        return f"{ROOT_UID}.{self.study or self.number}.1"


CASES = (
    Case(1, 0.12, 0.0),
    Case(2, 0.97, 14.2, delivery="dead"),
    Case(3, 0.98, 31.7, partial=True),
    Case(4, 0.62, 3.1),
    Case(5, error="1.2.3: has 3 slices, too few for a head. Send the whole series."),
    Case(6),
    Case(7, 0.03, 0.0, delivery="queued"),
)


def received(case: Case, instance: int = 1) -> Received:
    return Received(
        sop_uid=f"{case.series_uid}.{instance}",
        series_uid=case.series_uid,
        study_uid=case.study_uid,
        patient_key=case.patient or f"patient-{case.number}",
        modality="CT",
        kind=InstanceKind.CT,
        path=f"incoming/{case.number}-{instance}.dcm",
        size=1000,
        sha256=hashlib.sha256(f"{case.number}/{instance}".encode()).hexdigest(),
        received=time.time() - 60.0 * case.number,
        acquired=case.acquired,
    )


def add(queue: Queue, case: Case, spool: Path | None = None, extra: tuple[Letter, ...] = ()) -> Job:
    """Bring one series to where the case says; return its job."""
    seen = (queue.series(case.series_uid).instances if queue.series(case.series_uid) else 0) + 1
    queue.keep(received(case, seen))
    job = queue.complete(case.series_uid, seen, "model")
    assert job is not None
    if case.probability is None and not case.error:
        return job
    claimed = queue.claim_job("worker", 60, 3)
    assert claimed is not None
    assert claimed.id == job.id
    if case.error:
        queue.fail_job(job.id, "worker", case.error, retry_in_s=case.retry_in_s)
        return queue.job(job.id)
    path = f"results/{job.id}/1/findings.json"
    positive = case.probability >= 0.5
    if spool is not None:
        (spool / path).parent.mkdir(parents=True, exist_ok=True)
        (spool / path).write_text(json.dumps(findings(case)), encoding="utf-8")
    outcome = Outcome(
        case.probability, case.volume_ml, "positive" if positive else "negative", positive, case.partial, path
    )
    letter = Letter(
        "pacs", f"{case.series_uid}.{seen}.9", "1.2.840.10008.5.1.4.1.1.66.4", f"results/{job.id}/1/seg.dcm"
    )
    assert queue.finish_job(job.id, "worker", outcome, [letter, *extra])
    (delivery,) = queue.claim_deliveries("pacs", 60, 1)
    if case.delivery == "done":
        queue.finish_delivery(delivery)
    elif case.delivery == "dead":
        queue.fail_delivery(delivery, "the peer cannot be reached", retry_in_s=None, dead=True)
    else:
        queue.fail_delivery(delivery, "the peer cannot be reached", retry_in_s=10_000.0)
    return queue.job(job.id)


def findings(case: Case) -> dict[str, object]:
    lesions = [
        {"subtype": "subdural", "probability": case.probability, "volume_ml": case.volume_ml, "slices": [11, 12]}
    ]
    notes = [{"code": "uneven_spacing", "severity": "info", "message": "<b>two</b> slice spacings", "slices": []}]
    return {"lesions": lesions if case.volume_ml else [], "quality": notes}


def fill(config: PacsConfig) -> list[Job]:
    queue = open_queue(config.queue_url)
    try:
        return [add(queue, case, Path(config.spool.path)) for case in sorted(CASES, key=lambda c: c.number == 6)]
    finally:
        queue.close()
