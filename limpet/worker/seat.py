"""The seat of a worker: what a server adapter gets to work with, whatever the server is.

Owns what all workers share: the slot's channel, the line to the supervisor, the row of counters, the listeners, and
sending READY with the first heartbeat. entry/worker.py builds it; the adapter in `servers/` gets it, and owns the event
loop and the connections. It never decides where a client belongs.

1. The adapter sends READY last: after the application's start-up, and after signal handlers are in place.
2. Nothing is read from the channel before READY. After an order to drain, only connections already in it are read.
3. The slot's listeners, if it has any, belong to the server as a whole. This worker may close its copies, but must
   never shut them down. It accepts after the order to accept, because the supervisor must listen first, and stops when
   it drains. Connections that wait then are for its successor. If there is none (`last`), this worker takes them first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from dataclasses import dataclass

from limpet import current, logs
from limpet.config.settings import Settings
from limpet.dispatch.address_limit import PerAddress
from limpet.ipc import news
from limpet.ipc.channel import Receiver
from limpet.ipc.control_link import Link
from limpet.ipc.scoreboard import BEAT_S, Row
from limpet.moving.mover import Mover
from limpet.system import stack
from limpet.worker.ownership import Home


@dataclass(frozen=True, slots=True)
class Seat:
    """What a server adapter gets to work with."""

    settings: Settings
    info: current.WorkerInfo
    receiver: Receiver
    link: Link
    row: Row
    home: Home
    mover: Mover
    tls: ssl.SSLContext | None  # for the connections; None for plain ones
    listeners: tuple[socket.socket, ...]  # one for each bind; empty when a dispatcher accepts
    per_address: PerAddress
    stack_fd: int = -1

    def ready(self) -> None:
        """Tell the supervisor that this worker now serves."""
        if self.stack_fd >= 0:
            stack.offer(self.stack_fd)
        self.link.send(news.message(news.Ready()))
        with contextlib.suppress(RuntimeError):  # without an asyncio loop the server must send heartbeats itself
            self._beat(asyncio.get_running_loop(), time.monotonic_ns())

    def _beat(self, loop: asyncio.AbstractEventLoop, due_ns: int) -> None:
        now_ns = time.monotonic_ns()
        late_ns = max(0, now_ns - due_ns)
        self.row.set("beat_ns", now_ns)
        self.row.set("lag_ns", late_ns)
        self.row.add("late_ns", late_ns)
        logs.catch_up()
        loop.call_later(BEAT_S, self._beat, loop, now_ns + int(BEAT_S * 1e9))
