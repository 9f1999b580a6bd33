"""A DICOM port that strangers may poke at: limits on connections, on the size and time of a PDU, on an instance.

pynetdicom reads whatever length a PDU claims, byte by byte for as long as a peer likes, and makes a thread for every
connection. These subclasses bound all three. A TLS handshake happens in the connection's own thread.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from hemolens.pacs.reception import Handler, StoreProvider

SPARE_CONNECTIONS = 8
"""Connections beyond the limit of associations, so that one too many is told so (PS3.8 9.3.4) and not just cut."""


@dataclass(frozen=True)
class Limits:
    """What one peer may do."""

    pdu_bytes: int
    """Longest PDU."""
    pdu_s: float
    """Time for one PDU."""
    instance_bytes: int
    """Longest message: an instance and its command."""
    connections: int


class GuardedSocket(AssociationSocket):
    """A connection whose PDUs are bounded in size and time."""

    limits: Limits
    _unread = b""

    def unread(self, data: bytes | bytearray) -> None:
        """Put back what was read: the next `recv`, which asks for as much, returns it."""
        self._unread = bytes(data)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly so many bytes, or what came before the connection ended.

        Raises
        ------
        OSError
            If the PDU is too long or takes too long: the association ends.
        """
        if self._unread:
            data, self._unread = bytearray(self._unread), b""
            return data
        connection = self.socket
        if connection is None or nr_bytes > self.limits.pdu_bytes:
            raise OSError(f"a PDU of {nr_bytes} bytes is longer than {self.limits.pdu_bytes}")
        data = bytearray(nr_bytes)
        view, read = memoryview(data), 0
        deadline = time.monotonic() + self.limits.pdu_s
        usual = connection.gettimeout()
        try:
            while read < nr_bytes:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"a PDU took longer than {self.limits.pdu_s:g} s")
                connection.settimeout(left if usual is None else min(left, usual))
                got = connection.recv_into(view[read:])
                if not got:
                    break
                read += got
        finally:
            connection.settimeout(usual)
            view.release()
        return data if read == nr_bytes else data[:read]


class GuardedHandler(RequestHandler):
    """Makes the association of a connection, as pynetdicom does, on a `GuardedSocket`."""

    server: GuardedServer

    def _create_association(self) -> Association:
        assoc = Association(self.ae, MODE_ACCEPTOR)
        assoc._server = self.server
        assoc.dul = StoreProvider(assoc, self.server.handler, self.server.limits.instance_bytes)
        assoc.acse_timeout, assoc.network_timeout = self.ae.acse_timeout, self.ae.network_timeout
        assoc.name = f"AcceptorThread@{id(assoc):x}"
        connection = GuardedSocket(assoc, client_socket=self.request)
        connection.limits = self.server.limits
        assoc.set_socket(connection)
        assoc.acceptor.maximum_length = self.ae.maximum_pdu_size
        assoc.acceptor.ae_title = self.server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = self.ae.implementation_version_name
        # Shared, not copied: negotiation only reads them, and a copy costs more than the rest of an association.
        assoc.acceptor.supported_contexts = self.server.contexts
        assoc.requestor.address_info = self.remote
        handlers: dict[Any, Any] = dict(self.server._handlers)
        for event, bound in handlers.items():
            if isinstance(event, evt.NotificationEvent):
                for handler, arguments in bound:
                    assoc.bind(event, handler, arguments)
            elif bound:
                assoc.bind(event, *bound)
        return assoc


class GuardedServer(ThreadedAssociationServer):
    """A DICOM port with limits.

    Parameters
    ----------
    arguments, options
        As for `ThreadedAssociationServer`.
    limits
        What one peer may do.
    refusal
        Tells for an address why it may not call; empty if it may.
    handler
        Takes instances.
    shared
        Whether other processes serve the same port.
    """

    request_queue_size = 64
    daemon_threads = True

    def __init__(
        self,
        *arguments: Any,
        limits: Limits,
        refusal: Callable[[str], str],
        handler: Handler,
        shared: bool = False,
        **options: Any,
    ) -> None:
        self.limits, self.handler, self._shared = limits, handler, shared
        self._refusal = refusal
        super().__init__(*arguments, **options | {"request_handler": GuardedHandler})

    def server_bind(self) -> None:
        """Take the port, alone or with other processes that say so as well."""
        if self._shared and self.socket is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; with TLS the handshake waits for the connection's own thread."""
        listening = self.socket
        if listening is None:
            raise OSError("the port is closed")
        connection, address = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.settimeout(self.limits.pdu_s)
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
        return connection, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands where TLS is on, then serve the connection."""
        if isinstance(request, ssl.SSLSocket):
            try:
                request.do_handshake()
            except OSError:
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)

    def service_actions(self) -> None:
        """Do nothing: pynetdicom collects garbage here every few seconds, which takes a fifth of a busy listener."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection may go on: its address is allowed and there are not too many."""
        if self._refusal(str(client_address[0])):
            return False
        return len(self.active_associations) < self.limits.connections + SPARE_CONNECTIONS

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what goes wrong in one connection ends that connection."""


def no_delay(event: evt.Event) -> None:
    """Send small PDUs at once: Nagle's algorithm and delayed acknowledgment together cost 40 ms each."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
