"""The worker process: one application in one slot, behind a server adapter.

Owns what every worker has in common, whatever its server: the seat (its slot's channel, its line to the supervisor,
its row of counters) and the name by which applications know where they are. The adapter in `servers/` owns the event
loop and the connections. Runs nothing of other slots and never decides where a client belongs.

1. READY is said by the adapter, last: after the application's start-up and after signal handlers are in place.
2. Before READY nothing is read from the channel; after a command to drain, only what was in it.
3. The slot's listeners, if it has any, are the server's, not this worker's: it may close its copies, never shut them
   down. It accepts after the command to do so, since the supervisor has to listen first, and stops when it drains. What
   waits then is for its successor; if there is none (`last`), it is taken first.
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
    tls: ssl.SSLContext | None  # what connections are to be, None for plain
    listeners: tuple[socket.socket, ...]  # of the slot, one for each bind; none when a dispatcher accepts
    per_address: PerAddress
    stack_fd: int = -1

    def ready(self) -> None:
        """Tell the supervisor that this worker serves now."""
        if self.stack_fd >= 0:
            stack.offer(self.stack_fd)
        self.link.send(news.message(news.Ready()))
        with contextlib.suppress(RuntimeError):  # without an event loop the server has to see to the heartbeat itself
            self._beat(asyncio.get_running_loop(), time.monotonic_ns())

    def _beat(self, loop: asyncio.AbstractEventLoop, due_ns: int) -> None:
        now_ns = time.monotonic_ns()
        late_ns = max(0, now_ns - due_ns)
        self.row.set("beat_ns", now_ns)
        self.row.set("lag_ns", late_ns)
        self.row.add("late_ns", late_ns)
        logs.catch_up()
        loop.call_later(BEAT_S, self._beat, loop, now_ns + int(BEAT_S * 1e9))
