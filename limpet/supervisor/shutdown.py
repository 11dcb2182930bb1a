"""How a server stops: in what order, until when, and who is served before.

Owns the deadlines of a stop, and the error by which a server ends that never came to serve. The supervisor asks `go_on`
whenever something has ended; what becomes of a process that is told to stop is fleet/lifecycle.py's.

1. The listeners go first: who got in after a dispatcher has looked for the last time would be reset.
2. Then the terminators, the dispatchers and the workers, each when nobody is left to send them anything. What
   terminators have passed on goes through them: they are the last to end.
3. Who is starting while clients may wait for it, in a backlog or a channel, comes up first and takes them.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from limpet.errors import LimpetError
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member

if TYPE_CHECKING:
    from limpet.supervisor.supervisor import Supervisor

HARD_STOP_S: Final = 2.0  # after the graceful timeout: for cancelled requests and the application's own shutdown
log = logging.getLogger("limpet")


class Stopping:
    """The end of one server."""

    def __init__(self, server: Supervisor) -> None:
        self.is_under_way = False
        self.kill_at = float("inf")  # monotonic, of all that is left then
        self.failure: LimpetError | None = None  # why the server never came to serve
        self._server = server
        self._by = float("inf")  # until when what is in hand may take
        self._owing: set[int] = set()  # slots with clients in the backlog when the stop began

    @property
    def is_over(self) -> bool:
        """Whether the server stops and nobody is left."""
        return self.is_under_way and not any(map(_lives, self._server.members()))

    def begin(self, *, wait_for_connections: bool) -> None:
        """Begin to stop; with *wait_for_connections* the open ones may take as long as they like."""
        server = self._server
        self.is_under_way = True
        if not wait_for_connections:
            self._by = time.monotonic() + server.settings.graceful_timeout_s
            self.kill_at = self._by + HARD_STOP_S
        server.rolling.cancel("the server stops")
        log.info("stopping")
        self._owing = {slot.number for slot in server.slots if server.backend.queued(slot.number)}
        server.backend.close()
        self.go_on()

    def fail(self, error: LimpetError) -> None:
        """End the server at once, since it cannot come to serve."""
        self.failure = error
        self.kill_at = 0.0
        self.is_under_way = True
        for member in self._server.members():
            self._server.happened(member, Event.STOP)

    def left_s(self, now: float) -> float:
        """Return how long a process that is told to leave may take: the dispatchers may have used up much of it."""
        return max(0.0, self._by - now) if self.is_under_way else self._server.settings.graceful_timeout_s

    def go_on(self) -> None:
        """Have everybody stop whose turn it is."""
        server = self._server
        for members in (server.terminators, server.dispatchers):
            for member in members:
                if not (server.serving and member.life.state is State.STARTING):
                    server.happened(member, Event.STOP)
            if not all(member.has_left(time.monotonic()) for member in members):
                return
        for slot in server.slots:
            owing = slot.number in self._owing or server.estate.channels[slot.number].queued()
            if slot.child is not None:  # after that look: whoever has emptied the channel has said READY before
                server.lines.hear(slot, slot.child)
            if not (slot.life.state is State.STARTING and owing):
                server.happened(slot, Event.STOP)

    def ended(self, member: Member) -> None:
        """Go on after a process of *member* has ended; start another one for those who wait for it."""
        ended_early = member.role == "worker" and member.life.state is State.STOPPED  # as by a signal of its own
        queued = ended_early and self._server.estate.channels[member.number].queued()
        if queued and time.monotonic() < self.kill_at:
            self._server.happened(member, Event.START)
        self.go_on()


def _lives(member: Member) -> bool:
    return bool(member.children) or member.life.state is not State.STOPPED
