"""Opening scans: where dropped files lie and when they go, jobs and rooms, and the start page, without a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_files import Series, write_series
from hemolens.errors import InputError
from hemolens.sources.study import ReadOptions
from hemolens.web import jobs, session
from hemolens.web.house import House, Room, WebSettings, house
from hemolens.web.jobs import Job, Office, Order, Stage
from hemolens.web.uploads import MAX_NAME, Batch, clean_name, scans
from web_server import made_up, wait_for


@pytest.fixture
def batch() -> Iterator[Batch]:
    made = Batch.new(10_000)
    yield made
    made.delete()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A house of its own, with the made-up analysis."""
    monkeypatch.setattr(jobs, "analyze_named", made_up)
    monkeypatch.setattr(Office, "_load", lambda self: None)
    house.cache_clear()
    yield house()
    house().close()
    house.cache_clear()


@given(st.text(max_size=400))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    root = Path("/nowhere/batch")
    cleaned = clean_name(name)
    path = (root / cleaned).resolve()
    assert path != root
    assert path.is_relative_to(root)
    assert cleaned.isprintable()
    assert all(0 < len(part.encode()) <= MAX_NAME and not part.startswith(".") for part in cleaned.split("/"))


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a.dcm", "a.dcm"),
        ("head/1/a.dcm", "head/1/a.dcm"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\windows\\x.dcm", "windows/x.dcm"),
        ("...", "unnamed"),
        ("", "unnamed"),
        ("a\x00b\n.png", "a?b?.png".replace("?", "_")),
        ("x" * 500 + ".nii.gz", "x" * (MAX_NAME - 7) + ".nii.gz"),
    ],
)
def test_names_are_cleaned(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (["a.zip"], {"a.zip": 1}),
        (["a.zip", "b.nii.gz", "c.nii"], {"a.zip": 1, "b.nii.gz": 1, "c.nii": 1}),
        (["1.dcm", "2.dcm", "3.dcm"], {"1.dcm and 2 more": 3}),
        (["head/1.dcm", "head/2.dcm", "other/1.dcm"], {"head": 2, "other": 1}),
        (["head/a/1", "head/b/2"], {"head": 2}),
        (["1.png"], {"1.png": 1}),
    ],
)
def test_files_are_sorted_into_scans(names: list[str], titles: dict[str, int]) -> None:
    assert {title: len(members) for title, members in scans(names)} == titles


def fill(batch: Batch, *names: str) -> None:
    for name in names:
        path = batch.place(name)
        path.write_bytes(name.encode())
        batch.count(len(name))


def test_each_order_holds_its_own_files_and_no_others(batch: Batch) -> None:
    fill(batch, "head/1.dcm", "head/2.dcm", "x.nii.gz", "loose1.dcm", "loose2.dcm")
    found = {order.name: order.path for order in batch.orders(ReadOptions())}
    assert found["x.nii.gz"].read_bytes() == b"x.nii.gz"
    assert sorted(p.name for p in found["head"].rglob("*.dcm")) == ["1.dcm", "2.dcm"]
    assert sorted(p.name for p in found["loose1.dcm and 1 more"].rglob("*.dcm")) == ["loose1.dcm", "loose2.dcm"]


def test_files_go_when_the_last_scan_was_read(batch: Batch) -> None:
    fill(batch, "a.zip", "b.zip")
    first, second = batch.orders(ReadOptions())
    assert first.cleanup is not None
    assert second.cleanup is not None
    first.cleanup()
    assert batch.folder.is_dir()
    second.cleanup()
    assert not batch.folder.exists()


def test_two_files_of_one_name_are_both_kept(batch: Batch) -> None:
    fill(batch, "a/1.dcm", "a/1.dcm")
    assert len(list(batch.folder.rglob("*.dcm"))) == 2


def test_spacing_is_told_to_pictures_only(batch: Batch) -> None:
    fill(batch, "s/1.png", "s/2.JPG", "x.nii")
    said = ReadOptions(pixel_spacing_mm=0.4, slice_spacing_mm=5.0)
    options = {order.name: order.options for order in batch.orders(said)}
    assert options["s"] == said
    assert options["x.nii"] == ReadOptions()


def test_a_batch_is_bounded(batch: Batch) -> None:
    batch.count(10_000)
    with pytest.raises(InputError, match="larger than"):
        batch.count(1)
    with pytest.raises(InputError, match="disk"):
        batch.require_space(2**62)


def test_a_folder_is_private(batch: Batch) -> None:
    assert batch.folder.stat().st_mode & 0o077 == 0


def finish(job: Job) -> Job:
    wait_for(lambda: job.over and job.seconds is not None, 60)
    return job


def order_of(tmp_path: Path, name: str = "head", **more: Any) -> Order:
    write_series(tmp_path / name, Series(rows=48, columns=48))
    return Order(name, tmp_path / name, **more)


def test_a_job_runs_through_its_stages_and_leaves_a_study(here: House, tmp_path: Path) -> None:
    room, cleaned = here.room(None), threading.Event()
    job = here.office.submit(room, order_of(tmp_path, cleanup=cleaned.set))
    seen = set()
    while not job.over:
        seen.add((job.stage, round(job.fraction, 2)))
        time.sleep(0.002)
    assert finish(job).state is Stage.DONE
    assert {stage for stage, _ in seen} >= {"read", "infer"}
    assert job.fraction == 1.0
    assert cleaned.is_set()
    (study,) = room.studies.values()
    assert (study.name, study.id) == ("head", job.study_id)


def test_a_wrong_file_is_one_line_with_its_owners_name(here: House, tmp_path: Path) -> None:
    (tmp_path / "secret-place").mkdir()
    path = tmp_path / "secret-place" / "note.txt"
    path.write_text("no scan")
    job = finish(here.office.submit(here.room(None), Order("note.txt", path)))
    assert job.state is Stage.FAILED
    assert job.message.startswith("note.txt: is no scan that hemolens knows. Give a DICOM")
    assert "secret-place" not in job.message


def test_a_bug_ends_one_job_and_names_nothing(
    here: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(jobs, "analyze_named", broken)
    job = finish(here.office.submit(here.room(None), Order("Doe", tmp_path)))
    assert job.state is Stage.FAILED
    assert "internal error (RuntimeError)" in job.message
    assert "Doe" not in caplog.text
    monkeypatch.setattr(jobs, "analyze_named", made_up)
    assert finish(here.office.submit(here.room(None), order_of(tmp_path))).state is Stage.DONE


def test_a_canceled_job_stops_and_leaves_nothing(here: House, tmp_path: Path) -> None:
    room, cleaned = here.room(None), threading.Event()
    job = here.office.submit(room, order_of(tmp_path, "slow", cleanup=cleaned.set))
    wait_for(lambda: job.state is Stage.RUNNING, 20)
    job.cancel()
    assert finish(job).state is Stage.CANCELED
    assert not room.studies
    assert cleaned.is_set()


def test_a_job_that_waits_is_over_as_soon_as_it_is_stopped(here: House, tmp_path: Path) -> None:
    room = here.room(None)
    running = here.office.submit(room, order_of(tmp_path, "slow"))
    waiting = here.office.submit(room, order_of(tmp_path))
    wait_for(lambda: running.state is Stage.RUNNING, 20)
    assert waiting.told(here.office.before(waiting)) == "head: waiting for 1 other scan"
    assert not waiting.over
    waiting.cancel()
    assert waiting.over
    assert waiting.told(0) == "head: stopping"
    running.cancel()
    wait_for(lambda: waiting.state is Stage.CANCELED, 60)
    assert not room.studies


def test_no_page_runs_itself_again_by_a_clock_of_streamlits() -> None:
    """Such a run that is late, of a page that was left, empties the page that the user went to."""
    import hemolens.web

    for module in Path(hemolens.web.__file__).parent.rglob("*.py"):
        assert "run_every" not in module.read_text(encoding="utf-8"), module.name


def test_ten_users_wait_in_turn_and_each_gets_only_their_own(here: House, tmp_path: Path) -> None:
    rooms = [here.room(None) for _ in range(10)]
    submitted = [here.office.submit(r, order_of(tmp_path, f"user{i}")) for i, r in enumerate(rooms)]
    assert max(here.office.before(job) for job in submitted) >= 7
    for job in submitted:
        assert finish(job).state is Stage.DONE
    assert [[s.name for s in r.studies.values()] for r in rooms] == [[f"user{i}"] for i in range(10)]
    assert len({r.token for r in rooms}) == 10


def test_results_are_kept_only_when_asked(here: House, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    keep.mkdir()
    finish(here.office.submit(here.room(None), order_of(tmp_path)))
    assert not list(keep.iterdir())
    house.cache_clear()
    house().settings = WebSettings(keep=keep)
    for _ in range(2):
        job = finish(house().office.submit(house().room(None), Order("a/b: c", tmp_path / "head")))
        assert job.state is Stage.DONE, job.message
    assert sorted(p.name for p in keep.iterdir()) == ["a_b__c", "a_b__c-2"]
    assert (keep / "a_b__c" / "findings.json").is_file()


def test_a_room_is_emptied_after_everybody_left_and_not_before(tmp_path: Path) -> None:
    now = [0.0]
    here = House(WebSettings(idle_s=60), clock=lambda: now[0])
    room = here.room(None)
    here.enter(room)
    here.enter(room)  # a second tab
    batch = room.batch("abcdefgh", 100)
    here.leave(room)
    now[0] = 1000
    assert here.sweep() == 0
    here.leave(room)
    now[0] = 1059
    assert here.room(room.token) is room  # came back in time, such as by a refresh
    now[0] = 1061
    assert here.sweep() == 1
    assert here.known(room.token) is None
    assert not batch.folder.exists()


def test_a_guessed_token_opens_no_room(here: House) -> None:
    room = here.room(None)
    assert len(room.token) >= 32
    assert here.room("guess") is not room
    assert here.known("guess") is None
    state: dict[str, Any] = {}
    assert not session.enter(state, "guess")
    assert session.enter(state, room.token)
    assert session.room(state) is room


def test_studies_of_one_name_are_told_apart_and_their_number_is_bounded(here: House, tmp_path: Path) -> None:
    here.settings = WebSettings(max_studies=2)
    room = here.room(None)
    order = order_of(tmp_path)
    done = [finish(here.office.submit(room, order)) for _ in range(3)]
    assert [s.name for s in room.studies.values()] == ["head", "head (2)"]
    assert done[2].state is Stage.FAILED
    assert "2 studies are open already. Close one first." in done[2].message


def test_closing_a_study_takes_its_pictures_off_the_shelf(here: House, tmp_path: Path) -> None:
    from hemolens.web.viewer.component import lay_out
    from hemolens.web.viewer.model import label_overlay

    state: dict[str, Any] = {}
    room = session.room(state)
    for name in ("one", "two"):
        finish(here.office.submit(room, order_of(tmp_path, name)))
    one, two = session.studies(state)
    for study in (one, two):
        lay_out(room, study, "view", label_overlay(study.labels))
    session.choose(state, one)
    session.close(state, one)
    assert session.current(state) is two
    assert [name.split("-")[0] for name in room.shelf] == [two.id]


def test_batches_of_one_browser_are_bounded() -> None:
    room = Room("token")
    for number in range(4):
        room.batch(f"batch-{number}", 100)
    with pytest.raises(InputError, match="4 uploads are open"):
        room.batch("batch-4", 100)
    room.clear()


def test_the_start_page_opens_the_demo_and_shows_it(
    here: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit.testing.v1 import AppTest

    import hemolens.web
    from hemolens.web import opening

    small = order_of(tmp_path).path
    truth = np.zeros((6, 48, 48), np.uint8)
    monkeypatch.setattr(opening, "demo_source", lambda: small)
    monkeypatch.setattr(opening, "demo_truth", lambda: SimpleNamespace(labels=lambda: truth))
    app = AppTest.from_file(str(Path(hemolens.web.__file__).parent / "app.py"), default_timeout=120).run()
    assert not app.exception
    assert app.header[0].value == "Open a scan"
    assert any("Research use only. Not a medical device." in c.value for c in app.caption)
    next(b for b in app.button if b.label == "Open the demo").click().run()
    assert not app.exception
    room = session.room(app.session_state)
    wait_for(lambda: room.studies or not room.jobs, 120)
    app.run()
    assert not app.exception
    assert next(r.options for r in app.radio) == ["Demo (phantom head)"]
    study = next(iter(room.studies.values()))
    assert study.truth is truth
    assert study.origin == "demo"


def test_what_failed_is_told_until_it_is_cleared(here: House, tmp_path: Path) -> None:
    from streamlit.testing.v1 import AppTest

    import hemolens.web

    app = AppTest.from_file(str(Path(hemolens.web.__file__).parent / "app.py"), default_timeout=120).run()
    room = session.room(app.session_state)
    finish(here.office.submit(room, Order("empty", tmp_path)))
    app.run()
    assert [e.value for e in app.error] == [
        "empty: is an empty folder. Give a DICOM folder, file or zip, a NIfTI file, or a folder of PNG or JPEG slices."
    ]
    next(b for b in app.button if b.label == "Clear messages").click().run()
    assert not app.error


def test_a_job_that_ends_while_the_page_is_drawn_is_not_missed(
    here: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit.testing.v1 import AppTest

    import hemolens.web
    from hemolens.web import opening

    app = AppTest.from_file(str(Path(hemolens.web.__file__).parent / "app.py"), default_timeout=120).run()
    room, order = session.room(app.session_state), order_of(tmp_path)
    drop_box, begun = opening.drop_box, []

    def late() -> None:
        """Begin and end an analysis after the list of jobs was looked through."""
        if not begun:
            begun.append(finish(here.office.submit(room, order)))
        drop_box()

    monkeypatch.setattr(opening, "drop_box", late)
    app.run()
    assert begun[0].state is Stage.DONE
    assert [r.options for r in app.radio] == [["head"]]
