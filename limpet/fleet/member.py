"""The processes of one slot, one dispatcher or one terminator: who is in charge, who comes next, who still drains.

Owns which process has which part. The state is fleet/lifecycle.py's, what a process is told is the supervisor's
business.

1. The channel, the move channel and the listeners belong to the slot: all its processes have them, so that one may
   stop reading and another begin without a connection in between being lost.
2. A predecessor has a deadline, `kill_at`. There are at most MOST_PREDECESSORS: a reload waits for the next to end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

from limpet.config.settings import Settings
from limpet.errors import LimpetError
from limpet.fleet.lifecycle import Event, Life, State
from limpet.fleet.process import Child
from limpet.ipc.news import Failed

ROLES: Final = ("worker", "dispatcher", "terminator")
MOST_PREDECESSORS: Final = 2  # of one slot; rows of the scoreboard are bounded


@dataclass(eq=False)
class Member:
    """One slot, one dispatcher or one terminator. A supervisor that replaces this one gets all fields but `ANEW`."""

    role: str
    number: int
    life: Life = field(default_factory=Life)
    child: Child | None = None  # in charge
    successor: Child | None = None
    predecessors: list[Child] = field(default_factory=list)
    is_held: bool = False  # by `limpet drain`: it gets no new clients
    down_since: float | None = None  # monotonic, None while a worker serves
    recycle_at: float = 0.0  # monotonic: not before that
    is_outdated: bool = False  # a dispatcher or terminator whose code is older than a reload or an upgrade
    last_end: str = ""  # how the last process ended that was in charge, in words
    cause: LimpetError | None = None  # why the last process ended that was to serve

    ANEW: ClassVar[frozenset[str]] = frozenset({"is_outdated", "cause"})

    def __str__(self) -> str:
        return f"{self.role} {self.number}" + (f" (pid {self.child.pid})" if self.child else "")

    def name(self, child: Child) -> str:
        """Return what logs call *child*."""
        return f"{self.role} {self.number} (pid {child.pid})"

    @property
    def word(self) -> str:
        """The slot's state as `status` has it."""
        return State.DRAINING.value if self.is_held and self.life.state.serves else self.life.state.word

    @property
    def children(self) -> list[Child]:
        """All its processes that have not been reaped."""
        return [child for child in (self.child, self.successor, *self.predecessors) if child is not None]

    def is_up(self, settings: Settings, now: float) -> bool:
        """Return whether the slot's clients are to be served here, or to wait for the next worker."""
        if self.life.state.serves:
            self.down_since = None
            return True
        if self.down_since is None:
            self.down_since = now
        patience_s = settings.wait_timeout_s if settings.on_down == "wait" else 0.0
        return settings.on_down == "refuse" or now - self.down_since < patience_s

    def may_open(self, now: float) -> bool:
        """Return whether the process in charge is to take connections now: no predecessor does any more."""
        is_free = all(child.leaves_by <= now for child in self.predecessors)
        return is_free and self.life.state.serves and self.child is not None and not self.child.is_open

    def has_left(self, now: float) -> bool:
        """Return whether none of its processes, told to stop, passes any connection on any more."""
        if self.role == "terminator":  # what it has passed on goes through it until the end
            is_stopping = self.life.state in (State.DRAINING, State.STOPPED)
            return is_stopping and all(child.leaves_by <= now for child in self.children)
        return self.life.state is State.STOPPED and not self.children

    def starting(self) -> Child | None:
        """Return the process whose READY is awaited."""
        return self.child if self.life.state is State.STARTING else self.successor

    def announced(self, child: Child) -> Event | None:
        """Return what it means that *child* said READY, None where that changes nothing, as of one that drains."""
        child.is_ready = True
        if child is self.child:
            return Event.ANNOUNCED
        return Event.SUCCESSOR_ANNOUNCED if child is self.successor else None

    def remove(self, child: Child) -> Event | None:
        """Take *child*, which was reaped, out; return what that means to the slot."""
        if child is self.child:
            self.child = None
            return Event.DIED
        if child is self.successor:
            self.successor = None
            return Event.SUCCESSOR_DIED
        self.predecessors.remove(child)
        return None

    def retire(self) -> Child:
        """Make the process in charge a predecessor, and the successor, if there is one, the one in charge."""
        old, self.child, self.successor = self.child, self.successor, None
        assert old is not None
        self.predecessors.append(old)
        return old

    def promote(self) -> None:
        """Put the successor in charge, since nobody is."""
        self.child, self.successor = self.successor, None

    def give_up_successor(self) -> None:
        """Kill the successor, if there is one: it is no longer wanted."""
        if self.successor is not None:
            self.successor.failure = Failed("its start was given up")
            self.successor.kill()

    def dismiss_successor(self) -> None:
        """Kill the successor, if there is one, and forget that it was to be in charge."""
        self.give_up_successor()
        if self.successor is not None:
            self.predecessors.append(self.successor)
            self.successor = None
