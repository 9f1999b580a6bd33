"""The worklist as an HTTP API with OpenAPI, a page that shows it, metrics, health and readiness.

Everything but the empty page, its style and script, and health and readiness asks for a bearer token where tokens are
configured. The page asks for one once and keeps it as long as its tab is open.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from hemolens import __version__
from hemolens.errors import HemolensError
from hemolens.measurements.findings import NOTICE
from hemolens.pacs import metrics
from hemolens.pacs.api_models import (
    ChangeModel,
    DeliveryModel,
    EventsModel,
    HealthModel,
    JobDetail,
    JobModel,
    RetryAnswer,
    RetryRequest,
    StableRequest,
    WorklistModel,
    entry_model,
)
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.priors import change
from hemolens.pacs.queue import Delivery, DeliveryState, Job, JobState, Queue, open_queue
from hemolens.pacs.security import TokenSet, check_http_port, is_loopback, read_tokens, server_context
from hemolens.pacs.spool import GIB, RESULTS, Spool
from hemolens.pacs.worklist import ordered

LARGEST_BODY = 65536
PAGE_FILES = {"": "worklist.html", "worklist.css": "worklist.css", "worklist.js": "worklist.js"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
THIS_COMPUTER = ["localhost", "127.0.0.1", "[::1]", "::1"]
Limit = Annotated[int, Query(ge=1, le=5000, description="Newest analyses to look at")]

log = logging.getLogger(__name__)


class Desk:
    """Who answers the calls.

    Parameters
    ----------
    config, queue, spool
        Of the service.
    tokens
        One of which every call must carry; None for calls without.
    """

    def __init__(self, config: PacsConfig, queue: Queue, spool: Spool, tokens: TokenSet | None) -> None:
        self._config, self._queue, self._spool, self._tokens = config, queue, spool, tokens

    def admit(self, authorization: Annotated[str | None, Header()] = None) -> None:
        """Turn away a call without a token."""
        if self._tokens is not None and not self._tokens.accepts_header(authorization):
            raise HTTPException(401, "A bearer token is needed.", {"WWW-Authenticate": "Bearer"})

    def worklist(self, limit: Limit = 1000, urgency: str | None = None) -> WorklistModel:
        """Return the studies in the order in which somebody should look; with `urgency`, one part of them."""
        now = self._queue.now()
        entries = ordered(self._queue.worklist(limit), now)
        undelivered = {d.job_id for s in (DeliveryState.FAILED, DeliveryState.DEAD) for d in self._in(s)}
        pending = {d.job_id for s in (DeliveryState.QUEUED, DeliveryState.SENDING) for d in self._in(s)}

        def delivery(job: Job) -> str:
            if job.state is not JobState.DONE or not self._config.destinations:
                return "none"
            return "undelivered" if job.id in undelivered else "pending" if job.id in pending else "delivered"

        rows = [
            entry_model(place, entry, delivery(entry.job), self._config.api.viewer_url)
            for place, entry in enumerate(entries, 1)
        ]
        counts = Counter(row.urgency for row in rows)
        return WorklistModel(
            now=now, counts=dict(counts), entries=[row for row in rows if urgency in {None, row.urgency}]
        )

    def _in(self, state: DeliveryState) -> list[Delivery]:
        return self._queue.deliveries(state=state)

    def job(self, job_id: str) -> JobDetail:
        """Return one analysis, what became of its results, and the change since the patient's scan before."""
        job = self._job(job_id)
        prior = self._queue.job(job.prior_job) if job.prior_job else None
        comparable = prior is not None and job.state is prior.state is JobState.DONE
        return JobDetail(
            job=JobModel.of(job),
            deliveries=[DeliveryModel.of(d) for d in self._queue.deliveries(job_id=job.id)],
            change=ChangeModel.of(change(job, prior)) if prior is not None and comparable else None,
        )

    def _job(self, job_id: str) -> Job:
        job = self._queue.job(job_id)
        if job is None:
            raise HTTPException(404, "There is no such analysis.")
        return job

    def findings(self, job_id: str) -> Response:
        """Return ``findings.json`` of an analysis."""
        return FileResponse(self._result(job_id, "findings.json"), media_type="application/json")

    def report(self, job_id: str) -> Response:
        """Return the report of an analysis, a page for people; it may run no script."""
        path = self._result(job_id, "report.html")
        shown = FileResponse(path, media_type="text/html; charset=utf-8")
        shown.headers["Content-Security-Policy"] = (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
        )
        return shown

    def _result(self, job_id: str, name: str) -> Path:
        job = self._job(job_id)
        if job.state is not JobState.DONE or not job.findings_path:
            raise HTTPException(409, "This analysis has no result.")
        results = (self._spool.root / RESULTS).resolve()
        path = (self._spool.root / job.findings_path).resolve().parent / name
        if not path.is_relative_to(results) or not path.is_file():
            raise HTTPException(410, "The result is no longer kept.")
        return path

    def retry(self, wanted: RetryRequest) -> RetryAnswer:
        """Queue failed and dead analyses and deliveries again."""
        return RetryAnswer(queued=self._queue.retry(wanted.ids))

    def stable(self, series_uid: str, told: StableRequest) -> HealthModel:
        """Hear from the sender how many images a series has: once they are here, there is nothing to wait for."""
        if self._queue.series(series_uid) is None:
            raise HTTPException(404, "No image of this series has arrived.")
        self._queue.expect(series_uid, told.instances)
        return HealthModel(status="noted")

    def events(self, since: int = 0, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> EventsModel:
        """Return what happened after the event of that id, oldest first."""
        return EventsModel.of(self._queue.events(since, limit))

    def metrics(self) -> Response:
        """Return the metrics for Prometheus."""
        used = self._spool.used()
        told = {"used_bytes": used, "quota_bytes": self._config.spool.quota_gb * GIB}
        text = metrics.exposition(self._queue.counts(), self._queue.worklist(metrics.NEWEST), told)
        return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)

    def alive(self) -> HealthModel:
        """Say that this process runs."""
        return HealthModel(status="ok")

    def ready(self, response: Response) -> HealthModel:
        """Say whether images could be taken now: the queue answers and the spool has room; 503 if not."""
        queue, spool = True, True
        try:
            self._queue.receiving()
        except HemolensError:
            queue = False
        try:
            self._spool.check_room(0)
        except HemolensError:
            spool = False
        if not (queue and spool):
            response.status_code = 503
        return HealthModel(status="ready" if queue and spool else "not ready", queue=queue, spool=spool)


def make_app(config: PacsConfig, queue: Queue, spool: Spool) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    config, queue, spool
        Of the service. The queue is used from several threads.

    Raises
    ------
    ConfigError
        If the tokens cannot be read.
    """
    tokens = read_tokens(config.api.token_file) if config.api.token_file else None
    desk = Desk(config, queue, spool, tokens)
    app = FastAPI(
        title="hemolens worklist",
        version=__version__,
        description=NOTICE,
        docs_url=None,  # these load scripts from far away
        redoc_url=None,
    )
    app.include_router(_guarded(desk))
    app.include_router(_open(desk))
    app.add_exception_handler(HemolensError, _failed)
    app.middleware("http")(_guard)
    if is_loopback(config.api.host):
        # Or a page on the web could reach this port under a name of its own that leads here.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=THIS_COMPUTER)
    return app


def _guarded(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/api/v1", tags=["worklist"], dependencies=[Depends(desk.admit)])
    api.add_api_route("/worklist", desk.worklist)
    api.add_api_route("/jobs/{job_id}", desk.job)
    api.add_api_route("/jobs/{job_id}/findings", desk.findings, response_model=None)
    api.add_api_route("/jobs/{job_id}/report", desk.report, response_model=None)
    api.add_api_route("/retry", desk.retry, methods=["POST"])
    api.add_api_route("/series/{series_uid}/stable", desk.stable, methods=["POST"])
    api.add_api_route("/events", desk.events)
    both = APIRouter()
    both.include_router(api)
    both.add_api_route(
        "/metrics", desk.metrics, response_model=None, tags=["operation"], dependencies=[Depends(desk.admit)]
    )
    return both


def _open(desk: Desk) -> APIRouter:
    router = APIRouter()
    router.add_api_route("/healthz", desk.alive, tags=["operation"])
    router.add_api_route("/readyz", desk.ready, tags=["operation"])
    for path, name in PAGE_FILES.items():
        router.add_api_route(f"/{path}", _page(name), include_in_schema=False, response_model=None)
    return router


def _page(name: str) -> Callable[[], Response]:
    file = Path(str(resources.files("hemolens.pacs"))) / "templates" / name

    def page() -> Response:
        return FileResponse(file)

    return page


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse bodies that no call here needs, before they are read, and give every answer its headers."""
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers or not length.isdigit() or int(length) > LARGEST_BODY:
        response: Response = JSONResponse({"detail": f"A body may have {LARGEST_BODY} bytes at most."}, 413)
        response.headers["Connection"] = "close"
    else:
        response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _failed(request: Request, error: Exception) -> Response:
    """Answer 503: the queue or the spool cannot be used now. What exactly is wrong is for the log, not the caller."""
    log.error("the API could not answer: %s", error)
    return JSONResponse({"detail": "The queue or the spool cannot be used now; see the log of the service."}, 503)


def run_api(config: PacsConfig) -> None:
    """Serve the API until this process is told to end (SIGTERM or Ctrl-C).

    Raises
    ------
    ConfigError
        If the port would be open to strangers, or certificates or tokens cannot be read.
    """
    import uvicorn

    api = config.api
    check_http_port(api.host, api.token_file, api.tls)
    spool = Spool(config.spool.path, config.spool.quota_gb, config.spool.min_free_gb)
    queue = open_queue(config.queue_url)
    try:
        settings = uvicorn.Config(
            make_app(config, queue, spool),
            host=api.host,
            port=api.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=200,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=5,
            ssl_certfile=api.tls.certificate if api.tls else None,
            ssl_keyfile=api.tls.key if api.tls else None,
        )
        settings.load()
        if api.tls is not None:
            settings.ssl = server_context(api.tls)  # stricter than uvicorn's own
        uvicorn.Server(settings).run()
    finally:
        queue.close()
