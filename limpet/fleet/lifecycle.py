"""The life of a slot, and of a dispatcher: which state follows which event, and what is to be done then.

Pure: a table and the clock of the back-off. The supervisor reports events and carries out the answer; fleet/member.py
has the processes. docs/lifecycle.md shows the table as a diagram (tools/docs/lifecycle_page.py).

How it works: (state, event) -> (next state, action). A slot has one process in charge, at most one successor that is
starting, and predecessors that drain, of which the table knows nothing: they have a deadline and no way back. A pair
that is not in the table cannot happen; if it does, that is a bug, and `happened` says so.

1. Back-off counts deaths before READY only: a worker that has served and was killed is replaced at once, whereas one
   that cannot start must not eat the machine.
2. A successor that does not become ready changes nothing for who is in charge.
3. That the operator drains a slot (`limpet drain`) is no state of this table: it outlasts crashes and reloads.
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
        """What `status`, logs and docs call it: whether a successor is starting is nothing that clients could see."""
        return State.READY.value if self is State.RENEWING else self.value

    @property
    def serves(self) -> bool:
        """Whether the process in charge takes new clients."""
        return self in (State.READY, State.RENEWING)


class Event(StrEnum):
    """What can happen to a slot."""

    START = "start"  # the server wants it to serve
    ANNOUNCED = "announced"  # the process in charge said READY
    DIED = "died"  # the process in charge was reaped
    RETRY_DUE = "retry due"  # the back-off is over
    LEFT = "left"  # the process in charge drains, since somebody sent it a signal
    RENEW = "renew"  # the server wants another process in charge
    SUCCESSOR_ANNOUNCED = "successor announced"
    SUCCESSOR_DIED = "successor died"
    STOP = "stop"  # the server wants it to end


class Action(StrEnum):
    """What the supervisor has to do about an event."""

    NOTHING = "nothing"
    SPAWN = "spawn"
    OPEN = "open"  # it serves from now on
    RETRY_LATER = "retry later"
    SPAWN_SUCCESSOR = "spawn successor"
    SWITCH = "switch"  # the successor takes charge, the other one drains
    KEEP = "keep"  # the successor is no more: the one in charge stays
    PROMOTE = "promote"  # the one in charge is no more: the successor, still starting, is in charge
    REPLACE = "replace"  # the one in charge goes on draining as a predecessor, another one is spawned
    RETIRE = "retire"  # the same, and the successor, still starting, is in charge
    DRAIN = "drain"  # a successor is killed, and a predecessor from now on
    KILL = "kill"


TABLE: Final[Mapping[tuple[State, Event], tuple[State, Action]]] = {
    (State.STOPPED, Event.START): (State.STARTING, Action.SPAWN),
    (State.STOPPED, Event.STOP): (State.STOPPED, Action.NOTHING),
    (State.STARTING, Event.ANNOUNCED): (State.READY, Action.OPEN),
    (State.STARTING, Event.DIED): (State.BACKOFF, Action.RETRY_LATER),
    (State.STARTING, Event.STOP): (State.DRAINING, Action.KILL),  # it has nothing that could be lost
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
    (State.DRAINING, Event.ANNOUNCED): (State.DRAINING, Action.NOTHING),  # said before it read the command
    (State.DRAINING, Event.LEFT): (State.DRAINING, Action.NOTHING),
    (State.DRAINING, Event.DIED): (State.STOPPED, Action.NOTHING),
    (State.DRAINING, Event.START): (State.STARTING, Action.REPLACE),
    (State.DRAINING, Event.STOP): (State.DRAINING, Action.NOTHING),
}

FIRST_BACKOFF_S: Final = 0.5  # after the first death before READY; doubles with each
LONGEST_BACKOFF_S: Final = 30.0
CRASHES: Final = 5  # deaths after READY, within the window, that are a crash loop
CRASH_WINDOW_S: Final = 60


@dataclass(slots=True)
class Life:
    """The state of one slot or dispatcher. `generation` is how many processes it has had."""

    state: State = State.STOPPED
    generation: int = 0
    deaths_before_ready: int = 0
    retry_at: float = 0.0
    crashes: list[float] = field(default_factory=list)  # monotonic times of the last deaths after READY

    def crashed(self, now: float) -> bool:
        """Note a death after READY; return whether with it a crash loop begins."""
        was_loop = self.is_crash_loop(now)
        self.crashes = [*self.crashes, now][-CRASHES:]
        return self.is_crash_loop(now) and not was_loop

    def is_crash_loop(self, now: float) -> bool:
        """Return whether it dies again and again after READY. That delays nothing: its clients wait."""
        return len(self.crashes) == CRASHES and now - self.crashes[0] < CRASH_WINDOW_S

    def happened(self, event: Event, now: float) -> Action:
        """Enter the state that follows *event* and return what is to be done. *now* is monotonic."""
        try:
            self.state, action = TABLE[self.state, event]
        except KeyError:
            raise RuntimeError(f"a slot that is {self.state} cannot see `{event}`") from None
        if action in (Action.SPAWN, Action.SPAWN_SUCCESSOR, Action.REPLACE):
            self.generation += 1
        elif action in (Action.OPEN, Action.SWITCH):
            self.deaths_before_ready = 0
        elif action is Action.RETRY_LATER:
            self.deaths_before_ready += 1
            self.retry_at = now + backoff_s(self.deaths_before_ready)
        return action


def backoff_s(deaths: int) -> float:
    """Return how long to wait before the next try after *deaths* deaths before READY in a row."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(deaths - 1, 30), LONGEST_BACKOFF_S)
