"""uvicorn's protocols as a worker uses them: one object for each client connection.

Owns what uvicorn's own protocols leave out: a deadline for request heads, frames that follow a websocket upgrade at
once, and an end that drops no request that has already arrived. Parsing, the ASGI scope and the response are uvicorn's
own code on the client's own socket. Made and counted by servers/uvicorn.py.

1. While draining, each response says that the connection ends, and an idle connection is closed only when no byte
   of a next request is waiting in the kernel.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from limpet.handoff import Handoff
from limpet.moving import shut_down
from limpet.refusal import answer
from limpet.worker import Seat


class Seated(asyncio.Protocol):
    """What either of uvicorn's HTTP protocols, the next class in the order of resolution, gains in a worker."""

    seat: ClassVar[Seat]
    draining: ClassVar[bool] = False
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: set[Any]
    cycle: Any  # the request being served, or the last one
    _head_since: float | None = None  # loop time since which the next request head is awaited, None while there is none

    def accepted(self, handoff: Handoff) -> None:
        """Take over what came with a connection from the dispatcher. Called before `connection_made`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.seat.row.add("connections", -1)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        self.feed(data)
        if self.cycle is not before:
            self._head_since = None
            if self.draining:
                self.cycle.keep_alive = False
        elif self._head_since is None and (before is None or before.response_complete):
            self._head_since = self.loop.time()

    def feed(self, data: bytes) -> None:
        """Give *data* to the parser."""
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.seat.row.add("requests")
        super().on_response_complete()  # type: ignore[misc]

    def refuse_late_head(self, before: float) -> None:
        """Answer 408 and close if a request head has been awaited since *before* (loop time)."""
        if self._head_since is not None and self._head_since < before and not self.transport.is_closing():
            self.seat.row.add("head_timeouts")
            self.transport.write(answer(408))
            self.transport.close()

    def shutdown(self) -> None:
        """End the connection after the request it has, or has sent already; at once when there is none."""
        idle = self.cycle is None or self.cycle.response_complete
        if not (idle and _bytes_wait(self.transport)):
            super().shutdown()  # type: ignore[misc]


class SeatedHttpTools(Seated, HttpToolsProtocol):
    def feed(self, data: bytes) -> None:
        """Feed the parser as uvicorn does, but keep what follows an upgrade: frames may come right behind it."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                pass_on(self.transport, data[upgrade.args[0] :])
            else:
                self._unsupported_upgrade_warning()
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")


class SeatedH11(Seated, H11Protocol):
    def handle_websocket_upgrade(self, event: Any) -> None:
        super().handle_websocket_upgrade(event)
        pass_on(self.transport, self.conn.trailing_data[0])


class _SeatedWebSocket(asyncio.Protocol):
    """What each of uvicorn's websocket protocols gains: its end is counted."""

    seat: ClassVar[Seat]
    transport: asyncio.Transport
    moved: bool = False  # other workers may have copies, which would hold back the FIN

    def connection_lost(self, exc: Exception | None) -> None:
        if self.moved:
            shut_down(self.transport.get_extra_info("socket").fileno())
        super().connection_lost(exc)
        self.seat.row.add("requests")
        self.seat.row.add("connections", -1)


def websocket_protocol(seat: Seat, plain: type[asyncio.Protocol] | None) -> type[asyncio.Protocol] | None:
    """Return uvicorn's websocket protocol *plain* with the counting of this worker, None for none."""
    return None if plain is None else type("SeatedWebSocket", (_SeatedWebSocket, plain), {"seat": seat})


def _bytes_wait(transport: asyncio.Transport) -> bool:
    """Return whether the client has sent bytes that the event loop has not read yet."""
    unread = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
    return unread[0] > 0


def pass_on(transport: asyncio.Transport, data: bytes) -> None:
    """Give *data* to the protocol that has taken the connection over."""
    if data:
        transport.get_protocol().data_received(data)  # type: ignore[attr-defined]
