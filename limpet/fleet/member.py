"""The processes of one slot, dispatcher or terminator: the one in charge, its successor, and those that still drain.

Owns which process has which of these parts. fleet/lifecycle.py holds the state. supervisor/processes.py decides what a
process is told.

1. The channel, the move channel and the listeners belong to the slot, and all its processes have them. So one process
   can stop reading and another can begin without losing a connection in between.
2. A predecessor has a deadline, `kill_at`. A slot has at most MOST_PREDECESSORS of them: a reload waits until one ends.
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
MOST_PREDECESSORS: Final = 2  # of one slot, because the scoreboard has a fixed number of rows


@dataclass(eq=False)
class Member:
    """One slot, one dispatcher or one terminator.

    A supervisor that replaces this one receives all fields except those in `ANEW`.
    """

    role: str
    number: int
    life: Life = field(default_factory=Life)
    child: Child | None = None  # in charge
    successor: Child | None = None
    predecessors: list[Child] = field(default_factory=list)
    is_held: bool = False  # by `limpet drain`: the slot gets no new clients
    down_since: float | None = None  # monotonic; None while a worker serves
    recycle_at: float = 0.0  # monotonic: the watchdog recycles the worker no earlier than this
    is_outdated: bool = False  # a dispatcher or terminator whose code is older than the last reload or upgrade
    last_end: str = ""  # in words: how the process in charge that crashed last ended
    cause: LimpetError | None = None  # why the last process in charge, or the last successor, ended

    ANEW: ClassVar[frozenset[str]] = frozenset({"is_outdated", "cause"})

    def __str__(self) -> str:
        return f"{self.role} {self.number}" + (f" (pid {self.child.pid})" if self.child else "")

    def name(self, child: Child) -> str:
        """Return the name of *child* in logs."""
        return f"{self.role} {self.number} (pid {child.pid})"

    def about(self, child: Child | None = None) -> dict[str, int]:
        """Return what `extra` of a log call says about this member, and about *child* or else the process in charge."""
        child = child or self.child
        return {"slot" if self.role == "worker" else self.role: self.number} | ({"pid": child.pid} if child else {})

    @property
    def word(self) -> str:
        """The state of the slot as `status` shows it."""
        return State.DRAINING.value if self.is_held and self.life.state.serves else self.life.state.word

    @property
    def children(self) -> list[Child]:
        """All processes of this member that have not been reaped."""
        return [child for child in (self.child, self.successor, *self.predecessors) if child is not None]

    def is_up(self, settings: Settings, now: float) -> bool:
        """Return whether clients of this slot are sent here, also if they wait for its next worker."""
        if self.life.state.serves:
            self.down_since = None
            return True
        if self.down_since is None:
            self.down_since = now
        patience_s = settings.wait_timeout_s if settings.on_down == "wait" else 0.0
        return settings.on_down == "refuse" or now - self.down_since < patience_s

    def may_open(self, now: float) -> bool:
        """Return whether the process in charge may take connections now, because no predecessor takes them any more."""
        is_free = all(child.leaves_by <= now for child in self.predecessors)
        return is_free and self.life.state.serves and self.child is not None and not self.child.is_open

    def has_left(self, now: float) -> bool:
        """Return whether none of its processes passes on connections any more. They were told to stop."""
        if self.role == "terminator":  # its clients' bytes pass through it until they disconnect
            is_stopping = self.life.state in (State.DRAINING, State.STOPPED)
            return is_stopping and all(child.leaves_by <= now for child in self.children)
        return self.life.state is State.STOPPED and not self.children

    def starting(self) -> Child | None:
        """Return the process that has yet to say READY, or None."""
        return self.child if self.life.state is State.STARTING else self.successor

    def announced(self, child: Child) -> Event | None:
        """Return the event that follows from *child* saying READY.

        Return None if nothing follows, as for one that drains.
        """
        child.is_ready = True
        if child is self.child:
            return Event.ANNOUNCED
        return Event.SUCCESSOR_ANNOUNCED if child is self.successor else None

    def remove(self, child: Child) -> Event | None:
        """Take out *child*, which was reaped.

        Return the event that follows for the slot, or None if nothing follows.
        """
        if child is self.child:
            self.child = None
            return Event.DIED
        if child is self.successor:
            self.successor = None
            return Event.SUCCESSOR_DIED
        self.predecessors.remove(child)
        return None

    def retire(self) -> Child:
        """Turn the process in charge into a predecessor and return it. The successor, if there is one, takes charge."""
        old, self.child, self.successor = self.child, self.successor, None
        assert old is not None
        self.predecessors.append(old)
        return old

    def promote(self) -> None:
        """Put the successor in charge, because the process in charge is gone."""
        self.child, self.successor = self.successor, None

    def give_up_successor(self) -> None:
        """Kill the successor, if there is one: it is no longer wanted."""
        if self.successor is not None:
            self.successor.failure = Failed("its start was given up")
            self.successor.kill()

    def dismiss_successor(self) -> None:
        """Kill the successor, if there is one, and count it as a predecessor, so that it never takes charge."""
        self.give_up_successor()
        if self.successor is not None:
            self.predecessors.append(self.successor)
            self.successor = None
