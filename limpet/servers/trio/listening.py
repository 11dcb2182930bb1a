"""A trio listener on the slot's connections, and the life of a worker on trio.

Owns the listener, which trio's own would not be (it takes plain sockets alone), the tasks of connections and the end of
the worker. Called by the adapters for trio, anyio and hypercorn.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from limpet.worker.handling import handling
from limpet.worker.listener_bridge import Door


class SlotListener(trio.abc.Listener[trio.SocketStream]):
    """One of the door's listeners, for trio."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        listener.listen()

    async def accept(self) -> trio.SocketStream:
        """Return the next connection."""
        while True:
            await trio.lowlevel.wait_readable(self._listener.fileno())
            try:
                fd, _ = self._listener._accept()
            except BlockingIOError:
                continue
            return trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))

    async def aclose(self) -> None:
        """Give the listener up."""
        self._listener.close()
        await trio.lowlevel.checkpoint()


async def serve(
    door: Door, handle: Callable[[trio.SocketStream], Awaitable[object]], stopping: Callable[[], object] = lambda: None
) -> None:
    """Serve connections by *handle* until *door* says stop, and until they end or their time is up.

    *stopping* is called when no more are accepted.
    """
    told, token = trio.Event(), trio.lowlevel.current_trio_token()
    door.on_stop(lambda: token.run_sync_soon(told.set))
    async with trio.open_nursery() as handlers:
        async with trio.open_nursery() as accepting:
            listeners = [SlotListener(each) for each in door.listeners()]
            one = partial(_serve_one, door, handle)
            accepting.start_soon(partial(trio.serve_listeners, one, listeners, handler_nursery=handlers))
            await told.wait()
            accepting.cancel_scope.cancel()
        result = stopping()
        if isinstance(result, Awaitable):
            await result
        if door.left_s != math.inf:
            handlers.cancel_scope.deadline = trio.current_time() + door.left_s


async def _serve_one(
    door: Door, handle: Callable[[trio.SocketStream], Awaitable[object]], stream: trio.SocketStream
) -> None:
    door.tally.took()
    try:
        with handling(trio.BrokenResourceError):
            async with stream:
                await handle(stream)
    finally:
        door.tally.ended()
