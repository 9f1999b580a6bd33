"""A worker: takes one complete series at a time, analyzes it, and records the result with its deliveries."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from hemolens.analysis import AnalyzeOptions, Result, analyze
from hemolens.errors import HemolensError, InputError, QueueError
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import load_model
from hemolens.notes import QualityNote, Severity
from hemolens.pacs import priors, webhook
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.queue import Instance, Job, Letter, Outcome, Queue
from hemolens.pacs.spool import Spool
from hemolens.sources.dicom.read import read_dicom
from hemolens.sources.files import file_entry
from hemolens.volume import Volume

LOGGER = logging.getLogger("hemolens.pacs.worker")
LONGEST_BACKOFF_S = 3600.0
NO_HEAD = "not_a_head"
FINDINGS = "findings.json"
OBJECTS = ("seg", "sr", "summary")
"""What is sent, in this order: the report refers to the segmentation."""
SUPERSEDED = "more instances came; another analysis follows"


@dataclass(frozen=True)
class Tools:
    """What a worker needs for every job."""

    config: PacsConfig
    queue: Queue
    spool: Spool
    predictor: Predictor
    options: AnalyzeOptions
    name: str
    """Of this worker; no other process has it."""


def make_tools(config: PacsConfig, queue: Queue, spool: Spool, name: str) -> Tools:
    """Load the model.

    Raises
    ------
    ModelError, DependencyError
        If it cannot be loaded.
    """
    options = AnalyzeOptions(
        model=config.worker.model or None, runtime=config.worker.runtime, threads=config.worker.threads or None
    )
    predictor = Predictor(load_model(options.model), options.runtime, options.threads)
    return Tools(config, queue, spool, predictor, options, name)


def work(tools: Tools, stop: threading.Event) -> None:
    """Take jobs until told to stop."""
    while not stop.is_set():
        try:
            worked = work_once(tools)
        except QueueError as error:
            LOGGER.error("%s", error)
            worked = False
        if not worked:
            stop.wait(tools.config.completion.interval_s)


def work_once(tools: Tools) -> bool:
    """Do one job, if there is one; whether there was."""
    settings = tools.config.worker
    job = tools.queue.claim_job(tools.name, settings.lease_s, settings.attempts)
    if job is None:
        return False
    LOGGER.info("job %s: try %d", job.id, job.attempts)
    with _lease(tools, job):
        try:
            _do(tools, job)
        except KeyboardInterrupt:
            tools.queue.fail_job(job.id, tools.name, "the service was stopped", retry_in_s=0.0)
            raise
        except InputError as error:  # bad input stays bad
            _fail(tools, job, f"{error.problem}. {error.remedy}", final=True)
        except QueueError:
            raise
        except (HemolensError, OSError, MemoryError) as error:
            _fail(tools, job, _line(error), final=False)
        except Exception as error:  # noqa: BLE001 - a bug in one scan must not stop the others; it is told and retried
            _fail(tools, job, f"internal error ({type(error).__name__} at {_place(error)})", final=False)
    return True


def _place(error: BaseException) -> str:
    """Return where an error arose. Its message stays out of logs: it may quote a header."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _line(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"the spool cannot be used ({error.strerror or type(error).__name__})"
    return str(error) or type(error).__name__


def _fail(tools: Tools, job: Job, error: str, *, final: bool) -> None:
    settings = tools.config.worker
    dead = job.attempts >= settings.attempts
    wait = None if final or dead else min(LONGEST_BACKOFF_S, settings.backoff_s * 2.0 ** (job.attempts - 1))
    if tools.queue.fail_job(job.id, tools.name, error, retry_in_s=wait, dead=dead and not final):
        LOGGER.warning("job %s: %s", job.id, error)
    shutil.rmtree(_folder(tools, job), ignore_errors=True)


@contextmanager
def _lease(tools: Tools, job: Job) -> Iterator[None]:
    """Renew the lease while the block runs; a block that takes too long is ended with its process."""
    done = threading.Event()
    settings = tools.config.worker

    def renew() -> None:
        left = settings.timeout_s
        while not done.wait(min(settings.lease_s / 3, left)):
            left -= settings.lease_s / 3
            try:
                if left <= 0:
                    _fail(tools, job, f"took longer than {settings.timeout_s:g} s", final=False)
                    # The analysis hangs in code that cannot be interrupted; the supervisor starts another worker.
                    os.kill(os.getpid(), signal.SIGKILL)
                tools.queue.extend_job(job.id, tools.name, settings.lease_s)
            except QueueError as error:
                LOGGER.error("%s", error)

    thread = threading.Thread(target=renew, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)


def _do(tools: Tools, job: Job) -> None:
    instances = tools.queue.instances(job.series_uid)
    if _digest(instances) != job.digest:
        tools.queue.fail_job(job.id, tools.name, SUPERSEDED, retry_in_s=None)
        return
    volume = _read(tools, job, instances)
    result = analyze(volume, tools.options, predictor=tools.predictor)
    if any(note.code == NO_HEAD for note in result.findings.quality):
        reason = "no head was found in it"
        if tools.queue.fail_job(job.id, tools.name, reason, retry_in_s=None):
            tools.queue.ignore(job.series_uid, reason)
        return
    folder = _folder(tools, job)
    written = result.save(folder, overwrite=True, summary_image=tools.config.worker.summary_image)
    outcome = _outcome(result, f"{_relative(tools, folder)}/{FINDINGS}")
    letters = list(_letters(tools, job, [written[name] for name in OBJECTS if name in written], outcome))
    if not tools.queue.finish_job(job.id, tools.name, outcome, letters):
        LOGGER.warning("job %s: the lease was lost; another worker has it", job.id)
        shutil.rmtree(folder, ignore_errors=True)
        return
    LOGGER.info("job %s: done, %d objects to send", job.id, len(letters))
    _clean(tools, job, folder)
    finished = tools.queue.job(job.id)
    if finished is not None:
        priors.link(tools.queue, finished)


def _digest(instances: Sequence[Instance]) -> str:
    return hashlib.sha256("".join(sorted(i.sha256 for i in instances)).encode()).hexdigest()


def _read(tools: Tools, job: Job, instances: Sequence[Instance]) -> Volume:
    entries = [file_entry(tools.spool.root / instance.path) for instance in instances]
    volume = read_dicom(entries, "series", None, lambda fraction: None)
    series = tools.queue.series(job.series_uid)
    if series is not None and series.conflicts:
        text = f"{series.conflicts} instances with the UID of another, or of another patient or study, were kept aside"
        volume = volume.with_notes(QualityNote("files_skipped", Severity.WARNING, text))
    return volume


def _outcome(result: Result, findings_path: str) -> Outcome:
    findings = result.findings
    return Outcome(
        probability=findings.study.probability["any"],
        volume_ml=findings.total.volume_ml,
        decision=findings.study.decision,
        positive=findings.positive,
        partial=result.partial,
        findings_path=findings_path,
    )


def _letters(tools: Tools, job: Job, objects: Sequence[Path], outcome: Outcome) -> Iterator[Letter]:
    for destination in tools.config.destinations:
        for path in objects:
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID", "SOPClassUID"])
            yield Letter(
                destination=destination.name,
                sop_uid=str(header.SOPInstanceUID),
                sop_class=str(header.SOPClassUID),
                path=_relative(tools, path),
            )
    if outcome.positive and tools.config.webhook.url:
        yield webhook.letter(job.id, outcome.findings_path)


def _folder(tools: Tools, job: Job) -> Path:
    """Return the folder of this try: a worker whose lease was lost never writes into that of its successor."""
    return tools.spool.results_of(job.id) / str(job.attempts)


def _relative(tools: Tools, path: Path) -> str:
    return path.relative_to(tools.spool.root).as_posix()


def _clean(tools: Tools, job: Job, kept: Path) -> None:
    """Remove what earlier tries, killed midway, have left."""
    for entry in tools.spool.results_of(job.id).iterdir():
        if entry != kept:
            shutil.rmtree(entry, ignore_errors=True)
