"""What an adapter sees of an application's requests when the server shows nothing of them.

Owns the count of requests and the headers of `--debug-header`, and puts the state that the lifespan left into scopes;
for WSGI what there is of that. uvicorn's adapter does without: its protocols know more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

from limpet.config import server_kinds
from limpet.config.settings import Settings
from limpet.protocol.request import Peer, Request
from limpet.routing.forwarded import Trust, client_address
from limpet.routing.router import Router
from limpet.sessions.middleware import of_environ, of_scope, peer_of_environ
from limpet.worker.access_log import LEFT, AccessLog, Entry
from limpet.worker.seat import Seat

_log = logging.getLogger("limpet")


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
        app = Proxied(app, seat.settings.trusted)
    return Closing(Counted(app, seat, state), closes)


def framed_wsgi(
    app: Callable[..., Any], seat: Seat, requested: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    """Return *app* with what limpet's settings say of each request and response; *requested* hears of each."""
    headers, root_path = debug_headers(seat), seat.settings.root_path.rstrip("/")
    trust = seat.settings.trusted

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


_SCHEMES: Final = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_OF_WEBSOCKETS: Final = {"http": "ws", "https": "wss"}


class Proxied:
    """An ASGI application whose scopes say who sent a request to the first trusted proxy."""

    def __init__(self, app: Callable[..., Awaitable[None]], trust: Trust) -> None:
        self._app = app
        self._trust = trust

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the call on, with the scope as the trusted proxies report it."""
        if scope["type"] in ("http", "websocket"):
            peer = Peer.of(scope["client"], "")
            if peer.address in self._trust:
                scope |= self._reported(scope, peer)
        await self._app(scope, receive, send)

    def _reported(self, scope: Any, peer: Peer) -> dict[str, Any]:
        """Return what differs in *scope*, whose *peer* is believed; a reported client's port is 0, as in uvicorn."""
        request = Request("", "", peer, scope["headers"])
        reported: dict[str, Any] = {}
        address = client_address(peer, request, self._trust)
        if address != peer.address:
            reported["client"] = None if address is None else (address, 0)
        scheme = _SCHEMES.get((request.header_bytes(b"x-forwarded-proto") or b"").lower())
        if scheme is not None:
            reported["scheme"] = _OF_WEBSOCKETS[scheme] if scope["type"] == "websocket" else scheme
        return reported


def believed(sockaddr: Any, headers: list[tuple[bytes, bytes]], trust: Trust) -> tuple[str | None, str | None]:
    """Return address and scheme that trusted proxies report of a client, None for what they do not."""
    peer = Peer.of(sockaddr, "")
    if peer.address not in trust:
        return None, None
    request = Request("", "", peer, headers)
    address = client_address(peer, request, trust)
    scheme = _SCHEMES.get((request.header_bytes(b"x-forwarded-proto") or b"").lower())
    return address if address != peer.address else None, scheme


def reported(environ: dict[str, Any], trust: Trust) -> dict[str, Any]:
    """Return what differs in a WSGI *environ* when its client and scheme are as trusted proxies report them."""
    peer = peer_of_environ(environ)
    if peer.address not in trust:
        return {}
    names = ("x-forwarded-for", "forwarded", "x-forwarded-proto")
    given = [(name.encode(), environ.get(f"HTTP_{name.upper().replace('-', '_')}")) for name in names]
    request = Request("", "", peer, [(name, value.encode("latin-1")) for name, value in given if value is not None])
    found: dict[str, Any] = {}
    if (client := client_address(peer, request, trust)) != peer.address:
        found |= {"REMOTE_ADDR": client or "", "REMOTE_PORT": "0"}
    scheme = _SCHEMES.get((request.header_bytes(b"x-forwarded-proto") or b"").lower())
    return found | ({"wsgi.url_scheme": scheme} if scheme is not None else {})


def accessed(app: Callable[..., Any], settings: Settings, slot: int, router: Router) -> Callable[..., Any]:
    """Return *app* with an access log, if one is wanted and the server has none of its own."""
    interface = server_kinds.interface(settings.server, settings.worker_class)
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
        try:
            route = self._router.route(request.peer, request)
            path = request.target.partition("?")[0].encode("latin-1")
            self._log.write([Entry(began, time.monotonic(), request.method, path, request.peer.bind, status, route)])
        except Exception:  # noqa: BLE001  the response is another matter
            _log.exception("a request is missing in the access log", extra={"event": "request_not_logged"})


def _asgi(app: Callable[..., Awaitable[None]], notes: _Notes, root_path: str) -> Callable[..., Awaitable[None]]:
    async def noted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        has_left = False

        async def hearing() -> Any:
            nonlocal has_left
            message = await receive()
            has_left = has_left or message["type"] == "http.disconnect"
            return message

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await app(scope, hearing, noting)
        except asyncio.CancelledError:  # so do some servers tell of a client that has left
            has_left = True
            raise
        finally:
            if not status and scope["type"] == "http":
                status = LEFT if has_left else 500
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

        def ended() -> None:
            notes.add(request, status, began)

        try:
            answer = app(environ, start)
        except BaseException:
            ended()
            raise
        return _Body(answer, ended)

    return noted


class _Body:
    """What an application returned. Its `close` is called once, also if the server never asked for a piece."""

    def __init__(self, answer: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._answer, self._ended = answer, ended
        self._pieces: Iterator[bytes] | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._pieces is None:
            self._pieces = iter(self._answer)
        return next(self._pieces)

    def close(self) -> None:
        """Close what the application returned, and note the request."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if hasattr(self._answer, "close"):
                self._answer.close()
        finally:
            self._ended()
