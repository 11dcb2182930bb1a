"""uvicorn's protocols with an access log.

Owns what is noted of a request, and when. Mixed in only with `--access-log`, so that nothing of it costs anything
without.

1. How a request was routed is what was found when that was decided. For the first one of a connection from a dispatcher
   or the kernel the chain is asked again, once: who decided has told no more than the slot.
2. Of pipelined requests a protocol that reads ahead knows the last; those before it are remembered here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from limpet.ipc.channel import Handoff
from limpet.protocol.request import Request
from limpet.servers.uvicorn.protocols import Seated
from limpet.worker.access_log import LEFT, First, Found, Held
from limpet.worker.ownership import UNTOLD, Home
from limpet.worker.seat import Seat

_log = logging.getLogger("limpet")
_STATUS: Final = slice(9, 12)  # where it stands in a head


def noted(base: type[Any], seat: Seat, held: Held, *, moves: bool) -> type[Any]:
    """Return the protocol class *base* with an access log; *moves*: its connections do, and each request has a key."""
    mixin = _ReadsAhead if issubclass(base, HttpToolsProtocol) and not moves else Noted
    names = {"held": held, "moves": moves, "__slots__": ("_accepted_ns", "_earlier", "_found")}  # see Seated
    return type(f"Noted{base.__name__}", (mixin, base), names | _hooks(base, seat.home, held, moves=moves))


def _hooks(base: Any, home: Home, held: Held, *, moves: bool) -> dict[str, Any]:
    """Return the two methods that each request calls: not in the mixin, since `super()` would cost as much again."""
    fields, note = held.fields, held.fields.extend
    request_began, response_complete = base._request_began, base.on_response_complete

    def _request_began(self: Any) -> None:
        request_began(self)
        self.cycle.began = monotonic()
        found = home.latest if moves else self._found
        try:
            self._found = self.first() if type(found) is int and found < 0 else found
        except Exception:  # noqa: BLE001  nothing that logs may raise into a request
            _log.exception("the access log cannot say how a request was routed", extra={"event": "route_unknown"})
            self._found = None

    def on_response_complete(self: Any) -> None:
        try:
            cycle, found = self.cycle, self._found
            if not cycle.response_complete:
                cycle = self._earlier.popleft()
            scope, at, status = cycle.scope, self.listener, cycle.transport.head[_STATUS]
            note((cycle.began, monotonic(), scope["method"], scope["raw_path"], at, status, found))
            if len(fields) >= held.most:
                held.full()
            if type(found) is First:
                self._found = found.found
        except Exception:  # noqa: BLE001  nothing that logs may raise into a request
            _log.exception("a request is missing in the access log", extra={"event": "request_not_logged"})
        response_complete(self)

    return {"_request_began": _request_began, "on_response_complete": on_response_complete}


class Noted(Seated):
    """What a protocol gains beside `_hooks`; a mixin before all others."""

    held: ClassVar[Held]
    moves: ClassVar[bool]
    scope: Any
    url: bytes
    _accepted_ns: int
    _earlier: deque[Any]  # requests that are not the last, and not answered yet
    _found: Found | First

    def accepted(self, handoff: Handoff) -> None:
        super().accepted(handoff)
        self._accepted_ns = handoff.accepted_ns

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._found, self._earlier = UNTOLD, deque()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the request whose response the client or the application has ended midway."""
        try:
            cycle: Any = self._earlier[0] if self._earlier else self.cycle
            if cycle is not None and hasattr(cycle, "began") and not cycle.response_complete:
                status = cycle.transport.head[_STATUS] if cycle.response_started else LEFT
                scope = cycle.scope
                self.held.add(
                    (cycle.began, monotonic(), scope["method"], scope["raw_path"], self.listener, status, self._found)
                )
        except Exception:  # noqa: BLE001  nothing that logs may raise into a request
            _log.exception("a request is missing in the access log", extra={"event": "request_not_logged"})
        super().connection_lost(exc)

    def first(self) -> First:
        """Return what is found for the request that has just begun, of which another process has decided."""
        request = Request(self.scope["method"], self._target(), self.peer(), self.scope["headers"])
        accepted_ns, self._accepted_ns = getattr(self, "_accepted_ns", 0), 0
        waited = monotonic() - accepted_ns / 1e9 if accepted_ns else 0.0
        return First(self.seat.home.router.route(request.peer, request), waited)

    def _target(self) -> str:
        """Return the target of the request that has just begun, as it came on the wire."""
        if hasattr(self, "url"):  # httptools: the scope of an upgrade has none
            return self.url.decode("latin-1")
        query = self.scope["query_string"]
        return str((self.scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1"))

    def handle_websocket_upgrade(self, *event: Any) -> None:
        method, path, began = self.scope["method"], self._target().partition("?")[0].encode("latin-1"), monotonic()
        found = self.seat.home.latest if self.moves else self._found
        found, bind, held = self.first() if found == UNTOLD else found, self.listener, self.held
        super().handle_websocket_upgrade(*event)
        protocol: Any = self.transport.get_protocol()
        protocol.ended = lambda status: held.add((began, monotonic(), method, path, bind, status, found))


class _ReadsAhead(Noted):
    """What a protocol gains whose parser may get a request before its turn."""

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()  # type: ignore[misc]
        if self.cycle is not before and before is not None and not before.response_complete:
            if not hasattr(before, "began"):  # it came together with this one
                before.began, before.transport = monotonic(), _Noting(before.transport)
            self._earlier.append(before)


class _Noting:
    """The transport of a request that is not the last, as far as its response uses it: as it is, but for `head`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.head = b""
        self.close, self.is_closing = transport.close, transport.is_closing
        self._write = transport.write

    def write(self, data: bytes) -> None:
        if self.head[_STATUS] in (b"", b"100"):
            self.head = data
        self._write(data)
