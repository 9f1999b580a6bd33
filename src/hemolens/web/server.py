"""The server behind the pages: Streamlit's own application, and beside it the routes that carry scans.

Streamlit keeps an upload in memory and sends what a page shows through its socket; a CT series is too large for
either. So dropped files are streamed to a temporary folder here, and the viewers fetch slices from here. A request
is answered only for the browser whose cookie names a room; nothing is cached by browsers.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemolens.errors import DependencyError, HemolensError, InputError
from hemolens.web.house import GIB, PREFIX, House, Room, WebSettings, house
from hemolens.web.pages import PAGES
from hemolens.web.uploads import BATCH, Batch

try:
    import streamlit
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
    from streamlit import runtime
except ImportError as error:
    raise DependencyError("streamlit", "web") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger(__name__)

COOKIE = "hemolens_room"
STATIC_TYPES: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SWEEP_S = 20.0
M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
LARGE_BYTES = 2**20
RECONNECT_S = 60.0
"""A page whose connection was lost may come back within this time as it was."""
STALE = "This page is from before the server was restarted. Reload the page."
PRIVATE: Mapping[str, str] = {"cache-control": "no-store", "content-encoding": "identity"}
"""Pictures of patients stay out of the browser's cache, and out of the compressor's slow hands."""
PAGE_HEADERS: Mapping[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"no-referrer",
}
THEME: Mapping[str, Any] = {
    "theme.base": "dark",
    "theme.primaryColor": "#d1403a",
    "theme.backgroundColor": "#0e1116",
    "theme.secondaryBackgroundColor": "#181d25",
    "theme.textColor": "#e8eaed",
}


class RoomCookie:
    """Gives a browser that asks for a page the cookie of a room of its own.

    Parameters
    ----------
    app
        What answers.
    name
        Of the cookie; servers on other ports have others.
    secure
        Whether the cookie is for HTTPS only.
    """

    def __init__(self, app: ASGIApp, name: str, secure: bool = False) -> None:
        self._app = app
        self._name = name
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add headers to the answer."""
        if scope["type"] != "http" or scope["path"].startswith(PREFIX + "/"):
            await self._app(scope, receive, send)
            return
        cookie = self._cookie(Request(scope))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *PAGE_HEADERS.items()]
                message["headers"] = [*headers, (b"set-cookie", cookie)] if cookie else headers
            await send(message)

        await self._app(scope, receive, answer)

    def _cookie(self, request: Request) -> bytes | None:
        wants_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if not wants_page or house().known(request.cookies.get(self._name, "")) is not None:
            return None
        token = house().room(None).token
        secure = "; Secure" if self._secure else ""
        return f"{self._name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}".encode()


def make_app(settings: WebSettings, *, host: str, port: int) -> Any:
    """Return the ASGI application.

    Parameters
    ----------
    settings
        What `hemolens web` was told.
    host, port
        Where it will listen; on a loopback address other host names are refused.
    """
    here = house()
    here.settings = replace(settings, cookie=f"{COOKIE}_{port}")  # cookies do not tell ports apart, so the name does
    middleware = [Middleware(RoomCookie, name=here.settings.cookie)]
    if is_loopback(host):
        # Keeps a web page elsewhere from reaching this server under a name of its own (DNS rebinding).
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host]))
    routes = Routes(here)
    return streamlit.App(
        Path(str(resources.files("hemolens.web"))) / "app.py",
        routes=routes.all(),
        middleware=middleware,
        lifespan=_lifespan,
    )


def serve(settings: WebSettings, *, host: str = "127.0.0.1", port: int = 8501) -> None:
    """Serve the web app until it is interrupted."""
    _prepare()
    # Longer than until `_close_pages`: what Streamlit drops by itself it does not shut down.
    options = {**_config(host, port), "server.disconnectedSessionTTL": int(RECONNECT_S + 10 * SWEEP_S)}
    make_app(settings, host=host, port=port).run(config=options)


def _prepare() -> None:
    """Load what the first pages need, so that their user does not wait for it."""
    for module in ("streamlit.dataframe_util", "hemolens.analysis", "hemolens.demo", "hemolens.web.shell"):
        import_module(module)
    for page in PAGES[:2]:
        page.load()


def _config(host: str, port: int) -> dict[str, Any]:
    return {
        **THEME,
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        # After every run of a page all objects of the process would be walked through, which holds up the analyses.
        "runner.postScriptGC": False,
        "server.maxUploadSize": 2048,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "type",
        "logger.hideWelcomeMessage": True,
        "logger.level": "error",
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[dict[str, Any]]:
    here = house()
    map_large_arrays()
    here.office.warm()
    sweeper = asyncio.create_task(_sweep(here))
    try:
        yield {}
    finally:
        sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await sweeper
        here.close()


async def _sweep(here: House) -> None:
    returned = 0
    while True:
        await asyncio.sleep(min(SWEEP_S, here.settings.idle_s / 2))
        here.sweep()
        closed = _close_pages(here.pages_gone(min(RECONNECT_S, here.settings.idle_s)))
        if here.emptied > returned or closed:
            returned = here.emptied
            await run_in_threadpool(return_memory)


def _close_pages(sessions: Sequence[str]) -> int:
    """Shut down Streamlit's sessions of pages that were left, and return how many.

    Streamlit keeps the session of a lost connection for a while and then drops it without shutting it down: files that
    were uploaded to it or offered for download, and the session itself, would stay in memory for good.
    """
    running = runtime.get_instance()
    lost = [session for session in sessions if not running.is_active_session(session)]  # some come back unannounced
    for session in lost:
        running.close_session(session)
    return len(lost)


def map_large_arrays() -> None:
    """Have arrays of scans go back to the system when they are freed.

    glibc maps large blocks one by one, but once one of them was freed it takes the next ones of that size from the
    heaps of its threads, where what lies above holds them (mallopt(3), M_MMAP_THRESHOLD). Told a size, it keeps to it.
    """
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such call
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def return_memory() -> None:
    """Give freed memory back to the system: glibc keeps some for each of many threads."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # other C libraries do it by themselves, or have no such call
        ctypes.CDLL(None).malloc_trim(0)


class Routes:
    """The routes beside Streamlit's own.

    Parameters
    ----------
    here
        Whose rooms.
    """

    def __init__(self, here: House) -> None:
        self._house = here

    def all(self) -> list[Route]:
        """Return them for Starlette."""
        return [
            Route(f"{PREFIX}/static/{{name}}", self.static, methods=["GET"]),
            Route(f"{PREFIX}/upload/{{batch}}", self.upload, methods=["POST"]),
            Route(f"{PREFIX}/upload/{{batch}}", self.drop, methods=["DELETE"]),
            Route(f"{PREFIX}/scan/{{study}}/{{first:int}}-{{last:int}}", self.scan, methods=["GET"]),
            Route(f"{PREFIX}/shelf/{{name}}", self.shelf, methods=["GET"]),
            Route(f"{PREFIX}/jobs", self.jobs, methods=["GET"]),
            Route(f"{PREFIX}/jobs/{{job}}", self.cancel, methods=["DELETE"]),
        ]

    def _room(self, request: Request) -> Room | None:
        origin = request.headers.get("origin")
        if origin is not None and origin.split("://", 1)[-1] != request.headers.get("host"):
            return None
        return self._house.known(request.cookies.get(self._house.settings.cookie, ""))

    async def static(self, request: Request) -> Response:
        """Send one of the viewer's own files."""
        name = request.path_params["name"]
        found = await run_in_threadpool(static_file, name)
        if found is None:
            return PlainTextResponse("There is no such file.", 404)
        body, packed = found
        lasting = "v" in request.query_params  # the version is in the address: another one has another
        headers = {
            "cache-control": "public, max-age=31536000, immutable" if lasting else "no-cache",
            "content-encoding": "gzip" if packed else "identity",
            "x-content-type-options": "nosniff",
        }
        return Response(body, media_type=STATIC_TYPES[Path(name).suffix], headers=headers)

    async def upload(self, request: Request) -> Response:
        """Take one file of a batch; its name is in the query."""
        room = self._room(request)
        name = request.query_params.get("name", "")
        key = request.path_params["batch"]
        if room is None:
            return _refuse(STALE, 403)
        if not BATCH.fullmatch(key) or not name:
            return _refuse("This upload names no file. Reload the page and drop the files again.", 400)
        try:
            batch = room.batch(key, self._house.settings.max_upload_bytes)
            await _receive(request, batch, name)
        except InputError as error:
            return _refuse(f"{name}: {error.problem}. {error.remedy}", 413)
        except OSError as error:
            return _refuse(f"{name}: cannot be stored on the server ({error.strerror}). Free some space there.", 507)
        return JSONResponse({"files": len(batch.names)}, headers={"cache-control": "no-store"})

    async def drop(self, request: Request) -> Response:
        """Forget a batch whose upload was given up."""
        room = self._room(request)
        batch = room.take_batch(request.path_params["batch"]) if room is not None else None
        if batch is not None:
            await run_in_threadpool(batch.delete)
        return Response(status_code=204)

    async def jobs(self, request: Request) -> Response:
        """Tell how far the analyses of the room are."""
        room = self._room(request)
        if room is None:
            return _refuse(STALE, 403)
        office = self._house.office
        with room.lock:
            jobs = list(room.jobs.values())
        told = [
            {"id": j.id, "name": j.name, "over": j.over, "fraction": j.fraction, "text": j.told(office.before(j))}
            for j in jobs
        ]
        return JSONResponse({"jobs": told}, headers={"cache-control": "no-store"})

    async def cancel(self, request: Request) -> Response:
        """Stop an analysis."""
        room = self._room(request)
        job = room.jobs.get(request.path_params["job"]) if room is not None else None
        if job is None:
            return _refuse("This analysis is over already.", 404)
        job.cancel()
        return Response(status_code=204)

    async def scan(self, request: Request) -> Response:
        """Send slices first to last (the last not included) of a study, as the viewer shows them."""
        from hemolens.web.viewer.turning import slices_as_bytes

        room = self._room(request)
        study = room.studies.get(request.path_params["study"]) if room is not None else None
        if study is None:
            return _refuse("This study is closed. Open it again.", 404)
        first, last = request.path_params["first"], request.path_params["last"]
        if not 0 <= first < last <= len(study.volume):
            return _refuse("There are no such slices.", 404)
        body = await run_in_threadpool(slices_as_bytes, study, first, last)
        return Response(body, media_type="application/octet-stream", headers=dict(PRIVATE))

    async def shelf(self, request: Request) -> Response:
        """Send something that a page has laid out for its viewer."""
        room = self._room(request)
        item = room.shelf.get(request.path_params["name"]) if room is not None else None
        if item is None:
            return _refuse("This is not there any more. Reload the page.", 404)
        try:
            body = await run_in_threadpool(item.make)
        except HemolensError as error:
            return _refuse(str(error), 422)
        encoding = "gzip" if item.packed else "identity"
        return Response(body, media_type=item.media_type, headers={**PRIVATE, "content-encoding": encoding})


def static_file(name: str) -> tuple[bytes, bool] | None:
    """Return a file of the viewer and whether it is gzipped; None if there is none of that name."""
    if "/" in name or "\\" in name or name.startswith(".") or Path(name).suffix not in STATIC_TYPES:
        return None
    folder = resources.files("hemolens.web.viewer") / "static"
    for candidate, packed in ((name, False), (f"{name}.gz", True)):
        path = folder / candidate
        if path.is_file():
            return path.read_bytes(), packed
    return None


async def _receive(request: Request, batch: Batch, name: str) -> None:
    """Write the body to the batch's folder as it comes in."""
    announced = int(request.headers.get("content-length") or 0)
    if announced > batch.limit - batch.received:
        raise InputError("upload", f"is larger than {batch.limit / GIB:.3g} GiB", "Drop the head series alone.")
    await run_in_threadpool(batch.require_space, announced)
    path = await run_in_threadpool(batch.place, name)
    whole = False
    try:
        with path.open("wb") as file:
            async for chunk in request.stream():
                batch.count(len(chunk))
                await run_in_threadpool(file.write, chunk)
        whole = True
    finally:
        if not whole:  # too large, or the tab was closed half-way
            batch.forget(path)


def _refuse(line: str, status: int) -> Response:
    return JSONResponse({"error": " ".join(line.split())}, status_code=status, headers={"cache-control": "no-store"})
