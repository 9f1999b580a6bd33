from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from hemolens.errors import InputError
from hemolens.geometry import Stack
from hemolens.measurements.findings import SCHEMA_VERSION, Findings
from hemolens.notes import CODES, QualityNote, Severity
from hemolens.reports.as_json import from_plain, read_findings, schema, to_mapping, to_text
from hemolens.volume import DisplayWindow, SourceInfo
from predictions import analyzed, bleeding_head, volume_of

ROOT = Path(__file__).resolve().parents[1]
NOTES = (
    QualityNote("gantry_tilt", Severity.INFO, "tilt"),
    QualityNote("slices_missing", Severity.PARTIAL, "gap", (3, 4)),
)


@cache
def cases() -> dict[str, Findings]:
    volume, labels = bleeding_head()
    bare = replace(volume, stack=None, source=SourceInfo("images", "some/folder", window=DisplayWindow()))
    one = volume_of((1, 40, 40), Stack.regular(1, spacing_mm=(0.5, 0.5)))
    spot = np.zeros((1, 40, 40), np.uint8)
    spot[0, 5:25, 5:25] = 1
    return {
        "volume": analyzed(volume, labels, notes=NOTES)[2],
        "pixels": analyzed(bare, labels, interval=None)[2],
        "uncertain": analyzed(volume, labels, study_band=(0.2, 0.97), volume_log_ratio=(-0.3, 0.2))[2],
        "nothing": analyzed(volume, np.zeros_like(labels))[2],
        "one slice": analyzed(one, spot)[2],
    }


@pytest.fixture(scope="module", params=["volume", "pixels", "uncertain", "nothing", "one slice"])
def findings(request: pytest.FixtureRequest) -> Findings:
    return cases()[request.param]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_every_kind_of_findings_keeps_to_the_schema(findings: Findings, validator) -> None:
    validator.validate(json.loads(to_text(findings)))


def test_findings_survive_the_way_to_json_and_back(findings: Findings, tmp_path: Path) -> None:
    path = tmp_path / "findings.json"
    path.write_text(to_text(findings), "utf-8")
    back = read_findings(path)
    assert to_text(back) == to_text(findings)
    assert back.positive == findings.positive
    assert all(isinstance(note.severity, Severity) for note in back.quality)
    assert back == from_plain(to_mapping(findings))
    assert [a.id for a in back.lesions] == [a.id for a in findings.lesions]
    assert back.total.size == pytest.approx(findings.total.size)


def test_one_unit_of_each_pair_is_there_and_never_both() -> None:
    made = {name: to_mapping(f) for name, f in cases().items()}
    assert "volume_ml" in made["volume"]["total"]
    assert "area_px" not in made["volume"]["total"]
    assert "blood_area_mm2" in made["volume"]["slices"][0]
    assert "area_px" in made["pixels"]["lesions"][0]
    assert "volume_ml" not in made["pixels"]["lesions"][0]
    assert "blood_area_px" in made["pixels"]["slices"][0]
    # One slice of known pixel size and unknown thickness: areas in mm², sizes in pixels.
    assert "blood_area_mm2" in made["one slice"]["slices"][0]
    assert made["one slice"]["lesions"][0]["area_px"] == 400
    assert made["one slice"]["lesions"][0]["extent_mm"][2] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(extra=1),
        lambda f: f["study"].update(probability_any=0.5),
        lambda f: f["study"]["probability"].update(any=1.5),
        lambda f: f["study"]["probability"].pop("epidural"),
        lambda f: f["study"].update(decision="maybe"),
        lambda f: f["lesions"][0].update(subtype="chronic"),
        lambda f: f["lesions"][0].update(area_px=3),
        lambda f: f["lesions"][0].pop("volume_ml"),
        lambda f: f["lesions"][0].update(centroid_mm=[1, 2]),
        lambda f: f["slices"][0].pop("blood_area_mm2"),
        lambda f: f["slices"][0].update(blood_area_px=2),
        lambda f: f["total"].update(left_out_px=2),
        lambda f: f["quality"][0].update(code="unheard_of"),
        lambda f: f["quality"][0].update(severity="fatal"),
        lambda f: f["timing_s"].update(lunch=60),
        lambda f: f["study"].update(uncertain="maybe"),
        lambda f: f["total"].pop("volume_interval_ml"),
        lambda f: f["model"].update(sha256="short"),
        lambda f: f.update(notice="Cleared for clinical use."),
    ],
)
def test_the_schema_refuses_what_is_wrong(change, validator) -> None:
    values = to_mapping(cases()["volume"])
    validator.validate(values)
    change(values)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(values)


def test_the_schema_knows_every_code_subtype_and_version() -> None:
    properties = schema()["properties"]
    assert properties["quality"]["items"]["properties"]["code"]["enum"] == list(CODES)
    assert properties["schema_version"]["const"] == SCHEMA_VERSION
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_published_copy_is_the_shipped_one() -> None:
    published = ROOT / "docs" / "reference" / "findings.schema.json"
    shipped = ROOT / "src" / "hemolens" / "reports" / "findings.schema.json"
    assert published.read_bytes() == shipped.read_bytes()


def test_every_object_of_the_schema_is_closed() -> None:
    def walk(node, path="") -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and not path.endswith("card"):
                assert node.get("additionalProperties") is False, path
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        elif isinstance(node, list):
            for value in node:
                walk(value, path)

    walk(schema())


def test_nan_never_reaches_the_file(validator) -> None:
    findings = cases()["volume"]
    card = {"metrics": {"dice": math.nan, "list": [1.0, math.inf]}}
    values = json.loads(to_text(replace(findings, model=replace(findings.model, card=card))))
    assert values["model"]["card"] == {"metrics": {"dice": None, "list": [1.0, None]}}
    broken = replace(findings, timing_s={"read": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_text(broken)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "schema version None"),
        (b'{"schema_version": "2.0"}', "schema version '2.0'"),
        (b'{"schema_version": 1}', "schema version 1"),
        (b'{"schema_version": "1.0"}', "missing"),
        (b'{"schema_version": "1.0", "slices": 3, "lesions": null}', "no findings.json"),
    ],
)
def test_what_is_no_findings_file_is_one_clear_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "findings.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"findings\.json") as caught:
        read_findings(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_key_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_findings(tmp_path / "none.json")
    values = to_mapping(cases()["volume"])
    values["study"]["intervall"] = None
    with pytest.raises(InputError, match="interval"):
        from_plain(values)
    values = to_mapping(cases()["volume"])
    values["quality"][0]["severity"] = "fatal"
    with pytest.raises(InputError, match="fatal"):
        from_plain(values)
