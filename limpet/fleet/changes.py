"""Rolling changes: some slots get new workers, one after another, and a slot switches only to a worker that is ready.

Owns which slot is next, the outcome of each change, and the queue of changes. Pure: it starts no process.
supervisor/rolling.py asks which slots are due, renews them, and reports the result. fleet/lifecycle.py decides how one
slot gets a new worker.

1. At most `surge` slots of a change are being renewed at any time. Changes run one after the other.
2. A change ends at the first slot whose new worker does not become ready. The other slots would fail in the same way,
   or the server would be left with a mixture of old and new workers. Slots that already have their new worker keep it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from limpet.fleet.lifecycle import State

RELOAD: Final = "reload"  # the reason of a change that renews all workers, and then the dispatchers
_REMEMBERED: Final = 64  # finished changes that are kept, so that clients can ask for their outcome


@dataclass
class Change:
    """One rolling change. `outcome` stays empty until the change is over."""

    number: int
    why: str  # first words of its log lines, such as `reload`
    waiting: list[int]
    surge: int
    slots: int = 0
    under_way: set[int] = field(default_factory=set)
    renewed: int = 0
    has_begun: bool = False
    is_in_last_step: bool = False  # of a reload: all slots are done, and the dispatchers are being renewed
    outcome: str = ""  # "done" or "failed"
    message: str = ""

    def __post_init__(self) -> None:
        self.slots = len(self.waiting)

    def due(self, states: Sequence[State], busy: Iterable[int]) -> list[int]:
        """Return the slots to renew now.

        *states* holds the state of each slot. Slots in *busy* have no room for another process.
        """
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
        """Record that *slot* has a new worker that is ready."""
        if slot in self.under_way:
            self.under_way.remove(slot)
            self.renewed += 1

    def failed(self, slot: int, message: str) -> bool:
        """Record that the new worker of *slot* did not become ready. Return whether that ends this change."""
        if slot not in self.under_way:
            return False
        self.under_way.remove(slot)
        self.waiting, self.outcome, self.message = [], "failed", message
        return True

    def is_through(self) -> bool:
        """Return whether no slot is left to renew."""
        return not (self.waiting or self.under_way)

    def is_over(self) -> bool:
        """Return whether nothing is left to do, and record the outcome."""
        if self.is_through() and not self.outcome:
            self.outcome = "done"
        return bool(self.outcome)

    def summary(self) -> dict[str, Any]:
        """Return what `limpet reload` and `limpet status` show about this change."""
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
    """All changes of one server, oldest first."""

    def __init__(self) -> None:
        self.current: Change | None = None
        self._queue: deque[Change] = deque()
        self._all: dict[int, Change] = {}
        self._newest = 0

    def request(self, why: str, slots: Iterable[int], surge: int) -> Change:
        """Return a change that will renew *slots*.

        If an equal change for the same reason is already queued, return that one.
        """
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
        """Return a change that adds or removes *slots* slots.

        supervisor/scaling.py carries it out. Clients ask for its outcome as they do for any other change.
        """
        self._newest += 1
        change = Change(self._newest, why, [], 0, has_begun=True)
        change.slots = slots
        self._all[change.number] = change
        return change

    def begin(self) -> Change | None:
        """Start the next change and return it. Return None while another change is running, or if none is queued."""
        if self.current is not None or not self._queue:
            return None
        self.current = self._queue.popleft()
        self.current.has_begun = True
        return self.current

    def end(self) -> Change:
        """Remove and return the current change, which is over."""
        assert self.current is not None
        over, self.current = self.current, None
        return over

    def involves(self, slot: int) -> bool:
        """Return whether a change that is not over will renew *slot*."""
        changes = [*self._queue, *([self.current] if self.current else [])]
        return any(slot in change.waiting or slot in change.under_way for change in changes)

    def find(self, number: object) -> Change | None:
        """Return the change with this *number*, or None."""
        return self._all.get(number) if isinstance(number, int) else None

    def known(self) -> list[Change]:
        """Return all changes whose outcome a client can still ask for, oldest first."""
        return list(self._all.values())

    def adopt(self, changes: Iterable[Change]) -> None:
        """Continue with the changes that `known` returned in the previous supervisor. None of them was running."""
        for change in changes:
            self._all[change.number] = change
            self._newest = change.number
            if not change.outcome:
                self._queue.append(change)

    def cancel(self, why: str) -> None:
        """End all changes that are not over, because the server is stopping. *why* is their message."""
        for change in [*self._queue, *([self.current] if self.current else [])]:
            change.outcome, change.message = "failed", why
        self._queue.clear()
        self.current = None

    def summary(self) -> dict[str, Any] | None:
        """Return the change that `status` shows: the one that is running, or else the last one.

        None if there was no change.
        """
        change = self.current or (next(reversed(self._all.values())) if self._all else None)
        return change.summary() if change else None
