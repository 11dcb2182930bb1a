"""The adapter for any protocol over TCP or unix sockets: asyncio's stream handlers and protocol factories.

Owns the tasks of handlers, also for streams beside HTTP (servers/uvicorn/streams.py). Knows nothing of what is spoken,
so there is no request, no key in one and no idle connection: a drain leaves all connections to their handlers until the
graceful timeout, then handlers are cancelled.

1. A handler is called with a reader and a writer. When it returns or raises, its connection is closed.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from limpet.servers import asyncio_loops
from limpet.worker.handling import handling
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat
from limpet.worker.user_code import takes


def fits(app: object) -> bool:
    """Return whether *app* is an `async def handle(reader, writer)` or makes protocols."""
    return is_handler(app) or _is_factory(app)


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out."""
    asyncio_loops.run(seat.settings, _serve(app, seat))


async def _serve(app: Callable[..., Any], seat: Seat) -> None:
    loop, door = asyncio.get_running_loop(), Door(seat)
    handlers = Handlers(app, door.tally.requested) if is_handler(app) else None
    server = await loop.create_server(handlers.new_protocol if handlers else app, sock=door.listener())
    await asyncio_loops.told_to_stop(door)
    server.close()
    await asyncio_loops.all_ended(door)
    if handlers is not None:
        await handlers.cancel()


class Handlers:
    """The running handlers of one worker's connections; *ended* is called at the end of each."""

    def __init__(self, handle: Callable[..., Any], ended: Callable[[], object] = lambda: None) -> None:
        self._handle = handle
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()

    def new_protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection, which starts its handler."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._begin)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._run(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with handling(ConnectionError):
                await self._handle(reader, writer)
        finally:
            self._ended()
            writer.close()

    async def cancel(self) -> None:
        """End those that still run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def is_handler(app: object) -> bool:
    """Return whether *app* is an `async def handle(reader, writer)`."""
    return takes(app, 2, is_async=True)


def _is_factory(app: object) -> bool:
    if inspect.isclass(app) and not issubclass(app, asyncio.BaseProtocol):
        return False
    return takes(app, 0, is_async=False)
