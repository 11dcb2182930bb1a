"""How a server stops: in what order, until when, and who is served before.

Owns the deadlines of a stop, and the error by which a server ends that never came to serve. The supervisor asks `go_on`
whenever something has ended; what becomes of a process that is told to stop is fleet/lifecycle.py's.

1. The listeners go first: a connection accepted after a dispatcher has looked for the last time would be reset.
2. Then the terminators, the dispatchers and the workers, each when nobody is left to send them anything. What
   terminators have passed on goes through them: they are the last to end.
3. A process that is starting while clients may wait for it, in a backlog or a channel, comes up first and takes them.
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
        """*apply* lets an event happen to a member; *hear* takes in what a child has said and is still unread."""
        self.kill_at = float("inf")  # monotonic, of all that is left then
        self.failure: LimpetError | None = None  # why the server never came to serve
        self._fleet = fleet
        self._rolling = rolling
        self._apply = apply
        self._hear = hear
        self._by = float("inf")  # until when what is in hand may take
        self._owing: set[int] = set()  # slots with clients in the backlog when the stop began

    @property
    def is_over(self) -> bool:
        """Whether the server stops and nobody is left."""
        return self._fleet.is_stopping and not any(map(_lives, self._fleet.members()))

    def begin(self, *, wait_for_connections: bool) -> None:
        """Begin to stop; with *wait_for_connections* the open ones may take as long as they like."""
        fleet = self._fleet
        fleet.is_stopping = True
        if not wait_for_connections:
            self._by = time.monotonic() + fleet.settings.graceful_timeout_s
            self.kill_at = self._by + HARD_STOP_S
        self._rolling.cancel("the server stops")
        log.info("stopping")
        self._owing = {slot.number for slot in fleet.slots if fleet.backend.queued(slot.number)}
        fleet.backend.close()
        self.go_on()

    def fail(self, error: LimpetError) -> None:
        """End the server at once, since it cannot come to serve."""
        self.failure = error
        self.kill_at = 0.0
        self._fleet.is_stopping = True
        for member in self._fleet.members():
            self._apply(member, Event.STOP)

    def left_s(self, now: float) -> float:
        """Return how long a process that is told to leave may take: the dispatchers may have used up much of it."""
        return max(0.0, self._by - now) if self._fleet.is_stopping else self._fleet.settings.graceful_timeout_s

    def put_off(self, paused_s: float) -> None:
        """Put off the deadlines by a time in which no process could run."""
        self._by += paused_s
        if self.kill_at:  # else it was told to end at once
            self.kill_at += paused_s

    def go_on(self) -> None:
        """Have everybody stop whose turn it is."""
        fleet = self._fleet
        for members in (fleet.terminators, fleet.dispatchers):
            for member in members:
                if not (fleet.is_serving and member.life.state is State.STARTING):
                    self._apply(member, Event.STOP)
            if not all(member.has_left(time.monotonic()) for member in members):
                return
        for slot in fleet.slots:
            owing = slot.number in self._owing or fleet.resources.channels[slot.number].queued()
            if slot.child is not None:  # after that look: whoever has emptied the channel has said READY before
                self._hear(slot, slot.child)
            if not (slot.life.state is State.STARTING and owing):
                self._apply(slot, Event.STOP)

    def ended(self, member: Member) -> None:
        """Go on after a process of *member* has ended; start another one for the clients that wait for it."""
        ended_early = member.role == "worker" and member.life.state is State.STOPPED  # as by a signal of its own
        queued = ended_early and self._fleet.resources.channels[member.number].queued()
        if queued and time.monotonic() < self.kill_at:
            self._apply(member, Event.START)
        self.go_on()


def _lives(member: Member) -> bool:
    return bool(member.children) or member.life.state is not State.STOPPED
