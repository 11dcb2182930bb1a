"""How a server stops: in which order, by which deadlines, and which clients are served first.

Owns the deadlines of a stop, and the error of a server that could not start to serve. The supervisor calls `go_on`
whenever a process has ended. fleet/lifecycle.py decides what becomes of a process that is told to stop.

1. The listeners close first: a connection that is accepted after a dispatcher's last look would be reset.
2. Then the terminators stop, then the dispatchers, then the workers. Each group stops when no process is left that
   could send it connections. Terminators are the last to end, because their clients' bytes pass through them.
3. If clients may be waiting for a process that is starting, in a backlog or a channel, it becomes ready first and
   serves them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from limpet.errors import LimpetError
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.supervisor.processes import HARD_STOP_S
from limpet.supervisor.rolling import Rolling

log = logging.getLogger("limpet")


class Shutdown:
    """The end of one server."""

    def __init__(
        self,
        fleet: Fleet,
        rolling: Rolling,
        apply: Callable[[Member, Event], None],
        hear: Callable[[Member, Child], None],
    ) -> None:
        """*apply* lets an event happen to a member; *hear* reads what a child has said so far."""
        self.kill_at = float("inf")  # monotonic: all processes left then are killed
        self.failure: LimpetError | None = None  # why the server could not start to serve
        self._fleet = fleet
        self._rolling = rolling
        self._apply = apply
        self._hear = hear
        self._by = float("inf")  # monotonic: the deadline for open connections
        self._owing: set[int] = set()  # slots with clients in their backlog when the stop began

    @property
    def is_over(self) -> bool:
        """Whether the server is stopping and no process is left."""
        return self._fleet.is_stopping and not any(map(_lives, self._fleet.members()))

    def begin(self, *, wait_for_connections: bool) -> None:
        """Start to stop. With *wait_for_connections*, open connections may last as long as they need."""
        fleet = self._fleet
        fleet.is_stopping = True
        if not wait_for_connections:
            self._by = time.monotonic() + fleet.settings.graceful_timeout_s
            self.kill_at = self._by + HARD_STOP_S
        self._rolling.cancel("the server is stopping")
        log.info("stopping", extra={"event": "stopping"})
        self._owing = {slot.number for slot in fleet.slots if fleet.backend.queued(slot.number)}
        fleet.backend.close()
        self.go_on()

    def fail(self, error: LimpetError) -> None:
        """End the server at once, because it cannot start to serve."""
        self.failure = error
        self.kill_at = 0.0
        self._fleet.is_stopping = True
        for member in self._fleet.members():
            self._apply(member, Event.STOP)

    def left_s(self, now: float) -> float:
        """Return how many seconds a process that is told to leave may take.

        Dispatchers may have used most of the time already.
        """
        return max(0.0, self._by - now) if self._fleet.is_stopping else self._fleet.settings.graceful_timeout_s

    def put_off(self, paused_s: float) -> None:
        """Move the deadlines by *paused_s* seconds, in which no process could run."""
        self._by += paused_s
        if self.kill_at:  # 0: it was told to end at once
            self.kill_at += paused_s

    def go_on(self) -> None:
        """Stop all members whose turn it is."""
        fleet = self._fleet
        for members in (fleet.terminators, fleet.dispatchers):
            for member in members:
                if not (fleet.is_serving and member.life.state is State.STARTING):
                    self._apply(member, Event.STOP)
            if not all(member.has_left(time.monotonic()) for member in members):
                return
        for slot in fleet.slots:
            owing = slot.number in self._owing or fleet.resources.channels[slot.number].queued()
            if slot.child is not None:  # in this order: a worker that emptied the channel has said READY before
                self._hear(slot, slot.child)
            if not (slot.life.state is State.STARTING and owing):
                self._apply(slot, Event.STOP)

    def ended(self, member: Member) -> None:
        """Continue after a process of *member* has ended. Start another one if clients wait in the channel."""
        ended_early = member.role == "worker" and member.life.state is State.STOPPED  # perhaps by a signal of its own
        queued = ended_early and self._fleet.resources.channels[member.number].queued()
        if queued and time.monotonic() < self.kill_at:
            self._apply(member, Event.START)
        self.go_on()


def _lives(member: Member) -> bool:
    return bool(member.children) or member.life.state is not State.STOPPED
