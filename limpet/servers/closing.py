"""Ending connections with the response: for servers that cannot move one to another worker, and for those that drain.

Owns the header that says so, on ASGI. The server acts on it: it closes the connection when the response is sent, so the
client's next request comes on a new one, which goes where it belongs. gunicorn takes no such header from applications
and has a switch of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


class Closing:
    """An ASGI application whose responses end their connections whenever *when* is true."""

    def __init__(self, app: Callable[..., Awaitable[None]], when: Callable[[], bool]) -> None:
        self._app = app
        self._when = when

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the call on. HTTP/2 has no such header and carries many requests at once."""
        if scope["type"] != "http" or scope["http_version"][0] != "1":
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Any) -> None:
            if message["type"] == "http.response.start" and self._when():
                others = [item for item in message.get("headers", ()) if bytes(item[0]).lower() != b"connection"]
                message = message | {"headers": [*others, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_closing)
