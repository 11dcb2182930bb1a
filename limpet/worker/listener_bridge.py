"""The general door: a listening socket for servers that accept by themselves, and the worker's duties around them.

Owns, in its own thread, the gate of that socket, READY, the supervisor's orders and the end of the worker. So the
server needs to know nothing of them. Adapters make a `Door`; programs under `--server script` reach it through
`limpet.listener()`. uvicorn, hypercorn and granian need no door: they take connections on their own event loop.

1. READY is sent when the server first accepts. A server that only watches the descriptor never becomes ready. On the
   dispatcher backend a probe in the channel makes the server accept. If it has asked for the descriptor and does not
   accept within a quarter of the start timeout, the worker fails. On the kernel backend the listener is real, so
   `listen` also counts. It blocks until limpet lets clients in: a listener that listens too early would get the number
   of another slot.
2. A drain has these steps: responses end their connections (`draining`); the server accepts connections that already
   wait; the gate closes; idle connections may send one more request; the server is told to stop. If it does not end in
   time, the process exits.
3. Callbacks run in the door's thread.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from limpet import current
from limpet.config.bind import Bind
from limpet.errors import AppError
from limpet.ipc import news, orders
from limpet.ipc.control_link import LinkClosedError
from limpet.ipc.orders import Accept, Drain, Workers
from limpet.net.accept_queue import backlog
from limpet.net.reuseport_group import close_door
from limpet.worker.channel_listener import FdListener, SlotListener, Tally
from limpet.worker.seat import Seat

_PROBED: Final = 1 / 4  # of the start timeout: the server may still be importing what it needs
_CHECK_S: Final = 0.02  # how often a draining worker checks whether connections wait or are open
_IDLE_S: Final = 1.0  # how long a draining worker leaves idle connections open: longer than a round trip
_END_S: Final = 1.0  # after the graceful timeout, for the server to end
log = logging.getLogger("limpet.worker")


class Door:
    """The door of one worker."""

    def __init__(self, seat: Seat) -> None:
        """Take over the supervisor's line and the signals of this process. Runs in the main thread."""
        self.tally = Tally(seat.row)
        self.draining = False
        self.shut = False
        self._seat = seat
        self._stop: Callable[[], object] | None = None
        self._begin_to_drain: Callable[[], object] = lambda: None
        self.is_ready = False
        self._lock = threading.Lock()
        self._may_accept = threading.Event()
        self._probe_s = seat.settings.start_timeout_s * _PROBED
        self._asked_at = math.inf  # monotonic: when the server asked for the descriptor
        self._until = math.inf  # monotonic: the end of the graceful timeout
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        current.open_door(self)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.signalled)
        threading.Thread(target=self._obey, name="limpet", daemon=True).start()

    def listener(self) -> socket.socket:
        """Return a listening socket whose `accept` returns the slot's connections. It is non-blocking at first.

        Raises RuntimeError on the kernel backend with several binds, because each bind has its own listener there.
        """
        found = self.listeners()
        if len(found) > 1:
            raise RuntimeError(
                "each `--bind` has its own listener on the kernel backend: `--backend dispatcher` has one for all"
            )
        return found[0]

    def listeners(self) -> list[socket.socket]:
        """Return all listening sockets.

        On the dispatcher backend there is one, which gets the connections of all binds.
        """
        if self._seat.listeners:
            return [SlotListener(listener, self.tally, self) for listener in self._seat.listeners]
        family, name = _address(self._seat.settings.addresses[0])
        self._seat.receiver.probe()
        return [FdListener(self._seat.receiver, self.tally, self, family=family, name=name)]

    def on_drain(self, callback: Callable[[], object]) -> None:
        """Call *callback* when `draining` begins: from then on responses must end their connections."""
        self._begin_to_drain = callback

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call *callback* when the server must stop: finish what is in flight, within `left_s` seconds, and return."""
        self._stop = callback

    @property
    def left_s(self) -> float:
        """How many seconds the server still has to finish."""
        return max(0.0, self._until - time.monotonic())

    # --- the gate

    def enter(self) -> None:
        """Send READY, once. Blocks on the kernel backend until limpet listens."""
        with self._lock:
            if not self.is_ready:
                self.is_ready = True
                self._seat.ready()
        if self._seat.listeners:
            self._may_accept.wait()

    def asked(self) -> None:
        """Record when the server first asked for the descriptor: it is about to accept."""
        if self._asked_at == math.inf:
            self._asked_at = time.monotonic()
            os.eventfd_write(self._wake_fd, 1)

    # --- orders

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Drain after a signal that was sent to this process itself."""
        self.draining = True
        os.eventfd_write(self._wake_fd, 1)

    def _obey(self) -> None:
        """Obey the supervisor until the order to drain, then drain. This is the thread's whole life."""
        poll = select.poll()
        poll.register(self._seat.link.fileno(), select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        order: Drain | None = None
        while order is None and not self.draining:
            poll.poll(self._patience_ms())
            if select.select([self._wake_fd], [], [], 0)[0]:
                os.eventfd_read(self._wake_fd)
            self._refuse_if_deaf()
            order = self._order()
        self._drain(order or Drain(self._seat.settings.graceful_timeout_s, last=False))

    def _order(self) -> Drain | None:
        """Carry out what the supervisor says. Return an order to drain, or None."""
        try:
            arrived = orders.receive(self._seat.link)
        except LinkClosedError:  # the supervisor is gone: serve the connections that are here, then end
            for listener in self._seat.listeners:
                close_door(listener)
            return Drain(self._seat.settings.graceful_timeout_s, last=True)
        for order in arrived:
            match order:
                case Accept():
                    self._may_accept.set()
                case Drain():
                    return order
                case Workers():
                    self._seat.home.follow(order)
        return None

    def _patience_ms(self) -> float | None:
        if self.is_ready or self._asked_at == math.inf:
            return None
        return max(0.0, self._asked_at + self._probe_s - time.monotonic()) * 1000 + 1

    def _refuse_if_deaf(self) -> None:
        """End this process if its server has not accepted in time: such a server waits on the descriptor in vain."""
        if self.is_ready or time.monotonic() < self._asked_at + self._probe_s:
            return
        error = AppError(
            f"the server of `{self._seat.settings.app}` took the descriptor of limpet's listener but did not call its "
            f"`accept` within {self._probe_s:g} s, so it would never serve a client",
            hint="`--by ip --backend kernel` gives it a real listener; if it runs on uvloop, `--loop asyncio`",
        )
        self._seat.link.send(news.message(news.Failed(error.message, error.hint, error.exit_code)))
        os._exit(error.exit_code)

    # --- the end

    def _drain(self, order: Drain) -> None:
        began = time.monotonic()
        self._until = math.inf if order.timeout is None else began + order.timeout
        self.draining = True
        current.leave()
        self._begin_to_drain()
        if order.last or not self._seat.listeners:
            self._wait_while(self._waiting, self._until if order.last else min(began + _IDLE_S, self._until))
        self.shut = True
        self._may_accept.set()
        self._wait_while(lambda: self.tally.open, min(time.monotonic() + _IDLE_S, self._until))
        if self._stop is not None:
            self._stop()
        threading.Event().wait(None if self._until == math.inf else self.left_s + _END_S)
        log.warning(
            "worker %d ends with %d connections open",
            self._seat.info.slot,
            self.tally.open,
            extra={"event": "connections_left_open", "slot": self._seat.info.slot},
        )
        os._exit(0)

    def _waiting(self) -> int:
        if not self.is_ready:
            return 0
        return self._seat.receiver.queued() + sum(backlog(listener).waiting for listener in self._seat.listeners)

    def _wait_while(self, state: Callable[[], object], until: float) -> None:
        pause = threading.Event()
        while state() and time.monotonic() < until:
            pause.wait(_CHECK_S)


def _address(bind: Bind) -> tuple[int, Any]:
    """Return the family and name of the socket for *bind*. The name is None if only the socket itself knows it."""
    if bind.kind == "unix":
        return socket.AF_UNIX, bind.path
    if ":" in bind.host or (bind.kind == "tcp" and not bind.host):
        return socket.AF_INET6, (bind.host or "::", bind.port, 0, 0) if bind.port else None
    return socket.AF_INET, (bind.host, bind.port) if bind.port else None
