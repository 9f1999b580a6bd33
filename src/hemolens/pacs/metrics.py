"""What Prometheus reads: the text format 0.0.4, made from the queue's own counts. No label names a patient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hemolens import __version__
from hemolens.pacs.queue import Job, JobState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.5, 0.9, 0.99)
NEWEST = 200
"""Results that the turnaround is computed from."""

GROUPS = (
    ("series.", "hemolens_series", "state", "Series by state"),
    ("jobs.", "hemolens_jobs", "state", "Analyses by state"),
    ("deliveries.", "hemolens_deliveries", "state", "Deliveries of results by state"),
)
ALONE = {
    "instances": ("hemolens_instances", "Instances that are kept"),
    "instances.bytes": ("hemolens_instances_bytes", "Size of the instances that are kept"),
    "conflicts": ("hemolens_conflicts", "Instances kept aside, as others had their UID"),
    "jobs.oldest_queued_s": ("hemolens_jobs_oldest_queued_seconds", "Age of the oldest analysis that waits"),
    "deliveries.oldest_queued_s": (
        "hemolens_deliveries_oldest_queued_seconds",
        "Age of the oldest delivery that waits",
    ),
    "deliveries.uncommitted": ("hemolens_deliveries_uncommitted", "Deliveries that wait for storage commitment"),
}


def exposition(counts: Mapping[str, float], jobs: Sequence[Job], spool: Mapping[str, float]) -> str:
    """Return the page of metrics.

    Parameters
    ----------
    counts
        From the queue.
    jobs
        The newest ones, for the turnaround.
    spool
        ``used_bytes``, ``quota_bytes`` and ``free_bytes``.
    """
    lines = [
        *_family("hemolens_info", "Version of hemolens", [(f'{{version="{_escaped(__version__)}"}}', 1)]),
        *_counts(counts),
        *_turnaround(jobs),
        *_last(jobs),
    ]
    for name, value in spool.items():
        what = name.removesuffix("_bytes")
        lines += _family(f"hemolens_spool_{name}", f"Bytes of the spool: {what}", [("", value)])
    return "\n".join([*lines, ""])


def turnarounds(jobs: Iterable[Job]) -> list[float]:
    """Return the seconds from the last image to the result of those that are done, shortest first."""
    done = (j for j in jobs if j.state is JobState.DONE and j.finished is not None)
    return sorted(max(0.0, j.finished - j.received_last) for j in done if j.finished is not None)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank quantile of sorted values; NaN of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def _counts(counts: Mapping[str, float]) -> Iterator[str]:
    for prefix, name, label, text in GROUPS:
        states = {k.removeprefix(prefix): v for k, v in counts.items() if k.startswith(prefix) and k not in ALONE}
        yield from _family(name, text, [(f'{{{label}="{_escaped(k)}"}}', v) for k, v in sorted(states.items())])
    for key, (name, text) in ALONE.items():
        if key in counts:
            yield from _family(name, text, [("", counts[key])])


def _turnaround(jobs: Sequence[Job]) -> Iterator[str]:
    values = turnarounds(jobs)
    told = [(f'{{quantile="{share}"}}', quantile(values, share)) for share in QUANTILES]
    text = f"Seconds from the last image to the result, of up to {NEWEST} newest"
    yield from _family("hemolens_turnaround_seconds", text, told)


def _last(jobs: Sequence[Job]) -> Iterator[str]:
    finished = [j.finished for j in jobs if j.finished is not None]
    if finished:
        yield from _family(
            "hemolens_last_finished_timestamp_seconds", "When an analysis ended last", [("", max(finished))]
        )


def _family(name: str, text: str, samples: Sequence[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}."
    yield f"# TYPE {name} gauge"
    for labels, value in samples:
        yield f"{name}{labels} {_number(value)}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
