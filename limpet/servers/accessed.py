"""The access log for servers that show nothing of their requests: an ASGI or WSGI application that notes its calls.

Owns what is noted. The chain is asked again for each request; these servers move none, so none was returned.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from limpet.config import server_kinds
from limpet.config.settings import Settings
from limpet.protocol.request import Request
from limpet.routing.router import Router
from limpet.sessions.middleware import of_environ, of_scope
from limpet.worker.access_log import AccessLog, Entry


def accessed(app: Callable[..., Any], settings: Settings, slot: int, router: Router) -> Callable[..., Any]:
    """Return *app* with an access log, if one is wanted and the server has none of its own."""
    interface = server_kinds.interface(settings)
    if not settings.access_log or settings.server == "uvicorn" or interface not in ("asgi", "wsgi"):
        return app
    notes = _Notes(AccessLog(slot, settings, router), router)
    return _asgi(app, notes, settings.root_path.rstrip("/")) if interface == "asgi" else _wsgi(app, notes)


class _Notes:
    def __init__(self, log: AccessLog, router: Router) -> None:
        self._log = log
        self._router = router

    def add(self, request: Request, status: int, began: float) -> None:
        """Note *request*, which *began* at that monotonic time and was answered with *status*."""
        route = self._router.route(request.peer, request)
        path = request.target.partition("?")[0].encode("latin-1")
        self._log.write([Entry(began, time.monotonic(), request.method, path, request.peer.bind, status, route)])


def _asgi(app: Callable[..., Awaitable[None]], notes: _Notes, root_path: str) -> Callable[..., Awaitable[None]]:
    async def noted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        began, status = time.monotonic(), 500 if scope["type"] == "http" else 0

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await app(scope, receive, noting)
        finally:
            notes.add(of_scope(scope, root_path.encode()), status, began)

    return noted


def _wsgi(app: Callable[..., Iterable[bytes]], notes: _Notes) -> Callable[..., Iterable[bytes]]:
    def noted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        began, status = time.monotonic(), 500
        request = of_environ(environ)  # now: servers use the dictionary again

        def start(text: str, *rest: Any) -> Any:
            nonlocal status
            status = int(text.partition(" ")[0])
            return start_response(text, *rest)

        def body(answer: Iterable[bytes]) -> Iterator[bytes]:
            try:
                yield from answer
            finally:
                if hasattr(answer, "close"):
                    answer.close()
                notes.add(request, status, began)

        return body(app(environ, start))

    return noted
