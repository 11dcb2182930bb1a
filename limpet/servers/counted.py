"""What an adapter sees of an ASGI application's requests when the server shows nothing of them.

Owns the count of requests and the headers of `--debug-header`, and puts the state that the lifespan left into scopes.
uvicorn's adapter does without: its protocols know more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from limpet.closing import Closing
from limpet.forwarded import Trust
from limpet.servers.proxied import Proxied
from limpet.worker import Seat


class Counted:
    """An ASGI application whose requests count in a row of the scoreboard when they end."""

    def __init__(self, app: Callable[..., Awaitable[None]], seat: Seat, state: dict[str, Any]) -> None:
        self._app = app
        self._row = seat.row
        self._state = state
        self._headers = debug_headers(seat)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the call on."""
        scope["state"] = self._state.copy()
        try:
            await self._app(scope, receive, self._labelled(send) if self._headers else send)
        finally:
            self._row.add("requests")

    def _labelled(self, send: Any) -> Any:
        async def send_labelled(message: Any) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                headers = [(name.lower().encode(), value.encode()) for name, value in self._headers]
                message = message | {"headers": [*message.get("headers", ()), *headers]}
            await send(message)

        return send_labelled


def debug_headers(seat: Seat) -> list[tuple[str, str]]:
    """Return the headers that `--debug-header` adds, none without it."""
    if not seat.settings.debug_header:
        return []
    return [("X-Limpet-Slot", str(seat.info.slot)), ("X-Limpet-Pid", str(seat.info.pid))]


def framed(
    app: Callable[..., Awaitable[None]], seat: Seat, state: dict[str, Any], closes: Callable[[], bool]
) -> Callable[..., Awaitable[None]]:
    """Return *app* as a server without an idea of limpet serves it; *closes* says when responses end connections."""
    if seat.settings.trust:
        app = Proxied(app, Trust.parse(",".join(seat.settings.trust)))
    return Closing(Counted(app, seat, state), closes)
