"""uvicorn's protocols with an access log.

Owns what is noted of a request, and when. Mixed in before the protocols of a worker only with `--access-log`, so that
nothing of it costs anything without.

1. How a request was routed is what was found when that was decided. For the first one of a connection the chain is
   asked again, once: who decided has told no more than the digest.
2. Of pipelined requests the protocol knows the last; so what belongs to one request is kept with its cycle.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from uvicorn.protocols.http import h11_impl, httptools_impl

from limpet import access
from limpet.access import AccessLog
from limpet.handoff import Handoff
from limpet.moved import Arrived
from limpet.request import Request
from limpet.servers.uvicorn_protocols import Seated
from limpet.worker import Seat

Routed = tuple[str, str]  # digest and route


class _Noting:
    """What uvicorn's cycle gains: the status that it sends, and its end is noted."""

    status: int = 500  # what the server answers for an application that says nothing
    routed: Routed | None = None
    began: float
    _call: Callable[[], None]

    @property
    def on_response(self) -> Callable[[], None]:
        return self._answered  # not kept: it would be a reference to itself

    @on_response.setter
    def on_response(self, call: Callable[[], None]) -> None:
        self._call, self.began = call, time.monotonic()

    def _answered(self) -> None:
        self._call.__self__.note(self)  # type: ignore[attr-defined]  # a method of the protocol
        self._call()

    def send(self, message: Any) -> Any:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        return super().send(message)  # type: ignore[misc]  # no coroutine of its own: it is called for each message


def install() -> None:
    """Let uvicorn's protocols use cycles that note their end."""
    for module in (httptools_impl, h11_impl):
        plain = vars(module)["RequestResponseCycle"]
        vars(module)["RequestResponseCycle"] = type(plain.__name__, (_Noting, plain), {})


def noted(base: type[Any], seat: Seat, log: AccessLog) -> type[Any]:
    """Return the protocol class *base* with an access log."""
    chains = [seat.home.router.chain.at(bind) for bind in range(len(seat.settings.bind))]
    own = {"log": log, "masks": [access.mask(chain) for chain in chains]}
    return type(f"Noted{base.__name__}", (Noted, base), own)


class Noted(Seated):
    """What a protocol gains; a mixin before all others."""

    log: ClassVar[AccessLog]
    masks: ClassVar[Sequence[Callable[[str], str]]]
    scope: Any
    url: bytes
    _is_first: bool = True
    _was_returned: bool = False
    _accepted_ns: int = 0
    _routed: Routed | None = None  # where it cannot change

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
        self.cycle.routed = self._route()

    def _route(self) -> Routed:
        """Return how the request that has just begun came here."""
        if self._routed is not None:
            return self._routed
        home, returned, first = self.seat.home, self._was_returned, self._is_first
        self._was_returned = self._is_first = False
        needs_head = home.router.chain.at(self.listener).needs_head
        if first or returned or not needs_head:
            home.look(Request(self.scope["method"], self._target(), self.peer(), self.scope["headers"]))
        key, route = home.latest
        found = access.digest_of(home.router, route), "returned" if returned else access.route_of(key, route)
        if not needs_head:
            self._routed = found
        return found

    def _target(self) -> str:
        """Return the target of the request that has just begun, as it came on the wire."""
        if hasattr(self, "url"):  # httptools: the scope of an upgrade has none
            return self.url.decode("latin-1")
        query = self.scope["query_string"]
        return str((self.scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1"))

    def note(self, cycle: Any) -> None:
        """Note the request of *cycle*, which has been answered."""
        path = cycle.scope["raw_path"].decode("latin-1")
        self._note(cycle.scope["method"], path, cycle.routed or self._route(), cycle.began, cycle.status)

    def _note(self, method: str, path: str, routed: Routed, began: float, status: int) -> None:
        waited_s = began - self._accepted_ns / 1e9 if self._accepted_ns else 0.0
        self._accepted_ns = 0
        self.log.note(method, self.masks[self.listener](path), status, *routed, began, waited_s)

    def handle_websocket_upgrade(self, *event: Any) -> None:
        path = self._target().partition("?")[0]
        ended = functools.partial(self._note, self.scope["method"], path, self._route(), time.monotonic())
        super().handle_websocket_upgrade(*event)  # type: ignore[misc]
        protocol: Any = self.transport.get_protocol()
        protocol.ended = ended
