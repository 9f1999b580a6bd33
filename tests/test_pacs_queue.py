"""The durable queue, the same promises for SQLite and for a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hemolens.errors import ConfigError, QueueError
from hemolens.pacs.queue import (
    DeliveryState,
    InstanceKind,
    JobState,
    Kept,
    Letter,
    Outcome,
    Queue,
    Received,
    SeriesState,
    open_queue,
)
from pacs_peers import Postgres

FIRST = Received("1.1.1", "1.1", "1", "p" * 32, "CT", InstanceKind.CT, "incoming/a.dcm", 10, "aa", 1000.0, "CT1")
OUTCOME = Outcome(0.9, 12.5, "positive", True, False, "results/x/1/findings.json")
LETTERS = [Letter("pacs", "9.1", "class", "seg.dcm"), Letter("pacs", "9.2", "class", "sr.dcm")]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.db"
    return request.getfixturevalue("postgres").fresh()


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    opened = open_queue(url)
    yield opened
    opened.close()


def fill(queue: Queue, count: int = 3, series: str = "1.1") -> None:
    for number in range(count):
        told = replace(FIRST, sop_uid=f"{series}.{number}", series_uid=series, sha256=f"{series}{number}")
        assert queue.keep(replace(told, path=f"incoming/{series}/{number}.dcm")) is Kept.NEW


def test_an_instance_is_kept_once_and_never_replaced(queue: Queue) -> None:
    assert queue.keep(FIRST) is Kept.NEW
    assert queue.keep(FIRST) is Kept.SAME
    assert queue.keep(replace(FIRST, sha256="bb")) is Kept.CONFLICT
    kept = queue.instance_kept(FIRST.sop_uid)
    assert kept is not None
    assert (kept.sha256, kept.path) == ("aa", FIRST.path)
    series = queue.series("1.1")
    assert series is not None
    assert (series.instances, series.conflicts, series.state) == (1, 1, SeriesState.RECEIVING)


@pytest.mark.parametrize("other", [{"patient_key": "q" * 32}, {"study_uid": "2"}])
def test_a_series_never_mixes_patients_or_studies(queue: Queue, other: dict[str, str]) -> None:
    fill(queue)
    assert queue.keep(replace(FIRST, sop_uid="1.1.77", **other)) is Kept.CONFLICT
    assert queue.instance_kept("1.1.77") is None
    assert len(queue.instances("1.1")) == 3


def test_a_series_is_analyzed_once_and_again_only_when_more_came(queue: Queue) -> None:
    fill(queue)
    assert queue.complete("1.1", 2, "m") is None, "an instance came since"
    job = queue.complete("1.1", 3, "m")
    assert job is not None
    assert queue.complete("1.1", 3, "m") is None
    assert queue.keep(replace(FIRST, sop_uid="1.1.0", series_uid="1.1", sha256="1.10")) is Kept.SAME
    assert not queue.receiving(), "a duplicate starts nothing"
    assert queue.keep(replace(FIRST, sop_uid="1.1.9", sha256="late")) is Kept.NEW
    assert [s.series_uid for s in queue.receiving()] == ["1.1"]
    again = queue.complete("1.1", 4, "m")
    assert again is not None
    assert again.id != job.id
    assert len(queue.worklist()) == 2


def test_a_lease_that_runs_out_goes_to_another_worker_and_the_first_can_record_nothing(queue: Queue) -> None:
    fill(queue)
    queue.complete("1.1", 3, "m")
    first = queue.claim_job("one", 0.2, 5)
    assert first is not None
    assert queue.claim_job("two", 60, 5) is None
    time.sleep(0.3)
    second = queue.claim_job("two", 60, 5)
    assert second is not None
    assert (second.id, second.attempts, second.worker) == (first.id, 2, "two")
    assert not queue.extend_job(first.id, "one", 60)
    assert not queue.finish_job(first.id, "one", OUTCOME, LETTERS)
    assert not queue.fail_job(first.id, "one", "late", retry_in_s=None)
    assert queue.deliveries() == []
    assert queue.finish_job(first.id, "two", OUTCOME, LETTERS)
    assert not queue.finish_job(first.id, "two", OUTCOME, LETTERS)
    done = queue.job(first.id)
    assert done is not None
    assert (done.state, done.positive, done.partial, done.probability) == (JobState.DONE, True, False, 0.9)
    assert len(queue.deliveries(first.id)) == 2


def test_a_job_whose_workers_keep_dying_is_dead_until_it_is_retried(queue: Queue) -> None:
    fill(queue)
    job = queue.complete("1.1", 3, "m")
    assert job is not None
    for _ in range(2):
        assert queue.claim_job("w", -1, 2) is not None
    assert queue.claim_job("w", 60, 2) is None
    dead = queue.job(job.id)
    assert dead is not None
    assert dead.state is JobState.DEAD
    assert "died" in dead.error
    assert queue.retry(["no-such-id"]) == 0
    assert queue.retry([job.id]) == 1
    assert queue.claim_job("w", 60, 2) is not None


def test_failures_wait_before_they_are_tried_again(queue: Queue) -> None:
    fill(queue)
    job = queue.complete("1.1", 3, "m")
    assert job is not None
    queue.claim_job("w", 60, 5)
    assert queue.fail_job(job.id, "w", "disk", retry_in_s=0.3)
    assert queue.claim_job("w", 60, 5) is None
    time.sleep(0.4)
    assert queue.claim_job("w", 60, 5) is not None
    assert queue.fail_job(job.id, "w", "no scan", retry_in_s=None)
    told = queue.job(job.id)
    assert told is not None
    assert (told.state, told.error) == (JobState.FAILED, "no scan")


def finished(queue: Queue) -> str:
    fill(queue)
    job = queue.complete("1.1", 3, "m")
    assert job is not None
    queue.claim_job("w", 60, 5)
    assert queue.finish_job(job.id, "w", OUTCOME, LETTERS)
    return job.id


def test_deliveries_keep_their_order_and_are_recorded_once(queue: Queue) -> None:
    finished(queue)
    due = queue.claim_deliveries("pacs", 60, 10)
    assert [d.path for d in due] == ["seg.dcm", "sr.dcm"]
    assert queue.claim_deliveries("pacs", 60, 10) == []
    assert queue.claim_deliveries("other", 60, 10) == []
    assert queue.finish_delivery(due[0])
    assert not queue.finish_delivery(due[0])
    assert queue.fail_delivery(due[1], "down", retry_in_s=0.0)
    again = queue.claim_deliveries("pacs", 60, 10)
    assert [(d.path, d.attempts) for d in again] == [("sr.dcm", 2)]
    assert not queue.fail_delivery(due[1], "the first try, told late", retry_in_s=None)
    assert queue.fail_delivery(again[0], "down", retry_in_s=None, dead=True)
    assert [d.error for d in queue.deliveries(state=DeliveryState.DEAD)] == ["down"]
    assert queue.retry() == 1
    assert len(queue.claim_deliveries("pacs", 60, 10)) == 1


def test_storage_commitment_is_recorded_and_a_refusal_sends_again(queue: Queue) -> None:
    finished(queue)
    for delivery in queue.claim_deliveries("pacs", 60, 10):
        queue.finish_delivery(delivery)
    assert len(queue.claim_commitments("pacs", "7.7", 60, 10)) == 2
    assert queue.claim_commitments("pacs", "7.8", 60, 10) == []
    assert queue.commit("7.7", "9.1")
    assert not queue.commit("8.8", "9.2"), "another transaction"
    assert queue.commit("7.7", "9.2", "it was lost")
    assert [d.sop_uid for d in queue.claim_deliveries("pacs", 60, 10)] == ["9.2"]
    assert queue.deliveries()[0].committed is not None


def test_priors_are_found_by_the_time_of_the_scan(queue: Queue) -> None:
    job_id = finished(queue)
    assert queue.prior("p" * 32, 1000.0) is None
    prior = queue.prior("p" * 32, 1001.0)
    assert prior is not None
    assert prior.id == job_id
    assert queue.prior("q" * 32, 1001.0) is None


def test_only_what_owes_nothing_is_purged(queue: Queue) -> None:
    job_id = finished(queue)
    later = time.time() + 100
    assert queue.purgeable(later) == []
    for delivery in queue.claim_deliveries("pacs", 60, 10):
        queue.finish_delivery(delivery)
    (series,) = queue.purgeable(later)
    assert queue.purgeable(500.0) == []
    assert queue.expire(series.series_uid, 99, lambda: pytest.fail("it has changed")) is None
    assert queue.expire(series.series_uid, 3, lambda: None) == [job_id]
    assert queue.instances("1.1") == []
    assert queue.job(job_id) is not None, "the worklist still tells of it"
    fill(queue)
    assert queue.complete("1.1", 3, "m") is None, "the same scan sent again is not analyzed again"


def test_what_could_not_be_buried_is_not_forgotten(queue: Queue) -> None:
    finished(queue)

    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        queue.expire("1.1", 3, fail)
    assert len(queue.instances("1.1")) == 3


def test_many_workers_take_each_job_once(url: str) -> None:
    with_jobs = open_queue(url)
    for number in range(30):
        fill(with_jobs, 1, f"5.{number}")
        assert with_jobs.complete(f"5.{number}", 1, "m") is not None
    taken: list[str] = []

    def drain(name: str) -> None:
        queue = open_queue(url)
        while job := queue.claim_job(name, 60, 5):
            taken.append(job.id)
            assert queue.finish_job(job.id, name, OUTCOME, [])
        queue.close()

    threads = [threading.Thread(target=drain, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(j.id for j in with_jobs.worklist())
    assert len(set(taken)) == 30
    with_jobs.close()


def test_it_is_all_there_after_it_is_opened_again(url: str) -> None:
    first = open_queue(url)
    salt, job_id = first.salt(), finished(first)
    first.close()
    second = open_queue(url)
    assert second.salt() == salt
    assert second.job(job_id) is not None
    assert [e.kind for e in second.events()] == ["series.complete", "job.done"]
    assert second.events(since=second.events()[0].id)[0].kind == "job.done"
    assert second.counts()["deliveries.queued"] == 2
    second.close()


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no known kind"):
        open_queue("mysql://x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(QueueError, match=r"file.*Check its disk"):
        open_queue(f"sqlite:///{tmp_path}/file/queue.db")
    (tmp_path / "junk.db").write_bytes(b"no database" * 500)
    with pytest.raises(QueueError, match="cannot be used"):
        open_queue(f"sqlite:///{tmp_path}/junk.db")


def test_a_postgres_that_does_not_answer_is_told_without_its_password() -> None:
    with pytest.raises(QueueError, match=r"Check queue\.url") as caught:
        open_queue("postgresql://someone:geheim@127.0.0.1:1/none")
    assert "geheim" not in str(caught.value)


def test_a_host_that_joins_does_not_wait_for_one_at_work(postgres: Postgres) -> None:
    """Making tables that are there takes locks all the same: two hosts once deadlocked so."""
    import psycopg

    url = postgres.fresh()
    open_queue(url).close()
    with psycopg.connect(url) as at_work:
        at_work.execute("LOCK TABLE series, instances, jobs, deliveries IN ROW EXCLUSIVE MODE")
        open_queue(f"{url}?options=-c%20lock_timeout%3D2000").close()


def test_a_restarted_postgres_is_found_again(postgres: Postgres) -> None:
    queue = open_queue(postgres.fresh())
    fill(queue)
    postgres.stop()
    with pytest.raises(QueueError):
        queue.counts()
    postgres.start()
    assert queue.counts()["instances"] == 3
    queue.close()
