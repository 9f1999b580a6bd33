"""The command line as a skin: usage, exit codes, one line for every failure. Real scans are in test_cli_scans.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hemolens.analysis
from hemolens.cli import analyze as verb
from hemolens.cli import doctor, exits, models
from hemolens.cli.main import main
from hemolens.errors import ConfigError, DecodeError, ModelError, OutputError
from hemolens.geometry import Stack
from hemolens.inference import predictor, registry
from hemolens.measurements.findings import Findings, build_findings
from hemolens.measurements.lesions import find_lesions
from hemolens.notes import QualityNote, Severity
from predictions import predict, volume_of


def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hemolens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith("hemolens: ")
    return line


def made_up_findings(notes: tuple[QualityNote, ...] = ()) -> Findings:
    labels = np.zeros((4, 32, 32), np.uint8)
    labels[1:3, 8:20, 8:20] = 4
    volume = volume_of(labels.shape, Stack.regular(4, spacing_mm=(1.0, 1.0), step_mm=(0, 0, 5.0)), hu=65.0)
    label_map, lesions = find_lesions(volume, predict(labels))
    return build_findings(volume, predict(labels), label_map, lesions, notes, {"read": 0.1}, datetime.now(UTC))


Fake = Callable[[Callable[..., Any]], None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Replace the analysis behind the command line by a function of the source."""

    def install(what: Callable[..., Any]) -> None:
        monkeypatch.setattr(registry, "load_model", lambda name=None: None)
        monkeypatch.setattr(predictor, "Predictor", lambda *a, **k: None)
        monkeypatch.setattr(hemolens.analysis, "analyze", lambda source, *a, **k: what(source))

    return install


def finished(notes: tuple[QualityNote, ...] = ()) -> Any:
    """Stand in for a result that writes one file."""

    def save(out: Path, **_: Any) -> dict[str, Path]:
        out.mkdir(parents=True)
        (out / "report.html").write_text("")
        return {"report": out / "report.html"}

    partial = any(n.severity is Severity.PARTIAL for n in notes)
    return SimpleNamespace(findings=made_up_findings(notes), save=save, partial=partial)


MISSING = QualityNote("slices_missing", Severity.PARTIAL, "1 slice is missing", (2,))


# -- wrong usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["analize"], "Did you mean 'analyze'"),
        (["analyze"], "Missing INPUT"),
        (["analyze", "scan"], "Missing -o OUT"),
        (["analyze", "scan", "--demo"], "--demo brings its own scan"),
        (["analyze", "scan", "-o", "out", "--overwite"], "No such option"),
        (["analyze", "scan", "-o", "out", "--runtime", "tpu"], "--runtime"),
        (["analyze", "scan", "-o", "out", "--threads", "0"], "--threads"),
        (["analyze", "scan", "-o", "out", "--threads", "many"], "--threads"),
        (["analyze", "scan", "-o", "out", "--window-width", "0"], "--window-width"),
        (["analyze", "scan", "-o", "out", "--window-width", "nan"], "--window-width"),
        (["analyze", "scan", "-o", "out", "--window-level", "inf"], "--window-level"),
        (["analyze", "scan", "-o", "out", "--pixel-spacing", "-1", "--slice-spacing", "5"], "--pixel-spacing"),
        (["analyze", "scan", "scan", "-o", "out"], "named twice"),
        (["models", "shw"], "No such command"),
        (["doctor", "now"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == exits.WRONG_USAGE
    told = capsys.readouterr()
    assert says in only_line(told.err)
    assert "--help'" in told.err
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_slices_named_one_by_one_are_taken_for_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).touch()
    assert main(["analyze", str(tmp_path / "1.dcm"), str(tmp_path / "2.dcm"), "-o", "out"]) == exits.WRONG_USAGE
    assert f"give {tmp_path}" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["models"]])
def test_without_a_verb_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == exits.WRONG_USAGE
    told = capsys.readouterr()
    assert "Usage" in told.out
    assert told.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == exits.DONE
    assert capsys.readouterr().out == f"hemolens {hemolens.__version__}\n"


# -- failures ---------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[Path], Any]:
    def fail(source: Path) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DecodeError("1.dcm", "cut off", "Copy it again."), exits.FAILED, "hemolens: 1.dcm: cut off. Copy it again."),
        (ModelError("two\nlines"), exits.FAILED, "hemolens: two lines"),
        (ConfigError("Spacing is for pictures."), exits.WRONG_USAGE, "hemolens: Spacing is for pictures."),
        (OutputError("out: the disk is full."), exits.FAILED, "hemolens: out: the disk is full."),
        (MemoryError(), exits.FAILED, "not enough memory"),
        (
            ZeroDivisionError("secret"),
            exits.FAILED,
            "internal error (ZeroDivisionError): this is a bug in hemolens. Run",
        ),
        (KeyboardInterrupt(), exits.INTERRUPTED, "interrupted"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
@pytest.mark.parametrize("as_json", [True, False])
def test_every_failure_is_one_line(
    fake: Fake,
    error: BaseException,
    code: int,
    says: str,
    as_json: bool,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    fake(raising(error))
    options = ["--json"] if as_json else ["-o", str(tmp_path / "out")]
    assert main(["analyze", "scan", *options]) == code
    told = capfd.readouterr()
    assert says in only_line(told.err)
    assert told.out == ""


def test_debug_shows_where_it_happened(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake(raising(ZeroDivisionError("secret")))
    assert main(["analyze", "scan", "--json", "--debug"]) == exits.FAILED
    assert "Traceback" in (told := capsys.readouterr().err)
    assert told.splitlines()[-1] == "hemolens: internal error (ZeroDivisionError): this is a bug in hemolens."


# -- success ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("notes", "code"), [((), exits.DONE), ((MISSING,), exits.PARTIAL)])
def test_a_finished_scan(
    fake: Fake, notes: tuple[QualityNote, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(lambda source: finished(notes))
    assert main(["analyze", "scan", "-o", str(tmp_path / "out")]) == code
    told = capsys.readouterr()
    assert told.err == ""  # no progress where nobody looks
    assert "Intraparenchymal" in told.out
    assert f"Report: {tmp_path / 'out' / 'report.html'}\n" in told.out
    assert "Research use only" in told.out
    assert ("partial: 1 slice is missing [slices_missing]" in told.out) == bool(notes)


def test_quiet_says_nothing(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(lambda source: finished())
    assert main(["analyze", "scan", "-q", "-o", str(tmp_path / "out")]) == exits.DONE
    assert capsys.readouterr() == ("", "")


def test_json_is_all_that_standard_output_gets(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    def chatty(source: Path) -> Any:
        os.write(1, b"a decoder has something to say\n")
        print("so has a library")
        return finished((MISSING,))

    fake(chatty)
    assert main(["analyze", "scan", "--json"]) == exits.PARTIAL
    told = capfd.readouterr()
    assert json.loads(told.out)["quality"][0]["code"] == "slices_missing"
    assert "a decoder" in told.err


def test_one_failing_scan_does_not_stop_the_others(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(source: Path) -> Any:
        if source.name == "b":
            raise DecodeError("b", "cut off", "Copy it again.")
        return finished((MISSING,) if source.name == "c" else ())

    fake(some)
    out = tmp_path / "out"
    assert main(["analyze", "a", "b", "c", "-o", str(out)]) == exits.FAILED
    assert sorted(p.name for p in out.iterdir()) == ["a", "c"]
    told = capsys.readouterr()
    assert only_line(told.err) == "hemolens: b: cut off. Copy it again."
    assert "== a" in told.out
    assert "== c" in told.out


def test_several_scans_as_json_are_one_line_each(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    fake(lambda source: finished((MISSING,) if source.name == "b" else ()))
    assert main(["analyze", "a", "b", "--json"]) == exits.PARTIAL
    assert [len(json.loads(line)["quality"]) for line in capfd.readouterr().out.splitlines()] == [0, 1]


# -- where results go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["/s/a", "/s/b"], ["a", "b"]),
        (["/s/a.nii.gz", "/s/b.zip"], ["a", "b"]),
        (["/s/078/brain", "/s/079/brain"], ["078-brain", "079-brain"]),
        (["/s/a.nii", "/s/a.zip"], ["a-1", "a-2"]),
        (["/x/1/a", "/y/1/a", "/y/2/a"], ["x-1-a", "y-1-a", "y-2-a"]),
    ],
)
def test_names_of_several_inputs(inputs: list[str], names: list[str]) -> None:
    assert verb.names_of([Path(i) for i in inputs]) == names


parts = st.sampled_from(["a", "b", "a.zip", "a.nii.gz", "brain", "078"])
paths = st.lists(parts, min_size=1, max_size=4).map(lambda p: Path("/", *p))


@given(st.lists(paths, min_size=2, max_size=6, unique=True))
def test_names_of_several_inputs_are_unique_and_plain(inputs: list[Path]) -> None:
    names = verb.names_of(inputs)
    assert len(set(names)) == len(inputs)
    assert all(Path(name).name == name for name in names)


@pytest.mark.parametrize("out", ["scan", ".", "scan/.."])
def test_results_never_replace_the_scan(
    out: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.dcm").touch()
    fake(lambda source: pytest.fail("must not come this far"))
    assert main(["analyze", "scan", "-o", out, "--overwrite"]) == exits.FAILED
    assert "holds the scan itself" in only_line(capsys.readouterr().err)


def test_a_full_folder_is_seen_before_the_work(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").touch()
    fake(lambda source: pytest.fail("must not come this far"))
    assert main(["analyze", "scan", "-o", str(tmp_path)]) == exits.FAILED
    assert "--overwrite" in only_line(capsys.readouterr().err)


# -- models, doctor, completion ---------------------------------------------------------------------------------------


def test_outline_of_a_card() -> None:
    card = {
        "name": "net",
        "data": [{"name": "A", "license": "CC"}, {"name": "B"}],
        "metrics": {"dice": 0.61234567, "none": None, "interval": [0.5, 0.7]},
        "limits": [
            "thin subdural blood is missed more often than not",
            "faint blood in the cisterns is missed too" * 2,
        ],
        "steps": [],
        "all": [
            {"on": "B", "metric": "Dice", "value": 0.5, "low": 0.4, "high": None, "n": 9, "unit": "slices", "x": 1}
        ],
    }
    assert list(models.outline(card)) == [
        "name: net",
        "data:",
        "  - name: A",
        "    license: CC",
        "  - name: B",
        "metrics:",
        "  dice: 0.612346",
        "  none: -",
        "  interval: 0.5, 0.7",
        "limits:",
        "  - thin subdural blood is missed more often than not",
        f"  - {'faint blood in the cisterns is missed too' * 2}",
        "steps: ",
        "all:",
        "  - B: Dice: 0.5 (0.4 to -; 9 slices)",
    ]


def test_models_list_and_show() -> None:
    listed = json.loads(run("models", "list", "--json").stdout)
    assert listed[0]["name"] == registry.DEFAULT_MODEL
    card = json.loads(run("models", "show", "--json").stdout)
    assert card["sha256"] == listed[0]["sha256"]
    assert f"name: {registry.DEFAULT_MODEL}" in run("models", "show", registry.DEFAULT_MODEL).stdout


def test_an_unknown_model_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", registry.DEFAULT_MODEL[:-1]]) == exits.FAILED
    assert f"Did you mean '{registry.DEFAULT_MODEL}'" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.13.0+cpu", ">=2.8,<2.14", True),
        ("2.14.0", ">=2.8,<2.14", False),
        ("2.7.1", ">=2.8,<2.14", False),
        ("2.8", ">=2.8.0", True),
        ("10.0", ">=9.5", True),
        ("1.0", "", True),
    ],
)
def test_versions_against_bounds(version: str, bounds: str, fits: bool) -> None:
    assert doctor.satisfies(version, bounds) is fits


def test_doctor_finds_this_environment_fit() -> None:
    done = run("doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == exits.DONE
    assert told["ok"]
    checks = {c["name"]: c for c in told["checks"]}
    for name in ("numpy", "pydicom", "DICOM decoders", "runtime", registry.DEFAULT_MODEL, "test"):
        assert checks[name]["state"] == "ok", checks[name]


def test_doctor_sees_damaged_weights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def damaged(model: registry.Model) -> bytes:
        raise ModelError("net.onnx: not the one that its card describes.")

    monkeypatch.setattr(registry.Model, "verified_bytes", damaged)
    assert main(["doctor"]) == exits.FAILED
    assert "not the one that its card describes" in capsys.readouterr().out


def test_doctor_tells_core_from_extras(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["numpy>=2", "no-such-core", "numpy>=99; python_version > '3'", "no-such-extra>=1; extra == 'web'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert main(["doctor", "--json"]) == exits.FAILED
    checks = json.loads(capsys.readouterr().out)["checks"]
    states = [
        (c["name"], c["state"]) for c in checks if c["part"] in {"core", "extras"} and c["name"] != "DICOM decoders"
    ]
    assert states == [("numpy", "ok"), ("no-such-core", "broken"), ("numpy", "broken"), ("web", "missing")]
    assert checks[-1]["remedy"] == "pip install 'hemolens[web]'"


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_script(shell: str, words: str) -> None:
    assert (
        words
        in run(
            "--show-completion", shell, env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        ).stdout
    )


def test_completion_offers_verbs_and_options() -> None:
    asked = {"_HEMOLENS_COMPLETE": "complete_bash", "COMP_WORDS": "hemolens analyze --over", "COMP_CWORD": "2"}
    assert run(env={**os.environ, **asked}).stdout.split() == ["--overwrite"]
