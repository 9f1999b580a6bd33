"""Bad input by the thousand, against a listener in its own process: no crash, no leak, the right status."""

from __future__ import annotations

import random
import socket
import statistics
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from dicom_files import Series, write_series
from pacs_peers import Service, send, wait_for
from test_pacs_listener import data_of, echo, request_pdu

CT = "1.2.840.10008.5.1.4.1.1.2"
STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"
"""Tag and length of (0000,0900) in implicit little endian."""
ALLOWED = {0x0000, 0xA700, 0xA900, 0xB007, 0xC000}


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def uid(value: str) -> bytes:
    return value.encode() + b"\0" * (len(value) % 2)


def store_command(sop_uid: str, message_id: int = 1, sop_class: str = CT) -> bytes:
    body = b"".join(
        (
            element(0x0002, uid(sop_class)),
            element(0x0100, struct.pack("<H", 1)),
            element(0x0110, struct.pack("<H", message_id)),
            element(0x0700, struct.pack("<H", 0)),
            element(0x0800, struct.pack("<H", 1)),
            element(0x1000, uid(sop_uid)),
        )
    )
    return element(0x0000, struct.pack("<L", len(body))) + body


def data_pdu(context: int, header: int, data: bytes) -> bytes:
    item = struct.pack(">LBB", len(data) + 2, context, header) + data
    return struct.pack(">BBL", 4, 0, len(item)) + item


def answer(connection: socket.socket) -> bytes:
    """One PDU, or nothing where the connection was ended."""
    head = b""
    while len(head) < 6:
        got = connection.recv(6 - len(head))
        if not got:
            return b""
        head += got
    length, body = struct.unpack(">L", head[2:])[0], b""
    while len(body) < length:
        got = connection.recv(length - len(body))
        if not got:
            return b""
        body += got
    return head + body


class Peer:
    """A connection that knows just enough DICOM to lie."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection: socket.socket | None = None

    def open(self) -> socket.socket:
        if self.connection is None:
            # Those that were just ended count as open for a moment: one too many is turned away, politely.
            wait_for(self._associate, "an association", 30)
        assert self.connection is not None
        return self.connection

    def _associate(self) -> bool:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request_pdu())
        if answer(connection)[:1] == b"\x02":
            self.connection = connection
            return True
        connection.close()
        return False

    def store(self, data: bytes, sop_uid: str) -> int | None:
        """Send a data set; its status, None where the association was ended."""
        try:
            connection = self.open()
            message = data_pdu(3, 3, store_command(sop_uid))
            for start in range(0, len(data), 16000):
                last = start + 16000 >= len(data)
                message += data_pdu(3, 2 if last else 0, data[start : start + 16000])
            connection.sendall(message)
            told = answer(connection)
        except OSError:
            told = b""
        if not told.startswith(b"\x04") or STATUS not in told:
            self.close()
            return None
        place = told.index(STATUS) + len(STATUS)
        return int(struct.unpack("<H", told[place : place + 2])[0])

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or overwrite: what broken software and hostile people send."""
    found = bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.randint(1, 20)):
            found[rng.randrange(len(found))] = rng.randrange(256)
    elif kind == 1:
        del found[rng.randrange(len(found)) :]
    elif kind == 2:
        at = rng.randrange(len(found))
        found[at:at] = rng.randbytes(rng.randint(1, 300))
    elif kind == 3:
        at = rng.randrange(max(1, len(found) - 4))
        found[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xfe\xff\xff\x7f", b"\xfe\xff\x00\xe0"])
    elif kind == 4:
        at = rng.randrange(len(found))
        found[at : at + 200] = b""
    else:
        found = bytearray(rng.randbytes(rng.randint(0, 500)))
    return bytes(found)


def test_mutations_are_of_every_kind() -> None:
    """So that the tests below do not pass because nothing was changed."""
    rng, data = random.Random(1), bytes(range(256)) * 4
    changed = [mutated(data, rng) for _ in range(200)]
    assert sum(c != data for c in changed) >= 190
    assert len({len(c) for c in changed}) > 30


def memory(running: Service) -> float:
    return psutil.Process(running.pid("listener")).memory_info().rss / 1024**2


ROUNDS = 9
"""Each with 240 bad data sets, 160 bad PDUs and a good series: some 3,600 messages."""


@pytest.mark.slow
def test_thousands_of_bad_messages_neither_crash_nor_leak(tmp_path: Path) -> None:
    settings = "[worker]\nprocesses = 0\n[completion]\nstable_age_s = 9999\n"
    running = Service(tmp_path / "service", settings)
    running.config.write_text(
        running.config.read_text().replace("[listener]\n", "[listener]\npdu_timeout_s = 2\ntimeout_s = 5\n", 1)
    )
    good = write_series(tmp_path / "in", Series(slices=1, extra={"SOPInstanceUID": "1.2.3.4.5.1"}))
    data = data_of(good[0])[:3000]
    try:
        running.start()
        pid = running.pid("listener")
        told, resident = {}, []
        for hour in range(ROUNDS):
            told |= fuzz_data_sets(running, data, 240, seed=hour)
            fuzz_pdus(running.port, 160, seed=hour)
            wait_for(lambda: echo(running.port), "the listener to answer", 60)
            # Good ones among the bad: kept, then every time the same again.
            intact = write_series(tmp_path / f"good{hour % 3}", Series(study=f"8.{hour % 3}", series=f"8.{hour % 3}.1"))
            assert set(send(intact, running.port)) == {0}
            resident.append(memory(running))
        assert running.pid("listener") == pid, "it was never started again"
        assert psutil.Process(pid).is_running()
        assert set(told) - {None} <= ALLOWED
        assert {0x0000, 0xC000} <= set(told)
        settled = resident[2:]
        slope = statistics.linear_regression(range(len(settled)), settled).slope
        assert slope < 1.0, f"{slope:.2f} MiB more with each round: {resident}"
        assert max(settled) - min(settled) < 15, resident
        kept = len(list((running.folder / "spool" / "incoming").rglob("*.dcm")))
        assert running.counts()["instances"] == kept
        assert kept >= 18
        for line in running.lines():
            assert "Doe" not in line["message"]
            assert "PATIENT-7" not in line["message"]
    finally:
        running.stop()


def fuzz_data_sets(running: Service, data: bytes, count: int, seed: int) -> dict[int | None, int]:
    """Valid requests with mutated data sets, over three associations at once."""

    def one(worker: int) -> dict[int | None, int]:
        rng, peer, told = random.Random(seed * 100 + worker), Peer(running.port), {}
        for _ in range(count // 3):
            status = peer.store(mutated(data, rng), "1.2.3.4.5.1")
            told[status] = told.get(status, 0) + 1
        peer.close()
        return told

    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(one, range(3)))
    return {status: sum(part.get(status, 0) for part in parts) for part in parts for status in part}


def fuzz_pdus(port: int, count: int, seed: int) -> None:
    """Mutated association requests, and mutated PDUs within an association."""

    def one(number: int) -> None:
        rng = random.Random(seed * 100_000 + number)
        request = request_pdu()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                if number % 2:
                    connection.sendall(mutated(request, rng))
                else:
                    connection.sendall(request)
                    answer(connection)
                    store = data_pdu(3, 3, store_command("1.2.3")) + data_pdu(3, 2, rng.randbytes(300))
                    connection.sendall(mutated(store, rng))
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(1)
                while connection.recv(65536):
                    pass
        except OSError:
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(count)))
