"""One picture of the result as DICOM Secondary Capture (PS3.3 A.8.1), for viewers that show neither SEG nor SR.

The slices that show the scan best, lesions outlined, one sentence, and "research use only" across the top and under
every picture, so that a screen shot of a part of it still says so. It shows nothing of the patient's identity.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import NOTICE, summary_sentence
from hemolens.reports.dicom_common import RESEARCH_ONLY, Origin, complete, encoded, one_line
from hemolens.reports.figures import Illustrator, SlicePicture, key_slices
from hemolens.volume import LabelMap

SECONDARY_CAPTURE_STORAGE = "1.2.840.10008.5.1.4.1.1.7"
COLUMNS = 3
PICTURE_PX = 400
GAP_PX = 8
LINE_PX = 26
FONT_PX = 18
MIN_WIDTH_PX = 960
WHITE, YELLOW, BLACK = (235, 235, 235), (255, 214, 10), (0, 0, 0)


def summary_image(origin: Origin, label_map: LabelMap) -> bytes:
    """Return the file of the summary picture."""
    pixels, ratio = _draw(origin, label_map)
    dataset = Dataset()
    dataset.SOPClassUID = SECONDARY_CAPTURE_STORAGE
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BodyPartExamined, dataset.PatientOrientation = "HEAD", None
    dataset.BurnedInAnnotation = "NO"
    dataset.DerivationDescription = NOTICE
    # The pictures have been through JPEG on their way, and their source perhaps before.
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    dataset.LossyImageCompressionRatio = f"{ratio:.1f}"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    content = pixels.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
    complete(dataset, origin, "OT")
    dataset.SeriesDescription = f"hemolens summary ({RESEARCH_ONLY})"
    return encoded(dataset)


def _draw(origin: Origin, label_map: LabelMap) -> tuple[NDArray[np.uint8], float]:
    """Return the picture, ``(rows, columns, 3)``, and how many times smaller its parts once were as JPEG."""
    findings = origin.findings
    illustrator = Illustrator(label_map, findings.lesions)
    scores = np.array([s.probability["any"] for s in findings.slices])
    chosen = key_slices(illustrator.numbers, findings.lesions, scores)
    pictures = [illustrator.picture(index, PICTURE_PX) for index in chosen]
    width = max(MIN_WIDTH_PX, COLUMNS * (max(p.width for p in pictures) + GAP_PX) + GAP_PX)
    lines = [summary_sentence(findings), f"hemolens {findings.hemolens_version}, {one_line(findings.model.name)}"]
    lines += [f"{note.severity}: {note.message}" for note in findings.quality if note.severity != "info"]
    rows = -(-len(pictures) // COLUMNS)
    top = LINE_PX * (1 + len(lines)) + 2 * GAP_PX
    page = Image.new("RGB", (width, top + rows * (PICTURE_PX + LINE_PX + GAP_PX)), BLACK)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(FONT_PX)
    draw.text((GAP_PX, GAP_PX), f"RESEARCH USE ONLY. {NOTICE.split('. ')[-1]}", YELLOW, font)
    for number, line in enumerate(lines, 1):
        draw.text((GAP_PX, GAP_PX + number * LINE_PX), _fitting(draw, line, width - 2 * GAP_PX, font), WHITE, font)
    for place, picture in enumerate(pictures):
        left = GAP_PX + (place % COLUMNS) * (width - GAP_PX) // COLUMNS
        _paste(page, picture, left, top + (place // COLUMNS) * (PICTURE_PX + LINE_PX + GAP_PX), font)
    ratio = sum(p.width * p.height for p in pictures) / sum(len(p.jpeg) for p in pictures)
    return np.asarray(page), ratio


def _paste(page: Image.Image, picture: SlicePicture, left: int, top: int, font: Any) -> None:
    page.paste(Image.open(io.BytesIO(picture.jpeg)).convert("RGB"), (left, top))
    draw = ImageDraw.Draw(page)
    for outline in picture.outlines:
        for piece in outline.path.split("M")[1:]:
            points = [tuple(map(float, point.split())) for point in piece.rstrip("Z").split("L")]
            moved = [(left + x, top + y) for x, y in points]
            draw.line([*moved, moved[0]], outline.subtype.color_rgb, 2)
        x, y = outline.tag
        draw.text((left + x + 2, top + y - FONT_PX), str(outline.lesion), outline.subtype.color_rgb, font)
    middle = left + picture.width / 2, top + picture.height / 2
    draw.text((left + 2, middle[1]), picture.view.left, WHITE, font, "lm")
    draw.text((left + picture.width - 2, middle[1]), picture.view.right, WHITE, font, "rm")
    names = {s.name: s.abbreviation for s in SUBTYPES}
    shown = ", ".join(dict.fromkeys(f"{o.lesion} {names[o.subtype.name]}" for o in picture.outlines))
    text = f"slice {picture.index}: {shown or 'nothing outlined'}. {RESEARCH_ONLY}"
    draw.text((left, top + picture.height + 2), _fitting(draw, text, picture.width, font), YELLOW, font)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int, font: Any) -> str:
    """Cut a line to a width."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text} …", font) > width:
        text = text[:-1]
    return f"{text} …"
