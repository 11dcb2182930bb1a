"""Rolling changes: new workers for some slots, one after another, each switched only when it is ready.

Pure. Owns which slot is next, what has become of a change, and the queue of changes. The supervisor asks what is due,
has it done, and reports; how one slot gets a new worker is fleet/lifecycle.py's table.

1. At most `surge` slots of a change are under way at any time; one change after the other.
2. The first slot whose new worker does not become ready ends the change: the others would fail alike, or else the
   server would be left with a mixture. Slots that have the new one keep it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from limpet.fleet.lifecycle import State

RELOAD: Final = "reload"  # why all is renewed, dispatchers too
_REMEMBERED: Final = 64  # changes that are over, for those who ask what became of them


@dataclass
class Change:
    """One rolling change. `outcome` is empty while it is not over."""

    number: int
    why: str  # as it begins in logs: `reload`
    waiting: list[int]
    surge: int
    slots: int = 0
    under_way: set[int] = field(default_factory=set)
    renewed: int = 0
    has_begun: bool = False
    is_in_last_step: bool = False  # of a reload: the slots are through, and dispatchers are renewed
    outcome: str = ""  # "done" or "failed"
    message: str = ""

    def __post_init__(self) -> None:
        self.slots = len(self.waiting)

    def due(self, states: Sequence[State], busy: Iterable[int]) -> list[int]:
        """Return the slots to be renewed now, given the *states* of all; those in *busy* have no room for another."""
        gone = {State.STOPPED, State.DRAINING}
        self.waiting = [slot for slot in self.waiting if slot < len(states) and states[slot] not in gone]
        self.under_way = {slot for slot in self.under_way if slot < len(states) and states[slot] not in gone}
        room = self.surge - len(self.under_way)
        not_now = {State.STARTING, State.RENEWING}
        now = [slot for slot in self.waiting if states[slot] not in not_now and slot not in busy][: max(0, room)]
        self.waiting = [slot for slot in self.waiting if slot not in now]
        self.under_way |= set(now)
        return now

    def succeeded(self, slot: int) -> None:
        """Note that *slot* has a new worker that is ready."""
        if slot in self.under_way:
            self.under_way.remove(slot)
            self.renewed += 1

    def failed(self, slot: int, message: str) -> bool:
        """Note that the new worker of *slot* did not become ready; return whether that ends this change."""
        if slot not in self.under_way:
            return False
        self.under_way.remove(slot)
        self.waiting, self.outcome, self.message = [], "failed", message
        return True

    def is_through(self) -> bool:
        """Return whether no slot is left."""
        return not (self.waiting or self.under_way)

    def is_over(self) -> bool:
        """Return whether nothing is left to do, and note the outcome."""
        if self.is_through() and not self.outcome:
            self.outcome = "done"
        return bool(self.outcome)

    def summary(self) -> dict[str, Any]:
        """Return what `limpet reload` and `limpet status` show of it."""
        state = self.outcome or ("running" if self.has_begun else "waiting")
        return {
            "change": self.number,
            "why": self.why,
            "state": state,
            "slots": self.slots,
            "renewed": self.renewed,
            "message": self.message,
        }


class Changes:
    """All changes of one server, in their order."""

    def __init__(self) -> None:
        self.current: Change | None = None
        self._queue: deque[Change] = deque()
        self._all: dict[int, Change] = {}
        self._newest = 0

    def request(self, why: str, slots: Iterable[int], surge: int) -> Change:
        """Return a change of *slots* that will be made; one that waits for the same reason is that change."""
        wanted = sorted(slots)
        for change in self._queue:
            if (change.why, change.waiting) == (why, wanted):
                return change
        self._newest += 1
        change = Change(self._newest, why, wanted, surge)
        self._queue.append(change)
        self._all[change.number] = change
        if len(self._all) > _REMEMBERED:
            del self._all[next(iter(self._all))]
        return change

    def register(self, why: str, slots: int) -> Change:
        """Return a change of the number of slots by *slots*: it is carried out elsewhere, and asked for like others."""
        self._newest += 1
        change = Change(self._newest, why, [], 0, has_begun=True)
        change.slots = slots
        self._all[change.number] = change
        return change

    def begin(self) -> Change | None:
        """Return the next change, which begins now; None while one is under way or none waits."""
        if self.current is not None or not self._queue:
            return None
        self.current = self._queue.popleft()
        self.current.has_begun = True
        return self.current

    def end(self) -> Change:
        """Return the current change, which is over."""
        assert self.current is not None
        over, self.current = self.current, None
        return over

    def involves(self, slot: int) -> bool:
        """Return whether a change that is not over will renew *slot*."""
        changes = [*self._queue, *([self.current] if self.current else [])]
        return any(slot in change.waiting or slot in change.under_way for change in changes)

    def find(self, number: object) -> Change | None:
        """Return the change with *number*."""
        return self._all.get(number) if isinstance(number, int) else None

    def known(self) -> list[Change]:
        """Return all of which somebody may ask what has become of them, the oldest first."""
        return list(self._all.values())

    def adopt(self, changes: Iterable[Change]) -> None:
        """Go on with what `known` returned in the supervisor before this one; none was under way."""
        for change in changes:
            self._all[change.number] = change
            self._newest = change.number
            if not change.outcome:
                self._queue.append(change)

    def cancel(self, why: str) -> None:
        """End all that are not over: the server stops."""
        for change in [*self._queue, *([self.current] if self.current else [])]:
            change.outcome, change.message = "failed", why
        self._queue.clear()
        self.current = None

    def summary(self) -> dict[str, Any] | None:
        """Return what `status` shows: the change that is under way, else the last one; None without any."""
        change = self.current or (next(reversed(self._all.values())) if self._all else None)
        return change.summary() if change else None
