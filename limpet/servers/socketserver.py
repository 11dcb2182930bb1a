"""The adapter for handlers of `socketserver` and `http.server`: a thread for each connection.

Owns the threads' server for each listener and, for handlers of HTTP, when a connection ends: with its response, or when
it is idle and the worker drains.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from limpet.errors import SettingsError
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat

_CHECK_S: Final = 0.05  # how often a worker that stops looks whether connections have ended


def fits(app: object) -> bool:
    """Return whether *app* is a class of handlers."""
    return isinstance(app, type) and issubclass(app, socketserver.BaseRequestHandler)


def serve(app: type[socketserver.BaseRequestHandler], seat: Seat) -> None:
    """Serve connections by *app* until the order to drain has been carried out."""
    is_http = issubclass(app, BaseHTTPRequestHandler)
    if seat.home.router.chain.needs_head and not is_http:
        raise SettingsError(
            f"`{seat.settings.app}` is no handler of HTTP, and the key chain `{seat.settings.by}` looks into requests",
            hint="`--by ip`, or `--by python:module:function` with a function of a `limpet.Peer`",
        )
    door = Door(seat)
    told = threading.Event()
    door.on_stop(told.set)
    idle: set[Any] = set()
    handler = _of_http(app, seat, door, idle) if is_http else app
    servers = [_Server(listener, handler) for listener in door.listeners()]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(_CHECK_S,), daemon=True).start()
    told.wait()
    for server in servers:
        server.shutdown()
    pause = threading.Event()
    while door.tally.open and door.left_s:
        for connection in list(idle):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        pause.wait(_CHECK_S)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server on a listener that is there already."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, handler: Any) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), handler)
        self.socket = listener
        self.server_name, self.server_port = [*self.server_address[:2], ""][:2]  # what handlers of HTTP may ask for
        listener.listen()


def _of_http(handler: Any, seat: Seat, door: Door, idle: set[Any]) -> Any:
    """Return *handler* with what limpet's settings say of responses; it keeps idle connections in *idle*."""
    is_per_request = seat.home.router.chain.needs_head

    class Framed(handler):  # type: ignore[misc]
        timeout = handler.timeout or seat.settings.keep_alive_timeout_s

        def handle_one_request(self) -> None:
            idle.add(self.connection)
            try:
                super().handle_one_request()
            finally:
                idle.discard(self.connection)

        def parse_request(self) -> bool:
            idle.discard(self.connection)
            return bool(super().parse_request())

        def end_headers(self) -> None:
            if is_per_request or door.draining:
                self.send_header("Connection", "close")
            if seat.settings.debug_header:
                self.send_header("X-Limpet-Slot", str(seat.info.slot))
                self.send_header("X-Limpet-Pid", str(seat.info.pid))
            super().end_headers()
            door.tally.requested()

        def log_message(self, text: str, *arguments: Any) -> None:
            if seat.settings.access_log:
                super().log_message(text, *arguments)

    Framed.__name__ = Framed.__qualname__ = handler.__name__
    return Framed
