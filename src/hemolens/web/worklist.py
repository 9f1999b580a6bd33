"""The worklist of the PACS service in the web app: from its queue, or from its HTTP API on another machine."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import streamlit as st

from hemolens.errors import HemolensError, InputError, OutputError
from hemolens.measurements.findings import format_amount
from hemolens.web.components import repeat
from hemolens.web.findings import table
from hemolens.web.session import settings

REFRESH_S = 10.0
TIMEOUT_S = 5.0
LARGEST = 64 * 2**20
URGENCY_WORDS = {
    "positive": "Hemorrhage likely", "no_answer": "No answer: look yourself", "waiting": "Being analyzed",
    "negative": "Hemorrhage unlikely",
}  # fmt: skip
MOST = 100


@dataclass(frozen=True)
class Row:
    """One study on the worklist. Names no patient."""

    job: str
    urgency: str
    """``positive``, ``no_answer``, ``waiting`` or ``negative``."""
    study_uid: str
    probability: float | None
    volume_ml: float | None
    waiting_s: float
    error: str
    partial: bool


class Source(Protocol):
    """Where a worklist comes from."""

    def rows(self) -> list[Row]:
        """Return the studies, the most urgent first."""
        ...

    def files(self, job: str) -> Path | None:
        """Return the folder that holds the images of a job's series on this machine, or None."""
        ...


class QueueSource:
    """The queue itself, on this machine.

    Parameters
    ----------
    config
        Configuration file of `hemolens pacs serve`.
    """

    def __init__(self, config: Path) -> None:
        self.config = config

    def rows(self) -> list[Row]:
        """See `Source.rows`."""
        from hemolens.pacs.config import load_pacs_config
        from hemolens.pacs.queue import open_queue
        from hemolens.pacs.worklist import ordered

        with closing(open_queue(load_pacs_config(self.config).queue_url)) as queue:
            entries = ordered(queue.worklist(limit=5 * MOST), queue.now())
        return [
            Row(
                e.job.id, e.urgency.word, e.study_uid, e.job.probability, e.job.volume_ml, e.waiting_s, e.job.error,
                bool(e.job.partial),
            )
            for e in entries[:MOST]
        ]  # fmt: skip

    def files(self, job: str) -> Path | None:
        """See `Source.files`."""
        from hemolens.pacs.config import load_pacs_config
        from hemolens.pacs.queue import open_queue

        config = load_pacs_config(self.config)
        with closing(open_queue(config.queue_url)) as queue:
            found = queue.job(job)
            kept = queue.instances(found.series_uid) if found is not None else []
        if not kept:
            return None
        path = Path(config.spool.path) / kept[0].path
        return path.parent if path.exists() else None

    def finished(self) -> list[tuple[Path, str, Path | None]]:
        """Return of each finished analysis its ``findings.json``, a name, and its images."""
        from hemolens.pacs.config import load_pacs_config
        from hemolens.pacs.queue import JobState, open_queue

        config = load_pacs_config(self.config)
        with closing(open_queue(config.queue_url)) as queue:
            jobs = [job for job in queue.worklist(limit=5 * MOST) if job.state is JobState.DONE and job.findings_path]
        root = Path(config.spool.path)
        return [(root / job.findings_path, f"Study …{job.study_uid[-12:]}", self.files(job.id)) for job in jobs]


class ApiSource:
    """The HTTP API of the service.

    Parameters
    ----------
    url
        Such as ``http://127.0.0.1:8080``; a token may stand in front of the host, as in ``https://:TOKEN@host:8080``.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InputError(url.rpartition("@")[2], "is no address of a PACS service", "Give http://HOST:PORT.")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.base = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
        self.token = urllib.parse.unquote(parts.password or "")

    def rows(self) -> list[Row]:
        """See `Source.rows`."""
        told = self._get(f"/api/v1/worklist?limit={MOST}")
        try:
            return [
                Row(
                    str(e["job"]["id"]), str(e["urgency"]), str(e["study_uid"]), e["job"]["probability"],
                    e["job"]["volume_ml"], float(e["waiting_s"]), str(e["job"]["error"]), bool(e["job"]["partial"]),
                )
                for e in told["entries"]
            ]  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(self.base, "answers in a form that is not known", "Use the same version there.") from error

    def files(self, job: str) -> Path | None:
        """See `Source.files`: images of another machine are not at hand."""
        return None

    def _get(self, path: str) -> Any:
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(f"{self.base}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read(LARGEST))
        except urllib.error.HTTPError as error:
            remedy = "Put its token into the address: https://:TOKEN@HOST:PORT." if error.code in {401, 403} else ""
            raise OutputError(f"{self.base}: the PACS service answers {error.code}. {remedy}".strip()) from error
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self.base}: the PACS service does not answer. Start it (hemolens pacs serve), or check the address."
            ) from error


def open_source(told: str) -> Source:
    """Return where the worklist comes from: a configuration file or a URL."""
    return ApiSource(told) if "://" in told else QueueSource(Path(told))


def finished(told: str) -> list[tuple[Path, str, Path | None]]:
    """Return the finished analyses of a service on this machine: each one's findings, a name, and its images."""
    source = open_source(told)
    return source.finished() if isinstance(source, QueueSource) else []


def table_rows(rows: Sequence[Row]) -> Sequence[tuple[str, ...]]:
    """Return the table's cells."""
    cells = []
    for place, row in enumerate(rows, start=1):
        word = URGENCY_WORDS.get(row.urgency, row.urgency)
        chance = "–" if row.probability is None else f"{row.probability:.2f}"
        volume = "–" if row.volume_ml is None else format_amount(row.volume_ml, "ml")
        remark = row.error or ("incomplete: part of the scan is missing" if row.partial else "")
        cells.append((str(place), word, chance, volume, waited(row.waiting_s), f"…{row.study_uid[-12:]}", remark))
    return cells


def waited(seconds: float) -> str:
    """Write a time for people: ``4 min``, ``2 h 10 min``, ``3 days``."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def show(ui: Any) -> None:
    """Draw the page."""
    told = settings().pacs
    if told is None:
        ui.info(
            "To see the worklist of a PACS service here, start the app with its settings or its address: "
            "`hemolens web --pacs pacs.toml`."
        )
        return
    _watched(told)


@st.fragment
def _watched(told: str) -> None:
    repeat(REFRESH_S, key="worklist-clock")
    try:
        source = open_source(told)
        rows = source.rows()
    except HemolensError as error:
        st.error(str(error))
        return
    if not rows:
        st.info("Nothing has arrived yet. Send a head CT to the service; it appears here by itself.")
        return
    st.markdown(table(("Place", "Answer", "Probability", "Volume", "Waiting", "Study", "Remark"), table_rows(rows)))
    st.caption(f"The most urgent first; read again every {REFRESH_S:.0f} seconds. Studies are named by their UID.")
    names = {row.job: f"{place}. {URGENCY_WORDS.get(row.urgency, row.urgency)}" for place, row in enumerate(rows, 1)}
    job = st.selectbox("Study to open", list(names), format_func=lambda one: names[one], key="worklist-job")
    if st.button("Open it in the viewer", type="primary", key="worklist-open"):
        _open(source, next(row for row in rows if row.job == job))


def _open(source: Source, row: Row) -> None:
    folder = source.files(row.job)
    if folder is None:
        st.warning(
            "Its images are not on this machine. Open the viewer of your PACS, or run the app beside the service."
        )
        return
    from hemolens.web.uncertain import analyze_there

    analyze_there(folder, f"Study …{row.study_uid[-12:]}", "pacs")
