"""``report.pdf``: the result on paper, A4: the answer, every lesion, the slices that show them, and the caveats.

Drawn with ReportLab (BSD), in `hemolens[web]`. Outlines are lines, not pixels. Letters that the page's font lacks are
shown as "?", never dropped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hemolens.errors import DependencyError
from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import NOTICE, Findings, format_amount, summary_sentence, volume_told
from hemolens.notes import Severity
from hemolens.reports.figures import Illustrator, SlicePicture, key_slices
from hemolens.volume import LabelMap

MARGIN = 42.0
"""Around the page, in points."""
PICTURE_WIDTH = 165.0
PICTURE_PIXELS = 420
MOST_LESIONS = 30
"""Rows of the table; the rest is told in a line, and complete in findings.json."""
REGULAR, BOLD = "hemolens-regular", "hemolens-bold"
ROW = 14.0
"""Height of a row of a table."""
SEVERITY_WORDS = {Severity.PARTIAL: "Incomplete", Severity.WARNING: "Caution", Severity.INFO: "Note"}
SEGMENT = re.compile(r"([ML])(-?[\d.]+) (-?[\d.]+)|(Z)")


@dataclass
class _Sheet:
    """A page that fills from the top; begins another when it is full."""

    canvas: Any
    width: float
    height: float
    title: str
    y: float = 0.0
    number: int = 0

    def begin(self) -> None:
        """Start a page: its notice stands above and below."""
        if self.number:
            self.canvas.showPage()
        self.number += 1
        self.canvas.setFont(REGULAR, 8)
        self.canvas.setFillGray(0.35)
        self.canvas.drawString(MARGIN, MARGIN - 18, f"{NOTICE}  {self.title}")
        self.canvas.drawRightString(self.width - MARGIN, MARGIN - 18, f"page {self.number}")
        self.canvas.setFillGray(0)
        self.y = self.height - MARGIN

    def room(self, points: float) -> None:
        """Make sure that so much is left on this page."""
        if self.y - points < MARGIN:
            self.begin()

    def text(self, words: str, size: float = 9.5, *, bold: bool = False, gray: float = 0.0, indent: float = 0) -> None:
        """Write a paragraph, broken at the margin."""
        font = BOLD if bold else REGULAR
        for line in _broken(_shown(words), font, size, self.width - 2 * MARGIN - indent):
            self.room(size * 1.4)
            self.y -= size * 1.4
            self.canvas.setFont(font, size)
            self.canvas.setFillGray(gray)
            self.canvas.drawString(MARGIN + indent, self.y + size * 0.3, line)
        self.canvas.setFillGray(0)

    def heading(self, words: str) -> None:
        """Write a heading that is not left alone at the foot of a page."""
        self.room(60)
        self.y -= 10
        self.text(words, 11.5, bold=True)
        self.y -= 2

    def row(self, cells: Sequence[str], columns: Sequence[float], *, bold: bool = False) -> None:
        """Write one row of a table; `columns` are where its cells begin."""
        self.room(ROW)
        self.y -= 13
        self.canvas.setFont(BOLD if bold else REGULAR, 8.5)
        ends = [*columns[1:], self.width - 2 * MARGIN]
        for cell, start, end in zip(cells, columns, ends, strict=True):
            line = next(_broken(_shown(cell), BOLD if bold else REGULAR, 8.5, end - start - 4), "")
            self.canvas.drawString(MARGIN + start, self.y + 3, line)
        self.canvas.setStrokeGray(0.8)
        self.canvas.setLineWidth(0.4)
        self.canvas.line(MARGIN, self.y, self.width - MARGIN, self.y)


def render_pdf(label_map: LabelMap, findings: Findings, name: str = "") -> bytes:
    """Return the report as PDF; the same findings make the same bytes.

    Parameters
    ----------
    label_map
        The lesions, and with them the scan.
    findings
        What is told.
    name
        What the scan is called; by default as in the findings.

    Raises
    ------
    DependencyError
        If ReportLab is not installed.
    """
    try:
        from reportlab.lib.pagesizes import A4
        from reportlab.pdfgen.canvas import Canvas
    except ImportError as error:
        raise DependencyError("reportlab", "web") from error
    _register_fonts()
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1, pageCompression=1)
    title = name or findings.input.path_or_uid
    canvas.setTitle(f"hemolens: {title}")
    canvas.setSubject(NOTICE)
    canvas.setCreator(f"hemolens {findings.hemolens_version}")
    sheet = _Sheet(canvas, A4[0], A4[1], title=f"hemolens {findings.hemolens_version}")
    sheet.begin()
    _answer(sheet, findings, title)
    _pictures(sheet, label_map, findings)
    _lesions(sheet, findings)
    _subtypes(sheet, findings)
    _caveats(sheet, findings)
    _made(sheet, findings)
    canvas.save()
    return buffer.getvalue()


def _answer(sheet: _Sheet, findings: Findings, title: str) -> None:
    score = findings.study
    headline, _, _ = summary_sentence(findings).partition(" (")
    sheet.text("hemolens", 9, bold=True, gray=0.35)
    sheet.text(headline, 20, bold=True)
    sheet.text(summary_sentence(findings), 10.5)
    interval = f", interval {score.interval[0]:.2f} to {score.interval[1]:.2f}" if score.interval else ""
    sheet.text(
        f"Probability of any hemorrhage {score.probability['any']:.2f}{interval}; called {score.decision} from "
        f"{score.threshold:.2f} on. All blood: {volume_told(findings.total)}."
    )
    sheet.text(f"Scan: {title}", 8.5, gray=0.35)
    created = findings.created.replace("T", " ").replace("+00:00", " UTC")
    sheet.text(f"{findings.input.slices} slices · analyzed {created} · {NOTICE}", 8.5, gray=0.35)


def _pictures(sheet: _Sheet, label_map: LabelMap, findings: Findings) -> None:
    illustrator = Illustrator(label_map, findings.lesions)
    scores = np.array([s.probability["any"] for s in findings.slices])
    chosen = key_slices(illustrator.numbers, findings.lesions, scores)
    if not chosen:
        return
    sheet.heading("Slices that show it" if findings.lesions else "Slices with the highest scores")
    pictures = [illustrator.picture(k, PICTURE_PIXELS) for k in chosen]
    height = max(PICTURE_WIDTH * p.height / p.width for p in pictures)
    gap = (sheet.width - 2 * MARGIN - 3 * PICTURE_WIDTH) / 2
    for start in range(0, len(pictures), 3):
        sheet.room(height + 18)
        for place, picture in enumerate(pictures[start : start + 3]):
            x = MARGIN + place * (PICTURE_WIDTH + gap)
            _picture(sheet, picture, x, float(scores[picture.index]))
        sheet.y -= height + 18


def _picture(sheet: _Sheet, picture: SlicePicture, x: float, score: float) -> None:
    from reportlab.lib.utils import ImageReader

    canvas, scale = sheet.canvas, PICTURE_WIDTH / picture.width
    top = sheet.y - 2
    bottom = top - picture.height * scale
    canvas.drawImage(ImageReader(io.BytesIO(picture.jpeg)), x, bottom, PICTURE_WIDTH, picture.height * scale)
    canvas.setLineWidth(1.0)
    for outline in picture.outlines:
        red, green, blue = (v / 255 for v in outline.subtype.color_rgb)
        canvas.setStrokeColorRGB(red, green, blue)
        path = canvas.beginPath()
        for kind, right, down in _moves(outline.path):
            if kind == "Z":
                path.close()
                continue
            to = path.moveTo if kind == "M" else path.lineTo
            to(x + right * scale, top - down * scale)
        canvas.drawPath(path, stroke=1, fill=0)
        canvas.setFillColorRGB(red, green, blue)
        canvas.setFont(BOLD, 7)
        canvas.drawString(x + outline.tag[0] * scale + 1, top - outline.tag[1] * scale + 1, str(outline.lesion))
    canvas.setFillGray(1)
    canvas.setFont(BOLD, 8)
    canvas.drawString(x + 4, (top + bottom) / 2, picture.view.left)
    canvas.drawRightString(x + PICTURE_WIDTH - 4, (top + bottom) / 2, picture.view.right)
    canvas.setFillGray(0.35)
    canvas.setFont(REGULAR, 7.5)
    canvas.drawString(x, bottom - 10, f"slice {picture.index + 1} (index {picture.index}), probability {score:.2f}")
    canvas.setFillGray(0)


def _moves(path: str) -> Iterator[tuple[str, float, float]]:
    """Read SVG path data as `hemolens.reports.figures` writes it: M, L and Z."""
    for kind, x, y, end in SEGMENT.findall(path):
        yield ("Z", 0.0, 0.0) if end else (kind, float(x), float(y))


def _lesions(sheet: _Sheet, findings: Findings) -> None:
    sheet.heading("Lesions")
    if not findings.lesions:
        sheet.text("No lesion is outlined.")
        return
    titles = {s.name: s.title for s in SUBTYPES}
    columns = (0.0, 28.0, 130.0, 200.0, 268.0, 320.0, 380.0)
    size = "Volume" if findings.total.unit == "ml" else "Area"
    head, page = ("No.", "Subtype", size, "Confidence", "Mean HU", "Slices", "Extent"), 0
    for lesion in findings.lesions[:MOST_LESIONS]:
        sheet.room(ROW)
        if sheet.number != page:  # a table that goes on over the page has its heads there, too
            sheet.row(head, columns, bold=True)
            page = sheet.number
        extent = " × ".join("?" if v is None else f"{v:.0f}" for v in lesion.extent_mm) if lesion.extent_mm else ""
        first, last = lesion.slices[0] + 1, lesion.slices[-1] + 1  # people count from 1
        sheet.row(
            (
                str(lesion.id), titles[lesion.subtype], format_amount(lesion.size, findings.total.unit),
                f"{lesion.probability:.2f}", f"{lesion.mean_hu:.0f}",
                str(first) if first == last else f"{first} to {last}", f"{extent} mm" if extent else "",
            ),
            columns,
        )  # fmt: skip
    if len(findings.lesions) > MOST_LESIONS:
        sheet.text(f"{len(findings.lesions) - MOST_LESIONS} smaller lesions stand in findings.json.", 8.5, gray=0.35)


def _subtypes(sheet: _Sheet, findings: Findings) -> None:
    sheet.room(30 + ROW * (len(SUBTYPES) + 2))  # heading and table stay together
    sheet.heading("Subtypes")
    columns = (0.0, 130.0, 220.0)
    sheet.row(("Subtype", "Probability", "Outlined"), columns, bold=True)
    for subtype in SUBTYPES:
        amount = format_amount(findings.total.by_subtype[subtype.name], findings.total.unit)
        sheet.row((subtype.title, f"{findings.study.probability[subtype.name]:.2f}", amount), columns)
    sheet.row(
        ("All", f"{findings.study.probability['any']:.2f}", format_amount(findings.total.size, findings.total.unit)),
        columns,
        bold=True,
    )


def _caveats(sheet: _Sheet, findings: Findings) -> None:
    sheet.heading("Quality of the scan")
    if not findings.quality:
        sheet.text("Nothing stands in the way of this result.")
    for severity, word in SEVERITY_WORDS.items():
        for note in findings.quality:
            if note.severity is severity:
                message = note.message.strip().rstrip(".")
                sheet.text(f"{word}: {message[:1].upper()}{message[1:]}.", 9, bold=severity is not Severity.INFO)


def _made(sheet: _Sheet, findings: Findings) -> None:
    sheet.heading("How it was made")
    model = findings.model
    limits = model.card.get("limits", [])
    sheet.text(f"Model {model.name} (SHA-256 {model.sha256})", 8.5)
    for limit in [limits] if isinstance(limits, str) else limits:
        sheet.text(f"– {limit}", 8.5, indent=8)
    sheet.text(f"Software: hemolens {findings.hemolens_version}, findings schema {findings.schema_version}", 8.5)
    sheet.text(findings.notice, 9.5, bold=True)


def _broken(text: str, font: str, size: float, width: float) -> Iterator[str]:
    """Break a text into lines; a word that is too long is broken anywhere."""
    from reportlab.pdfbase.pdfmetrics import stringWidth

    line = ""
    for word in text.split():
        while stringWidth(word, font, size) > width:
            cut = max(k for k in range(1, len(word)) if k == 1 or stringWidth(word[:k], font, size) <= width)
            if line:
                yield line
                line = ""
            yield word[:cut]
            word = word[cut:]
        longer = f"{line} {word}".strip()
        if line and stringWidth(longer, font, size) > width:
            yield line
            line = word
        else:
            line = longer
    if line:
        yield line


@cache
def _register_fonts() -> frozenset[int]:
    """Make the fonts that ReportLab ships known to it, and return the letters that they have."""
    import reportlab
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    folder = Path(reportlab.__file__).parent / "fonts"
    regular = TTFont(REGULAR, str(folder / "Vera.ttf"))
    pdfmetrics.registerFont(regular)
    pdfmetrics.registerFont(TTFont(BOLD, str(folder / "VeraBd.ttf")))
    return frozenset(regular.face.charToGlyph)


def _shown(text: str) -> str:
    """Return what the font can show of a text."""
    known = _register_fonts()
    return "".join(c if ord(c) in known or c == " " else "?" for c in " ".join(text.split()))
