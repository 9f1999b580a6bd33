"""The listener against dcmtk, pynetdicom and bare sockets: right statuses, raw bytes, limits."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from dicom_files import Series, write_series
from hemolens.errors import ConfigError
from hemolens.pacs.config import ListenerConfig, PacsConfig, SpoolConfig
from hemolens.pacs.listener import TAKEN, Listener, file_head
from hemolens.pacs.queue import Queue, open_queue
from hemolens.pacs.security import AllowList
from hemolens.pacs.spool import Spool
from pacs_peers import send, storescu, wait_for

Open = tuple[Listener, Queue, Spool]


@contextmanager
def listening(folder: Path, quota_gb: float = 1.0, **settings: object) -> Iterator[Open]:
    config = PacsConfig(
        listener=ListenerConfig(port=0, **settings),  # type: ignore[arg-type]
        spool=SpoolConfig(str(folder / "spool"), quota_gb, 0.0),
    )
    queue = open_queue(config.queue_url)
    spool = Spool(config.spool.path, quota_gb)
    listener = Listener(config, queue, spool)
    listener.start()
    yield listener, queue, spool
    listener.stop(1.0)
    queue.close()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Open]:
    with listening(tmp_path) as opened:
        yield opened


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def test_dcmtk_sends_a_real_series_and_its_bytes_are_kept(port: Open, data: Path) -> None:
    listener, queue, spool = port
    files = sorted((data / "dicom_head_tilted").glob("*.dcm"))
    done = storescu(files, listener.address[1])
    assert done.returncode == 0, done.stderr
    (series,) = queue.receiving()
    assert (series.instances, series.modality, series.calling_ae) == (28, "CT", "STORESCU")
    kept = {hashlib.sha256(data_of(spool.root / i.path)).hexdigest() for i in queue.instances(series.series_uid)}
    assert len(kept) == 28
    for instance in queue.instances(series.series_uid):
        dataset = dcmread(spool.root / instance.path)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == instance.sop_uid
        assert dataset.pixel_array.shape == (512, 512)


def test_the_head_of_a_file_is_what_pynetdicom_would_write() -> None:
    from pynetdicom.dsutils import create_file_meta, encode_file_meta

    for uid in ("1.2.34", "1.2.3"):
        meta = create_file_meta(
            sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax="1.2.840.10008.1.2.1"
        )
        named = encode_file_meta(meta)
        head = file_head(CTImageStorage, uid, "1.2.840.10008.1.2.1")
        # It leaves out the name of the software version, which comes last, and is shorter by that.
        assert named[12:].startswith(head[144:])
        assert named[12 + len(head[144:]) :].startswith(b"\x02\0\x13\0SH")
        assert int.from_bytes(head[140:144], "little") == len(head) - 144


def test_compressed_bytes_are_kept_as_they_came(port: Open) -> None:
    from hemolens.demo import demo_source

    listener, queue, spool = port
    files = sorted(Path(demo_source()).glob("*.dcm"))[:3]
    assert send(files, listener.address[1]) == [0, 0, 0]
    kept = {data_of(spool.root / path) for path in queue.known_paths()}
    assert kept == {data_of(file) for file in files}


def test_a_duplicate_is_a_success_and_other_contents_a_warning(port: Open, tmp_path: Path) -> None:
    listener, queue, spool = port
    files = write_series(tmp_path / "a")
    other = write_series(tmp_path / "b", Series(description="Other"))
    assert send([*files, *files], listener.address[1]) == [0] * 12
    assert send(other, listener.address[1]) == [0xB007] * 6
    assert queue.counts()["instances"] == 6
    assert queue.counts()["conflicts"] == 6
    assert len(list((spool.root / "aside").iterdir())) == 6


def test_the_same_series_uid_of_another_patient_is_kept_apart(port: Open, tmp_path: Path) -> None:
    listener, queue, spool = port
    assert send(write_series(tmp_path / "a"), listener.address[1]) == [0] * 6
    foreign = write_series(
        tmp_path / "b", Series(patient="OTHER"), change=lambda k, ds: setattr(ds, "SOPInstanceUID", f"9.9.{k}")
    )
    for file in foreign:
        dataset = dcmread(file)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(file)
    assert send(foreign, listener.address[1]) == [0xB007] * 6
    (series,) = queue.receiving()
    assert series.instances == 6
    folder = spool.root / Path(queue.instances(series.series_uid)[0].path).parent
    assert len(list(folder.iterdir())) == 6, "nothing foreign lies beside the series"


def test_interleaved_studies_of_several_senders_never_mix(port: Open, tmp_path: Path) -> None:
    listener, queue, spool = port
    sets = [
        write_series(tmp_path / str(n), Series(patient=f"P{n}", study=f"2.{n}", series=f"2.{n}.1", slices=9))
        for n in range(4)
    ]
    mixed = [[file for group in zip(*(files[k::3] for files in sets), strict=True) for file in group] for k in range(3)]
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(lambda files: send(files, listener.address[1]), mixed))
    assert all(status == 0 for statuses in told for status in statuses)
    for n in range(4):
        instances = queue.instances(f"2.{n}.1")
        assert len(instances) == 9
        assert {str(dcmread(spool.root / i.path).PatientID) for i in instances} == {f"P{n}"}


def test_at_the_quota_it_refuses_with_out_of_resources(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", Series(rows=300, columns=300))
    with listening(tmp_path, quota_gb=900_000 / 1024**3) as (listener, queue, spool):
        told = send(files, listener.address[1])
        kept = told.count(0)
        assert 1 <= kept < 6
        assert set(told) == {0, 0xA700}
        assert queue.counts()["instances"] == kept
        assert len(list((spool.root / "incoming").rglob("*.dcm"))) == kept
        assert list(spool.root.rglob("*.part")) == []


def test_a_broken_queue_is_no_success(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in")
    with listening(tmp_path) as (listener, queue, _spool):
        queue.close()
        assert send(files[:1], listener.address[1]) == [0xA700]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"SeriesInstanceUID": None}, 0xC000),
        ({"SeriesInstanceUID": "a b/c"}, 0xC000),
    ],
)
def test_an_unusable_header_is_refused(port: Open, tmp_path: Path, change: dict[str, object], status: int) -> None:
    listener, queue, _ = port
    files = write_series(tmp_path, Series(slices=1, extra=change))
    assert send(files, listener.address[1]) == [status]
    assert queue.counts()["instances"] == 0


def test_a_request_that_names_another_instance_is_refused(port: Open, tmp_path: Path) -> None:
    listener, queue, _ = port
    file = write_series(tmp_path, Series(slices=1))[0]
    entity = AE()
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", listener.address[1], ae_title="HEMOLENS")
    dataset = dcmread(file)

    def lie(event: object) -> None:
        message = event.message  # type: ignore[attr-defined]
        message.command_set.AffectedSOPInstanceUID = "9.9.9"

    from pynetdicom import evt

    association.bind(evt.EVT_DIMSE_SENT, lie)
    status = association.send_c_store(dataset)
    association.release()
    assert status.Status == 0xA900
    assert queue.counts()["instances"] == 0


def echo(port: int, calling: str = "ANY", called: str = "HEMOLENS") -> bool:
    entity = AE(ae_title=calling)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status.Status == 0)


def test_only_listed_callers_come_in(tmp_path: Path) -> None:
    with listening(tmp_path, allow=AllowList(("CT1",), ("127.0.0.0/8",))) as (listener, _, _spool):
        assert echo(listener.address[1], "CT1")
        assert not echo(listener.address[1], "CT2")
        assert not echo(listener.address[1], "CT1", called="OTHER")
    with listening(tmp_path, allow=AllowList((), ("10.0.0.0/8",))) as (listener, _, _spool):
        assert not echo(listener.address[1])


def test_it_does_not_listen_openly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beyond this computer"), listening(tmp_path, host="0.0.0.0"):
        pass


def test_a_port_that_is_taken_is_told(port: Open, tmp_path: Path) -> None:
    taken = port[0].address[1]
    config = PacsConfig(listener=ListenerConfig(port=taken))
    with pytest.raises(ConfigError, match=f"127.0.0.1:{taken} cannot be opened"):
        Listener(config, port[1], port[2])


def test_one_association_too_many_is_told_so(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=2) as (listener, _, _spool):
        entity = AE()
        entity.add_requested_context(Verification)
        opened = [entity.associate("127.0.0.1", listener.address[1], ae_title="HEMOLENS") for _ in range(3)]
        assert [a.is_established for a in opened] == [True, True, False]
        assert opened[2].is_rejected
        for association in opened[:2]:
            association.release()
        wait_for(lambda: echo(listener.address[1]), "a place to become free", 20)


def test_connections_that_say_nothing_take_no_place(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=1) as (listener, _, _spool), ExitStack() as silent:
        for _ in range(3):
            silent.enter_context(socket.create_connection(("127.0.0.1", listener.address[1])))
        wait_for(lambda: len(listener._server.active_associations) == 3, "the connections to be taken", 10)
        assert echo(listener.address[1])


def request_pdu() -> bytes:
    """An A-ASSOCIATE-RQ as pynetdicom encodes it, for verification and CT."""
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_primitives import (
        A_ASSOCIATE,
        ImplementationClassUIDNotification,
        MaximumLengthNotification,
    )
    from pynetdicom.presentation import build_context

    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "FUZZ", "HEMOLENS"
    length, name = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, name.implementation_class_uid = 16384, "1.2.3"
    primitive.user_information = [length, name]
    contexts = [build_context(Verification), build_context(CTImageStorage)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def closed(connection: socket.socket, within_s: float) -> bool:
    """Whether the other end closes or aborts within a time."""
    connection.settimeout(within_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize(
    "attack",
    [
        lambda s: s.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"x" * 1000),
        lambda s: s.sendall(request_pdu() + struct.pack(">BBL", 4, 0, 0x7FFFFFFF) + b"x" * 1000),
        lambda s: s.sendall(b"GET / HTTP/1.1\r\n\r\n"),
        lambda s: s.sendall(struct.pack(">BBL", 1, 0, 200) + b"\xff" * 200),
    ],
    ids=["a huge request", "a huge PDU", "no DICOM", "garbage"],
)
def test_what_is_no_association_is_ended(port: Open, attack: Callable[[socket.socket], None]) -> None:
    with socket.create_connection(port[0].address) as connection:
        attack(connection)
        assert closed(connection, 20)
    assert echo(port[0].address[1])


def test_a_pdu_that_drips_in_is_ended(tmp_path: Path) -> None:
    with (
        listening(tmp_path, pdu_timeout_s=1.0, timeout_s=30.0) as (listener, _, _spool),
        socket.create_connection(listener.address) as connection,
    ):
        connection.sendall(struct.pack(">BBL", 1, 0, 200))
        began = time.monotonic()
        try:
            while time.monotonic() - began < 15:
                connection.sendall(b"\0")
                time.sleep(0.2)
        except OSError:
            pass
        assert time.monotonic() - began < 12


def test_an_instance_that_is_too_long_ends_its_association_alone(tmp_path: Path) -> None:
    big = write_series(tmp_path / "big", Series(slices=1, rows=1000, columns=1000))
    small = write_series(tmp_path / "small", Series(study="3.3", series="3.3.1"))
    with listening(tmp_path, max_instance_mb=1.0) as (listener, queue, _spool):
        assert send(big, listener.address[1]) == [None]
        assert send(small, listener.address[1]) == [0] * 6
        assert queue.counts()["instances"] == 6


def test_dcmtk_is_told_about_too_many_bytes_by_an_abort(tmp_path: Path) -> None:
    big = write_series(tmp_path / "big", Series(slices=1, rows=1000, columns=1000))
    with listening(tmp_path, max_instance_mb=1.0) as (listener, queue, _spool):
        assert storescu(big, listener.address[1]).returncode != 0
        assert queue.counts()["instances"] == 0


def test_logs_name_no_patient(port: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "hemolens")
    files = write_series(tmp_path / "a", Series(patient="SECRET-ID", extra={"AccessionNumber": "SECRET-ACC"}))
    send(files, port[0].address[1])
    send(write_series(tmp_path / "b", Series(patient="SECRET-ID", description="x")), port[0].address[1])
    told = "".join(f"{e.kind}{e.subject}{e.message}" for e in port[1].events())
    ours = "".join(r.getMessage() for r in caplog.records if r.name.startswith("hemolens"))
    assert "kept aside" in ours
    for secret in ("SECRET-ID", "SECRET-ACC", "Doe", "Jane"):
        assert secret not in told + ours


def test_the_transfer_syntaxes_of_the_conformance_statement_are_those_of_the_port(port: Open) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/reference/conformance.md").read_text("utf-8")
    listed = re.findall(r"^\| [^|]+ \| (1\.2\.840\.10008\.1\.2[.\d]*) \| (?:yes|no) \|$", page, re.MULTILINE)
    accepted = set()
    known = sorted(ALL_TRANSFER_SYNTAXES)
    for at in range(0, len(known), 20):
        entity = AE()
        for syntax in known[at : at + 20]:
            entity.add_requested_context(CTImageStorage, syntax)
        association = entity.associate("127.0.0.1", port[0].address[1], ae_title="HEMOLENS")
        accepted |= {str(context.transfer_syntax[0]) for context in association.accepted_contexts}
        association.release()
    assert accepted == set(listed) == set(TAKEN)
    assert len(listed) == len(set(listed)) > 30
