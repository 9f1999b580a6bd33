"""How C-STORE messages come in: straight from the connection to whoever keeps them.

pynetdicom hands each fragment of a message through two queues, three threads and four copies, which costs more than to
hash an instance and to write it to disk. Here an established association's C-STORE requests are put together and
answered by the thread that reads the connection; everything else (negotiation, release, abort, the other services) is
pynetdicom's, which never sees those messages.
"""

from __future__ import annotations

import logging
import select
import ssl
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider

LOGGER = logging.getLogger("hemolens.pacs.reception")
ESTABLISHED = "Sta6"
"""State of the upper layer's machine in which data are transferred (PS3.8 9.2.1)."""
P_DATA_TF = 4
HEADER = 6
"""Bytes of a PDU before its contents, and of an item before its fragment."""
COMMAND, LAST = 1, 2
"""Bits of a fragment's control header (PS3.8 E.2)."""
COMMAND_LIMIT = 65536
NO_DATA_SET = 0x0101
C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
PROCESSING_FAILURE = 0x0110
LINGER_S = 0.05
"""The next message of a busy sender comes sooner; after this the association rests in pynetdicom's loop again."""
CLOSED, INVALID, DATA = "Evt17", "Evt19", "Evt10"
"""Events of the upper layer's machine (PS3.8 table 9-10)."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class StoreRequest:
    """What a C-STORE-RQ says (PS3.7 9.3.1.1)."""

    message_id: int
    sop_class: str
    sop_uid: str
    transfer_syntax: str
    """That of its presentation context."""


Handler = Callable[[Association, StoreRequest, Sequence[Buffer]], int]
"""Keeps a data set, which comes in parts, and returns the status of the answer."""


@dataclass
class _Message:
    """A message of which some fragments have come."""

    context: int
    command: bytearray = field(default_factory=bytearray)
    decided: bool = False
    has_data: bool = False
    request: StoreRequest | None = None
    """None for what pynetdicom serves, and until the command is complete."""
    parts: list[Buffer] = field(default_factory=list)
    size: int = 0
    pdus: list[bytes] = field(default_factory=list)
    """As they came, until it is known who serves the message."""
    complete: bool = False


class StoreProvider(DULServiceProvider):
    """The upper layer of one association.

    Parameters
    ----------
    assoc
        The association.
    handler
        Takes the data sets.
    message_limit
        Bytes of the longest message; a longer one ends the association.
    """

    def __init__(self, assoc: Association, handler: Handler, message_limit: int) -> None:
        super().__init__(assoc)
        self._handler, self._limit = handler, message_limit
        self._message: _Message | None = None
        self._syntaxes: dict[int, str] | None = None

    def _read_pdu_data(self) -> None:
        """Read what has come, and what comes soon after."""
        if self.state_machine.current_state != ESTABLISHED:
            super()._read_pdu_data()
            return
        # Meanwhile the association's own thread, which looks for work a thousand times a second, rests.
        self.assoc._reactor_checkpoint.clear()
        try:
            while self._take_pdu() and self._more():
                self._idle_timer.restart()
        finally:
            self._idle_timer.restart()
            self.assoc._reactor_checkpoint.set()

    def _more(self) -> bool:
        """Whether the next PDU comes at once, and nothing else is to be done."""
        connection = self.socket.socket if self.socket else None
        if connection is None or self._kill_thread or self.to_provider_queue.queue or self.event_queue.queue:
            return False
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        try:
            return bool(select.select([connection], [], [], LINGER_S)[0])
        except (OSError, ValueError):
            return False

    def _take_pdu(self) -> bool:
        """Read one PDU; whether it was served here."""
        connection = self.socket
        if connection is None:
            return False
        try:
            header = connection.recv(HEADER)
            if len(header) == HEADER and header[0] != P_DATA_TF:
                connection.unread(header)  # type: ignore[attr-defined]
                super()._read_pdu_data()
                return False
            length = int.from_bytes(header[2:], "big")
            body = connection.recv(length)
        except OSError:
            header, body, length = bytearray(), bytearray(), 0
        if len(header) < HEADER or len(body) < length:
            self.event_queue.put(CLOSED)
            return False
        try:
            return self._take_items(header, body)
        except ValueError:
            self.event_queue.put(INVALID)
            return False

    def _take_items(self, header: bytearray, body: bytearray) -> bool:
        message = self._message
        for context, control, fragment in items(body):
            if message is None:
                message = self._message = _Message(context)
            elif message.complete or context != message.context:
                raise ValueError("fragments of two messages")
            self._take_fragment(message, control, fragment)
            if message.size > self._limit and self.socket is not None:
                self.socket.close()
                return False
        if message is None:
            return True
        if message.complete:
            self._message = None
        if message.decided and message.request is None:
            self._pass_on(message, bytes(header + body))
            return False
        if message.request is None:
            message.pdus.append(bytes(header + body))
        elif message.complete:
            self._serve(message.context, message.request, message.parts)
        return True

    def _take_fragment(self, message: _Message, control: int, fragment: memoryview) -> None:
        message.size += len(fragment)
        if control & COMMAND:
            if message.decided or len(message.command) + len(fragment) > COMMAND_LIMIT:
                raise ValueError("two commands, or a long one")
            message.command += fragment
            if control & LAST:
                self._decide(message)
                message.complete = not message.has_data
            return
        if not message.decided:
            raise ValueError("data before their command")
        if message.request is not None:
            message.parts.append(fragment)
        message.complete = bool(control & LAST)

    def _decide(self, message: _Message) -> None:
        """Find out whether the message is a C-STORE-RQ in an accepted context."""
        if self._syntaxes is None:
            contexts = [context for context in self.assoc.accepted_contexts if context.as_scp]
            self._syntaxes = {context.context_id or 0: str(context.transfer_syntax[0]) for context in contexts}
        fields = command_fields(message.command)
        message.decided = True
        message.has_data = _number(fields.get(0x0800)) != NO_DATA_SET
        syntax = self._syntaxes.get(message.context)
        if _number(fields.get(0x0100)) == C_STORE_RQ and syntax is not None:
            sop_class, sop_uid = (_uid(fields.get(tag)) for tag in (0x0002, 0x1000))
            message.request = StoreRequest(_number(fields.get(0x0110)), sop_class, sop_uid, syntax)

    def _pass_on(self, message: _Message, pdu: bytes) -> None:
        """Give pynetdicom what it serves."""
        for content in (*message.pdus, pdu):
            decoded, event = self._decode_pdu(bytearray(content))
            self.event_queue.put(event)
            self._recv_pdu.put(decoded)
        message.pdus.clear()

    def _serve(self, context: int, request: StoreRequest, parts: Sequence[Buffer]) -> None:
        try:
            status = self._handler(self.assoc, request, parts)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender must hear that nothing was kept
            LOGGER.error("could not take an instance, answered 0x0110 (%s)", type(error).__name__)
            status = PROCESSING_FAILURE
        if self.socket is not None:
            for pdu in response(context, request, status, self.assoc.requestor.maximum_length or 0):
                self.socket.send(pdu)


def items(body: bytearray) -> Iterator[tuple[int, int, memoryview]]:
    """Yield context, control header and fragment of each item of a P-DATA-TF PDU (PS3.8 9.3.5).

    Raises
    ------
    ValueError
        If it is none.
    """
    view, at = memoryview(body), 0
    while at < len(body):
        size = int.from_bytes(view[at : at + 4], "big")
        end = at + 4 + size
        if size < 2 or end > len(body):
            raise ValueError("a fragment is cut off")
        yield body[at + 4], body[at + 5], view[at + HEADER : end]
        at = end


def command_fields(command: Buffer) -> dict[int, bytes]:
    """Return the elements of a command set, which is in implicit little endian (PS3.7 6.3.1), by element number.

    Raises
    ------
    ValueError
        If it is none.
    """
    fields, at = {}, 0
    while at < len(command):
        if at + 8 > len(command):
            raise ValueError("a command is cut off")
        group, element, length = struct.unpack_from("<HHL", command, at)
        if group != 0 or at + 8 + length > len(command):
            raise ValueError("no command")
        fields[element] = bytes(command[at + 8 : at + 8 + length])
        at += 8 + length
    return fields


def _number(value: bytes | None) -> int:
    if value is None or len(value) != 2:
        raise ValueError("a command without what it must hold")
    return int.from_bytes(value, "little")


def _uid(value: bytes | None) -> str:
    try:
        return (value or b"").rstrip(b"\0 ").decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("a UID that is none") from None


def response(context: int, request: StoreRequest, status: int, longest: int) -> Iterator[bytes]:
    """Yield the PDUs of a C-STORE-RSP (PS3.7 9.3.1.2), none longer than the peer takes (0: any).

    Parameters
    ----------
    context
        Presentation context.
    request
        What is answered.
    status
        The answer.
    longest
        Bytes of a PDU's contents.
    """
    elements = (
        (0x0002, _padded(request.sop_class)),
        (0x0100, struct.pack("<H", C_STORE_RSP)),
        (0x0120, struct.pack("<H", request.message_id)),
        (0x0800, struct.pack("<H", NO_DATA_SET)),
        (0x0900, struct.pack("<H", status)),
        (0x1000, _padded(request.sop_uid)),
    )
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    command = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    step = max(16, longest - HEADER) if longest else len(command)
    for at in range(0, len(command), step):
        fragment = command[at : at + step]
        control = COMMAND | (LAST if at + step >= len(command) else 0)
        size = len(fragment) + 2
        yield struct.pack(">BBLLBB", P_DATA_TF, 0, size + 4, size, context, control) + fragment


def _padded(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) % 2)
