"""Analyses that the server runs for its users: one at a time, told by stage, and stopped when nobody waits for them."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import HemolensError, InputError
from hemolens.sources.study import ReadOptions
from hemolens.web import session
from hemolens.web.house import Room, WebSettings

if TYPE_CHECKING:
    from hemolens.analysis import Result
    from hemolens.inference.predictor import Predictor

LOG = logging.getLogger(__name__)

STAGES = ("read", "preprocess", "infer", "measure")
STAGE_SHARES = {"read": 0.15, "preprocess": 0.15, "infer": 0.55, "measure": 0.15}
"""How long each takes, about: for one bar over all of them."""
STAGE_TITLES = {
    "read": "reading the files",
    "preprocess": "finding the head",
    "infer": "looking for blood",
    "measure": "measuring",
    "keep": "keeping the results",
}


class Stage(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


class Canceled(Exception):  # noqa: N818 - no error
    """Ends an analysis that nobody waits for."""


@dataclass(frozen=True)
class Order:
    """What is to be analyzed."""

    name: str
    """As its owner knows it."""
    path: Path
    options: ReadOptions = field(default_factory=ReadOptions)
    origin: session.Origin = "upload"
    truth: Callable[[], NDArray[np.uint8]] | None = None
    """Gives the true label map, where there is one."""
    cleanup: Callable[[], None] | None = None
    """Called when the files are needed no more, whatever happened."""


@dataclass(eq=False)
class Job:
    """One analysis: what it is doing, for whoever draws a progress bar."""

    order: Order
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    state: Stage = Stage.WAITING
    stage: str = "read"
    fraction: float = 0.0
    """Of all stages together."""
    message: str = ""
    """What went wrong: one line that its owner can act on."""
    study_id: str | None = None
    started: float | None = None
    seconds: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """What is analyzed."""
        return self.order.name

    @property
    def over(self) -> bool:
        """Whether nobody need wait for it any more."""
        waiting = self.state is Stage.WAITING and self._stop.is_set()
        return waiting or self.state in {Stage.DONE, Stage.FAILED, Stage.CANCELED}

    def cancel(self) -> None:
        """Stop at the next step, or do not begin."""
        self._stop.set()

    def told(self, before: int) -> str:
        """Say what it is doing, for people; `before` jobs come before it."""
        if self._stop.is_set():
            return f"{self.name}: stopping"
        if self.state is Stage.WAITING:
            return f"{self.name}: waiting" + (f" for {before} other scan{'s' if before > 1 else ''}" if before else "")
        number = STAGES.index(self.stage) + 1 if self.stage in STAGES else len(STAGES)
        return f"{self.name}: {STAGE_TITLES.get(self.stage, self.stage)} (step {number} of {len(STAGES)})"

    def tell(self, stage: str, fraction: float) -> None:
        """Note how far a stage is; ends the analysis when it was canceled."""
        if self._stop.is_set():
            raise Canceled
        self.stage = stage
        before = 0.0
        for name in STAGES:
            if name == stage:
                break
            before += STAGE_SHARES[name]
        self.fraction = min(1.0, before + STAGE_SHARES.get(stage, 0.0) * min(max(fraction, 0.0), 1.0))


class Office:
    """Runs jobs in the order they came, with one network for all of them.

    Parameters
    ----------
    settings
        Which model, which runtime, and whether results are kept.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        # One at a time: the network takes all cores as it is, and two scans at once would both be late.
        self._workers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="analysis")
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._predictor: Predictor | None = None

    def submit(self, room: Room, order: Order) -> Job:
        """Take an order for a room; its study appears there when it is done."""
        job = Job(order)
        with room.lock:
            room.jobs[job.id] = job
        with self._lock:
            self._waiting.append(job)
        self._workers.submit(self._run, room, job)
        return job

    def before(self, job: Job) -> int:
        """Return how many jobs of anybody come before this one."""
        with self._lock:
            waiting = list(self._waiting)
        return waiting.index(job) if job in waiting else 0

    def warm(self) -> None:
        """Load the network in the background, so that the first scan does not wait for it."""
        self._workers.submit(self._load)

    def close(self) -> None:
        """Take no more jobs."""
        with self._lock:
            for job in self._waiting:
                job.cancel()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> Predictor:
        from hemolens.inference.predictor import Predictor
        from hemolens.inference.registry import load_model

        if self._predictor is None:
            chosen = self._settings
            self._predictor = Predictor(load_model(chosen.model), chosen.runtime, chosen.threads)
        return self._predictor

    def _run(self, room: Room, job: Job) -> None:
        started = time.perf_counter()
        job.started = time.monotonic()
        try:
            self._analyze(room, job)
        except Canceled:
            job.state = Stage.CANCELED
        except HemolensError as error:
            _fail(job, told(error, job.order))
        except MemoryError:
            _fail(job, f"{job.name}: does not fit into memory. Open the head series alone, or use a larger machine.")
        except Exception as error:  # noqa: BLE001 - a bug in us must end one job, not the server
            LOG.error("analysis failed: %s", type(error).__name__)  # no traceback: it may name a patient
            _fail(job, f"{job.name}: internal error ({type(error).__name__}); this is a bug in hemolens. Try again.")
        finally:
            job.seconds = time.perf_counter() - started
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(job)
            if job.order.cleanup is not None:
                job.order.cleanup()

    def _analyze(self, room: Room, job: Job) -> None:
        job.tell("read", 0.0)
        job.state = Stage.RUNNING
        predictor = self._load()
        result = analyze_named(job.order, job.tell, predictor)
        truth = job.order.truth() if job.order.truth is not None else None
        study = session.Study(name=job.name, result=result, origin=job.order.origin, truth=truth)
        if self._settings.keep is not None:
            job.tell("keep", 0.0)
            result.save(free_folder(self._settings.keep, study.name))
        job.tell("measure", 1.0)
        session.put(room, study)
        job.study_id = study.id
        job.fraction = 1.0
        job.state = Stage.DONE


def analyze_named(order: Order, tell: Callable[[str, float], None], predictor: Predictor) -> Result:
    """Analyze a scan under the name that its owner gave it, wherever it lies for the moment."""
    from hemolens.analysis import analyze
    from hemolens.sources.study import read_volume

    started = time.perf_counter()
    volume = read_volume(order.path, order.options, lambda fraction: tell("read", fraction))
    seconds = time.perf_counter() - started
    if volume.source.kind != "dicom" and order.origin == "upload":
        volume = replace(volume, source=replace(volume.source, path_or_uid=order.name))
    result = analyze(volume, progress=lambda s, f: None if s == "read" else tell(s, f), predictor=predictor)
    findings = replace(result.findings, timing_s={**result.findings.timing_s, "read": seconds})
    return replace(result, findings=findings)


def told(error: HemolensError, order: Order) -> str:
    """Return the line of an error with the owner's name for the scan in place of where it lies."""
    line = str(error)
    for path in (order.path, order.path.resolve()):
        line = line.replace(f"{path}/", "").replace(str(path), order.name)
    if isinstance(error, InputError) and order.path.is_dir():
        line = line if order.name in line else f"{order.name}: {line}"
    return " ".join(line.split())


def free_folder(root: Path, name: str) -> Path:
    """Return a folder under `root` that does not exist yet, named after a study."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip("._")[:80] or "scan"
    folder, number = root / plain, 2
    while folder.exists():
        folder, number = root / f"{plain}-{number}", number + 1
    return folder


def _fail(job: Job, line: str) -> None:
    job.message = line
    job.state = Stage.FAILED
