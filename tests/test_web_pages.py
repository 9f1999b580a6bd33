"""The other pages: correcting, explaining, training runs, models, worklist. Logic by AppTest; no viewer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="needs hemolens[web]")

from streamlit.testing.v1 import AppTest

from hemolens.errors import DependencyError, InputError, OutputError
from hemolens.sources.datasets.opening import open_datasets
from hemolens.web import corrections_page, explanations, models, session, training, uncertain, worklist
from hemolens.web.corrections_page import apply_event, draft_of, start_over
from hemolens.web.house import WebSettings
from hemolens.web.session import Study
from hemolens.web.viewer import ViewerEvent
from web_cases import dicom_volume, head, study_of, worklist_service, write_evaluation, write_run


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return dicom_volume(tmp_path_factory.mktemp("dicom"))


@pytest.fixture
def study(volume: Any) -> Study:
    return study_of(volume)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what the server was told."""

    def tell(**values: Any) -> None:
        for module in (corrections_page.session, explanations, models, training, worklist):
            monkeypatch.setattr(module, "settings", lambda: WebSettings(**values))

    tell()
    return tell


def drawn(module: str, study: Study | None = None, **state: Any) -> AppTest:
    def script() -> None:
        from importlib import import_module

        import streamlit as st

        page = import_module(st.session_state["module"])
        study = st.session_state["study"]
        page.show(st) if study is None else page.show(study, st)

    app = AppTest.from_function(script, default_timeout=60)
    app.session_state["study"], app.session_state["module"] = study, f"hemolens.web.{module}"
    for name, value in state.items():
        app.session_state[name] = value
    return app.run()


def text_of(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.success, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def stroke(index: int, points: list[tuple[float, float]], label: int = 4, tool: str = "brush") -> ViewerEvent:
    return ViewerEvent("stroke", index, tool, label, np.array(points), (2.0, 2.0))  # type: ignore[arg-type]


def pick(index: int, row: float, column: float, label: int = 0) -> ViewerEvent:
    return ViewerEvent("pick", index, "pick", label, np.array([[row, column]]))


# --- correcting ------------------------------------------------------------------------------------------------------


def test_what_the_viewer_says_is_done(study: Study) -> None:
    assert apply_event(study, stroke(0, [(20.0, 30.0), (20.0, 40.0)], 3))
    assert (study.labels[0, 20, 30:41] == 3).all()
    assert apply_event(study, stroke(0, [(20.0, 30.0)], 3, "erase"))
    assert study.labels[0, 20, 30] == 0
    assert apply_event(study, pick(2, 35.4, 28.6))
    assert not (study.labels == 4).any()
    assert apply_event(study, ViewerEvent("undo", 2))
    assert (study.labels == 4).sum() == 360
    assert apply_event(study, ViewerEvent("redo", 2))
    assert apply_event(study, ViewerEvent("undo", 2))
    assert apply_event(study, pick(2, 35, 28, 1))
    assert (study.labels == 1).sum() == 360
    assert study.revision == 7
    assert len(draft_of(study).done) == 3
    assert np.array_equal(study.result.label_map.labels, head()[1]), "the network's own stays"
    assert not apply_event(study, ViewerEvent("slice", 3))
    start_over(study)
    assert not study.corrected
    assert draft_of(study).done == ()


def test_a_click_to_add_outlines_what_is_there(volume: Any) -> None:
    empty = study_of(volume, labels=np.zeros_like(head()[1]))
    assert apply_event(empty, pick(2, 36, 29, 4))
    found, true = empty.labels == 4, head()[1] == 4
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8


def test_a_click_beside_every_lesion_is_refused_in_one_sentence(study: Study) -> None:
    with pytest.raises(InputError, match="no lesion is outlined there"):
        apply_event(study, pick(0, 5, 5))
    assert study.revision == 0


def test_events_are_done_once_and_the_page_shows_them(study: Study, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [pick(4, 22, 38)]
    monkeypatch.setattr(corrections_page, "show_viewer", lambda *a, **k: events.pop() if events else None)
    app = drawn("corrections_page", study)
    assert not app.exception
    assert not (study.labels == 2).any()
    assert "1. Erased a lesion (slice 5)" in text_of(app)
    assert "in 2 lesions. Now:" in text_of(app)
    next(b for b in app.button if b.label == "Undo").click().run()
    assert (study.labels == 2).any()
    next(b for b in app.button if b.label == "Redo").click().run()
    assert not (study.labels == 2).any()
    events.append(pick(0, 2, 2))
    app.run()
    assert "No lesion is outlined there. Click inside an outline, or use the brush." in text_of(app)
    next(b for b in app.button if b.label == "Start over").click().run()
    assert not study.corrected


def test_nothing_is_saved_without_a_name_or_unasked(
    study: Study, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections_page, "show_viewer", lambda *a, **k: None)
    app = drawn("corrections_page", study)
    assert "Type your name first" in text_of(app)
    assert not app.get("download_button")
    app.text_input[0].set_value("Ada").run()
    assert len(app.get("download_button")) == 1
    assert "hemolens web --keep DIR" in text_of(app)
    assert not any(b.key in {"keep-correction", "add-to-training"} for b in app.button)


def test_a_corrected_scan_goes_into_the_training_folder(
    study: Study, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(keep=tmp_path)
    monkeypatch.setattr(corrections_page, "show_viewer", lambda *a, **k: None)
    study.correct(np.where(study.labels == 2, 0, study.labels).astype(np.uint8))
    app = drawn("corrections_page", study, hemolens_author="Ada")
    button = {b.key: b for b in app.button}
    assert button["add-to-training"].disabled, "not before every slice was looked at"
    app.checkbox(key=f"seen-{study.id}").check().run()
    app.button(key="add-to-training").click().run()
    assert not app.exception
    assert "The scan is added: 1 scans of 1 patients" in text_of(app)
    assert "hemolens train effunet2d --data" in text_of(app)
    (dataset,) = open_datasets(tmp_path / "training")
    assert set(np.unique(dataset.labels(dataset.cases[0]))) == {0, 6}, "subtypes were not vouched for"
    app.button(key="keep-correction").click().run()
    (kept,) = (tmp_path / "corrections").iterdir()
    assert {p.name for p in kept.iterdir()} == {"correction.json", "mask.nii.gz", "seg.dcm"}
    assert json.loads((kept / "correction.json").read_text())["author"] == "Ada"


# --- explaining ------------------------------------------------------------------------------------------------------


def test_the_likeliest_slices_are_suggested(study: Study) -> None:
    assert set(explanations.suggested_slices(study)) >= {1, 2, 3, 4}


def test_without_torch_it_says_how_to_get_it(study: Study, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "show_viewer", lambda *a, **k: None)
    monkeypatch.setattr(explanations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"hemolens\[train\]"):
        explanations.explained(study, "gradcam", "any", (1,))
    app = drawn("explanations", study)
    app.button(key="explain-go").click().run()
    assert not app.exception
    assert "pip install 'hemolens[train]'" in text_of(app)


def test_maps_are_scaled_by_what_the_study_says_already(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai")
    asked: list[Any] = []
    monkeypatch.setattr("hemolens.explain.run.explain", lambda volume, subject, *rest: asked.append(subject))
    monkeypatch.setitem(study.extras, "explanations", {})
    explanations.explained(study, "occlusion", "any", (1,))
    assert asked[0].judge(study.volume) is study.prediction.slice_probability


# --- training --------------------------------------------------------------------------------------------------------


def test_runs_are_read_from_their_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "done", finished=True)
    write_run(tmp_path / "deep/er/mine", torn=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.toml").write_text("no = 'run'\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.toml").write_text("[[[")
    found = {run.name: run for run in training.find_runs(tmp_path)}
    assert set(found) == {"done", "deep/er/mine"}
    running = found["deep/er/mine"]
    assert (running.state, running.step, running.network) == ("running", 20, "unet2d")
    assert running.share == 0.5
    assert running.left_s == pytest.approx(120.0)
    assert (found["done"].state, found["done"].share, found["done"].left_s) == ("finished", 1.0, None)
    later = training.find_runs(tmp_path, now=running.written + training.QUIET_S + 1)
    assert {run.name: run.state for run in later} == {"done": "finished", "deep/er/mine": "stopped"}
    points = training.curve(running.rows, ("loss", "val_dice", "rate"))
    assert points["loss"] == {5: 1.0, 10: 0.5, 15: pytest.approx(1 / 3), 20: 0.25}
    assert set(points) == {"loss", "dice, validation"}


def test_the_main_scores_of_an_evaluation_are_shown(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "scores")
    rows = training.main_metrics(tmp_path / "scores")
    assert [tuple(row) for row in rows] == [
        ("ct_ich", "test", "voxel", "dice", "0.712 (0.600 to 0.800)", "13"),
        ("ct_ich", "test", "slice", "auc", "–", "13"),
    ]
    assert training.main_metrics(tmp_path) == []


def test_the_training_page(tmp_path: Path, told: Any) -> None:
    app = drawn("training")
    assert "hemolens web --runs runs" in text_of(app)
    told(runs=tmp_path / "none")
    assert "There is no folder" in text_of(drawn("training"))
    told(runs=tmp_path)
    assert "holds no training run" in text_of(drawn("training"))
    write_run(tmp_path / "mine")
    write_evaluation(tmp_path / "mine-scores")
    app = drawn("training")
    assert not app.exception
    shown = text_of(app)
    assert "| mine | unet2d | running | 20 | val" not in shown
    assert "| mine | unet2d | running | 20 | loss, validation 0.500, dice, validation 0.444 | 2 min |" in shown
    assert "0.712 (0.600 to 0.800)" in shown


# --- models ----------------------------------------------------------------------------------------------------------


def test_the_shipped_model_shows_its_card(told: Any) -> None:
    app = drawn("models")
    assert not app.exception
    shown = text_of(app)
    assert "What it cannot do" in shown
    assert "ROC-AUC per slice, any" in shown
    assert "Not a medical device" in shown
    (_, model), *_ = models.find_models()
    assert model.sha256 in shown


def test_odd_cards_do_not_stop_the_page() -> None:
    assert models.metric_rows({"metrics": {"dice": 0.5}}) == []
    assert models.metric_rows({"metrics": ["text", {"value": None}, {"on": "x", "metric": "dice", "value": 0.5}]}) == [
        ("x", "dice", "0.500", "")
    ]
    assert models.lines("one") == ["one"]
    assert models.lines(None) == []


# --- most uncertain first --------------------------------------------------------------------------------------------


def test_the_ranking_opens_a_scan_on_its_least_certain_slice(
    volume: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(uncertain, "open_page", opened.append)
    first, second = study_of(volume, "First"), study_of(volume, "Second")
    monkeypatch.setattr(uncertain.session, "studies", lambda state: (first, second))
    app = drawn("uncertain")
    assert not app.exception
    assert [b.label for b in app.button] == ["Correct 1. First", "Correct 2. Second"]
    app.button[1].click().run()
    assert opened == ["correct"]
    assert app.session_state[session.CURRENT] == second.id
    assert app.session_state[session.GO_TO]["study"] == second.id


# --- worklist --------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[tuple[str, list[dict[str, str]]]]:
    with worklist_service() as running:
        yield running


def test_the_worklist_is_read_from_the_api(service: tuple[str, list[dict[str, str]]]) -> None:
    host, seen = service
    rows = worklist.open_source(f"http://:se%2Fcret@{host}").rows()
    assert seen[-1]["path"].startswith("/api/v1/worklist?")
    cells = [tuple(row) for row in worklist.table_rows(rows)]
    assert cells[0] == ("1", "Hemorrhage likely", "0.97", "28.4 ml", "4 min", "….44444444444", "")
    assert cells[1][1:] == ("No answer: look yourself", "–", "–", "2 h 13 min", "…1.2.5", "no head CT")


def test_a_service_that_refuses_or_is_not_there_says_so(service: tuple[str, list[dict[str, str]]], told: Any) -> None:
    host, _ = service
    with pytest.raises(OutputError, match=r"answers 401\. Put its token"):
        worklist.open_source(f"http://{host}").rows()
    with pytest.raises(OutputError, match="does not answer"):
        worklist.open_source("http://127.0.0.1:9").rows()
    with pytest.raises(InputError, match="is no address"):
        worklist.open_source("ftp://:secret@host")
    told(pacs="http://127.0.0.1:9")
    app = drawn("worklist")
    assert not app.exception
    assert "does not answer" in app.error[0].value


def test_the_worklist_page(service: tuple[str, list[dict[str, str]]], told: Any) -> None:
    assert "hemolens web --pacs pacs.toml" in text_of(drawn("worklist"))
    told(pacs=f"http://:se%2Fcret@{service[0]}")
    app = drawn("worklist")
    assert not app.exception
    assert "| 1 | Hemorrhage likely | 0.97 | 28.4 ml | 4 min |" in text_of(app)
    app.button(key="worklist-open").click().run()
    assert "Its images are not on this machine" in text_of(app)


def test_the_worklist_is_read_from_the_queue_beside_the_service(tmp_path: Path) -> None:
    pytest.importorskip("hemolens.pacs.queue")
    from hemolens.pacs.queue import InstanceKind, Received, open_queue

    (tmp_path / "pacs.toml").write_text('[spool]\npath = "spool"\n')
    from hemolens.pacs.config import load_pacs_config

    config = load_pacs_config(tmp_path / "pacs.toml")
    Path(config.spool.path).mkdir(parents=True, exist_ok=True)
    source = worklist.open_source(str(tmp_path / "pacs.toml"))
    assert source.rows() == []
    queue = open_queue(config.queue_url)
    place = Path(config.spool.path) / "incoming/s/e"
    place.mkdir(parents=True)
    (place / "i.dcm").write_bytes(b"x")
    now = queue.now()
    queue.keep(Received("1.2.9", "1.2.8", "1.2.7", "k", "CT", InstanceKind.CT, "incoming/s/e/i.dcm", 1, "0" * 64, now))
    job = queue.complete("1.2.8", 1, "m")
    assert job is not None
    (row,) = source.rows()
    assert (row.urgency, row.study_uid, row.probability) == ("waiting", "1.2.7", None)
    assert source.files(row.job) == place
    queue.close()


@pytest.mark.parametrize(("seconds", "told"), [(20, "0 min"), (240, "4 min"), (7800, "2 h 10 min"), (300000, "3 days")])
def test_waiting_is_told_for_people(seconds: float, told: str) -> None:
    assert worklist.waited(seconds) == told
