"""The findings beside the viewer: the answer, how sure it is, every lesion with a jump to it, volumes, and caveats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import streamlit as st

from hemolens.labels import SUBTYPES
from hemolens.measurements.abc2 import MEANT_FOR, ROUGH_FOR, Abc2, abc2_by_lesion
from hemolens.measurements.findings import Findings, StudyScore, format_amount, summary_sentence, volume_told
from hemolens.notes import Severity
from hemolens.volume import LabelMap
from hemolens.web import session
from hemolens.web.saving import corrected_findings
from hemolens.web.session import Study

MOST_BUTTONS = 8
"""Lesions that are listed at once; the others are behind a fold."""
DOUBT_ODDS = 0.85
"""A probability whose log-odds lie closer than this to the threshold's is uncertain, interval or not: odds within a
factor of 2.3."""
SEVERITY_WORDS = {Severity.PARTIAL: "Incomplete", Severity.WARNING: "Caution", Severity.INFO: "Note"}
ABC2_HELP = (
    "ABC/2 is the bedside estimate (Kothari 1996): largest diameter × diameter across it × height / 2. It takes the "
    "bleed for an ellipsoid: meant for intraparenchymal bleeds, rough for epidural and subdural ones (~), not given "
    "for blood in furrows and ventricles. The volume beside it counts every outlined voxel."
)

Tone = Literal["positive", "negative", "uncertain"]


@dataclass(frozen=True)
class Answer:
    """The answer for the scan in words."""

    tone: Tone
    headline: str
    explained: str


@dataclass(frozen=True)
class LesionRow:
    """One lesion as it is listed."""

    id: int
    title: str
    """``1 · Intraparenchymal · 28.4 ml``."""
    details: str
    slice: int
    """With its largest cross-section."""


@dataclass(frozen=True)
class SubtypeRow:
    """One subtype in the table of volumes."""

    title: str
    probability: float
    lesions: int
    amount: str
    estimate: str
    """ABC/2, or a dash."""


def findings_now(study: Study) -> Findings:
    """Return the findings of the label map as it stands; measured again after each correction."""
    if not study.corrected:
        return study.findings
    kept = study.extras.get("findings")
    if kept is None or kept[0] != study.revision:
        kept = (study.revision, corrected_findings(study.findings, label_map_now(study), study.prediction))
        study.extras["findings"] = kept
    found: Findings = kept[1]
    return found


def label_map_now(study: Study) -> LabelMap:
    """Return the label map as it stands, with the network's edema where no blood was painted over it."""
    found = study.result.label_map
    if not study.corrected:
        return found
    edema = None if found.edema is None else np.asarray(found.edema & (study.labels == 0))
    return LabelMap(study.labels, study.volume, edema)


def answer(findings: Findings) -> Answer:
    """Say what was found and whether it is uncertain."""
    _, _, rest = summary_sentence(findings).partition(")")
    rest = rest.lstrip(":;, ")
    explained = rest[:1].upper() + rest[1:]
    doubt = reason_for_doubt(findings.study)
    if doubt:
        leaning = "leaning to hemorrhage" if findings.positive else "leaning to no hemorrhage"
        return Answer("uncertain", f"Uncertain, {leaning}", f"{doubt} {explained}")
    if findings.positive:
        return Answer("positive", "Hemorrhage likely", explained)
    return Answer("negative", "Hemorrhage unlikely", explained)


def reason_for_doubt(score: StudyScore) -> str:
    """Return why the answer is uncertain, as a sentence; empty where it is not.

    Where the model's card gives a band of doubt, that alone decides, as in every other output.
    """
    chance, threshold, interval = score.probability["any"], score.threshold, score.interval
    if score.uncertain_band is not None:
        low, high = score.uncertain_band
        told = f"From {low:.2f} to {high:.2f} neither answer is safe, by the model's validation scans"
        return f"The probability is {chance:.2f}. {told}: look at the scan yourself." if score.uncertain else ""
    if interval is not None and interval[0] < threshold <= interval[1]:
        return (
            f"The probability may truly lie anywhere from {interval[0]:.2f} to {interval[1]:.2f}, on either side of "
            f"the threshold {threshold:.2f}: look at the scan yourself."
        )
    if abs(log_odds(chance) - log_odds(threshold)) < DOUBT_ODDS:
        return f"The probability {chance:.2f} is close to the threshold {threshold:.2f}: look at the scan yourself."
    return ""


def log_odds(chance: float) -> float:
    """Return the log-odds of a probability, held within ±12."""
    held = float(np.clip(chance, 6e-6, 1 - 6e-6))
    return float(np.log(held / (1 - held)))


def lesion_rows(study: Study, findings: Findings, estimates: dict[int, Abc2]) -> list[LesionRow]:
    """Return every lesion, the largest first."""
    titles = {s.name: s.title for s in SUBTYPES}
    rows = []
    for lesion in findings.lesions:
        amount = format_amount(lesion.size, findings.total.unit)
        details = [
            slices_told(lesion.slices), f"confidence {lesion.probability:.2f}", f"mean {lesion.mean_hu:.0f} HU",
        ]  # fmt: skip
        estimate = _estimate(lesion.subtype, estimates.get(lesion.id))
        if estimate:
            details.append(f"ABC/2 {estimate}")
        areas = [int(np.count_nonzero(study.labels[k])) for k in lesion.slices]
        best = lesion.slices[int(np.argmax(areas))]
        if lesion.id in estimates:
            best = estimates[lesion.id].slice
        rows.append(
            LesionRow(lesion.id, f"{lesion.id} · {titles[lesion.subtype]} · {amount}", ", ".join(details), best)
        )
    return rows


def subtype_rows(findings: Findings, estimates: dict[int, Abc2]) -> list[SubtypeRow]:
    """Return every subtype with its volume beside the sum of its lesions' ABC/2."""
    rows = []
    for subtype in SUBTYPES:
        own = [lesion for lesion in findings.lesions if lesion.subtype == subtype.name]
        told = [estimates[lesion.id].volume_ml for lesion in own if lesion.id in estimates]
        estimate = "–"
        if told and subtype.name in MEANT_FOR | ROUGH_FOR:
            estimate = _sign(subtype.name) + format_amount(sum(told), "ml")
        amount = format_amount(findings.total.by_subtype[subtype.name], findings.total.unit) if own else "–"
        rows.append(SubtypeRow(subtype.title, findings.study.probability[subtype.name], len(own), amount, estimate))
    return rows


def slices_told(slices: tuple[int, ...]) -> str:
    """Write slices short, counted from 1 as the viewer does: ``slices 3–7, 9``."""
    runs: list[list[int]] = []
    for index in (k + 1 for k in slices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
    return f"slice {text}" if len(slices) == 1 else f"slices {text}"


def note_lines(findings: Findings) -> list[tuple[Severity, str]]:
    """Return the quality notes as sentences, the gravest first."""
    lines = []
    for severity, word in SEVERITY_WORDS.items():
        for note in findings.quality:
            if note.severity is severity:
                text = note.message.strip().rstrip(".")
                where = f" ({slices_told(note.slices)})" if note.slices else ""
                lines.append((severity, f"**{word}:** {text[:1].upper()}{text[1:]}{where}."))
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: real rows and columns for a screen reader."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def show(study: Study, ui: Any) -> None:
    """Draw the panel."""
    findings, estimates = findings_now(study), _estimates(study)
    told = answer(findings)
    box = {"positive": ui.error, "negative": ui.success, "uncertain": ui.warning}[told.tone]
    icon = {"positive": ":material/emergency:", "negative": ":material/check:", "uncertain": ":material/help:"}
    box(f"**{told.headline}.** {told.explained}", icon=icon[told.tone])
    _gauge(findings, ui)
    if study.corrected:
        ui.info("Lesions and volumes are those of your corrected outlines; probabilities are the network's.")
    _lesions(study, lesion_rows(study, findings, estimates), ui)
    ui.markdown("### Volume by subtype")
    rows = [
        (row.title, f"{row.probability:.2f}", str(row.lesions or "–"), row.amount, row.estimate)
        for row in subtype_rows(findings, estimates)
    ]
    ui.markdown(table(("Subtype", "Probability", "Lesions", "Volume", "ABC/2"), rows), help=ABC2_HELP)
    ui.caption(f"All blood: {volume_told(findings.total)}")
    _notes(findings, ui)


def _gauge(findings: Findings, ui: Any) -> None:
    score = findings.study
    chance = score.probability["any"]
    interval = f" (interval {score.interval[0]:.2f} to {score.interval[1]:.2f})" if score.interval else ""
    ui.progress(
        float(np.clip(chance, 0, 1)),
        text=f"Probability of any hemorrhage **{chance:.2f}**{interval}; called {score.decision} from "
        f"{score.threshold:.2f} on",
    )


def _lesions(study: Study, rows: list[LesionRow], ui: Any) -> None:
    ui.markdown("### Lesions")
    if not rows:
        ui.caption("No lesion is outlined. If you see one, outline it on the page **Correct**.")
        return
    ui.caption("Press one to see it in the viewer. Slices count from 1 here; in files the first has the index 0.")
    for row in rows[:MOST_BUTTONS]:
        _lesion(study, row, ui)
    if len(rows) > MOST_BUTTONS:
        fold = ui.expander(f"{len(rows) - MOST_BUTTONS} smaller lesions")
        for row in rows[MOST_BUTTONS:]:
            _lesion(study, row, fold)


def _lesion(study: Study, row: LesionRow, ui: Any) -> None:
    ui.button(
        row.title,
        key=f"lesion-{study.id}-{row.id}",
        on_click=session.go_to,
        args=(st.session_state, study, row.slice),
        width="stretch",
        help=f"Show slice {row.slice + 1}",
    )
    ui.caption(row.details)


def _notes(findings: Findings, ui: Any) -> None:
    lines = note_lines(findings)
    grave = [text for severity, text in lines if severity is not Severity.INFO]
    minor = [text for severity, text in lines if severity is Severity.INFO]
    ui.markdown("### Quality of the scan")
    if not lines:
        ui.caption("Nothing stands in the way of this result.")
    for text in grave:
        ui.warning(text)
    if minor:
        fold = ui.expander(f"{len(minor)} {'note' if len(minor) == 1 else 'notes'}: the result stands")
        for text in minor:
            fold.markdown(text)


def _estimates(study: Study) -> dict[int, Abc2]:
    kept = study.extras.get("abc2")
    if kept is None or kept[0] != study.revision:
        kept = (study.revision, abc2_by_lesion(study.label_map) if study.volume.has_volumes else {})
        study.extras["abc2"] = kept
    found: dict[int, Abc2] = kept[1]
    return found


def _estimate(subtype: str, estimate: Abc2 | None) -> str:
    if estimate is None or subtype not in MEANT_FOR | ROUGH_FOR:
        return ""
    return _sign(subtype) + format_amount(estimate.volume_ml, "ml")


def _sign(subtype: str) -> str:
    return "~" if subtype in ROUGH_FOR else ""
