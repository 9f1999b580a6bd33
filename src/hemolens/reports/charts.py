"""Charts of a report as inline SVG: sharp on paper, colored by the page's own style, readable by a screen reader."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import Findings, SliceScore, StudyScore, format_amount

WIDTH = 960
LEFT = 156
"""Room for the names of the rows."""
BARS = 120
"""Height of the bars of probability 0 to 1."""
ROW = 22
TICKS = (0.0, 0.5, 1.0)


def gauge(study: StudyScore) -> str:
    """Draw the probability of any hemorrhage on a line from 0 to 1, with interval, threshold and band of doubt."""
    width, y = 420, 34
    value = study.probability["any"]

    def x(p: float) -> str:
        return f"{10 + p * (width - 20):.1f}"

    parts = [f'<line class="track" x1="{x(0)}" y1="{y}" x2="{x(1)}" y2="{y}"/>']
    told = f"Probability of any hemorrhage {value:.2f}"
    if study.uncertain_band:
        low, high = study.uncertain_band
        title = f"<title>A human should look first from {low:.2f} to {high:.2f}</title>"
        box = f'x="{x(low)}" y="{y - 9}" width="{(high - low) * (width - 20):.1f}" height="18"'
        parts.insert(0, f'<rect class="doubt" {box}>{title}</rect>')
        told += f", uncertain from {low:.2f} to {high:.2f}"
    if study.interval:
        low, high = study.interval
        parts.append(f'<line class="band" x1="{x(low)}" y1="{y}" x2="{x(high)}" y2="{y}"/>')
        told += f", interval {low:.2f} to {high:.2f}"
    t = study.threshold
    parts.append(f'<line class="threshold" x1="{x(t)}" y1="{y - 13}" x2="{x(t)}" y2="{y + 13}"/>')
    parts.append(f'<text class="tick" x="{x(t)}" y="{y - 18}" text-anchor="middle">threshold {t:.2f}</text>')
    parts.append(f'<circle class="dot" cx="{x(value)}" cy="{y}" r="8"/>')
    parts += [f'<text class="tick" x="{x(p)}" y="{y + 30}" text-anchor="middle">{p:g}</text>' for p in TICKS]
    return _svg("gauge", width, y + 36, f"{told}, threshold {t:.2f}", parts)


def subtype_bar(findings: Findings) -> str:
    """Draw the total as one bar, divided by subtype."""
    total = findings.total
    parts, start, told = [], 0.0, []
    for subtype in SUBTYPES:
        size = total.by_subtype[subtype.name]
        if size <= 0:
            continue
        amount = f"{subtype.title} {format_amount(size, total.unit)}"
        width = WIDTH * size / total.size
        parts.append(
            f'<rect class="fill-{subtype.abbreviation}" x="{start:.1f}" y="0" width="{width:.1f}" height="18">'
            f"<title>{amount}</title></rect>"
        )
        start += width
        told.append(amount)
    return _svg("subtype-bar", WIDTH, 18, "; ".join(told), parts, stretch=True)


def slice_chart(slices: Sequence[SliceScore], marked: Sequence[int], order: Sequence[int]) -> str:
    """Draw for each slice the probability of any hemorrhage, its blood, and the probability of each subtype.

    Parameters
    ----------
    slices
        As in the findings.
    marked
        Indices of the key slices.
    order
        Indices from the lowest slice to the highest.
    """
    step = (WIDTH - LEFT) / len(slices)
    top, area_top = 16, 16 + BARS + 14
    heat_top = area_top + 44 + 10
    parts = [_axis(top)]
    most = max((_area(s) for s in slices), default=0.0)
    for place, index in enumerate(order):
        score = slices[index]
        x, width = LEFT + place * step, max(step - min(2.0, step * 0.2), 0.5)
        parts.append(f"<g><title>{_told(score)}</title>")
        parts.append(_bar(x, width, top + BARS, BARS * score.probability["any"], "any"))
        if most:
            parts.append(_bar(x, width, area_top + 44, 44 * _area(score) / most, "area"))
        for row, subtype in enumerate(SUBTYPES):
            p = score.probability[subtype.name]
            parts.append(
                f'<rect class="fill-{subtype.abbreviation}" x="{x:.1f}" y="{heat_top + row * ROW}" width="{width:.1f}" '
                f'height="{ROW - 4}" fill-opacity="{max(p, 0.04):.2f}"/>'
            )
        parts.append("</g>")
        if index in marked:
            parts.append(f'<path class="mark" d="M{x + width / 2 - 4:.1f} 4h8l-4 7z"/>')
    bottom = heat_top + len(SUBTYPES) * ROW
    parts += _names(area_top, heat_top, most, slices)
    parts += _numbers(order, step, bottom + 14)
    return _svg("slice-chart", WIDTH, bottom + 22, "Probability and blood per slice, lowest slice on the left", parts)


def _axis(top: float) -> str:
    lines = []
    for p in TICKS:
        y = top + BARS * (1 - p)
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{p:g}</text>')
    lines.append(f'<text class="name" x="0" y="{top + BARS / 2 - 4:.1f}">Any hemorrhage</text>')
    lines.append(f'<text class="tick" x="0" y="{top + BARS / 2 + 12:.1f}">probability</text>')
    return "".join(lines)


def _names(area_top: float, heat_top: float, most: float, slices: Sequence[SliceScore]) -> list[str]:
    unit = "mm²" if slices[0].blood_area_mm2 is not None else "px"
    largest = f"up to {most:,.0f} {unit}" if most else "none"
    names = [
        f'<text class="name" x="0" y="{area_top + 22}">Blood outlined</text>',
        f'<text class="tick" x="0" y="{area_top + 38}">{largest}</text>',
    ]
    for row, subtype in enumerate(SUBTYPES):
        names.append(f'<text class="name" x="0" y="{heat_top + row * ROW + 14}">{subtype.title}</text>')
    return names


def _numbers(order: Sequence[int], step: float, y: float) -> list[str]:
    every = max(1, round(len(order) / 16))
    return [
        f'<text class="tick" x="{LEFT + (place + 0.5) * step:.1f}" y="{y:.1f}" text-anchor="middle">{index + 1}</text>'
        for place, index in enumerate(order)
        if place % every == 0
    ]


def _bar(x: float, width: float, base: float, height: float, name: str) -> str:
    return f'<rect class="{name}" x="{x:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _area(score: SliceScore) -> float:
    return score.blood_area_mm2 if score.blood_area_mm2 is not None else float(score.blood_area_px or 0)


def _told(score: SliceScore) -> str:
    unit = "mm²" if score.blood_area_mm2 is not None else "px"
    return escape(f"Slice {score.index + 1}: {score.probability['any']:.2f}, {_area(score):,.0f} {unit}")


def _svg(name: str, width: float, height: float, told: str, parts: Sequence[str], *, stretch: bool = False) -> str:
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    shape = f'viewBox="0 0 {width:g} {height:g}"{ratio}'
    return f'<svg class="{name}" {shape} role="img" aria-label="{escape(told, quote=True)}">{"".join(parts)}</svg>'
