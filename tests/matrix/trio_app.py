"""The application of the matrix in ASGI, for servers on trio."""

from __future__ import annotations

from typing import Any

import trio

from tests.matrix.facts import facts, is_open
from tests.server_apps import asgi


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same as on asyncio but for the wait, which is trio's."""
    if scope.get("path") != "/gated":
        await asgi(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": facts(scope["client"]), "more_body": True})
    while not is_open():
        await trio.sleep(0.01)
    await send({"type": "http.response.body"})
