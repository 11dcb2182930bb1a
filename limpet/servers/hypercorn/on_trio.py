"""hypercorn on trio: its protocol serves connections from the door's listeners, its lifespan starts the application.

Owns the order of start and end. The rest is as in server.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hypercorn
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import LifespanFailureError

from limpet.errors import AppError
from limpet.servers.asgi import framed
from limpet.servers.trio import listening
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat


def serve(app: Callable[..., Any], seat: Seat, config: hypercorn.Config, plain: Callable[[type], type]) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails.

    *plain* makes of a connection class one that speaks HTTP/1.1 alone.
    """
    is_per_request = seat.home.router.chain.needs_head
    connection_class = plain(TCPServer) if is_per_request else TCPServer
    door = Door(seat)
    wrapped = ASGIWrapper(framed(app, seat, None, lambda: is_per_request or door.draining))
    try:
        trio.run(_serve, wrapped, config, door, connection_class)
    except* LifespanFailureError as group:
        cause = group.exceptions[0]
        raise AppError(f"the start-up of `{seat.settings.app}` failed: {cause}") from cause


async def _serve(app: ASGIWrapper, config: hypercorn.Config, door: Door, connection_class: Any) -> None:
    state: LifespanState = {}
    lifespan, context = Lifespan(app, config, state), WorkerContext(None)
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        connect = partial(connection_class, app, config, context, ConnectionState(state.copy()))
        await listening.serve(door, connect, context.terminated.set)
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()
