"""``report.html``: one page that shows, measures and explains what was found; nothing in it is loaded from elsewhere.

Jinja escapes every string, since names, paths and descriptions come out of files. The only markup that passes
unescaped is made by `hemolens.reports.charts` and the page's own style sheet.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import Findings, format_amount, summary_sentence
from hemolens.measurements.lesions import MIN_LESION_ML, Lesion
from hemolens.notes import QualityNote, Severity, is_partial
from hemolens.reports.charts import gauge, slice_chart, subtype_bar
from hemolens.reports.figures import Illustrator, SlicePicture, key_slices, spread
from hemolens.reports.truth import Comparison, Pair, Truth, compare
from hemolens.volume import LabelMap, Volume

KEY_HEIGHT = 560
MONTAGE_HEIGHT = 200
MONTAGE_MOST = 40
"""Tiles; of longer scans every so-manieth slice is shown."""
SEVERITY_WORDS = {Severity.INFO: "Note", Severity.WARNING: "Caution", Severity.PARTIAL: "Incomplete"}
SEVERITY_ORDER = (Severity.PARTIAL, Severity.WARNING, Severity.INFO)
SUBTYPE_OF = {subtype.name: subtype for subtype in SUBTYPES}
KIND_WORDS = {"dicom": "DICOM series", "nifti": "NIfTI file", "images": "Slice images"}
AXIS_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))


def render_html(label_map: LabelMap, findings: Findings, truth: Truth | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    label_map
        The lesions, and with them the scan.
    findings
        What is told.
    truth
        Known lesions to set beside the found ones.
    """
    volume = label_map.volume
    comparison = None if truth is None else compare(label_map, findings.lesions, truth)
    illustrator = Illustrator(label_map, findings.lesions, truth=None if truth is None else truth.labels())
    order = _upward(volume)
    scores = np.array([s.probability["any"] for s in findings.slices])
    key = key_slices(illustrator.numbers, findings.lesions, scores)
    tiles = [order[i] for i in spread(len(order), MONTAGE_MOST)]
    environment = Environment(
        loader=PackageLoader("hemolens.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        f=findings,
        css=_style(),
        partial=is_partial(findings.quality),
        gauge=gauge(findings.study),
        bar=subtype_bar(findings) if findings.lesions else "",
        chart=slice_chart(findings.slices, key, order),
        key=[_picture(illustrator.picture(k, KEY_HEIGHT), findings, 22) for k in order if k in key],
        montage=[_picture(illustrator.picture(k, MONTAGE_HEIGHT), findings, 15) for k in tiles],
        montage_told=_montage_told(len(tiles), len(order)),
        display=_display(volume, illustrator),
        truth=_truth(comparison, findings) if comparison is not None else None,
        **_told(findings),
        scan=_scan(findings, volume),
        made=_made(findings, volume),
    )


def _style() -> Markup:
    # Our own file; a style sheet has no entities to escape.
    return Markup(files("hemolens.reports").joinpath("templates/report.css").read_text("utf-8"))


def _told(findings: Findings) -> dict[str, Any]:
    headline, _, _ = summary_sentence(findings).partition(" (")
    total = findings.total
    return {
        "headline": headline,
        "explained": _explained(findings),
        "px": total.unit == "px",
        "placed": any(lesion.centroid_mm is not None for lesion in findings.lesions),
        "created": datetime.fromisoformat(findings.created).strftime("%Y-%m-%d %H:%M %Z"),
        "facts": _facts(findings),
        "subtypes": [
            {
                "subtype": s,
                "probability": findings.study.probability[s.name],
                "lesions": sum(lesion.subtype == s.name for lesion in findings.lesions),
                "amount": format_amount(total.by_subtype[s.name], total.unit),
            }
            for s in SUBTYPES
        ],
        "lesions": [_lesion(lesion, total.unit) for lesion in findings.lesions],
        "lesion_note": _lesion_note(findings),
        "notes": [_note(n) for severity in SEVERITY_ORDER for n in findings.quality if n.severity == severity],
    }


def _explained(findings: Findings) -> str:
    """Return the summary sentence's second half as a sentence of its own."""
    sentence = summary_sentence(findings)
    rest = sentence.partition(")")[2].lstrip(":;, ")
    return rest[:1].upper() + rest[1:]


def _facts(findings: Findings) -> list[dict[str, str]]:
    total, lesions = findings.total, findings.lesions
    bloody = sum(bool(s.blood_area_mm2 or s.blood_area_px) for s in findings.slices)
    facts = [
        _fact("Blood outlined", *format_amount(total.size, total.unit).split(" ")),
        *_likely(findings),
        _fact("Lesions", str(len(lesions))),
        _fact("Slices with blood", str(bloody), f"of {len(findings.slices)}"),
    ]
    if findings.edema is not None and lesions:
        size = findings.edema.volume_ml if findings.edema.volume_ml is not None else findings.edema.area_px or 0
        facts.append(_fact("Edema around it", *format_amount(size, total.unit).split(" ")))
    if lesions:
        largest = lesions[0]
        amount, unit = format_amount(largest.size, total.unit).split(" ")
        facts.append(_fact("Largest lesion", amount, f"{unit}, {SUBTYPE_OF[largest.subtype].abbreviation}"))
    return facts


def _likely(findings: Findings) -> list[dict[str, str]]:
    """Tell the interval of the volume, where there is one."""
    if findings.total.volume_interval_ml is None:
        return []
    low, high = findings.total.volume_interval_ml
    return [_fact("80 % interval", f"{low:.1f} to {high:.1f}", "ml")]


def _fact(name: str, value: str, unit: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "unit": unit}


def _lesion(lesion: Lesion, unit: str) -> dict[str, Any]:
    extent = " × ".join("?" if v is None else f"{v:.0f}" for v in lesion.extent_mm) if lesion.extent_mm else ""
    return {
        "id": lesion.id,
        "subtype": SUBTYPE_OF[lesion.subtype],
        "amount": format_amount(lesion.size, unit),
        "confidence": f"{lesion.probability:.2f}",
        "hu": f"{lesion.mean_hu:.0f}",
        "extent": extent,
        "center": _place(lesion.centroid_mm) if lesion.centroid_mm else "",
        "slices": _ranges(lesion.slices),
    }


def _lesion_note(findings: Findings) -> str:
    total = findings.total
    left_out = total.left_out_ml if total.left_out_ml is not None else float(total.left_out_px or 0)
    text = (
        "Confidence is the mean probability of a lesion's surest tenth, at most that of any hemorrhage in its slices."
    )
    if any(lesion.extent_mm for lesion in findings.lesions):
        text += " Extent: along rows, columns and slice normal. Center: scanner coordinates."
    if left_out:
        rule = f" below {MIN_LESION_ML:g} ml" if total.unit == "ml" else " too small to count"
        text += f" Regions{rule} are left out: {format_amount(left_out, total.unit)} in all."
    return text


def _note(note: QualityNote) -> dict[str, str]:
    return {
        "severity": str(note.severity),
        "word": SEVERITY_WORDS[note.severity],
        "message": _sentence(note.message),
        "code": note.code,
        "slices": _ranges(note.slices),
    }


def _sentence(text: str) -> str:
    """Begin with a capital and end with a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _truth(comparison: Comparison, findings: Findings) -> dict[str, Any]:
    found_ml = findings.total.size
    told = f"The lesions of this scan are known. True volume {comparison.true_ml:.1f} ml, found {found_ml:.1f} ml"
    told += f"; Dice of all blood {comparison.dice:.2f}." if comparison.dice is not None else "."
    return {"told": told, "rows": [_truth_row(pair) for pair in comparison.pairs]}


def _truth_row(pair: Pair) -> dict[str, Any]:
    true, found = pair.true, pair.found
    difference = ""
    if true is not None and found and not pair.shared:
        change = pair.found_ml - true.volume_ml
        difference = f"{change:+.1f} ml ({100 * change / true.volume_ml:+.0f} %)"
    return {
        "true": SUBTYPE_OF[true.subtype] if true is not None else None,
        "true_ml": format_amount(true.volume_ml, "ml") if true is not None else "",
        "found": SUBTYPE_OF[found[0].subtype] if found else None,
        "numbers": ("part of " if pair.shared else "") + ", ".join(str(lesion.id) for lesion in found),
        "found_ml": format_amount(pair.found_ml, "ml") if found and not pair.shared else "",
        "difference": difference,
        "covered": "" if pair.covered is None else f"{100 * pair.covered:.0f} %",
        "distance": "" if pair.distance_mm is None or pair.shared else f"{pair.distance_mm:.1f} mm",
    }


def _picture(picture: SlicePicture, findings: Findings, letter: int) -> dict[str, Any]:
    score = findings.slices[picture.index]
    area = f"{score.blood_area_mm2:,.0f} mm²" if score.blood_area_mm2 is not None else f"{score.blood_area_px:,} px"
    told = f"probability {score.probability['any']:.2f}"
    if picture.outlines:
        told += f" · {area}"
    if score.source != str(picture.index):
        told += f" · {score.source}"
    shown = ", ".join(f"lesion {o.lesion} ({o.subtype.name})" for o in picture.outlines)
    return {
        "number": picture.index + 1,
        "data": base64.b64encode(picture.jpeg).decode("ascii"),
        "width": picture.width,
        "height": picture.height,
        "outlines": picture.outlines,
        "true_path": picture.true_path,
        "edema_path": picture.edema_path,
        "left": picture.view.left,
        "right": picture.view.right,
        "letter": letter,
        "told": told,
        "alt": f"CT slice {picture.index + 1}" + (f", outlined: {shown}" if shown else ", no blood outlined"),
    }


def _display(volume: Volume, illustrator: Illustrator) -> str:
    window = illustrator.window
    text = f"Window: level {window.level_hu:g}, width {window.width_hu:g} HU."
    if not illustrator.lesions:
        text = f"No blood was outlined; these are the slices with the highest probability. {text}"
    if volume.stack is None:
        return f"{text} Shown as given; which side is the patient's right is not known."
    return f"{text} L and R are the patient's left and right."


def _montage_told(shown: int, count: int) -> str:
    text = "From the lowest slice to the highest, numbered from 1; findings.json counts from 0."
    return text if shown == count else f"{text} {shown} of {count} slices are shown, evenly spread."


def _scan(findings: Findings, volume: Volume) -> str:
    given = findings.input
    parts = [KIND_WORDS[given.kind], f"{given.slices} {'slice' if given.slices == 1 else 'slices'}"]
    if volume.source.series_description:
        parts.insert(1, f"“{volume.source.series_description}”")
    if given.spacing_mm is not None:
        between, rows, columns = given.spacing_mm
        size = f"{rows:.2f} × {columns:.2f} mm pixels"
        apart = "" if between is None else f"{between:.1f} mm apart, "
        if volume.stack is not None and len(volume) > 1 and np.ptp(np.diff(volume.stack.offsets_mm)) > 0.1:
            steps = np.diff(volume.stack.offsets_mm)
            apart = f"{steps.min():.1f} to {steps.max():.1f} mm apart, "
        parts.append(apart + size)
    if volume.stack is not None and volume.stack.tilt_deg >= 0.5:
        parts.append(f"gantry tilt {volume.stack.tilt_deg:.1f}°")
    return " · ".join(parts)


def _made(findings: Findings, volume: Volume) -> list[dict[str, Any]]:
    study, model, given = findings.study, findings.model, findings.input
    window = "" if given.window is None else f"level {given.window.level_hu:g}, width {given.window.width_hu:g} HU"
    seconds = " · ".join(f"{stage} {value:.2f} s" for stage, value in findings.timing_s.items())
    entries: list[tuple[str, str, bool]] = [
        ("Input", given.path_or_uid, True),
        ("Image window", window, False),
        ("Model", ": ".join([model.name, *_card_lines(model.card, "title")]), False),
        ("Known limits", " ".join(_card_lines(model.card, "limits")), False),
        ("License", " ".join(_card_lines(model.card, "license")), False),
        ("Model file (SHA-256)", model.sha256, True),
        ("Decision", f"positive at a probability of {study.threshold:.2f} or more", False),
        ("Software", f"hemolens {findings.hemolens_version}, findings schema {findings.schema_version}", False),
        ("Time spent", seconds, False),
        ("Coordinates", "millimeters, DICOM patient system (L, P, S)" if volume.stack is not None else "", False),
    ]
    return [{"name": name, "value": value, "mono": mono} for name, value, mono in entries if value]


def _card_lines(card: dict[str, Any], key: str) -> list[str]:
    """Return what a model card says under `key`: one text, several, or nothing."""
    value = card.get(key)
    lines = value if isinstance(value, list) else [value]
    return [_sentence(line) if key == "limits" else line for line in lines if isinstance(line, str)]


def _upward(volume: Volume) -> list[int]:
    """Return slice indices from feet to head, or as they are where that means nothing."""
    order = list(range(len(volume)))
    return order[::-1] if volume.stack is not None and volume.stack.normal[2] < -0.5 else order


def _place(centroid_mm: tuple[float, float, float]) -> str:
    return ", ".join(f"{AXIS_LETTERS[axis][value > 0]} {abs(value):.0f}" for axis, value in enumerate(centroid_mm))


def _ranges(indices: Sequence[int]) -> str:
    """Write sorted indices short and as people count, from 1: ``3–7, 9`` for 2 to 6 and 8."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(f"{a + 1}" if a == b else f"{a + 1}–{b + 1}" for a, b in runs)
