"""A real HTTP server on this machine, for whatever a test lets it answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Does not mind a client that hangs up."""

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve for as long as the context lasts, without a line on standard error; gives the port."""
    quiet = type(handler.__name__, (handler,), {"log_message": lambda *_: None})
    server = Server(("127.0.0.1", 0), quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
