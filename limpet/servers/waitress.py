"""The adapter for waitress: its threads serve a WSGI application, its loop in the main thread reads and writes.

Owns that loop's end, and which responses end their connections. Connections come through the door.

1. waitress drops trailers, but keeps them until all have come, as it does with the line before a chunk: neither may be
   larger than a head.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Any, Final

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver
from waitress.server import BaseWSGIServer, create_server
from waitress.task import WSGITask
from waitress.utilities import RequestHeaderFieldsTooLarge

from limpet.servers.asgi import framed_wsgi
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat

_TURN_S: Final = 0.1  # how late the loop may notice that it shall end


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out."""
    settings, door = seat.settings, Door(seat)
    connections: dict[int, Any] = {}
    is_told = False

    def tell() -> None:
        nonlocal is_told
        is_told = True

    door.on_stop(tell)
    server = create_server(
        framed_wsgi(app, seat, door.tally.requested),
        map=connections,
        sockets=door.listeners(),
        threads=settings.threads,
        channel_timeout=max(1, math.ceil(settings.keep_alive_timeout_s)),
        cleanup_interval=1,
        max_request_header_size=settings.max_head_bytes,
        connection_limit=1_000_000,  # descriptor numbers are the limit
        asyncore_use_poll=True,
        clear_untrusted_proxy_headers=False,  # see servers/asgi.py
    )
    closing = _closing(lambda: seat.home.router.chain.needs_head or door.draining)
    for each in list(connections.values()):
        if isinstance(each, BaseWSGIServer):
            each.channel_class = closing
            _take_all_families(each)
    while not is_told or (door.tally.open and door.left_s):
        wasyncore.loop(_TURN_S, use_poll=True, map=connections, count=1)
        if is_told:
            _end_idle(connections)
    server.task_dispatcher.shutdown()


def _take_all_families(server: Any) -> None:
    """Let *server* have clients of all binds: waitress goes by the family of the listener, here that of the first."""

    def set_options(connection: socket.socket) -> None:
        for option in server.adj.socket_options if connection.family != socket.AF_UNIX else ():
            connection.setsockopt(*option)

    server.set_socket_options = set_options
    server.fix_addr = lambda peer: peer if isinstance(peer, tuple) else ("localhost", None)


class _Bounded(HTTPRequestParser):  # type: ignore[misc]
    """Waitress's parser, which keeps no more of a chunk's line or of trailers than of a head."""

    def received(self, data: bytes) -> int:
        """Take in *data* and return how much of it, 431 for too much of either."""
        consumed: int = super().received(data)
        body, most = self.body_rcv, self.adj.max_request_header_size
        if isinstance(body, ChunkedReceiver) and len(body.control_line) + len(body.trailer) > most:
            self.error = RequestHeaderFieldsTooLarge(f"more than {most} bytes beside the chunks")
            self.completed = True
        return consumed


def _closing(closes: Callable[[], bool]) -> type[HTTPChannel]:
    """Return waitress's channel, in which responses end their connections when *closes* says so."""

    class Closing(WSGITask):  # type: ignore[misc]
        def service(self) -> None:
            if closes():
                self.request.headers["CONNECTION"] = "close"  # as if the client had asked for it
            super().service()

    class Channel(HTTPChannel):  # type: ignore[misc]
        task_class = Closing
        parser_class = _Bounded

    return Channel


def _end_idle(connections: dict[int, Any]) -> None:
    """End connections that have no request, and the listeners."""
    for each in list(connections.values()):
        if isinstance(each, BaseWSGIServer):
            each.accepting = False
        elif isinstance(each, HTTPChannel) and not (each.requests or each.request or each.total_outbufs_len):
            each.handle_close()
