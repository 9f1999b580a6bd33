"""The sender against real peers that refuse: which failures are final, which are tried again, what is held back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import InstanceAvailabilityNotification  # type: ignore[attr-defined]

from dicom_files import write_series
from hemolens.config import from_mapping
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.queue import InstanceKind, Letter, Outcome, Queue, Received, open_queue
from hemolens.pacs.sender import Courier
from hemolens.pacs.spool import Spool
from pacs_peers import free_port, need, orthanc

CT = "1.2.840.10008.5.1.4.1.1.2"
OUTCOME = Outcome(0.9, 1.0, "positive", True, False, "f")


def one_delivery(
    folder: Path, port: int, objects: int = 1, web: str = "", **sender: Any
) -> tuple[PacsConfig, Queue, Spool]:
    """A finished analysis whose results, any DICOM files, wait to be sent."""
    peer = {"kind": "dicom", "name": "peer", "ae_title": "PEER", "port": port}
    if web:
        peer = {"kind": "dicomweb", "name": "peer", "url": web}
    values = {"spool": {"path": str(folder / "spool")}, "sender": sender, "destinations": [peer]}
    config = from_mapping(PacsConfig, values)
    queue, spool = open_queue(config.queue_url), Spool(config.spool.path)
    files = write_series(spool.root / "results" / "x")[:objects]
    queue.keep(Received("1.1", "1", "0", "p", "CT", InstanceKind.CT, "a", 1, "h", 1.0))
    job = queue.complete("1", 1, "m")
    assert job is not None
    queue.claim_job("w", 60, 3)
    letters = [Letter("peer", str(dcmread(f).SOPInstanceUID), CT, f.relative_to(spool.root).as_posix()) for f in files]
    assert queue.finish_job(job.id, "w", OUTCOME, letters)
    return config, queue, spool


@contextmanager
def peer(statuses: list[int], taken: list[str]) -> Iterator[int]:
    """A storage provider that answers as told, the last status for ever."""
    port = free_port()
    entity = AE(ae_title="PEER")
    entity.require_called_aet = True
    entity.add_supported_context(CT)

    def store(event: evt.Event) -> int:
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == 0:
            taken.append(str(event.dataset.SOPInstanceUID))
        return status

    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield port
    finally:
        server.shutdown()


def send_once(told: tuple[PacsConfig, Queue, Spool]) -> list[tuple[str, str]]:
    config, queue, spool = told
    Courier(config, config.destinations[0], queue, spool).send_due()
    return [(str(d.state), d.error) for d in queue.deliveries()]


@pytest.mark.parametrize(
    ("status", "state", "error"),
    [
        (0x0000, "done", ""),
        (0xB000, "done", ""),
        (0xA700, "queued", "out of resources"),
        (0xC000, "queued", "cannot understand"),
        (0xC123, "queued", "refused (0xC123)"),
        (0xA900, "failed", "does not fit"),
        (0x0122, "failed", "does not take this SOP class"),
    ],
)
def test_each_status_has_its_consequence(tmp_path: Path, status: int, state: str, error: str) -> None:
    with peer([status], []) as port:
        ((found, told),) = send_once(one_delivery(tmp_path, port, backoff_s=60.0))
    assert found == state
    assert error in told


def test_what_comes_after_a_refused_object_of_the_same_result_waits(tmp_path: Path) -> None:
    taken: list[str] = []
    with peer([0, 0xA700, 0], taken) as port:
        told = one_delivery(tmp_path, port, objects=3, backoff_s=0.01)
        states = send_once(told)
        assert [state for state, _ in states] == ["done", "queued", "queued"]
        assert "waits for" in states[2][1]
        time.sleep(0.1)
        assert [state for state, _ in send_once(told)] == ["done"] * 3
    assert len(taken) == len(set(taken)) == 3


def test_a_peer_that_does_not_know_us_is_tried_again(tmp_path: Path) -> None:
    with peer([0], []) as port:
        config, queue, spool = one_delivery(tmp_path, port)
        text = config.destinations[0]
        wrong = replace(text, ae_title="OTHER")  # type: ignore[arg-type]
        Courier(config, wrong, queue, spool).send_due()
    (letter,) = queue.deliveries()
    assert (str(letter.state), "no association" in letter.error) == ("queued", True)


def test_a_result_that_is_gone_is_not_tried_for_ever(tmp_path: Path) -> None:
    with peer([0], []) as port:
        config, queue, spool = one_delivery(tmp_path, port)
        for file in (spool.root / "results").rglob("*.dcm"):
            file.unlink()
        assert send_once((config, queue, spool)) == [("failed", "the file of the result is gone")]


def test_stow_against_orthanc_and_against_nothing(tmp_path: Path) -> None:
    need("Orthanc")
    with orthanc(tmp_path / "o") as server:
        url = f"http://127.0.0.1:{server.http_port}/dicom-web"
        assert send_once(one_delivery(tmp_path / "a", 1, web=url)) == [("done", "")]
        assert server.count("CT") == 1
        ((state, error),) = send_once(one_delivery(tmp_path / "b", 1, web=url.replace("dicom-web", "nothing")))
        assert (state, "answered 404" in error) == ("queued", True)
    ((state, error),) = send_once(one_delivery(tmp_path / "c", 1, web=url))
    assert (state, "cannot be reached" in error) == ("queued", True)


def test_availability_is_told_where_the_peer_listens(tmp_path: Path) -> None:
    told: list[Any] = []
    entity, port = AE(ae_title="PEER"), free_port()
    entity.add_supported_context(CT)
    entity.add_supported_context(InstanceAvailabilityNotification)

    def create(event: evt.Event) -> tuple[int, None]:
        told.append(event.attribute_list)
        return 0x0000, None

    handlers: list[Any] = [(evt.EVT_C_STORE, lambda event: 0), (evt.EVT_N_CREATE, create)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        config, queue, spool = one_delivery(tmp_path, port, objects=2)
        destination = replace(config.destinations[0], availability=True)  # type: ignore[arg-type]
        Courier(config, destination, queue, spool).send_due()
    finally:
        server.shutdown()
    (notification,) = told
    (series,) = notification.ReferencedSeriesSequence
    assert notification.StudyInstanceUID == "1.2.3.4"
    items = series.ReferencedSOPSequence
    assert {(i.InstanceAvailability, i.RetrieveAETitle) for i in items} == {("ONLINE", "PEER")}
    assert {i.ReferencedSOPInstanceUID for i in items} == {d.sop_uid for d in queue.deliveries()}
