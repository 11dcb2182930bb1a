"""Rolling changes carried out: what roll.py says is due happens to the slots, and the log tells what has come of it.

Owns the changes of one server and their log lines. The supervisor calls `go_on` in each turn, and reports what became
of a slot; the life of a slot is lifecycle.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from limpet.errors import AppError
from limpet.lifecycle import Event
from limpet.roll import Change, Changes
from limpet.slot import MOST_PREDECESSORS, Member

log = logging.getLogger("limpet")


class Rolling:
    """The changes of one server."""

    def __init__(self, slots: list[Member], happened: Callable[[Member, Event], None]) -> None:
        """*slots* is the supervisor's own list, *happened* what it does about an event."""
        self.changes = Changes()
        self._slots = slots
        self._happened = happened

    def request(self, why: str, slots: Iterable[int], surge: int) -> Change:
        """Return a change that renews the workers of *slots*, at most *surge* at the same time."""
        return self.changes.request(why, slots, surge)

    def succeeded(self, member: Member) -> None:
        """Take note that a new worker of *member* is ready."""
        if self.changes.current is not None and member.role == "worker":
            self.changes.current.succeeded(member.number)

    def failed(self, member: Member) -> None:
        """Take note that the new worker of *member* did not become ready: that may end a change."""
        change = self.changes.current
        cause = member.cause or AppError(f"{member} did not start")
        if change is None or member.role != "worker" or not change.failed(member.number, cause.message):
            return
        for number in change.under_way:
            self._slots[number].give_up_successor()
        change.under_way.clear()

    def go_on(self, *, may_begin: bool = True) -> None:
        """Begin and end changes, and renew the slots that are due."""
        begun = self.changes.begin() if may_begin else None
        if begun is not None:
            log.info("%s begins: %d of %d workers", begun.why, begun.slots, len(self._slots))
        change = self.changes.current
        if change is None:
            return
        full = [slot.number for slot in self._slots if len(slot.predecessors) >= MOST_PREDECESSORS]
        for number in change.due([slot.life.state for slot in self._slots], full):
            self._happened(self._slots[number], Event.RENEW)
        if change.is_over():
            self.changes.end()
            if change.outcome == "done":
                log.info("%s done: %d new workers", change.why, change.renewed)
            else:
                log.error(
                    "%s failed: %s; %d of %d workers are new, the others go on",
                    *(change.why, change.message, change.renewed, change.slots),
                )

    def cancel(self, why: str) -> None:
        """End all changes: the server stops."""
        self.changes.cancel(why)
