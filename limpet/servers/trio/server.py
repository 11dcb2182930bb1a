"""The adapter for trio: an `async def handle(stream)` for each connection, of any protocol.

Owns nothing but the start: listening.py does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from limpet.servers.trio import listening
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat
from limpet.worker.user_code import takes


def fits(app: object) -> bool:
    """Return whether *app* is an `async def handle(stream)`."""
    return takes(app, 1, is_async=True)


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve connections by *app* until the order to drain has been carried out."""
    trio.run(_serve, app, Door(seat))


async def _serve(app: Callable[..., Any], door: Door) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            await app(stream)
        finally:
            door.tally.requested()

    await listening.serve(door, handle)
