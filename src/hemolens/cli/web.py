"""`hemolens web`: the viewer in the browser."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from hemolens.cli import exits
from hemolens.cli.exits import WrongUsage
from hemolens.cli.options import Debug, ModelName, Runtime, RuntimeName, Threads

FIRST_PORT = 8501
TRIED_PORTS = 20

Port = Annotated[
    int | None,
    typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on (8501, or the next that is free)."),
]
Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; the default is this machine alone.")
]
Keep = Annotated[
    Path | None,
    typer.Option("--keep", metavar="DIR", help="Keep the results of every scan here; by default nothing is kept."),
]
Runs = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="Folder of training runs for the training page.")
]
Results = Annotated[
    Path | None,
    typer.Option("--results", metavar="DIR", help="Folder of earlier results, to rank the most uncertain first."),
]
Pacs = Annotated[
    str | None,
    typer.Option("--pacs", metavar="CONFIG|URL", help="PACS service for the worklist: its configuration or address."),
]
MaxUpload = Annotated[
    float, typer.Option("--max-upload", metavar="GIB", help="Largest upload that is taken, in GiB (4).")
]


def web(
    port: Port = None,
    host: Host = "127.0.0.1",
    keep: Keep = None,
    runs: Runs = None,
    results: Results = None,
    pacs: Pacs = None,
    model: ModelName = None,
    runtime: RuntimeName = Runtime.AUTO,
    threads: Threads = None,
    max_upload: MaxUpload = 4.0,
    debug: Debug = False,
) -> None:
    """Look at scans, question the findings and correct them in the browser.

    Listens on this machine only unless --host says otherwise, sends nothing anywhere, and keeps nothing on disk unless
    --keep says so.
    """
    if not 0 < max_upload <= 64:
        raise WrongUsage("web", "--max-upload must be a number of GiB above 0 and at most 64.")
    for name, folder in (("--runs", runs), ("--results", results)):
        if folder is not None and not folder.is_dir():
            raise WrongUsage("web", f"{name}: there is no folder {folder}.")

    from hemolens.errors import OutputError
    from hemolens.inference.registry import load_model
    from hemolens.web.house import GIB, WebSettings
    from hemolens.web.server import is_loopback, serve

    load_model(model)  # a wrong name is told now, not at the first scan
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{keep}: this folder cannot be made ({error.strerror}). Name another with --keep."
            ) from error
    settings = WebSettings(
        keep=keep,
        runs=runs,
        results=results,
        pacs=pacs,
        model=model,
        runtime=runtime.value,
        threads=threads,
        max_upload_bytes=int(max_upload * GIB),
    )
    chosen = free_port(host, port)
    if not is_loopback(host):
        exits.say("everybody who can reach this address may use it: there is no login. Put a proxy with one before it.")
    shown = f"[{host}]" if ":" in host else host
    print(f"hemolens: open http://{shown}:{chosen} in a browser; Ctrl-C stops it. Research use only.", file=sys.stderr)
    serve(settings, host=host, port=chosen)


def free_port(host: str, port: int | None) -> int:
    """Return the port to listen on: the one that was asked for, or the first that is free.

    Raises
    ------
    WrongUsage
        If it cannot be had.
    """
    wanted = [port] if port is not None else list(range(FIRST_PORT, FIRST_PORT + TRIED_PORTS))
    reason = ""
    for one in wanted:
        try:
            family = socket.getaddrinfo(host, one, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, one))
                found: int = probe.getsockname()[1]
                return found
        except OSError as error:
            reason = error.strerror or str(error)
    ports = str(wanted[0]) if len(wanted) == 1 else f"{wanted[0]} to {wanted[-1]}"
    raise WrongUsage("web", f"cannot listen on {host}, port {ports}: {reason}. Name another with --port or --host.")
