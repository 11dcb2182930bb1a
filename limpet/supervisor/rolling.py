"""Rolling changes carried out: the slots that are due get new workers, and the log says how the change went.

Owns the changes of one server and their log lines. fleet/changes.py decides which slots are due; fleet/lifecycle.py
holds the life of a slot. The supervisor calls `go_on` in each turn, and reports what became of each new worker.

1. Terminators run no user code, so they are renewed only after an upgrade. An old one lives as long as its connections,
   and nothing waits for it.
2. Dispatchers are renewed after an upgrade, and as the last step of a reload. They run the same code as the workers,
   including key functions, and by then the workers have shown that this code starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from limpet.errors import AppError
from limpet.fleet.changes import RELOAD, Change
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import MOST_PREDECESSORS, Member

log = logging.getLogger("limpet")


class Rolling:
    """The changes of one server."""

    def __init__(self, fleet: Fleet, apply: Callable[[Member, Event], None]) -> None:
        """*apply* lets an event happen to a member."""
        self._fleet = fleet
        self._apply = apply

    def request(self, why: str, slots: Iterable[int], surge: int) -> Change:
        """Return a change that renews the workers of *slots*, at most *surge* at the same time."""
        return self._fleet.changes.request(why, slots, surge)

    def register(self, why: str, slots: int) -> Change:
        """Return a change that adds or removes *slots* slots. scaling.py carries it out."""
        return self._fleet.changes.register(why, slots)

    def succeeded(self, member: Member) -> None:
        """Record that a new worker of *member* is ready."""
        if self._fleet.changes.current is not None and member.role == "worker":
            self._fleet.changes.current.succeeded(member.number)

    def failed(self, member: Member) -> None:
        """Record that the new process of *member* did not become ready. That may end a change."""
        change = self._fleet.changes.current
        cause = member.cause or AppError(f"{member} did not start")
        if member.role != "worker" and member.life.state is State.READY:
            log.error(
                "%s stays in charge, because its successor did not start: %s",
                member,
                cause.message,
                extra={"event": "successor_failed", **member.about()},
            )
            if change is not None and change.is_through() and member.role == "dispatcher":
                change.outcome, change.message = "failed", cause.message
        if change is None or member.role != "worker" or not change.failed(member.number, cause.message):
            return
        for number in change.under_way:
            self._fleet.slots[number].give_up_successor()
        change.under_way.clear()

    def go_on(self, *, may_begin: bool = True) -> None:
        """Start and end changes, and renew the slots that are due."""
        begun = self._fleet.changes.begin() if may_begin else None
        if begun is not None:
            log.info(
                "%s begins: %d of %d workers",
                begun.why,
                begun.slots,
                len(self._fleet.slots),
                extra={"event": "change_begun"},
            )
        change = self._fleet.changes.current
        if change is None:
            self._renew_dispatchers()
            return
        full = [slot.number for slot in self._fleet.slots if len(slot.predecessors) >= MOST_PREDECESSORS]
        for number in change.due([slot.life.state for slot in self._fleet.slots], full):
            self._apply(self._fleet.slots[number], Event.RENEW)
        if change.is_through() and not change.outcome and self._last_step(change):
            return
        if change.is_over():
            self._fleet.changes.end()
            if change.outcome == "done":
                log.info("%s done: %d new workers", change.why, change.renewed, extra={"event": "change_done"})
            else:
                log.error(
                    "%s failed: %s; %d of %d workers are new, the old ones keep serving",
                    *(change.why, change.message, change.renewed, change.slots),
                    extra={"event": "change_failed"},
                )

    def _last_step(self, change: Change) -> bool:
        """Renew the dispatchers if *change* is a reload. Return whether dispatchers are still being renewed."""
        if change.why == RELOAD and not change.is_in_last_step:
            change.is_in_last_step = True
            for each in self._fleet.dispatchers:
                each.is_outdated = True
        return self._renew_dispatchers()

    def _renew_dispatchers(self) -> bool:
        """Start to renew the dispatchers and terminators with older code.

        Return whether any dispatcher is still to be renewed.
        """
        for each in (*self._fleet.dispatchers, *self._fleet.terminators):
            if each.is_outdated and each.life.state is State.READY and len(each.predecessors) < MOST_PREDECESSORS:
                self._apply(each, Event.RENEW)
        return any(each.is_outdated or each.life.state is State.RENEWING for each in self._fleet.dispatchers)

    def cancel(self, why: str) -> None:
        """End all changes, because the server is stopping."""
        self._fleet.changes.cancel(why)
