"""The life of a slot, and of a dispatcher: which state follows which event, and what is to be done then.

Pure: a table and the clock of the back-off. The supervisor reports events and carries out the answer.

How it works: (state, event) -> (next state, action). A pair that is not in the table cannot happen; if it does, that
is a bug, and `happened` says so. Back-off counts deaths before READY only: a worker that has served and was killed is
replaced at once, whereas one that cannot start must not eat the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What a slot is doing; these words are in `status`, logs and docs."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    STOPPED = "stopped"


class Event(StrEnum):
    """What can happen to a slot."""

    START = "start"  # the server wants it to serve
    ANNOUNCED = "announced"  # its process said READY
    DIED = "died"  # its process was reaped
    RETRY_DUE = "retry due"  # the back-off is over
    STOP = "stop"  # the server wants it to end


class Action(StrEnum):
    """What the supervisor has to do about an event."""

    NOTHING = "nothing"
    SPAWN = "spawn"
    OPEN = "open"  # it serves from now on
    RETRY_LATER = "retry later"
    DRAIN = "drain"
    KILL = "kill"


_TABLE: Final[Mapping[tuple[State, Event], tuple[State, Action]]] = {
    (State.STOPPED, Event.START): (State.STARTING, Action.SPAWN),
    (State.STOPPED, Event.STOP): (State.STOPPED, Action.NOTHING),
    (State.STARTING, Event.ANNOUNCED): (State.READY, Action.OPEN),
    (State.STARTING, Event.DIED): (State.BACKOFF, Action.RETRY_LATER),
    (State.STARTING, Event.STOP): (State.DRAINING, Action.KILL),  # it has nothing that could be lost
    (State.BACKOFF, Event.RETRY_DUE): (State.STARTING, Action.SPAWN),
    (State.BACKOFF, Event.STOP): (State.STOPPED, Action.NOTHING),
    (State.READY, Event.DIED): (State.STARTING, Action.SPAWN),
    (State.READY, Event.STOP): (State.DRAINING, Action.DRAIN),
    (State.DRAINING, Event.ANNOUNCED): (State.DRAINING, Action.NOTHING),  # said before it read the command
    (State.DRAINING, Event.DIED): (State.STOPPED, Action.NOTHING),
    (State.DRAINING, Event.STOP): (State.DRAINING, Action.NOTHING),
}

FIRST_BACKOFF_S: Final = 0.5  # after the first death before READY; doubles with each
LONGEST_BACKOFF_S: Final = 30.0


@dataclass(slots=True)
class Life:
    """The state of one slot or dispatcher. `generation` is how many processes it has had."""

    state: State = State.STOPPED
    generation: int = 0
    deaths_before_ready: int = 0
    retry_at: float = 0.0

    def happened(self, event: Event, now: float) -> Action:
        """Enter the state that follows *event* and return what is to be done. *now* is monotonic."""
        try:
            self.state, action = _TABLE[self.state, event]
        except KeyError:
            raise RuntimeError(f"a slot that is {self.state} cannot see `{event}`") from None
        if action is Action.SPAWN:
            self.generation += 1
        elif action is Action.OPEN:
            self.deaths_before_ready = 0
        elif action is Action.RETRY_LATER:
            self.deaths_before_ready += 1
            self.retry_at = now + backoff_s(self.deaths_before_ready)
        return action


def backoff_s(deaths: int) -> float:
    """Return how long to wait before the next try after *deaths* deaths before READY in a row."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(deaths - 1, 30), LONGEST_BACKOFF_S)
