"""What takes C-STORE messages past pynetdicom: codecs agree, and odd but legal senders are served."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from dicom_files import Series, write_series
from hemolens.errors import QueueError
from hemolens.pacs.queue import InstanceKind, Kept, Queue, Received, open_queue
from hemolens.pacs.reception import StoreRequest, command_fields, items, response
from hemolens.pacs.recorder import Recorder
from pacs_peers import send, wait_for
from test_pacs_fuzz import STATUS, Peer, answer, data_pdu, store_command
from test_pacs_listener import Open, data_of, listening

UID = "1.2.826.0.1.3680043.8.498.1"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Open]:
    with listening(tmp_path) as opened:
        yield opened


def by_pynetdicom(primitive: C_STORE, message: C_STORE_RQ | C_STORE_RSP, longest: int) -> list[bytes]:
    """The PDUs that pynetdicom makes of a message."""
    message.primitive_to_message(primitive)
    pdus = []
    for data in message.encode_msg(3, longest):
        pdu = P_DATA_TF()
        pdu.from_primitive(data)
        pdus.append(pdu.encode())
    return pdus


@pytest.mark.parametrize("status", [0x0000, 0xA700, 0xB007, 0xC000])
@pytest.mark.parametrize("longest", [16384, 40])
def test_the_answer_is_what_pynetdicom_would_send(status: int, longest: int) -> None:
    primitive = C_STORE()
    primitive.MessageIDBeingRespondedTo, primitive.Status = 7, status
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = CTImageStorage, UID
    request = StoreRequest(7, str(CTImageStorage), UID, "1.2.840.10008.1.2.1")
    ours = list(response(3, request, status, longest))
    theirs = by_pynetdicom(primitive, C_STORE_RSP(), longest)
    assert joined(ours) == joined(theirs)
    assert all(len(pdu) - 6 <= longest for pdu in ours)


def joined(pdus: list[bytes]) -> tuple[bytes, list[int]]:
    """The command, and which of the fragments are said to be the last."""
    found = [item for pdu in pdus for item in items(bytearray(pdu[6:]))]
    assert {context for context, _, _ in found} == {3}
    controls = [control for _, control, _ in found]
    assert all(control & 1 for control in controls)
    lasts = [control >> 1 for control in controls]
    assert lasts == [0] * (len(lasts) - 1) + [1]
    return b"".join(bytes(fragment) for _, _, fragment in found), lasts[-1:]


def test_a_request_is_read_as_pynetdicom_wrote_it() -> None:
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = 300, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = CTImageStorage, UID
    primitive.DataSet = BytesIO(b"x" * 100)
    pdus = by_pynetdicom(primitive, C_STORE_RQ(), 16384)
    found = [item for pdu in pdus for item in items(bytearray(pdu[6:]))]
    fields = command_fields(b"".join(bytes(f) for _, control, f in found if control & 1))
    assert fields[0x0110] == (300).to_bytes(2, "little")
    assert fields[0x1000].rstrip(b"\0").decode() == UID
    assert fields[0x0002].rstrip(b"\0").decode() == CTImageStorage
    assert b"".join(bytes(f) for _, control, f in found if not control & 1) == b"x" * 100


@pytest.mark.parametrize(
    "body", [b"\0\0\0\1\1\3", b"\0\0\0\5\1\3ab", b"\0\0\0", struct.pack(">LBB", 0xFFFFFFFF, 1, 3) + b"abc"]
)
def test_cut_off_items_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="cut off"):
        list(items(bytearray(body)))


@pytest.mark.parametrize(
    "command", [b"\0\0\0", struct.pack("<HHL", 8, 0, 0), struct.pack("<HHL", 0, 2, 9) + b"12345678"]
)
def test_what_is_no_command_is_refused(command: bytes) -> None:
    with pytest.raises(ValueError, match="command"):
        command_fields(command)


def fragments(data: bytes, size: int, control: int) -> list[bytes]:
    """Items of so many bytes each."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [
        struct.pack(">LBB", len(p) + 2, 3, control | (2 if k == len(parts) - 1 else 0)) + p for k, p in enumerate(parts)
    ]


def pdu(*found: bytes) -> bytes:
    body = b"".join(found)
    return struct.pack(">BBL", 4, 0, len(body)) + body


def one(folder: Path) -> tuple[bytes, str]:
    file = write_series(folder / "in", Series(slices=1))[0]
    data = data_of(file)
    from pydicom import dcmread

    return data, str(dcmread(file).SOPInstanceUID)


def status_of(told: bytes) -> int | None:
    if not told.startswith(b"\x04"):
        return None
    place = told.index(STATUS) + len(STATUS)
    return int(struct.unpack("<H", told[place : place + 2])[0])


@pytest.mark.parametrize("way", ["a fragment a PDU", "many fragments a PDU", "all in one PDU", "empty PDUs between"])
def test_a_message_may_be_cut_up_in_any_way(port: Open, tmp_path: Path, way: str) -> None:
    listener, queue, spool = port
    data, sop_uid = one(tmp_path)
    parts = [*fragments(store_command(sop_uid), 17, 1), *fragments(data, 999, 0)]
    if way == "a fragment a PDU":
        sent = [pdu(part) for part in parts]
    elif way == "many fragments a PDU":
        sent = [pdu(*parts[at : at + 5]) for at in range(0, len(parts), 5)]
    elif way == "empty PDUs between":
        sent = [pdu() + pdu(part) for part in parts]
    else:
        sent = [pdu(*parts)]
    peer = Peer(listener.address[1])
    try:
        connection = peer.open()
        for _ in range(2):
            connection.sendall(b"".join(sent))
            assert status_of(answer(connection)) == 0
    finally:
        peer.close()
    kept = queue.instance_kept(sop_uid)
    assert kept is not None
    assert data_of(spool.root / kept.path) == data


@pytest.mark.parametrize(
    "message",
    [
        lambda command, data: pdu(*fragments(command, 999, 1), *fragments(data, 60000, 0), *fragments(command, 999, 1)),
        lambda command, data: pdu(*fragments(data, 60000, 0)),
        lambda command, data: pdu(*fragments(command, 17, 1)[:2], *fragments(data, 60000, 0)),
        lambda command, data: pdu(*fragments(command, 999, 1)) + pdu(struct.pack(">LBB", 4, 1, 2) + b"ab"),
        lambda command, data: pdu(*fragments(command.replace(b"\x10\x01\x02\0\0\0", b"\x10\x01\x04\0\0\0"), 999, 1)),
        lambda command, data: pdu(struct.pack(">LBB", 65538, 3, 1) + b"\0" * 65536) * 2,
    ],
    ids=["two at once", "no command", "data within the command", "another context", "bad length", "endless command"],
)
def test_what_breaks_the_rules_ends_its_association(port: Open, tmp_path: Path, message) -> None:
    listener = port[0]
    data, sop_uid = one(tmp_path)
    peer = Peer(listener.address[1])
    try:
        connection = peer.open()
        connection.sendall(message(store_command(sop_uid), data))
        told = answer(connection)
        while status_of(told) == 0:  # what was whole before the breach may have been answered
            told = answer(connection)
        assert told[:1] in {b"\x07", b""}, "an abort, or the end"
    except ConnectionError:
        pass
    finally:
        peer.close()
    assert send(write_series(tmp_path / "after", Series(study="8", series="8.1")), listener.address[1]) == [0] * 6


def test_no_data_set_and_no_uid_are_refused_politely(port: Open, tmp_path: Path) -> None:
    listener, queue, _ = port
    peer = Peer(listener.address[1])
    try:
        connection = peer.open()
        empty = store_command(UID).replace(b"\0\x08\x02\0\0\0\1\0", b"\0\x08\x02\0\0\0\1\1")
        connection.sendall(data_pdu(3, 3, empty))
        assert status_of(answer(connection)) == 0xC000
        assert peer.store(one(tmp_path)[0], "") == 0xA900
    finally:
        peer.close()
    assert queue.counts()["instances"] == 0


def test_stores_and_echoes_take_turns_in_one_association(port: Open, tmp_path: Path) -> None:
    listener, queue, _ = port
    files = write_series(tmp_path / "in", Series(slices=5))
    entity = AE(ae_title="BOTH")
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", listener.address[1], ae_title="HEMOLENS")
    for file in files:
        assert association.send_c_store(file).Status == 0
        assert association.send_c_echo().Status == 0
    association.release()
    assert association.is_released
    assert queue.counts()["instances"] == 5


def test_nagle_is_off_on_what_is_accepted(port: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = port[0]
    with socket.create_connection(listener.address):
        wait_for(lambda: listener._server.active_associations, "the connection to be taken", 10)
        (association,) = listener._server.active_associations
        accepted = association.dul.socket.socket
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_disk_that_takes_longer_than_the_silence_allowed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_series(tmp_path / "in", Series(slices=2))
    with listening(tmp_path, timeout_s=1.0) as (listener, _queue, spool):
        store = spool.store
        monkeypatch.setattr(spool, "store", lambda *arguments: (time.sleep(2.5), store(*arguments))[1])
        assert send(files, listener.address[1]) == [0, 0]


def test_silence_ends_an_association_also_after_a_store(tmp_path: Path) -> None:
    data, sop_uid = one(tmp_path)
    with listening(tmp_path, timeout_s=1.0) as (listener, _, _spool):
        peer = Peer(listener.address[1])
        try:
            assert peer.store(data, sop_uid) == 0
            connection = peer.open()
            connection.settimeout(30)
            assert answer(connection)[:1] in {b"\x07", b""}
        finally:
            peer.close()


def test_what_the_code_cannot_do_is_no_success(port: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, _, spool = port
    monkeypatch.setattr(spool, "store", lambda *arguments: 1 / 0)
    assert send(write_series(tmp_path / "in", Series(slices=1)), listener.address[1]) == [0x0110]


def received(number: int) -> Received:
    return Received(f"1.{number}", "1", "0", "p", "CT", InstanceKind.CT, f"a{number}", 1, f"h{number}", 1.0)


class Slow:
    """A queue whose commits take a while, and are counted."""

    def __init__(self, queue: Queue, fails: bool = False) -> None:
        self.queue, self.commits, self.fails = queue, 0, fails

    def keep_all(self, found: list[Received]) -> list[Kept]:
        self.commits += 1
        time.sleep(0.05)
        if self.fails:
            raise QueueError("the disk is gone")
        return self.queue.keep_all(found)


def test_those_who_wait_share_a_commit_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    with closing(open_queue(f"sqlite:///{tmp_path}/q.db")) as queue:
        slow = Slow(queue)
        recorder = Recorder(slow)  # type: ignore[arg-type]
        gate = threading.Barrier(16)

        def one(number: int) -> Kept:
            gate.wait()
            return recorder.keep(received(number // 2))

        with ThreadPoolExecutor(16) as pool:
            told = list(pool.map(one, range(16)))
        assert sorted(told) == [Kept.NEW] * 8 + [Kept.SAME] * 8
        assert queue.counts()["instances"] == 8
        assert 2 <= slow.commits < 10


def test_a_commit_that_fails_fails_for_all_of_it(tmp_path: Path) -> None:
    with closing(open_queue(f"sqlite:///{tmp_path}/q.db")) as queue:
        recorder = Recorder(Slow(queue, fails=True))  # type: ignore[arg-type]

        def one(number: int) -> str:
            try:
                recorder.keep(received(number))
            except QueueError as error:
                return str(error)
            return "kept"

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(one, range(4))) == {"the disk is gone"}
        assert queue.counts()["instances"] == 0
