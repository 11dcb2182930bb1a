"""What an adapter sees of an application's requests when the server shows nothing of them.

Owns the count of requests and the headers of `--debug-header`, and puts the state that the lifespan left into scopes;
for WSGI what there is of that. uvicorn's adapter does without: its protocols know more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from limpet.routing.forwarded import Trust
from limpet.servers.closing import Closing
from limpet.servers.proxied import Proxied, reported
from limpet.worker.seat import Seat


class Counted:
    """An ASGI application whose requests count in a row of the scoreboard when they end."""

    def __init__(self, app: Callable[..., Awaitable[None]], seat: Seat, state: dict[str, Any] | None) -> None:
        """*state* is what the lifespan left; None where the server does the lifespan."""
        self._app = app
        self._row = seat.row
        self._state = state
        self._headers = debug_headers(seat)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the call on."""
        if self._state is not None:
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
    app: Callable[..., Awaitable[None]], seat: Seat, state: dict[str, Any] | None, closes: Callable[[], bool]
) -> Callable[..., Awaitable[None]]:
    """Return *app* as a server without an idea of limpet serves it; *closes* says when responses end connections."""
    if seat.settings.trust:
        app = Proxied(app, Trust.parse(",".join(seat.settings.trust)))
    return Closing(Counted(app, seat, state), closes)


def framed_wsgi(
    app: Callable[..., Any], seat: Seat, requested: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    """Return *app* with what limpet's settings say of each request and response; *requested* hears of each."""
    headers, root_path = debug_headers(seat), seat.settings.root_path.rstrip("/")
    trust = Trust.parse(",".join(seat.settings.trust))

    def framed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if seat.settings.trust:
            environ |= reported(environ, trust)
        if root_path:
            environ["SCRIPT_NAME"] = root_path
            if environ["PATH_INFO"].startswith(f"{root_path}/"):
                environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(root_path)

        def start_labelled(status: str, given: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*given, *headers], *rest)

        requested()
        answer: Iterable[bytes] = app(environ, start_labelled if headers else start_response)
        return answer

    return framed
