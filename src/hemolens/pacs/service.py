"""The supervisor: starts each part as a process of its own, and starts it again when it dies.

Each part loads only what it needs, so that it is back soon.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from hemolens.errors import ConfigError, HemolensError, QueueError
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.logs import log_to_stderr
from hemolens.pacs.queue import open_queue
from hemolens.pacs.retention import purge, recover
from hemolens.pacs.security import (
    check_dicom_port,
    check_http_port,
    client_context,
    read_secret,
    server_context,
)
from hemolens.pacs.spool import Spool

LOGGER = logging.getLogger("hemolens.pacs.service")
LOOK_S = 0.2
COLLECT_S = 1.0
PURGE_EVERY_S = 600.0
GRACE_S = 15.0
"""Time that the parts have to end by themselves."""
LONGEST_PAUSE_S = 30.0
KILLED_PAUSE_S = 0.5
PRELOAD = ("hemolens.pacs.listener", "hemolens.pacs.sender", "hemolens.pacs.worker", "hemolens.pacs.webhook")
SOON_S = 10.0
"""A part that dies sooner after its start is given a pause before the next."""


@dataclass
class Part:
    """One process of the service."""

    role: str
    process: BaseProcess | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = field(default=0.0)


def serve(config: PacsConfig, ready: Callable[[], None] = lambda: None) -> None:
    """Run the service until this process is told to end by SIGTERM or Ctrl-C (`KeyboardInterrupt`).

    Parameters
    ----------
    config
        The settings.
    ready
        Called when the listener takes connections.

    Raises
    ------
    HemolensError
        If a setting, the queue, the spool, the model or a port does not allow to start.
    """
    check(config)
    log_to_stderr("supervisor")
    parts = [Part(role) for role in roles(config)]
    try:
        told = False
        while True:
            for part in parts:
                _tend(part, config)
            if not told and _answers(config):
                LOGGER.info("listening on port %d", config.listener.port)
                told = True
                ready()
            time.sleep(LOOK_S)
    finally:
        _end(parts)


def roles(config: PacsConfig) -> list[str]:
    """Return the names of the processes that a configuration asks for."""
    listeners = ["listener", *(f"listener-{number}" for number in range(2, config.listener.processes + 1))]
    workers = [f"worker-{number + 1}" for number in range(config.worker.processes)]
    return [*listeners, *workers, "sender", *(["api"] if config.api.enabled else [])]


def check(config: PacsConfig) -> None:
    """Find out whether the service can start, before any part of it does; finish a purge that was cut off.

    Raises
    ------
    HemolensError
        If it cannot.
    """
    from hemolens.pacs.completion import model_key

    check_dicom_port(config.listener.host, config.listener.allow, config.listener.tls)
    _check_free("listener", config.listener.host, config.listener.port)
    if config.api.enabled:
        check_http_port(config.api.host, config.api.token_file, config.api.tls)
        _check_free("api", config.api.host, config.api.port)
    _check_papers(config)
    model_key(config)
    spool = Spool(config.spool.path)
    with closing(open_queue(config.queue_url)) as queue:
        recover(queue, spool)


def _check_papers(config: PacsConfig) -> None:
    """Read every certificate, key and secret once: a part that finds one unusable could only die, again and again."""
    for server in (config.listener.tls, config.api.tls):
        if server is not None:
            server_context(server)
    for destination in config.destinations:
        if destination.tls is not None:
            client_context(destination.tls)
    if config.webhook.url:
        read_secret(config.webhook.secret_file)


def _check_free(name: str, host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{name}: {host}:{port} cannot be opened ({reason}). Set {name}.host or {name}.port."
        ) from error


def _answers(config: PacsConfig) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.listener.host, config.listener.host)
    try:
        socket.create_connection((host, config.listener.port), timeout=1).close()
    except OSError:
        return False
    return True


def _tend(part: Part, config: PacsConfig) -> None:
    """Start a part that does not run."""
    now = time.monotonic()
    if part.process is not None and part.process.is_alive():
        return
    if part.process is not None:
        code = part.process.exitcode
        part.failures = part.failures + 1 if now - part.started < SOON_S else 0
        # What was killed from outside can go on; what failed by itself may fail again.
        longest = LONGEST_PAUSE_S if (code or 0) > 0 else KILLED_PAUSE_S
        part.not_before = now + (min(longest, 0.25 * 2.0**part.failures) if part.failures > 1 else 0.0)
        LOGGER.warning("%s ended (%s); it is started again", part.role, code)
        part.process = None
    if now < part.not_before:
        return
    part.process = _context().Process(target=run_part, args=(part.role, config), name=part.role)
    part.process.start()
    part.started = now
    LOGGER.info("%s started as process %d", part.role, part.process.pid)


def _context() -> Any:
    """Return what makes processes: not forks of this one, as the parts have threads and databases of their own.

    Where the system has it, they are forks of a process that has only loaded the code, and so are back in an instant.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return context


def _end(parts: list[Part]) -> None:
    running = [part.process for part in parts if part.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in running:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def run_part(role: str, config: PacsConfig) -> None:
    """Be one process of the service until told to end, or until the supervisor is gone."""
    log_to_stderr(role)
    warnings.simplefilter("ignore")
    stop = threading.Event()
    interrupt = role.startswith("worker")

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        if interrupt:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, daemon=True, name="parent").start()
    try:
        PARTS[role.split("-")[0]](config, stop)
    except KeyboardInterrupt:
        return
    except HemolensError as error:
        LOGGER.error("%s", error)
        raise SystemExit(1) from None


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _spool(config: PacsConfig) -> Spool:
    return Spool(config.spool.path, config.spool.quota_gb, config.spool.min_free_gb)


def run_listener(config: PacsConfig, stop: threading.Event) -> None:
    """Take instances."""
    from pynetdicom import _config

    from hemolens.pacs.listener import Listener

    # Its own log handlers build text for every message that nobody reads.
    _config.LOG_HANDLER_LEVEL = "none"
    with closing(open_queue(config.queue_url)) as queue:
        listener = Listener(config, queue, _spool(config))
        listener.start()
        # Ended associations leave cycles behind. What was imported is left out of collections: those take a few
        # milliseconds then and can come often, where Python would wait for a quarter more than there is.
        gc.collect()
        gc.freeze()
        while not stop.wait(COLLECT_S) and listener.alive:
            gc.collect()
        listener.stop()


def run_worker(config: PacsConfig, stop: threading.Event) -> None:
    """Analyze."""
    from hemolens.pacs.worker import make_tools, work

    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    with closing(open_queue(config.queue_url)) as queue:
        work(make_tools(config, queue, _spool(config), name), stop)


def run_sender(config: PacsConfig, stop: threading.Event) -> None:
    """Complete series, send results, call the webhook and purge: each in a thread."""
    from hemolens.pacs.sender import Courier
    from hemolens.pacs.webhook import run_webhook

    tasks: dict[str, Callable[[], None]] = {
        "completion": lambda: run_completion(config, stop),
        "retention": lambda: run_retention(config, stop),
    }
    for destination in config.destinations:
        queue = open_queue(config.queue_url)
        courier = Courier(config, destination, queue, _spool(config))
        tasks[f"to {destination.name}"] = lambda courier=courier: courier.run(stop)  # type: ignore[misc]
    if config.webhook.url:
        tasks["webhook"] = lambda: run_webhook(config, stop)
    run_together(tasks, stop)


def run_together(tasks: Mapping[str, Callable[[], None]], stop: threading.Event) -> None:
    """Run tasks in threads until told to stop; if one of them fails, all end.

    Raises
    ------
    QueueError
        If one failed, for the supervisor to start all of them again.
    """
    failed: list[str] = []

    def guarded(name: str, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - a thread's error must end the process, which is started again
            if not stop.is_set():
                told = str(error) if isinstance(error, HemolensError) else type(error).__name__
                failed.append(f"{name}: {told}")
                stop.set()

    threads = [
        threading.Thread(target=guarded, args=(name, task), name=name, daemon=True) for name, task in tasks.items()
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not stop.wait(0.5):
        pass
    for thread in threads:
        thread.join(timeout=5.0)
    if failed:
        raise QueueError(failed[0])


def run_completion(config: PacsConfig, stop: threading.Event) -> None:
    """Look for complete series until told to stop."""
    from hemolens.pacs.completion import Completion, model_key

    with closing(open_queue(config.queue_url)) as queue:
        completion = Completion(config, queue, model_key(config))
        while not stop.wait(config.completion.interval_s):
            _unless_queue_fails(completion.look)


def run_retention(config: PacsConfig, stop: threading.Event) -> None:
    """Purge now and then until told to stop."""
    spool = _spool(config)
    with closing(open_queue(config.queue_url)) as queue:
        while not stop.wait(min(PURGE_EVERY_S, config.spool.retention_days * 86400 / 4)):
            _unless_queue_fails(lambda: purge(queue, spool, config.spool.retention_days))


def _unless_queue_fails(step: Callable[[], object]) -> None:
    try:
        step()
    except QueueError as error:
        LOGGER.error("%s", error)


def run_http(config: PacsConfig, stop: threading.Event) -> None:
    """Serve the worklist."""
    from hemolens.pacs.api import run_api

    # The server has its own handling of SIGTERM.
    with suppress(KeyboardInterrupt):
        run_api(config)


PARTS: Mapping[str, Callable[[PacsConfig, threading.Event], None]] = {
    "listener": run_listener,
    "worker": run_worker,
    "sender": run_sender,
    "api": run_http,
}
"""Role → what it does."""
