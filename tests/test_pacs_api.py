"""The worklist: its order, the API over a real queue, the page in a real browser, metrics, and the webhook."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread

from conftest import IN_CI
from hemolens.config import from_mapping
from hemolens.demo import demo_source
from hemolens.errors import QueueError
from hemolens.pacs import priors, webhook
from hemolens.pacs.api import make_app, run_api
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.incoming import Header, read_file_header
from hemolens.pacs.queue import DeliveryState, JobState, Queue, open_queue
from hemolens.pacs.spool import Spool
from hemolens.pacs.worklist import Urgency, ordered
from pacs_cases import CASES, Case, add, fill

TOKEN = "kq3x-7Yw2_mN8vB4tR6zL0pS5"
SECRET = b"Zf9c-1Hd6_jK3gQ8wE2uX7aV4"
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def settings(folder: Path, token: bool = False, **api: object) -> PacsConfig:
    if token:
        (folder / "tokens").write_text(TOKEN)
        (folder / "tokens").chmod(0o600)
        api["token_file"] = str(folder / "tokens")
    values = {
        "spool": {"path": str(folder / "spool"), "min_free_gb": 0.001},
        "destinations": [{"kind": "dicom", "name": "pacs", "port": 4242}],
        "api": api,
    }
    return from_mapping(PacsConfig, values)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    opened = open_queue(settings(tmp_path).queue_url)
    yield opened
    opened.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    config = settings(tmp_path, viewer_url="https://viewer.example/?study={study}")
    fill(config)
    opened = open_queue(config.queue_url)
    with TestClient(make_app(config, opened, Spool(config.spool.path)), base_url="http://localhost") as made:
        yield made
    opened.close()


# The order


def test_the_urgent_stand_on_top(queue: Queue) -> None:
    for case in sorted(CASES, key=lambda c: c.number == 6):
        add(queue, case)
    entries = ordered(queue.worklist(), queue.now())
    assert [int(e.study_uid.split(".")[-2]) for e in entries] == [3, 2, 4, 5, 6, 1, 7]
    assert [e.urgency for e in entries] == [*[Urgency.POSITIVE] * 3, Urgency.NO_ANSWER, Urgency.WAITING,
                                            *[Urgency.NEGATIVE] * 2]  # fmt: skip
    assert entries == ordered(reversed(queue.worklist()), entries[0].waiting_s + entries[0].job.received_last)


def test_among_equal_probabilities_the_larger_and_then_the_longer_waiting_come_first(queue: Queue) -> None:
    for case in (Case(1, 0.99, 2.0), Case(2, 0.96, 30.0), Case(3, 0.97, 2.0)):  # a higher number arrived earlier
        add(queue, case)
    assert [e.job.series_uid.split(".")[-2] for e in ordered(queue.worklist(), queue.now())] == ["2", "3", "1"]


def test_a_study_stands_where_its_most_urgent_series_does(queue: Queue) -> None:
    add(queue, Case(1, 0.1, study=9))
    add(queue, Case(2, 0.9, 5.0, study=9))
    (entry,) = ordered(queue.worklist(), queue.now())
    assert (entry.series, entry.urgency, entry.job.volume_ml) == (2, Urgency.POSITIVE, 5.0)


def test_late_images_do_not_hide_the_result_that_is_there(queue: Queue) -> None:
    add(queue, Case(1, 0.9, 5.0))
    add(queue, Case(1))  # one image more: a new digest, another analysis
    (entry,) = ordered(queue.worklist(), queue.now())
    assert entry.updating
    assert entry.urgency is Urgency.POSITIVE


def test_an_empty_list_is_an_empty_list() -> None:
    assert ordered([], 0.0) == []


# The API


def test_the_worklist_says_what_the_queue_knows(client: TestClient) -> None:
    told = client.get("/api/v1/worklist").json()
    assert told["counts"] == {"positive": 3, "no_answer": 1, "waiting": 1, "negative": 2}
    assert [e["place"] for e in told["entries"]] == [*range(1, 8)]
    by_number = {e["study_uid"].split(".")[-2]: e for e in told["entries"]}
    assert by_number["3"]["job"]["partial"] is True
    assert by_number["5"]["job"]["error"].startswith("1.2.3: has 3 slices")
    assert {n: e["delivery"] for n, e in by_number.items()} == {
        "1": "delivered", "2": "undelivered", "3": "delivered", "4": "delivered", "5": "none", "6": "none",
        "7": "pending",
    }  # fmt: skip
    assert by_number["2"]["viewer_url"] == f"https://viewer.example/?study={by_number['2']['study_uid']}"
    assert 110 < by_number["2"]["waiting_s"] < 200
    assert "Not a medical device" in told["notice"]
    part = client.get("/api/v1/worklist", params={"urgency": "negative"}).json()
    assert [e["place"] for e in part["entries"]] == [6, 7]
    assert part["counts"] == told["counts"]


def test_nothing_that_is_told_names_a_patient(client: TestClient) -> None:
    seen = "".join(
        client.get(path).text for path in ("/api/v1/worklist", "/api/v1/events", "/metrics", "/openapi.json")
    )
    assert "patient-" not in seen
    assert "patient_key" not in seen
    assert "accession" not in seen


def test_one_analysis_with_its_deliveries_and_findings(client: TestClient) -> None:
    entry = client.get("/api/v1/worklist").json()["entries"][1]
    told = client.get(f"/api/v1/jobs/{entry['job']['id']}").json()
    assert told["deliveries"][0]["state"] == "dead"
    assert told["deliveries"][0]["error"] == "the peer cannot be reached"
    assert told["change"] is None
    assert client.get(f"/api/v1/jobs/{entry['job']['id']}/findings").json()["lesions"][0]["volume_ml"] == 14.2
    assert client.get(f"/api/v1/jobs/{entry['job']['id']}/report").status_code == 410
    assert client.get("/api/v1/jobs/nothing").status_code == 404
    waiting = client.get("/api/v1/worklist", params={"urgency": "waiting"}).json()["entries"][0]["job"]["id"]
    assert client.get(f"/api/v1/jobs/{waiting}/findings").status_code == 409


def test_a_result_is_served_from_the_folder_of_results_only(tmp_path: Path) -> None:
    config = settings(tmp_path)
    jobs = fill(config)
    queue = open_queue(config.queue_url)
    (tmp_path / "findings.json").write_text('{"secret": 1}')
    outside = replace(jobs[1], findings_path="../findings.json")
    queue.job = lambda job_id: outside  # type: ignore[method-assign]
    client = TestClient(make_app(config, queue, Spool(config.spool.path)), base_url="http://localhost")
    assert client.get(f"/api/v1/jobs/{outside.id}/findings").status_code == 410
    queue.close()


def test_retry_queues_again_what_was_asked_for(client: TestClient) -> None:
    entry = client.get("/api/v1/worklist").json()["entries"][1]
    delivery = client.get(f"/api/v1/jobs/{entry['job']['id']}").json()["deliveries"][0]["id"]
    assert client.post("/api/v1/retry", json={"ids": [delivery]}).json() == {"queued": 1}
    assert client.get("/api/v1/worklist").json()["entries"][1]["delivery"] == "pending"
    assert client.post("/api/v1/retry", json={"ids": ["nothing"]}).json() == {"queued": 0}
    assert client.post("/api/v1/retry", json={}).json() == {"queued": 1}  # the failed analysis
    assert client.post("/api/v1/retry", content="{}", headers={"Content-Type": "text/plain"}).status_code == 422


def test_a_sender_can_say_how_many_images_a_series_has(tmp_path: Path) -> None:
    config = settings(tmp_path)
    fill(config)
    queue = open_queue(config.queue_url)
    client = TestClient(make_app(config, queue, Spool(config.spool.path)), base_url="http://localhost")
    assert client.post(f"/api/v1/series/{CASES[0].series_uid}/stable", json={"instances": 32}).status_code == 200
    assert queue.series(CASES[0].series_uid).expected == 32
    assert client.post("/api/v1/series/1.2.3/stable", json={"instances": 32}).status_code == 404
    assert client.post(f"/api/v1/series/{CASES[0].series_uid}/stable", json={"instances": 0}).status_code == 422
    queue.close()


@pytest.mark.parametrize("path", ["/api/v1/worklist", "/api/v1/events", "/metrics", "/api/v1/jobs/x/findings"])
def test_with_tokens_nothing_is_told_without_one(tmp_path: Path, path: str) -> None:
    config = settings(tmp_path, token=True)
    fill(config)
    queue = open_queue(config.queue_url)
    client = TestClient(make_app(config, queue, Spool(config.spool.path)), base_url="http://localhost")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in {200, 404}
    assert client.post("/api/v1/retry", json={}).status_code == 401
    for open_path in ("/", "/worklist.js", "/worklist.css", "/healthz", "/readyz"):
        assert client.get(open_path).status_code == 200
    queue.close()


def test_large_bodies_and_foreign_names_are_refused(client: TestClient) -> None:
    big = json.dumps({"ids": ["x" * 70_000]})
    assert client.post("/api/v1/retry", content=big, headers={"Content-Type": "application/json"}).status_code == 413
    chunks = client.post("/api/v1/retry", content=iter([b"{}"]), headers={"Content-Type": "application/json"})
    assert chunks.status_code == 413
    assert client.get("/api/v1/worklist", headers={"Host": "evil.example"}).status_code == 400


def test_every_answer_carries_the_headers_that_keep_a_browser_safe(client: TestClient) -> None:
    for path in ("/", "/api/v1/worklist", "/nothing", "/api/v1/jobs/x"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_ready_means_that_queue_and_spool_can_work(tmp_path: Path) -> None:
    config = settings(tmp_path)
    queue = open_queue(config.queue_url)
    assert TestClient(make_app(config, queue, Spool(config.spool.path)), base_url="http://localhost").get(
        "/readyz"
    ).json() == {"status": "ready", "queue": True, "spool": True}
    full = Spool(config.spool.path, quota_gb=1e-9)
    client = TestClient(make_app(config, queue, full), base_url="http://localhost")
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["spool"]) == (503, False)

    def broken() -> list[object]:
        raise QueueError("the database is gone")

    queue.receiving = broken  # type: ignore[method-assign]
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["queue"]) == (503, False)
    assert client.get("/healthz").status_code == 200
    queue.worklist = lambda limit: broken()  # type: ignore[method-assign]
    answer = client.get("/api/v1/worklist")
    assert answer.status_code == 503
    assert "database is gone" not in answer.text
    queue.close()


def test_metrics_are_what_prometheus_reads(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    form = re.compile(r'(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z]+="[^"\\\n]*"\})? (-?[\d.e+-]+|NaN))')
    lines = answer.text.splitlines()
    assert all(form.fullmatch(line) for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['hemolens_jobs{state="done"}'] == "5"
    assert values['hemolens_deliveries{state="dead"}'] == "1"
    assert 55 < float(values['hemolens_turnaround_seconds{quantile="0.5"}']) < 600
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_openapi_describes_every_call(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    assert {"/api/v1/worklist", "/api/v1/jobs/{job_id}", "/api/v1/retry", "/metrics", "/readyz"} <= set(told["paths"])
    assert "Not a medical device" in told["info"]["description"]
    for path, verbs in told["paths"].items():
        for verb, about in verbs.items():
            assert about["description"], f"{verb} {path}"
    assert client.get("/docs").status_code == 404


# Priors


def test_the_scan_before_is_that_of_the_same_patient(queue: Queue) -> None:
    day = 86_400.0
    first = add(queue, Case(1, 0.9, 10.0, patient="a", acquired=1 * day))
    add(queue, Case(2, 0.9, 99.0, patient="b", acquired=2 * day))
    add(queue, Case(3, 0.9, 12.0, patient="a", study=4, acquired=3 * day))
    job = add(queue, Case(4, 0.9, 17.0, patient="a", acquired=3 * day + 60))  # the same study as series 3
    assert priors.link(queue, job).id == first.id
    linked = queue.job(job.id)
    assert linked.prior_job == first.id
    told = priors.change(linked, first)
    assert told.difference_ml == pytest.approx(7.0)
    assert told.ratio == pytest.approx(1.7)
    assert told.hours == pytest.approx(48 + 1 / 60)
    assert told.growth is True
    assert priors.link(queue, first) is None
    with pytest.raises(ValueError, match="two patients"):
        priors.change(job, queue.worklist()[-2])


def test_two_patients_without_a_number_are_not_taken_for_one() -> None:
    def header(number: str, study: str) -> Header:
        dataset = dcmread(demo_source() / "12.dcm")
        dataset.PatientID, dataset.StudyInstanceUID = number, study
        stream = BytesIO()
        dataset.save_as(stream)
        return read_file_header(stream.getvalue(), b"salt")

    assert header("", "1.2.3").patient_key != header("", "1.2.4").patient_key
    assert header("", "1.2.3").patient_key == header("", "1.2.3").patient_key
    assert header("7", "1.2.3").patient_key == header("7", "1.2.4").patient_key
    assert header("7", "1.2.3").patient_key != header("8", "1.2.3").patient_key


@pytest.mark.parametrize(
    ("then", "now", "growth"),
    [
        (10.0, 15.9, True),
        (30.0, 35.9, False),
        (30.0, 36.1, True),
        (0.0, 5.0, False),
        (0.0, 6.5, True),
        (9.0, 4.0, False),
    ],
)
def test_growth_is_six_milliliters_or_a_third(queue: Queue, then: float, now: float, growth: bool) -> None:
    before = add(queue, Case(1, 0.9, then, patient="a"))
    after = add(queue, Case(2, 0.9, now, patient="a"))
    assert priors.change(after, before).growth is growth


def test_volumes_that_were_not_measured_are_not_compared(queue: Queue) -> None:
    before = add(queue, Case(1, 0.9, None, patient="a"))
    after = add(queue, Case(2, 0.9, 7.0, patient="a"))
    told = priors.change(after, before)
    assert (told.difference_ml, told.ratio, told.growth, told.hours) == (None, None, None, None)
    with pytest.raises(ValueError, match="no result"):
        priors.change(add(queue, Case(3, patient="a")), before)


# The webhook


class Receiver(BaseHTTPRequestHandler):
    """Takes calls as another system would, and answers what the test asks for."""

    server: ReceiverServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((dict(self.headers), body))
        code = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class ReceiverServer(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []


@pytest.fixture
def receiver() -> Iterator[ReceiverServer]:
    server = ReceiverServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def hook(folder: Path, url: str, attempts: int = 3) -> PacsConfig:
    (folder / "secret").write_bytes(SECRET)
    (folder / "secret").chmod(0o600)
    about = {"url": url, "secret_file": str(folder / "secret"), "attempts": attempts, "timeout_s": 2.0}
    return replace(settings(folder), webhook=from_mapping(PacsConfig, {"webhook": about}).webhook)


def positive(queue: Queue) -> None:
    """One positive scan whose call is queued with its result, as the worker does it."""
    case = Case(1, 0.93, 12.5)
    letters = webhook.letter("the-job", "results/x/findings.json")
    add(queue, case, extra=(letters,))


def test_a_positive_is_called_out_signed_and_once(tmp_path: Path, queue: Queue, receiver: ReceiverServer) -> None:
    config = hook(tmp_path, f"http://127.0.0.1:{receiver.server_port}/hook")
    positive(queue)
    assert webhook.deliver_due(queue, config.webhook, SECRET) == 1
    assert webhook.deliver_due(queue, config.webhook, SECRET) == 0
    ((headers, body),) = receiver.calls
    told = json.loads(body)
    assert (told["event"], told["probability"], told["volume_ml"]) == ("positive", 0.93, 12.5)
    assert told["study_uid"] == Case(1).study_uid
    assert "patient" not in body.decode()
    assert webhook.verify(SECRET, headers, body, time.time())
    assert not webhook.verify(SECRET, headers, body + b" ", time.time())
    assert not webhook.verify(b"another secret of some length", headers, body, time.time())
    assert not webhook.verify(SECRET, headers, body, time.time() + 301)
    late = {**headers, "Hemolens-Timestamp": str(int(time.time()) + 299)}
    assert not webhook.verify(SECRET, late, body, time.time())
    assert not webhook.verify(SECRET, {}, body, time.time())


def test_the_signature_is_plain_hmac_sha256() -> None:
    """So that a receiver in any language can check it; computed with openssl, not with hemolens."""
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", SECRET.decode()],
        input=b'1700000000.{"event":"positive"}', capture_output=True, check=True,
    )  # fmt: skip
    assert webhook.signature(SECRET, 1_700_000_000, b'{"event":"positive"}') == (
        "sha256=" + done.stdout.decode().split()[-1]
    )


def test_a_call_is_tried_again_and_then_is_a_dead_letter(
    tmp_path: Path, queue: Queue, receiver: ReceiverServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "FIRST_WAIT_S", 0.0)
    config = hook(tmp_path, f"http://127.0.0.1:{receiver.server_port}/hook")
    positive(queue)
    receiver.answers = [500, 503, 200]
    for _ in range(3):
        webhook.deliver_due(queue, config.webhook, SECRET)
    assert len(receiver.calls) == 3
    assert len({headers["Hemolens-Delivery"] for headers, _ in receiver.calls}) == 1
    (delivery,) = [d for d in queue.deliveries() if d.destination == webhook.DESTINATION]
    assert delivery.state is DeliveryState.DONE
    assert queue.job(delivery.job_id).state is JobState.DONE


@pytest.mark.parametrize(("answers", "state"), [([500] * 3, "dead"), ([403], "failed"), ([302], "failed")])
def test_refusals(
    tmp_path: Path, queue: Queue, receiver: ReceiverServer, answers: list[int], state: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(webhook, "FIRST_WAIT_S", 0.0)
    config = hook(tmp_path, f"http://127.0.0.1:{receiver.server_port}/hook")
    positive(queue)
    receiver.answers = list(answers)
    for _ in range(6):
        webhook.deliver_due(queue, config.webhook, SECRET)
    (delivery,) = [d for d in queue.deliveries() if d.destination == webhook.DESTINATION]
    assert delivery.state == state
    assert str(answers[0]) in delivery.error
    assert len(receiver.calls) == len(answers)  # a redirection is not followed
    assert SECRET.decode() not in caplog.text


def test_nobody_there_means_later(tmp_path: Path, queue: Queue) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    config = hook(tmp_path, f"http://127.0.0.1:{port}/hook")
    positive(queue)
    webhook.deliver_due(queue, config.webhook, SECRET)
    (delivery,) = [d for d in queue.deliveries() if d.destination == webhook.DESTINATION]
    assert delivery.state is DeliveryState.QUEUED
    assert delivery.not_before > queue.now() + 3
    assert [webhook.wait_s(n) for n in (1, 2, 3, 20, 5000)] == [5.0, 10.0, 20.0, 900.0, 900.0]


def test_the_loop_ends_when_told(tmp_path: Path, queue: Queue, receiver: ReceiverServer) -> None:
    config = hook(tmp_path, f"http://127.0.0.1:{receiver.server_port}/hook")
    positive(queue)
    stop = threading.Event()
    thread = threading.Thread(target=webhook.run_webhook, args=(config, stop))
    thread.start()
    deadline = time.monotonic() + 20
    while not receiver.calls and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(receiver.calls) == 1


# The page


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API with a token, in a process of its own."""
    folder = tmp_path_factory.mktemp("served")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = settings(folder, token=True, port=port)
    fill(config)
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1]]\n"
        "from test_pacs_api import run_api, settings\n"
        "run_api(settings(Path(sys.argv[2]), token=True, port=int(sys.argv[3])))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(folder), str(port)])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        assert process.wait(30) in {0, -signal.SIGTERM}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None and not IN_CI, reason="needs Debian's chromium: apt-get install chromium")
def test_the_page_in_a_browser(served: str) -> None:
    from playwright.sync_api import sync_playwright

    assert run_api is not None
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "401" not in m.text else None)
        page.goto(served)
        page.wait_for_selector("#token:focus")
        assert page.locator("#list").is_hidden()
        page.keyboard.type("not the right token at all")
        page.keyboard.press("Enter")
        page.get_by_text("This token was not accepted").wait_for()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#rows tr")
        rows = page.locator("#rows tr").all_inner_texts()
        assert [row.split()[1] for row in rows] == ["Positive"] * 3 + ["No", "Not"] + ["Negative"] * 2
        assert page.get_by_role("status").inner_text().startswith("3 positive, 1 without an answer")
        assert "NOT SENT" in rows[1]
        page.get_by_role("button", name="Details of place 2, Positive").press("Enter")  # no mouse
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("<b>two</b> slice spacings").wait_for()  # told as text, never as HTML
        assert "14.2 mL" in dialog.inner_text()
        dialog.get_by_role("button", name="Try again").click()
        page.locator("#rows tr").nth(1).get_by_text("on its way").wait_for()
        page.get_by_label("Show").select_option("negative")
        assert page.locator("#rows tr").count() == 2
        page.set_viewport_size({"width": 768, "height": 1024})
        page.get_by_label("Show").select_option("")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        button = page.get_by_role("button", name="Details of place 1,").bounding_box()
        assert button["x"] + button["width"] <= 768
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(17, 21, 26)"
        assert complaints == []
        browser.close()
