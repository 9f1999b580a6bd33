"""`hemolens pacs`: the service that answers a PACS, and what an operator asks of it."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemolens.cli.exits import DONE, PARTIAL, WrongUsage, say

if TYPE_CHECKING:
    from hemolens.pacs.config import PacsConfig

pacs = typer.Typer(help="Receive head CTs from a PACS and send results back.", no_args_is_help=True)

Config = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="TOML file of the settings (docs/reference/pacs.md).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
DEFAULT = Path("pacs.toml")


class PullMethod(StrEnum):
    """How images are fetched."""

    GET = "get"
    MOVE = "move"
    WEB = "web"


def load(path: Path) -> PacsConfig:
    """Read the settings."""
    from hemolens.pacs.config import load_pacs_config

    if path == DEFAULT and not path.exists():
        raise WrongUsage("pacs serve", "There is no pacs.toml here: name the file of settings with --config.")
    return load_pacs_config(path)


@pacs.command()
def serve(config: Config = DEFAULT, debug: Debug = False) -> None:
    """Run the service until Ctrl-C or SIGTERM. Logs go to standard error, one JSON object a line."""
    settings = load(config)
    from hemolens.pacs.service import serve as run

    listener = settings.listener
    where = f"{listener.ae_title}@{listener.host}:{listener.port}"

    def ready() -> None:
        print(f"Research use only. Not a medical device.\nTaking head CTs as {where}.", flush=True)
        if settings.api.enabled:
            scheme = "https" if settings.api.tls else "http"
            print(f"Worklist: {scheme}://{settings.api.host}:{settings.api.port}/", flush=True)

    try:
        run(settings, ready)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


@pacs.command()
def status(config: Config = DEFAULT, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what waits, what is done, what failed and the dead letters."""
    from hemolens.pacs.queue import DeliveryState, JobState, open_queue

    settings = load(config)
    with closing(open_queue(settings.queue_url)) as queue:
        counts = dict(queue.counts())
        bad = [job for job in queue.worklist(1000) if job.state in {JobState.FAILED, JobState.DEAD}]
        letters = [d for s in (DeliveryState.DEAD, DeliveryState.FAILED) for d in queue.deliveries(state=s)]
    jobs: list[dict[str, str]] = [{"id": j.id, "state": str(j.state), "error": j.error} for j in bad]
    dead: list[dict[str, str]] = [
        {"id": d.id, "job": d.job_id, "destination": d.destination, "state": str(d.state), "error": d.error}
        for d in letters
    ]
    if as_json:
        print(json.dumps({"counts": counts, "jobs": jobs, "deliveries": dead}, indent=2))
        return
    for name, value in counts.items():
        print(f"{name:<28}{value:>12.0f}")
    for entry in (*jobs, *dead):
        print(f"{entry['id']}  {entry['state']}  {entry.get('destination', 'analysis')}: {entry['error']}")


@pacs.command()
def retry(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As 'pacs status' shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that failed or is dead.")] = False,
    config: Config = DEFAULT,
    debug: Debug = False,
) -> None:
    """Try failed analyses and dead letters again."""
    from hemolens.pacs.queue import open_queue

    if bool(ids) == everything:
        raise WrongUsage("pacs retry", "Name what to try again, or give --all.")
    settings = load(config)
    with closing(open_queue(settings.queue_url)) as queue:
        done = queue.retry(None if everything else ids)
    print(f"{done} queued again")


@pacs.command()
def pull(
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="First day: 2026-03-01, or back from now: 36h, 7d.")
    ],
    source: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="Destination to fetch from (default: the only one).")
    ] = None,
    until: Annotated[str, typer.Option("--until", metavar="WHEN", help="Last day (default: today).")] = "0h",
    method: Annotated[
        PullMethod | None,
        typer.Option("--method", help="get or move for a DICOM peer, web for DICOMweb (default: get or web)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Fetch no more than N series.")
    ] = None,
    config: Config = DEFAULT,
    debug: Debug = False,
) -> None:
    """Fetch CT series of some days that are not kept yet from an archive, for 'pacs serve' to analyze.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some series could not be fetched.
    """
    from hemolens.pacs.pull import parse_since
    from hemolens.pacs.pull import pull as run
    from hemolens.pacs.queue import open_queue
    from hemolens.pacs.spool import Spool, short_hash

    settings = load(config)
    if source is None:
        if len(settings.destinations) != 1:
            raise WrongUsage("pacs pull", "There is not exactly one destination in the settings: name one with --from.")
        source = settings.destinations[0].name
    span = (parse_since(since, datetime.now()), parse_since(until, datetime.now()))
    if span[0] > span[1]:
        raise WrongUsage("pacs pull", "--since lies after --until.")
    spool = Spool(settings.spool.path, settings.spool.quota_gb, settings.spool.min_free_gb)
    with closing(open_queue(settings.queue_url)) as queue:
        report = run(settings, queue, spool, source, span, method.value if method else None, limit)
    print(f"{report.series} CT series of {report.studies} studies found, {report.known} of them kept before")
    print(f"{report.pulled} series fetched, {report.instances} new images")
    for uid, why in report.failed.items():
        say(f"series {short_hash(uid)}: {why}")
    raise typer.Exit(PARTIAL if report.failed else DONE)


@pacs.command()
def purge(
    days: Annotated[
        float | None, typer.Option("--days", metavar="N", min=0.0, help="Age to purge from (default: the settings').")
    ] = None,
    config: Config = DEFAULT,
    debug: Debug = False,
) -> None:
    """Remove scans and results that were delivered, or ignored, at least N days ago. Numbers stay in the list."""
    from hemolens.pacs.queue import open_queue
    from hemolens.pacs.retention import purge as run
    from hemolens.pacs.spool import Spool

    settings = load(config)
    with closing(open_queue(settings.queue_url)) as queue:
        done = run(queue, Spool(settings.spool.path), settings.spool.retention_days if days is None else days)
    print(f"{done} series purged at {datetime.now():%Y-%m-%d %H:%M}")
