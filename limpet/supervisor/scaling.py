"""Scaling: more or fewer slots, while the server runs.

Owns the order of the steps. For more slots, the new slots get their workers; when all are ready, all processes switch
to the larger table at once. For fewer slots, all processes switch to the smaller table first; then the workers of the
removed slots drain. The supervisor calls `go_on` in each turn. routing/buckets.py builds the table.

1. A removed slot keeps its channels and listeners. So 4 -> 2 -> 4 brings its clients back to it, and no listener
   closes, which would renumber the others (net/reuseport_group.py).
2. A connection that was routed with the old table just before the switch is still served: if one is waiting in a
   removed slot, we restart a worker for it.
3. A new worker that does not become ready ends the change. No process has been told of the new slots by then.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable
from typing import Final

from limpet.errors import ControlError, LimpetError, reason
from limpet.fleet.changes import Change
from limpet.fleet.fleet import Fleet, Phase
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member
from limpet.routing.buckets import MAX_SLOTS
from limpet.supervisor.announcing import Announcer
from limpet.supervisor.rolling import Rolling

SCALING: Final = (signal.SIGTTIN, signal.SIGTTOU)
log = logging.getLogger("limpet")


class Scaling:
    """The number of slots of one server."""

    def __init__(
        self, fleet: Fleet, rolling: Rolling, announcer: Announcer, apply: Callable[[Member, Event], None]
    ) -> None:
        """*apply* lets an event happen to a member."""
        self._fleet = fleet
        self._rolling = rolling
        self._announcer = announcer
        self._apply = apply
        self._change: Change | None = None
        self._target = 0

    @property
    def slots(self) -> int:
        """The number of slots in the table."""
        return self._fleet.router.slots

    def obey(self, number: int) -> None:
        """Add or remove one slot, as the signal *number* says. While the server starts, stops or scales, do nothing."""
        with contextlib.suppress(LimpetError):
            self.request(self.slots + (1 if number == signal.SIGTTIN else -1))

    def request(self, slots: object) -> Change:
        """Start a change to *slots* slots. Raises ControlError."""
        if not isinstance(slots, int) or isinstance(slots, bool) or not 1 <= slots <= MAX_SLOTS:
            raise ControlError(f"invalid number of workers `{slots}`: expected 1 to {MAX_SLOTS}")
        if self._change is not None or self._fleet.phase is not Phase.SERVING:
            raise ControlError("the server is starting, stopping or scaling", hint="`limpet status` shows its slots")
        self._change = change = self._rolling.register(f"scaling to {slots}", abs(slots - self.slots))
        self._fleet.is_scaling = True
        self._target = slots
        log.info("scaling from %d to %d workers", self.slots, slots, extra={"event": "scaling_begun"})
        if slots < self.slots:
            self._use(slots)
            for slot in self._fleet.slots[slots:]:
                self._apply(slot, Event.STOP)
        elif slots > self.slots:
            self._grow(slots)  # if it fails, the change is already over
        return change

    def _grow(self, slots: int) -> None:
        fleet = self._fleet
        try:
            fleet.resources.grow(slots)
            fleet.backend.grow(slots)
        except (OSError, LimpetError) as error:
            self._end("failed", reason(error) if isinstance(error, OSError) else error.message)
            return
        fleet.slots += [Member("worker", number) for number in range(len(fleet.slots), slots)]
        for slot in fleet.slots[self.slots : slots]:
            self._apply(slot, Event.START)

    def go_on(self) -> None:
        """End a change that is finished. Start a worker where a connection waits in a removed slot."""
        fleet = self._fleet
        if self._change is not None:
            extra = fleet.slots[min(self._target, self.slots) :]
            if self._target > self.slots:
                self._go_on_growing(fleet.slots[self.slots : self._target])
            elif all(slot.life.state is State.STOPPED and not slot.predecessors for slot in extra):
                self._change.renewed = self._change.slots
                self._end("done")
            return
        for slot in fleet.slots[self.slots :]:
            owed = fleet.backend.queued(slot.number) or fleet.resources.waits(slot.number)
            if slot.life.state is State.STOPPED and owed:
                self._apply(slot, Event.START)
            elif slot.life.state is State.READY and not owed:
                self._apply(slot, Event.STOP)

    def _go_on_growing(self, new: list[Member]) -> None:
        assert self._change is not None
        self._change.renewed = sum(slot.life.state.serves for slot in new)
        failed = next((slot for slot in new if slot.life.state is State.BACKOFF), None)
        if failed is not None:
            for slot in new:
                self._apply(slot, Event.STOP)
            self._end("failed", failed.cause.message if failed.cause else f"{failed} did not start")
        elif self._change.renewed == len(new):
            self._use(self._target)
            self._end("done")

    def _use(self, slots: int) -> None:
        """Switch all processes to the table of *slots* slots."""
        fleet = self._fleet
        fleet.settings = fleet.resized(slots)
        fleet.resources.settings = fleet.settings
        fleet.router.resize(slots)
        fleet.has_scaled = True
        self._announcer.tell_slots()
        self._announcer.tell_workers(time.monotonic())
        fleet.backend.follow(fleet.router.owners)

    def _end(self, outcome: str, message: str = "") -> None:
        assert self._change is not None
        self._change.outcome, self._change.message = outcome, message
        level = logging.INFO if outcome == "done" else logging.ERROR
        log.log(
            level,
            "%s %s%s",
            self._change.why,
            outcome,
            f": {message}" if message else "",
            extra={"event": "scaled" if outcome == "done" else "scaling_failed"},
        )
        self._change = None
        self._fleet.is_scaling = False
