"""The adapter for anyio: an `async def handle(stream)` for each connection, of any protocol, on asyncio or trio.

Owns the tasks of handlers and the acceptor, which anyio's own would not be (it goes by the descriptor).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Any

import anyio
from anyio import abc, from_thread, lowlevel

from limpet.servers import asyncio_loops
from limpet.worker import shortage
from limpet.worker.handling import handling
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat
from limpet.worker.user_code import takes


def fits(app: object) -> bool:
    """Return whether *app* is an `async def handle(stream)`."""
    return takes(app, 1, is_async=True)


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve connections by *app* until the order to drain has been carried out."""
    door = Door(seat)
    if seat.settings.loop == "trio":
        anyio.run(_serve, app, door, backend="trio")
    else:
        options = {"loop_factory": asyncio_loops.factory(seat.settings.loop)}
        anyio.run(_serve, app, door, backend="asyncio", backend_options=options)


async def _serve(app: Callable[..., Any], door: Door) -> None:
    told, token = anyio.Event(), lowlevel.current_token()
    door.on_stop(lambda: from_thread.run_sync(told.set, token=token))
    async with anyio.create_task_group() as handlers:
        async with anyio.create_task_group() as accepting:
            for listener in door.listeners():
                listener.listen()
                accepting.start_soon(_accept, app, door, listener, handlers)
            await told.wait()
            accepting.cancel_scope.cancel()
        if door.left_s != math.inf:
            handlers.cancel_scope.deadline = anyio.current_time() + door.left_s


async def _accept(app: Callable[..., Any], door: Door, listener: Any, handlers: abc.TaskGroup) -> None:
    while True:
        await anyio.wait_readable(listener.fileno())
        try:
            fd, _ = listener._accept()
        except BlockingIOError:
            continue
        except OSError as error:
            shortage.say(error)
            await anyio.sleep(shortage.PAUSE_S)
            continue
        door.tally.took()
        handlers.start_soon(_serve_one, app, door, fd)


async def _serve_one(app: Callable[..., Any], door: Door, fd: int) -> None:
    try:
        connection = socket.socket(fileno=fd)
        kind = abc.UNIXSocketStream if connection.family == socket.AF_UNIX else abc.SocketStream
        with handling(anyio.BrokenResourceError, anyio.EndOfStream):
            async with await kind.from_socket(connection) as stream:
                await app(stream)
    finally:
        door.tally.ended()
        door.tally.requested()
