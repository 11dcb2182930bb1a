"""The life of a worker whose server runs in an asyncio loop of its own adapter: start, orders, drain, end.

Owns the order of these steps. hypercorn/server.py and granian.py say what each of them means for their server. uvicorn
has its own, because its connections move.

1. READY is said last, when signal handlers are in place.
2. The end of the supervisor's line is the order to drain as the last worker, with the doors closed.
"""

from __future__ import annotations

import asyncio
import signal

from limpet import current
from limpet.ipc import orders
from limpet.ipc.control_link import LinkClosedError
from limpet.ipc.orders import Accept, Drain, Workers
from limpet.servers.lifespan import Lifespan
from limpet.worker.seat import Seat


class Worker:
    """A worker's event loop and its orders."""

    def __init__(self, seat: Seat, lifespan: Lifespan) -> None:
        self._seat = seat
        self._lifespan = lifespan
        self._timeout_s: float | None = seat.settings.graceful_timeout_s
        self._is_last = False

    async def run(self) -> None:
        """Start the application, serve, drain."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self._lifespan.startup()
        await self.prepare()
        self._loop.add_reader(self._seat.link.fileno(), self._obey)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._seat.ready()
        await self._stop.wait()
        current.leave()
        await self.drain()
        await self._lifespan.shutdown()

    async def prepare(self) -> None:
        """Do what must be done before READY."""

    def accept(self) -> None:
        """Accept from the listeners from now on. It may be called again."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Finish what is in flight, within `_timeout_s` seconds."""
        raise NotImplementedError

    def close_doors(self) -> None:
        """Let no more clients connect: the supervisor is gone."""
        raise NotImplementedError

    def _obey(self) -> None:
        try:
            arrived = orders.receive(self._seat.link)
        except LinkClosedError:  # the supervisor is gone: finish what is here, then end
            self._loop.remove_reader(self._seat.link.fileno())
            arrived = [Drain(self._timeout_s, last=True)]
            self.close_doors()
        for order in arrived:
            match order:
                case Drain(timeout, last):
                    self._timeout_s, self._is_last = timeout, last
                    self._stop.set()
                case Accept():
                    self.accept()
                case Workers():
                    self._seat.home.follow(order)
