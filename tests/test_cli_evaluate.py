"""`hemolens evaluate` on the shipped model and real slices: files, output, options, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation_cases import ToyPredictor, study
from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.evaluation.card import with_calibration
from hemolens.inference.registry import DEFAULT_MODEL, load_model
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.splits import Fold, Split, make_split, write_split

MODEL = DEFAULT_MODEL
FEW = ["--patient", "ct_ich/128", "--patient", "bhsd/145"]


def run(*words: str | Path) -> int:
    return main(["evaluate", *(str(word) for word in words)])


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    assert run(MODEL, "--data", data, *FEW, "-o", folder, "--draws", "200", "--quiet") == exits.DONE
    return folder


@pytest.mark.slow
class TestRealData:
    def test_everything_is_written(self, out: Path) -> None:
        names = {p.name for p in out.iterdir()}
        assert {"metrics.json", "report.html", "metrics.csv", "slices.csv", "scans.csv", "figures", "panels"} <= names
        assert "Research use only" in (out / "report.html").read_text("utf-8")

    def test_the_model_s_own_split_says_who_is_who(self, out: Path) -> None:
        told = json.loads((out / "metrics.json").read_text("utf-8"))
        assert [(s["dataset"], s["side"]) for s in told["sets"]] == [("bhsd", "test"), ("ct_ich", "validation")]
        assert told["models"][0]["split"]["source"] == "card"
        assert told["models"][0]["probabilities"] == "card"
        assert told["sets"][0]["masks"] == {"drawn": 4}
        assert not any("was trained on" in line for line in told["warnings"])

    def test_loose_slices_are_no_scans(self, out: Path) -> None:
        bhsd = json.loads((out / "metrics.json").read_text("utf-8"))["sets"][0]
        assert (bhsd["patients"], bhsd["scans"], bhsd["slices"]) == (1, 0, 4)
        assert not any(m["level"] in ("scan", "lesion") for m in bhsd["measures"])

    def test_an_earlier_result_is_replaced_only_if_asked(
        self, out: Path, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(MODEL, "--data", data, *FEW, "-o", out) == exits.FAILED
        assert "--overwrite" in capsys.readouterr().err

    def test_json_alone_goes_to_standard_output(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("--datasets", "bhsd", "--limit", "2", "--draws", "100", "--json")
        assert run(MODEL, "--data", data, *words) == exits.DONE
        told = capsys.readouterr()
        assert told.err == ""
        assert json.loads(told.out)["sets"][0]["patients"] == 2

    def test_the_table_names_scores_intervals_and_cautions(
        self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("--datasets", "bhsd", "--limit", "2", "--draws", "100", "-o", tmp_path / "out")
        assert run(MODEL, "--data", data, *words) == exits.DONE
        told = capsys.readouterr()
        assert told.err == ""
        assert "bhsd, test: 2 patients" in told.out
        assert "Dice, all drawn blood pooled" in told.out
        assert "caution: Only some patients were scored" in told.out
        assert "Research use only" in told.out
        assert "report.html" in told.out

    def test_a_split_that_was_asked_for_decides_and_training_patients_are_told(
        self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Patient 049 was trained on: the split that puts it on the test side is told so."""
        (ct_ich,) = open_datasets(data, ["ct_ich"])
        known = tuple(sorted(case.patient for case in ct_ich.cases))
        rest = [f"ct_ich/{p}" for p in known if p not in ("049", "128")]
        fold = Fold(tuple(rest), ("ct_ich/128",), ("ct_ich/049",))
        path = tmp_path / "split.json"
        write_split(Split("patient", 0, {"ct_ich": known}, (fold,)), path)
        words = ("--datasets", "ct_ich", "--side", "test", "--draws", "100", "--json")
        code = run(MODEL, "--data", data, "--split", path, *words)
        told = capsys.readouterr()
        if code != exits.DONE:  # the one validation patient does not bleed: the split itself says so
            assert "has no hemorrhage in its validation side" in told.err
            return
        values = json.loads(told.out)
        assert any("was trained on 1 of these patients" in line for line in values["warnings"])

    def test_the_shipped_card_is_measured_again(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Dice on BHSD by this path is the number in the card, which was measured by another one."""
        assert run(MODEL, "--data", data, "--datasets", "bhsd", "--draws", "500", "--json") == exits.DONE
        measures = json.loads(capsys.readouterr().out)["sets"][0]["measures"]
        card = {row["metric"]: row for row in load_model(MODEL).card["metrics"] if row["on"] == "bhsd"}
        for metric, title in (("pooled_dice", "pooled Dice, blood"), ("mean_dice", "mean Dice per slice, blood")):
            (told,) = [m for m in measures if m["metric"] == metric]
            assert told["value"] == pytest.approx(card[title]["value"], abs=5e-4)
            assert told["n"] == card[title]["n"] == 33


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ((MODEL, "--data", "."), "Missing -o OUT"),
            ((MODEL, "other", "--data", ".", "--json"), "add --cross-validate"),
            ((MODEL, "--data", ".", "--json", "--cross-validate"), "at least two"),
            ((MODEL, "--data", ".", "--json", "--fold", "1"), "--split"),
            (("a", "b", "--data", ".", "--json", "--cross-validate", "--fold", "1"), "leave --fold out"),
            (("a", "b", "--data", ".", "--json", "--cross-validate", "--calibrate"), "one run"),
            ((MODEL, "--data", ".", "--json", "--side", "tset"), "tset"),
        ],
    )
    def test_wrong_usage_is_one_line(
        self, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(*words) == exits.WRONG_USAGE
        err = capsys.readouterr().err
        assert told in err
        assert err.count("\n") == 1

    def test_a_folder_that_is_no_data_set(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(MODEL, "--data", tmp_path, "--json") == exits.FAILED
        assert "holds no data set" in capsys.readouterr().err

    def test_an_unknown_model(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(f"{MODEL}0", "--data", data, "--json") == exits.FAILED
        assert "Did you mean" in capsys.readouterr().err

    def test_models_without_a_fold_cannot_be_pooled(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(MODEL, MODEL, "--data", data, "--cross-validate", "--json") == exits.WRONG_USAGE
        assert "know their split and fold" in capsys.readouterr().err

    def test_a_split_of_other_data(self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "split.json"
        write_split(make_split([study(12)], folds=3), path)  # type: ignore[list-item]
        assert run(MODEL, "--data", data, "--datasets", "bhsd", "--split", path, "--json") == exits.WRONG_USAGE
        assert "made for toy" in capsys.readouterr().err


class TestRuns:
    """Training runs, as `hemolens train` leaves them, with a network that is known to work."""

    @pytest.fixture
    def folds(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        toys = study(12)
        monkeypatch.setattr("hemolens.sources.datasets.opening.open_datasets", lambda *_: (toys,))
        split = make_split([toys], folds=3)  # type: ignore[list-item]
        runs = []
        for number in range(3):
            folder = tmp_path / f"run-{number}"
            folder.mkdir()
            card = json.loads(load_model(MODEL).path.with_suffix(".json").read_text("utf-8"))
            del card["split"]
            fold = split.folds[number]
            card |= {
                "name": folder.name,
                "file": "model.onnx",
                "calibration": json.loads(json.dumps(card["calibration"])) | {"study_scores": [], "study_truth": []},
                "limits": ["Probabilities are not calibrated and the thresholds were not chosen.", "Small."],
                "training": {"split": {
                    "unit": "patient", "seed": 0, "folds": 3, "fold": number,
                    **{side: len(getattr(fold, side)) for side in ("train", "validation", "test")},
                }},
            }  # fmt: skip
            write_split(split, folder / "split.json")
            (folder / "model.json").write_text(json.dumps(card), "utf-8")
            (folder / "model.onnx").symlink_to(load_model(MODEL).path)
            runs.append(folder)

        def toy(model: Any, runtime: str, threads: int | None) -> ToyPredictor:
            predictor = ToyPredictor()
            predictor.model = replace(model, preprocess=predictor.model.preprocess)
            return predictor

        monkeypatch.setattr("hemolens.inference.predictor.Predictor", toy)
        return runs

    def test_cross_validation_in_one_command(
        self, folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(*folds, "--data", ".", "--cross-validate", "--draws", "100", "--json") == exits.DONE
        told = json.loads(capsys.readouterr().out)
        assert [m["fold"] for m in told["models"]] == [0, 1, 2]
        assert (told["sets"][0]["side"], told["sets"][0]["patients"]) == ("test", 12)
        assert {f["fold"] for f in told["folds"]} == {0, 1, 2}
        assert run(folds[0], folds[0], "--data", ".", "--cross-validate", "--json") == exits.WRONG_USAGE
        assert "same fold" in capsys.readouterr().err

    def test_calibration_is_written_into_the_card_of_a_run(
        self, folds: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = json.loads((folds[0] / "model.json").read_text("utf-8"))
        assert run(folds[0], "--data", ".", "--draws", "100", "--json", "--calibrate") == exits.DONE
        fitted = json.loads(capsys.readouterr().out)["models"][0]
        assert fitted["probabilities"] == "validation"
        model = load_model(str(folds[0]))
        assert len(model.calibration.study_scores) == 4
        point = next(p for p in fitted["operating_points"] if p["level"] == "scan" and p["name"] == "youden")
        assert model.thresholds.study == pytest.approx(point["threshold"], abs=0.02)
        assert "fitted on 4 validation patients" in model.card["limits"][-1]
        assert model.card["training"] == before["training"]
        # A second time there is nothing left to do.
        assert run(folds[0], "--data", ".", "--draws", "100", "--json", "--calibrate") == exits.FAILED
        assert "calibrated already" in capsys.readouterr().err


def test_a_card_keeps_what_else_it_says() -> None:
    card = json.loads(load_model(MODEL).path.with_suffix(".json").read_text("utf-8"))
    told = with_calibration({**card, "limits": ["a", "it is not calibrated"]}, load_model(MODEL).calibration, "b")
    assert told["limits"] == ["a", "b"]
    assert told["sha256"] == card["sha256"]
    assert told["thresholds"]["study"] == card["thresholds"]["study"]
