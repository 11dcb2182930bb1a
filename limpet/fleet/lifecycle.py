"""The life of a slot, dispatcher or terminator: which state follows each event, and what the supervisor must then do.

Owns a table and the clock of the back-off. Pure. supervisor/processes.py reports events and carries out the actions;
fleet/member.py holds the processes. tools/docs/lifecycle_page.py draws the table as the diagram in docs/lifecycle.md.

How it works: (state, event) -> (next state, action). A slot has one process in charge and at most one successor, which
is starting. It may also have predecessors, which drain. The table does not cover predecessors: they have a deadline and
never return. A pair that is not in the table cannot happen; if it does, that is a bug, and `happened` raises.

1. Only deaths before READY count for the back-off. A worker that served and was killed is replaced at once. A worker
   that cannot start must not use up the machine.
2. A successor that does not become ready changes nothing for the process in charge.
3. `limpet drain` is not a state of this table, because a drain by the operator outlasts crashes and reloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What a slot is doing."""

    STARTING = "starting"
    READY = "ready"
    RENEWING = "renewing"  # ready, and a successor is starting
    DRAINING = "draining"
    BACKOFF = "backoff"
    STOPPED = "stopped"

    @property
    def word(self) -> str:
        """The word for this state in `status`, logs and docs. Clients cannot see whether a successor is starting."""
        return State.READY.value if self is State.RENEWING else self.value

    @property
    def serves(self) -> bool:
        """Whether the process in charge takes new clients."""
        return self in (State.READY, State.RENEWING)


class Event(StrEnum):
    """What can happen to a slot."""

    START = "start"  # the server wants the slot to serve
    ANNOUNCED = "announced"  # the process in charge said READY
    DIED = "died"  # the process in charge was reaped
    RETRY_DUE = "retry due"  # the back-off is over
    LEFT = "left"  # the process in charge drains, because it received a signal
    RENEW = "renew"  # the server wants another process in charge
    SUCCESSOR_ANNOUNCED = "successor announced"
    SUCCESSOR_DIED = "successor died"
    STOP = "stop"  # the server wants the slot to end


class Action(StrEnum):
    """What the supervisor must do about an event."""

    NOTHING = "nothing"
    SPAWN = "spawn"
    OPEN = "open"  # the process in charge serves from now on
    RETRY_LATER = "retry later"
    SPAWN_SUCCESSOR = "spawn successor"
    SWITCH = "switch"  # the successor takes charge; the old process drains
    KEEP = "keep"  # the successor died: the process in charge stays
    PROMOTE = "promote"  # the process in charge died: the successor, still starting, takes charge
    REPLACE = "replace"  # the process in charge drains as a predecessor; another one is spawned
    RETIRE = "retire"  # the process in charge drains as a predecessor; the successor, still starting, takes charge
    DRAIN = "drain"  # kill the successor, which counts as a predecessor from now on; drain the other processes
    KILL = "kill"


TABLE: Final[Mapping[tuple[State, Event], tuple[State, Action]]] = {
    (State.STOPPED, Event.START): (State.STARTING, Action.SPAWN),
    (State.STOPPED, Event.STOP): (State.STOPPED, Action.NOTHING),
    (State.STARTING, Event.ANNOUNCED): (State.READY, Action.OPEN),
    (State.STARTING, Event.DIED): (State.BACKOFF, Action.RETRY_LATER),
    (State.STARTING, Event.STOP): (State.DRAINING, Action.KILL),  # it holds no client that could be lost
    (State.BACKOFF, Event.RETRY_DUE): (State.STARTING, Action.SPAWN),
    (State.BACKOFF, Event.RENEW): (State.STARTING, Action.SPAWN),
    (State.BACKOFF, Event.STOP): (State.STOPPED, Action.NOTHING),
    (State.READY, Event.DIED): (State.STARTING, Action.SPAWN),
    (State.READY, Event.LEFT): (State.STARTING, Action.REPLACE),
    (State.READY, Event.RENEW): (State.RENEWING, Action.SPAWN_SUCCESSOR),
    (State.READY, Event.STOP): (State.DRAINING, Action.DRAIN),
    (State.RENEWING, Event.SUCCESSOR_ANNOUNCED): (State.READY, Action.SWITCH),
    (State.RENEWING, Event.SUCCESSOR_DIED): (State.READY, Action.KEEP),
    (State.RENEWING, Event.DIED): (State.STARTING, Action.PROMOTE),
    (State.RENEWING, Event.LEFT): (State.STARTING, Action.RETIRE),
    (State.RENEWING, Event.STOP): (State.DRAINING, Action.DRAIN),
    (State.DRAINING, Event.ANNOUNCED): (State.DRAINING, Action.NOTHING),  # it said READY before it read the order
    (State.DRAINING, Event.LEFT): (State.DRAINING, Action.NOTHING),
    (State.DRAINING, Event.DIED): (State.STOPPED, Action.NOTHING),
    (State.DRAINING, Event.START): (State.STARTING, Action.REPLACE),
    (State.DRAINING, Event.STOP): (State.DRAINING, Action.NOTHING),
}

FIRST_BACKOFF_S: Final = 0.5  # after the first death before READY; each further death doubles it
LONGEST_BACKOFF_S: Final = 30.0
CRASHES: Final = 5  # deaths after READY, within the window, that make a crash loop
CRASH_WINDOW_S: Final = 60


@dataclass(slots=True)
class Life:
    """The state of one slot, dispatcher or terminator. `generation` counts the processes that it has had."""

    state: State = State.STOPPED
    generation: int = 0
    deaths_before_ready: int = 0
    retry_at: float = 0.0
    crashes: list[float] = field(default_factory=list)  # monotonic times of the last deaths after READY

    def crashed(self, now: float) -> bool:
        """Record a death after READY. Return whether a crash loop begins with it."""
        was_loop = self.is_crash_loop(now)
        self.crashes = [*self.crashes, now][-CRASHES:]
        return self.is_crash_loop(now) and not was_loop

    def is_crash_loop(self, now: float) -> bool:
        """Return whether the processes die again and again after READY.

        No replacement is delayed by that: clients are waiting.
        """
        return len(self.crashes) == CRASHES and now - self.crashes[0] < CRASH_WINDOW_S

    def happened(self, event: Event, now: float) -> Action:
        """Enter the state that follows *event* and return what to do. *now* is monotonic.

        Raises RuntimeError for an event that cannot happen in this state.
        """
        try:
            self.state, action = TABLE[self.state, event]
        except KeyError:
            raise RuntimeError(f"bug: a slot that is {self.state} cannot get the event `{event}`") from None
        if action in (Action.SPAWN, Action.SPAWN_SUCCESSOR, Action.REPLACE):
            self.generation += 1
        elif action in (Action.OPEN, Action.SWITCH):
            self.deaths_before_ready = 0
        elif action is Action.RETRY_LATER:
            self.deaths_before_ready += 1
            self.retry_at = now + backoff_s(self.deaths_before_ready)
        return action


def backoff_s(deaths: int) -> float:
    """Return how many seconds to wait before the next try, after *deaths* deaths before READY in a row."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(deaths - 1, 30), LONGEST_BACKOFF_S)
