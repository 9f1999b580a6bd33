from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hemolens.errors import InputError
from hemolens.measurements.findings import NOTICE
from hemolens.notes import QualityNote, Severity
from hemolens.reports.html import MONTAGE_MOST, render_html
from hemolens.reports.truth import compare
from hemolens.volume import DisplayWindow, LabelMap, SourceInfo
from predictions import analyzed, bleeding_head, phantom_head

HOSTILE = "<script>alert('x')</script>\"'&{{7*7}}{% raw %}"
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """What a browser would see: elements, text, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f" {data.strip()}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@dataclass(frozen=True)
class Known:
    subtype: str
    volume_ml: float
    centroid_mm: tuple[float, float, float]


@dataclass(frozen=True)
class KnownLesions:
    lesions: tuple[Known, ...]
    map: np.ndarray

    def labels(self) -> np.ndarray:
        return self.map


@pytest.fixture(scope="module")
def bleeding():
    volume, labels = bleeding_head()
    note = QualityNote("slices_missing", Severity.PARTIAL, "A slice is missing", (3, 4, 5, 9))
    _, label_map, findings = analyzed(volume, labels, notes=(QualityNote("gantry_tilt", Severity.INFO, "Tilt"), note))
    return label_map, findings


@pytest.fixture(scope="module")
def page(bleeding) -> Page:
    return Page(render_html(*bleeding))


def test_the_page_is_whole_and_loads_nothing(page: Page) -> None:
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/jpeg;base64,")
        assert not any(name.startswith("on") for name in attributes)


def test_the_style_sheet_loads_nothing_and_knows_dark_and_print(bleeding) -> None:
    text = render_html(*bleeding)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_the_page_can_be_read_without_eyes(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert all(a["aria-labelledby"] in identifiers for _, a in page.tags if "aria-labelledby" in a)
    assert len(page.all("h1")) == 1
    assert all(a.get("scope") == "col" for a in page.all("th"))


def test_the_page_tells_what_matters(page: Page, bleeding) -> None:
    _, findings = bleeding
    text = " ".join(page.text.split())
    assert text.count(NOTICE) >= 2
    assert "Hemorrhage likely" in text
    assert "0.95" in text
    assert "0.90 to 0.99" in text
    assert "threshold 0.50" in text
    for lesion in findings.lesions:
        assert f"{lesion.volume_ml:.1f} ml" in text
    assert findings.model.sha256 in text
    assert "test-net" in text
    assert "Incomplete" in text
    assert "Slices 4–6, 10." in text  # indices 3 to 5 and 9
    assert text.index("A slice is missing") < text.index("Tilt")
    assert findings.input.path_or_uid in text


def test_letters_stand_on_the_sides_where_the_patient_has_them(bleeding) -> None:
    text = render_html(*bleeding)
    sides = re.findall(r'class="side" x="(\d+)"[^>]*>([RLAPHF])<', text)
    assert sides
    assert all((letter == "R") == (int(x) < 50) for x, letter in sides)


def test_strings_out_of_files_are_text_and_nothing_else(bleeding) -> None:
    label_map, _ = bleeding
    source = SourceInfo(
        "dicom", HOSTILE, tuple(f"{HOSTILE}{k}" for k in range(len(label_map.volume))), series_description=HOSTILE
    )
    volume = replace(label_map.volume, source=source)
    note = QualityNote("series_chosen", Severity.INFO, HOSTILE)
    _, own, findings = analyzed(volume, label_map.labels, notes=(note,))
    findings = replace(findings, model=replace(findings.model, name=HOSTILE))
    text = render_html(own, findings)
    hostile = Page(text)
    assert not hostile.all("script")
    assert hostile.open == []
    assert hostile.text.count("alert('x')") >= 4
    assert "{{7*7}}" in hostile.text
    assert "49" not in re.sub(r"[A-Za-z0-9+/=]{60,}", "", hostile.text).replace("0.49", "")
    assert "<script" not in text


def test_a_scan_of_32_slices_stays_small() -> None:
    volume, labels = bleeding_head(phantom_head(slices=32, size=512, pixel_mm=0.5))
    rng = np.random.default_rng(0)
    noisy = replace(volume, hu=(volume.hu + rng.normal(0, 6, volume.shape)).astype(np.int16))
    _, label_map, findings = analyzed(noisy, labels)
    assert len(render_html(label_map, findings)) < 3_000_000


def test_long_scans_are_shown_in_part_and_that_is_said() -> None:
    volume, labels = bleeding_head(phantom_head(slices=170, gap_mm=1.0, size=64, pixel_mm=4.0))
    _, label_map, findings = analyzed(volume, labels)
    text = render_html(label_map, findings)
    assert f"{MONTAGE_MOST} of 170 slices are shown" in text
    assert len(Page(text).all("img")) <= MONTAGE_MOST + 6


def test_a_clean_scan_has_no_lesion_table_and_says_so() -> None:
    volume = phantom_head()
    _, label_map, findings = analyzed(volume, np.zeros(volume.shape, np.uint8))
    page = Page(render_html(label_map, findings))
    assert "Hemorrhage unlikely" in page.text
    assert "No blood was outlined" in page.text
    assert "Nothing about this scan speaks against the result." in page.text
    assert not [a for _, a in page.tags if a.get("id") in {"lesions", "outlines", "truth"}]


def test_an_uncertain_scan_says_so_first() -> None:
    volume, labels = bleeding_head()
    _, label_map, findings = analyzed(volume, labels, study_band=(0.2, 0.97), volume_log_ratio=(-0.3, 0.2))
    page = Page(render_html(label_map, findings))
    assert "Uncertain" in page.text
    assert "A human should look first: " in page.text
    assert "Hemorrhage likely" not in page.text
    assert [a for _, a in page.tags if a.get("class") == "hero uncertain"]
    assert [a for _, a in page.tags if a.get("class") == "doubt"]
    low, high = findings.total.volume_interval_ml or (0, 0)
    assert f"80 % interval {low:.1f} to {high:.1f} ml" in " ".join(page.text.split())


def test_images_without_spacing_are_told_in_pixels() -> None:
    volume, labels = bleeding_head()
    source = SourceInfo("images", "folder", window=DisplayWindow())
    _, label_map, findings = analyzed(replace(volume, stack=None, source=source), labels)
    text = Page(render_html(label_map, findings)).text
    assert " ml" not in text
    assert "mm²" not in text
    assert "Shown as given" in text
    assert "level 40, width 120" in text


def test_slices_run_from_the_feet_to_the_head_whichever_way_they_are_stored() -> None:
    volume, labels = bleeding_head()
    s = volume.stack
    down = replace(
        volume,
        stack=type(s)(s.positions_mm * (1, 1, -1), s.row_directions * -1, s.column_directions, s.spacings_mm),
    )
    _, label_map, findings = analyzed(down, labels)
    text = render_html(label_map, findings)
    montage = text[text.index('class="montage"') :]
    shown = [int(k) for k in re.findall(r"<figcaption><span>(\d+)</span>", montage)]
    assert shown == list(range(1, len(volume) + 1))[::-1]  # people count from 1


def test_found_stands_beside_true() -> None:
    volume, labels = bleeding_head()
    _, label_map, findings = analyzed(volume, labels)
    true = labels.copy()
    true[:, : true.shape[1] // 2 - 20] = 0
    true[8:10, 80:90, 50:60] = 1
    known = KnownLesions(
        (
            Known("intraparenchymal", 19.0, findings.lesions[0].centroid_mm),
            Known("intraventricular", 2.0, findings.lesions[2].centroid_mm),
            Known("epidural", 4.0, (-19, 42, -40)),
        ),
        true,
    )
    compared = compare(label_map, findings.lesions, known)
    assert [[lesion.subtype for lesion in pair.found] for pair in compared.pairs] == [
        ["intraparenchymal"], ["intraventricular"], [], ["subdural"],
    ]  # fmt: skip
    assert compared.pairs[0].covered == 1
    assert compared.pairs[0].distance_mm == pytest.approx(0)
    assert compared.pairs[2].covered == 0
    assert compared.pairs[3].true is None
    a, b = label_map.labels > 0, true > 0
    assert compared.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert 'class="true"' not in render_html(label_map, findings)
    assert 'class="true"' in render_html(label_map, findings, known)
    text = Page(render_html(label_map, findings, known)).text
    assert "Found against true" in text
    assert "True volume 25.0 ml" in text
    assert "not found" in text


def test_two_true_lesions_that_were_found_as_one_both_count_as_found() -> None:
    volume, labels = bleeding_head()
    merged = np.where(labels == 5, 4, labels).astype(np.uint8)
    _, label_map, findings = analyzed(volume, merged)
    truth = KnownLesions(
        (Known("intraparenchymal", 17.0, (25, -1, 0)), Known("intraventricular", 2.0, (9, -1, 0))), labels
    )
    pairs = compare(label_map, findings.lesions, truth).pairs
    assert [(p.found[0].id, p.shared, p.covered) for p in pairs[:2]] == [(1, False, 1), (1, True, 1)]
    text = Page(render_html(label_map, findings, truth)).text
    assert "part of 1 intraparenchymal" in text


def test_the_pieces_of_a_true_lesion_are_counted_together() -> None:
    volume, labels = bleeding_head()
    whole = np.zeros_like(labels)
    whole[10:24, 60:70, 80:90] = 2
    pieces = whole.copy()
    pieces[14:20] = 0
    _, label_map, findings = analyzed(volume, pieces)
    truth = KnownLesions((Known("subdural", 28.0, (42, 2, 0)),), whole)
    (pair,) = compare(label_map, findings.lesions, truth).pairs
    assert [lesion.id for lesion in pair.found] == [1, 2]
    assert pair.found_ml == pytest.approx(8 * 100 * 0.02)
    assert pair.covered == pytest.approx(8 / 14)
    assert pair.distance_mm < 3


def test_nothing_found_and_nothing_there_has_no_dice() -> None:
    volume = phantom_head()
    empty = np.zeros(volume.shape, np.uint8)
    assert compare(LabelMap(empty, volume), (), KnownLesions((), empty)).dice is None


def test_a_truth_of_another_grid_is_refused() -> None:
    volume = phantom_head()
    empty = LabelMap(np.zeros(volume.shape, np.uint8), volume)
    with pytest.raises(InputError, match="shape"):
        compare(empty, (), KnownLesions((), np.zeros((2, 3, 4), np.uint8)))
