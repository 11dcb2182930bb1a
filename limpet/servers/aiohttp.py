"""The adapter for aiohttp: its protocols serve an `aiohttp.web.Application` on the slot's connections.

Owns what the settings say of each request and response, and the start and end of the application. The runner of aiohttp
makes the protocols; connections come through the door.

1. A response to a request with a chunked body ends its connection: of the trailers behind the body the last one would
   become a header of the next request, since aiohttp's parser in C keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_log import AccessLogger

from limpet.errors import AppError
from limpet.routing.forwarded import Trust
from limpet.servers import asyncio_loops
from limpet.servers.asgi import believed, debug_headers
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat


def fits(app: object) -> bool:
    """Return whether *app* is an application of aiohttp."""
    return isinstance(app, web.Application)


def serve(app: web.Application, seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails."""
    asyncio_loops.run(seat.settings, _serve(app, seat))


async def _serve(app: web.Application, seat: Seat) -> None:
    settings, door = seat.settings, Door(seat)
    _frame(app, seat, door)
    runner = web.AppRunner(
        app,
        keepalive_timeout=settings.keep_alive_timeout_s,
        access_log=logging.getLogger("limpet.access") if settings.access_log else None,
        access_log_class=AccessLogger,
    )
    try:
        await runner.setup()
    except Exception as error:
        raise AppError(f"the start-up of `{settings.app}` failed: {type(error).__name__}: {error}") from error
    assert runner.server is not None, "it was set up"
    listening = [await asyncio.get_running_loop().create_server(runner.server, sock=each) for each in door.listeners()]
    await asyncio_loops.told_to_stop(door)
    for server in listening:
        server.close()
    runner.server.pre_shutdown()  # who is idle ends
    await app.shutdown()  # where applications close their websockets
    await runner.server.shutdown(None if door.left_s == math.inf else door.left_s)
    await app.cleanup()


def _frame(app: web.Application, seat: Seat, door: Door) -> None:
    """Give *app* what limpet's settings say of each request and response."""
    is_per_request, headers = seat.home.router.chain.needs_head, debug_headers(seat)

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.extend(headers)
        ends = is_per_request or door.draining or "Transfer-Encoding" in request.headers
        if ends and not isinstance(response, web.WebSocketResponse):
            response.headers["Connection"] = "close"
            response.force_close()
        door.tally.requested()

    app.on_response_prepare.append(prepare)
    if seat.settings.trust:
        app.middlewares.insert(0, _proxied(seat.settings.trusted))


def _proxied(trust: Trust) -> Any:
    @web.middleware
    async def proxied(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        assert request.transport is not None
        address, scheme = believed(request.transport.get_extra_info("peername"), list(request.raw_headers), trust)
        changed = {name: value for name, value in (("remote", address), ("scheme", scheme)) if value is not None}
        return await handler(request.clone(**changed) if changed else request)  # type: ignore[arg-type]

    return proxied
