"""Binds with `server=stream` in a worker of uvicorn: connections of any protocol beside those of HTTP.

Owns these connections from the moment at which the event loop has them: counted, left to their handlers in a drain, and
ended when its time is over. What an application of this kind is, servers/stream.py says; there it has a worker to
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from limpet.servers.stream import Handlers, is_handler
from limpet.worker.seat import Seat

_CHECK_S: Final = 0.05  # how often a draining worker looks whether connections have ended


class Streams:
    """The connections of one such bind."""

    def __init__(self, app: Callable[..., Any], seat: Seat) -> None:
        self._handlers = Handlers(app) if is_handler(app) else None
        self._factory = self._handlers.new_protocol if self._handlers else app
        self._seat = seat
        self._open: dict[asyncio.BaseProtocol, asyncio.BaseTransport] = {}

    def new_protocol(self) -> Any:
        """Return the protocol of a new connection, which the worker counts already."""
        protocol: Any = self._factory()
        made, lost = protocol.connection_made, protocol.connection_lost

        def connection_made(transport: asyncio.BaseTransport) -> None:
            self._open[protocol] = protocol.transport = transport  # where listening.py looks for it
            made(transport)

        def connection_lost(error: Exception | None) -> None:
            self._open.pop(protocol, None)
            self._seat.row.add("requests")
            self._seat.row.add("connections", -1)
            lost(error)

        protocol.connection_made, protocol.connection_lost = connection_made, connection_lost
        return protocol

    async def end(self, until: float) -> None:
        """Return when all connections have ended; end those that are open at the loop time *until*."""
        loop = asyncio.get_running_loop()
        while self._open and loop.time() < until:
            await asyncio.sleep(_CHECK_S)
        if self._handlers:
            await self._handlers.cancel()
        for transport in list(self._open.values()):
            transport.close()
