"""uvicorn's protocols with an access log.

Owns what is noted of a request, and when. Mixed in before the protocols of a worker only with `--access-log`, so that
nothing of it costs anything without.

1. How a request was routed is what was found when that was decided. For the first one of a connection the chain is
   asked again, once: who decided has told no more than the digest.
2. Of pipelined requests the protocol knows the last; so what belongs to one request is kept with its cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar

from uvicorn.protocols.http import h11_impl, httptools_impl

from limpet.access import AccessLog
from limpet.elements import Key
from limpet.handoff import Handoff
from limpet.moved import Arrived
from limpet.request import Request
from limpet.router import Route
from limpet.servers.uvicorn_protocols import Seated
from limpet.worker import Seat

Found = tuple[Key | None, Route | None]


class _Noting:
    """What uvicorn's cycle gains: the status that it sends, and its end is noted."""

    status: int = 500  # what the server answers for an application that says nothing
    found: Found | None = None
    is_returned: bool = False
    began: float
    _call: Callable[[], None]

    @property
    def on_response(self) -> Callable[[], None]:
        return self._answered  # not kept: it would be a reference to itself

    @on_response.setter
    def on_response(self, call: Callable[[], None]) -> None:
        self._call, self.began = call, monotonic()

    def _answered(self) -> None:
        self._call.__self__.note(self)  # type: ignore[attr-defined]  # a method of the protocol
        self._call()


def install() -> None:
    """Let uvicorn's protocols use cycles that note their end."""
    for module in (httptools_impl, h11_impl):
        plain = vars(module)["RequestResponseCycle"]
        own = {"send": _noting_send(plain.send)}
        vars(module)["RequestResponseCycle"] = type(plain.__name__, (_Noting, plain), own)


def _noting_send(plain: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return uvicorn's *plain* `send`, whose cycle knows the status; no coroutine of its own: all messages pass."""

    def send(cycle: Any, message: Any) -> Any:
        if message["type"] == "http.response.start":
            cycle.status = message["status"]
        return plain(cycle, message)

    return send


def noted(base: type[Any], seat: Seat, log: AccessLog) -> type[Any]:
    """Return the protocol class *base* with an access log."""
    needs_head = [seat.home.router.chain.at(bind).needs_head for bind in range(len(seat.settings.bind))]
    return type(f"Noted{base.__name__}", (Noted, base), {"log": log, "needs_head": needs_head})


class Noted(Seated):
    """What a protocol gains; a mixin before all others."""

    log: ClassVar[AccessLog]
    needs_head: ClassVar[list[bool]]
    scope: Any
    url: bytes
    _is_first: bool = True
    _was_returned: bool = False
    _accepted_ns: int = 0
    _found: Found | None = None  # where it cannot change

    def accepted(self, handoff: Handoff) -> None:
        super().accepted(handoff)
        self._accepted_ns = handoff.accepted_ns

    def arrived(self, arrived: Arrived) -> None:
        super().arrived(arrived)
        self._was_returned = arrived.decided

    def resume(self, leftover: bytes) -> None:
        self._was_returned = True
        super().resume(leftover)  # type: ignore[misc]

    def _request_began(self) -> None:
        super()._request_began()
        cycle = self.cycle
        if self._is_first or self._was_returned:
            cycle.is_returned = self._was_returned
            cycle.found = self._look()
        else:
            cycle.found = self._found or self.seat.home.latest

    def _look(self) -> Found:
        """Return what is found for the request that has just begun, of which another process has decided."""
        self._is_first = self._was_returned = False
        home = self.seat.home
        home.look(Request(self.scope["method"], self._target(), self.peer(), self.scope["headers"]))
        if not self.needs_head[self.listener]:
            self._found = home.latest
        return home.latest

    def _target(self) -> str:
        """Return the target of the request that has just begun, as it came on the wire."""
        if hasattr(self, "url"):  # httptools: the scope of an upgrade has none
            return self.url.decode("latin-1")
        query = self.scope["query_string"]
        return str((self.scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1"))

    def note(self, cycle: Any) -> None:
        """Note the request of *cycle*, which has been answered."""
        scope, began = cycle.scope, cycle.began
        found = cycle.found or self._found or self._look()  # of pipelined requests the last has begun for all
        entry = (scope["method"], scope["raw_path"], self.listener, cycle.status, found, cycle.is_returned)
        self.log.add((began, monotonic(), *entry, self._waited(began) if self._accepted_ns else 0.0))

    def _waited(self, began: float) -> float:
        since, self._accepted_ns = self._accepted_ns / 1e9, 0
        return began - since

    def handle_websocket_upgrade(self, *event: Any) -> None:
        method, path, began = self.scope["method"], self._target().partition("?")[0].encode("latin-1"), monotonic()
        is_returned = self._was_returned
        decided = not (self._is_first or is_returned)
        found = (self._found or self.seat.home.latest) if decided else self._look()
        waited = self._waited(began) if self._accepted_ns else 0.0
        log, bind = self.log, self.listener
        super().handle_websocket_upgrade(*event)  # type: ignore[misc]
        protocol: Any = self.transport.get_protocol()
        protocol.ended = lambda status: log.add(
            (began, monotonic(), method, path, bind, status, found, is_returned, waited)
        )
