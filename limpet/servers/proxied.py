"""What an application is told about a client behind trusted proxies: the same that the key chain found.

Owns the client and scheme of an ASGI scope when there is a `--trust`. It replaces uvicorn's own middleware, which
reads `Forwarded` not at all, unix sockets never, and takes `unknown` for an address: the key of a client and the
address that its application sees would come from different hops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from limpet.protocol.request import Peer, Request
from limpet.routing.forwarded import Trust, client_address

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
    address, port = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT")
    peer = Peer.of((address, int(port), 0, 0) if port else None, "")  # in the form that may map IPv4 into IPv6
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
