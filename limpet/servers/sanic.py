"""The adapter for Sanic: its protocols serve a `sanic.Sanic` on the slot's connections.

Owns the order of its start and end, which Sanic leaves to whoever runs its server, and what the settings say of
responses. Connections come through the door.
"""

from __future__ import annotations

from typing import Any

import sanic

from limpet.errors import AppError
from limpet.logs import take_over
from limpet.servers import asyncio_loops
from limpet.servers.asgi import debug_headers
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat


def fits(app: object) -> bool:
    """Return whether *app* is an application of Sanic."""
    return isinstance(app, sanic.Sanic)


def serve(app: sanic.Sanic[Any, Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails."""
    asyncio_loops.run(seat.settings, _serve(app, seat))


async def _serve(app: sanic.Sanic[Any, Any], seat: Seat) -> None:
    settings, door = seat.settings, Door(seat)
    _frame(app, seat, door)
    later = {"start_serving": False}  # Sanic's own order has clients before the start of the application
    servers: list[Any] = [
        await app.create_server(sock=each, access_log=settings.access_log, asyncio_server_kwargs=later)
        for each in door.listeners()
    ]
    take_over("sanic.root", "sanic.error", "sanic.server", "sanic.access")
    first = servers[0]
    try:
        await first.startup()
        await first.before_start()
    except Exception as error:
        raise AppError(f"the start-up of `{settings.app}` failed: {type(error).__name__}: {error}") from error
    for each in servers:
        await each.start_serving()
    await first.after_start()
    await asyncio_loops.told_to_stop(door)
    await first.before_stop()
    connections = [connection for each in servers for connection in each.connections]
    for each in servers:
        each.server.close()
    for connection in connections:
        connection.close_if_idle()
    await asyncio_loops.all_ended(door)
    app.shutdown_tasks(door.left_s)
    await first.after_stop()


def _frame(app: sanic.Sanic[Any, Any], seat: Seat, door: Door) -> None:
    """Give *app* what the settings say of connections and responses."""
    app.config.KEEP_ALIVE = not seat.home.router.chain.needs_head
    app.config.KEEP_ALIVE_TIMEOUT = max(1, round(seat.settings.keep_alive_timeout_s))
    door.on_drain(lambda: setattr(app.config, "KEEP_ALIVE", False))
    headers = debug_headers(seat)

    async def prepare(_: Any, response: Any) -> None:
        response.headers.update(headers)
        door.tally.requested()

    app.register_middleware(prepare, "response")
