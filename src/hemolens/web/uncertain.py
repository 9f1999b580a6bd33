"""Which scan to look at first, where a correction teaches most: what the network is least sure of.

The score of a scan runs from 0 (sure) to 1. It is the entropy of its probability of any hemorrhage, measured from the
decision threshold, or that of its least certain slices, whichever is larger; an interval that spans the threshold
counts as full doubt, and so does an answer that contradicts its own outlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from hemolens.errors import HemolensError
from hemolens.measurements.findings import Findings
from hemolens.sources.study import ReadOptions
from hemolens.web import session
from hemolens.web.findings import log_odds, slices_told, table
from hemolens.web.session import Origin, Study

if TYPE_CHECKING:
    from hemolens.web.earlier import Earlier

SLICES = 3
"""Least certain slices that speak for a scan."""
MOST_ROWS = 50
LESION_DOUBT = (0.3, 0.7)
"""A lesion of a confidence between these is named as a reason."""


@dataclass(frozen=True)
class Doubt:
    """How uncertain a scan is, and why."""

    score: float
    """0 to 1."""
    reasons: tuple[str, ...]
    slices: tuple[int, ...]
    """The least certain ones, least certain first."""


def entropy(chance: float, threshold: float) -> float:
    """Return the binary entropy of a probability in bits, moved so that the threshold has 1."""
    shifted = 1 / (1 + np.exp(-(log_odds(chance) - log_odds(threshold))))
    held = float(np.clip(shifted, 1e-9, 1 - 1e-9))
    return float(-(held * np.log2(held) + (1 - held) * np.log2(1 - held)))


def doubt(findings: Findings) -> Doubt:
    """Return how uncertain a scan is."""
    score, chances = findings.study, [s.probability["any"] for s in findings.slices]
    slice_doubts = np.array([entropy(chance, 0.5) for chance in chances])
    least = [int(k) for k in np.argsort(-slice_doubts, kind="stable")[:SLICES]]
    told: list[tuple[float, str]] = []
    chance = score.probability["any"]
    told.append((entropy(chance, score.threshold), f"probability {chance:.2f}, threshold {score.threshold:.2f}"))
    if score.uncertain and score.uncertain_band is not None:
        low, high = score.uncertain_band
        told.append((1.0, f"in the band of doubt, {low:.2f} to {high:.2f}"))
    if score.interval is not None and score.interval[0] < score.threshold <= score.interval[1]:
        low, high = score.interval
        told.append((1.0, f"the interval {low:.2f} to {high:.2f} spans the threshold {score.threshold:.2f}"))
    named = slices_told(tuple(sorted(findings.slices[k].index for k in least)))
    told.append((float(slice_doubts[least].mean()), f"unsure on {named}"))
    if findings.positive != bool(findings.lesions):
        said = (
            "called positive, yet nothing is outlined"
            if findings.positive
            else "called negative, yet blood is outlined"
        )
        told.append((1.0, said))
    faint = [n for n in findings.lesions if LESION_DOUBT[0] <= n.probability <= LESION_DOUBT[1]]
    if faint:
        share = max(entropy(n.probability, 0.5) for n in faint)
        told.append((0.8 * share, f"{len(faint)} of {len(findings.lesions)} lesions with a confidence near 0.5"))
    told.sort(key=lambda reason: -reason[0])
    reasons = tuple(text for value, text in told if value >= 0.5)
    return Doubt(min(told[0][0], 1.0), reasons, tuple(findings.slices[k].index for k in least))


def ranked(studies: Sequence[Study]) -> list[tuple[Study, Doubt]]:
    """Return studies with the least certain first; those that were corrected come last."""
    found = [(study, doubt(study.findings)) for study in studies]
    return sorted(found, key=lambda pair: (pair[0].corrected, -pair[1].score))


def show(ui: Any) -> None:
    """Draw the page."""
    ui.markdown(
        "Correcting what the network is least sure of teaches it most. Begin on top: open a scan, correct it, and add "
        "it to the training folder."
    )
    found = ranked(session.studies(st.session_state))
    if found:
        _open_scans(found, ui)
    earlier = _earlier([study for study, _ in found], ui)
    if not found and not earlier:
        ui.info(
            "No scan is open. Open some on the page **Open**; they are sorted here by themselves. Earlier results are "
            "sorted, too: start the app with their folder, `hemolens web --results DIR`, or with a PACS service."
        )


def _open_scans(found: list[tuple[Study, Doubt]], ui: Any) -> None:
    rows = [
        (
            str(place),
            study.name,
            f"{told.score:.2f}",
            "; ".join(told.reasons) or "sure",
            "yes" if study.corrected else "no",
        )
        for place, (study, told) in enumerate(found, start=1)
    ]
    ui.markdown("### Open scans")
    ui.markdown(table(("Place", "Scan", "Uncertainty", "Why", "Corrected"), rows))
    for place, (study, told) in enumerate(found, start=1):
        name = f"{place}. {study.name}"
        if ui.button(f"Correct {name}", key=f"uncertain-{study.id}", icon=":material/brush:"):
            session.choose(st.session_state, study)
            if told.slices:
                session.go_to(st.session_state, study, told.slices[0])
            open_page("correct")


def _earlier(open_ones: Sequence[Study], ui: Any) -> bool:
    """List results that are not open; return whether there are any."""
    from hemolens.web.earlier import find_results, read_results
    from hemolens.web.worklist import finished

    told = session.settings()
    sources = [(f"Results in {folder}", find_results(folder)) for folder in (told.results, told.keep) if folder]
    if told.pacs is not None:
        try:
            sources.append(("Worklist", read_results(finished(told.pacs))))
        except HemolensError as error:
            ui.error(str(error))
    given = [(study.origin, study.findings.input.path_or_uid, study.findings.created) for study in open_ones]
    uids, analyses = {name for _, name, _ in given}, {(name, created) for _, name, created in given}
    paths = {Path(name) for origin, name, _ in given if origin != "upload"}
    any_found = False
    for title, results in sources:
        rest = [one for one in results if not one.is_open(uids, paths, analyses)]
        if rest:
            any_found = True
            ui.markdown(f"### {title}")
            _results(rest, title, ui)
    return any_found


def _results(results: Sequence[Earlier], title: str, ui: Any) -> None:
    shown = results[:MOST_ROWS]
    rows = [
        (str(place), one.name, f"{one.doubt.score:.2f}", "; ".join(one.doubt.reasons) or "sure")
        for place, one in enumerate(shown, start=1)
    ]
    ui.markdown(table(("Place", "Result", "Uncertainty", "Why"), rows))
    if len(results) > len(shown):
        ui.caption(f"{len(results) - len(shown)} more are surer than these.")
    by_name = {one.name: one for one in shown}
    chosen = by_name[ui.selectbox("Scan to open", list(by_name), key=f"earlier-{title}")]
    if chosen.scan is not None:
        if ui.button("Open it for correction", icon=":material/brush:", key=f"earlier-open-{title}"):
            analyze_there(chosen.scan, chosen.name, options=chosen.options)
        return
    ui.info(chosen.remedy)
    if ui.button("Go to the page Open", icon=":material/folder_open:", key=f"earlier-drop-{title}"):
        open_page("start")


def analyze_there(scan: Path, name: str, origin: Origin = "path", options: ReadOptions | None = None) -> None:
    """Analyze a scan that lies on this machine, and go where its progress is shown."""
    from hemolens.web.house import house
    from hemolens.web.jobs import Order

    order = Order(name, scan, options or ReadOptions(), origin=origin)
    house().office.submit(session.room(st.session_state), order)
    open_page("start")


def open_page(path: str) -> None:
    """Go to a page of the app; where there is none, as in a test of one page, stay."""
    from hemolens.web.shell import pages

    page = pages().get(path)
    if page is not None:
        st.switch_page(page)
