"""uvicorn's websocket protocols as a worker uses them: counted, ended properly, and told who their client is.

Owns what they leave out. The connection was one of HTTP before (protocols.py), which knew how it came.

1. When the number of slots changes, `tell_moved` closes the websockets whose clients are at home elsewhere now.
   worker/residence.py knows which these are. A client without a key has no home, so its websocket stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from limpet.moving.messages import shut_down
from limpet.sessions.middleware import DIGEST
from limpet.worker.residence import Residence
from limpet.worker.seat import Seat


class SeatedWebSocket(asyncio.Protocol):
    """What each of uvicorn's websocket protocols gains: its end is counted, and it can be told to go."""

    seat: ClassVar[Seat]
    transport: asyncio.Transport
    moved: bool = False  # other workers may have copies, which would hold back the FIN
    ended: Callable[[int], None] | None = None  # hears of the end, with 101 or, if it was refused, 0
    client: Any
    scheme: Any
    scope: Any
    residence: Residence | None
    is_told: bool = False  # to go, now or at a time that is set already

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        before: Any = transport.get_protocol()  # of HTTP: it gives the transport away after this
        if before.origin is not None:
            self.client = before.origin.client
            self.scheme = "wss" if before.origin.is_tls else self.scheme
        self._reside(before.key_digest())

    def _reside(self, digest: int) -> None:
        self.residence = Residence(self.seat.home.router, self.seat.home.slot, digest) if digest else None

    def is_open(self) -> bool:
        """Return whether the handshake is complete, so that `shutdown` says 1012 and not 500."""
        event = getattr(self, "handshake_completed_event", None)
        return bool(event.is_set() if event is not None else getattr(self, "handshake_complete", False))

    def has_moved(self) -> bool:
        """Return whether it is open, and its client lives in another slot since the number of slots has changed."""
        if self.transport.is_closing() or not self.is_open():
            return False
        if made := self.scope.pop(DIGEST, 0):
            self._reside(made)
        return self.residence is not None and self.residence.has_moved()

    def shutdown(self) -> None:
        """Say 1012 and end the connection: uvicorn's own."""
        super().shutdown()  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.moved:
            shut_down(self.transport.get_extra_info("socket").fileno())
        super().connection_lost(exc)
        self.seat.row.add("requests")
        self.seat.row.add("connections", -1)
        self.seat.per_address.leave(self.client and self.client[0])  # which its protocol of HTTP has entered
        if self.ended is not None:
            self.ended(101 if self.is_open() else 0)


class _PatientWebSocket(SeatedWebSocket):
    """What those gain that do not expect frames before they have answered the handshake: frames wait for that.

    Else websockets-sansio would send its pong before the 101, and wsproto would lose them.
    """

    handshake_complete: bool
    _asked: bool = False  # whether the request itself has come
    _early: bytes = b""

    def data_received(self, data: bytes) -> None:
        if self.handshake_complete or not self._asked:
            self._asked = True
            super().data_received(data)
        else:
            self._early += data
            self.transport.pause_reading()

    async def send(self, message: Any) -> None:
        await super().send(message)  # type: ignore[misc]
        if self._early and self.handshake_complete and not self.transport.is_closing():
            early, self._early = self._early, b""
            self.transport.resume_reading()
            super().data_received(early)


def websocket_protocol(seat: Seat, plain: type[asyncio.Protocol] | None) -> type[asyncio.Protocol] | None:
    """Return uvicorn's websocket protocol *plain* with what it gains in this worker, None for none."""
    if plain is None:
        return None
    seated = SeatedWebSocket if hasattr(plain, "asgi_send") else _PatientWebSocket  # the former reads when it has sent
    return type("SeatedWebSocket", (seated, plain), {"seat": seat})


def tell_moved(websockets: Sequence[SeatedWebSocket], spread_s: float) -> None:
    """Close *websockets*, one after another within *spread_s*, unless their clients have come home by then."""

    def tell(websocket: SeatedWebSocket) -> None:
        websocket.is_told = False
        if websocket.has_moved():
            websocket.shutdown()

    loop = asyncio.get_running_loop()
    for number, websocket in enumerate(websockets):
        websocket.is_told = True
        loop.call_later(spread_s * number / len(websockets), tell, websocket)
