"""Scaling: more slots or fewer, while the server goes on.

Owns the order. More: the new slots get their workers, and when all are ready everybody takes the larger table at once.
Fewer: everybody takes the smaller table first, then the workers of the slots that are left out drain. The supervisor
calls `go_on` in each turn; what a table is belongs to routing/buckets.py.

1. A slot that was left out keeps its channels and listeners: 4 -> 2 -> 4 brings its clients home, and a listener that
   is closed would renumber the others (net/reuseport_group.py).
2. Who was sent to a slot by an old table, a moment before all have the new one, is served: a worker is started again
   for whoever waits there.
3. A new worker that does not become ready ends the change: nobody was told of the new slots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
from typing import TYPE_CHECKING, Final

from limpet.config.server_kinds import kind
from limpet.errors import ControlError, LimpetError, reason
from limpet.fleet.changes import Change
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.control_link import Message
from limpet.routing.buckets import MAX_SLOTS

if TYPE_CHECKING:
    from limpet.supervisor.supervisor import Supervisor

SCALING: Final = (signal.SIGTTIN, signal.SIGTTOU)
log = logging.getLogger("limpet")


class Scaling:
    """The number of slots of one server."""

    def __init__(self, server: Supervisor, *, has_scaled: bool = False) -> None:
        """*has_scaled* says whether the supervisor that this one replaces has changed their number."""
        self._server = server
        self._change: Change | None = None
        self._target = 0
        self._told = len(server.slots)  # how many slots all children know
        self.has_scaled = has_scaled  # connections may be where an old table has sent them

    @property
    def slots(self) -> int:
        """How many slots are in the table."""
        return self._server.router.slots

    @property
    def is_under_way(self) -> bool:
        """Whether the number of slots is being changed."""
        return self._change is not None

    def obey(self, number: int) -> None:
        """Have one slot more or less, as the signal *number* says; while the server starts or scales it does not."""
        with contextlib.suppress(LimpetError):
            self.request(self.slots + (1 if number == signal.SIGTTIN else -1))

    def request(self, slots: object) -> Change:
        """Begin to have *slots* slots. Raises ControlError."""
        if not isinstance(slots, int) or not 1 <= slots <= MAX_SLOTS:
            raise ControlError(f"`{slots}` is not a number of workers from 1 to {MAX_SLOTS}")
        if self._change is not None or self._server.stopping or not self._server.serving:
            raise ControlError("the server is starting, stopping or scaling", hint="`limpet status` shows its slots")
        self._change = self._server.rolling.changes.register(f"scaling to {slots}", abs(slots - self.slots))
        self._target = slots
        log.info("scaling from %d to %d workers", self.slots, slots)
        if slots < self.slots:
            self._use(slots)
            for slot in self._server.slots[slots:]:
                self._server.happened(slot, Event.STOP)
        elif slots > self.slots:
            self._grow(slots)
        return self._change

    def _grow(self, slots: int) -> None:
        server = self._server
        try:
            server.estate.grow(slots)
            server.backend.grow(slots)
        except (OSError, LimpetError) as error:
            self._end("failed", reason(error) if isinstance(error, OSError) else error.message)
            return
        server.slots += [Member("worker", number) for number in range(len(server.slots), slots)]
        for slot in server.slots[self.slots : slots]:
            server.happened(slot, Event.START)

    def go_on(self) -> None:
        """End the change that is under way if it is over; see to those who wait where nobody is any more."""
        server = self._server
        if self._change is not None:
            extra = server.slots[min(self._target, self.slots) :]
            if self._target > self.slots:
                self._go_on_growing(server.slots[self.slots : self._target])
            elif all(slot.life.state is State.STOPPED and not slot.predecessors for slot in extra):
                self._change.renewed = self._change.slots
                self._end("done")
            return
        for slot in server.slots[self.slots :]:
            owed = server.backend.queued(slot.number) or server.estate.waits(slot.number)
            if slot.life.state is State.STOPPED and owed:
                server.happened(slot, Event.START)
            elif slot.life.state is State.READY and not owed:
                server.happened(slot, Event.STOP)

    def _go_on_growing(self, new: list[Member]) -> None:
        assert self._change is not None
        self._change.renewed = sum(slot.life.state.serves for slot in new)
        failed = next((slot for slot in new if slot.life.state is State.BACKOFF), None)
        if failed is not None:
            for slot in new:
                self._server.happened(slot, Event.STOP)
            self._end("failed", failed.cause.message if failed.cause else f"{failed} did not start")
        elif self._change.renewed == len(new):
            self._use(self._target)
            self._end("done")

    def _use(self, slots: int) -> None:
        """Let everybody take the table of *slots* slots."""
        server = self._server
        server.settings = server.estate.settings = dataclasses.replace(server.settings, workers=slots)
        server.router.resize(slots)
        self.has_scaled = True
        self._tell_slots()
        server.tell_workers()
        server.backend.follow(server.router.owners)

    def news(self, up: list[bool]) -> Message:
        """Return what all children are told of the workers; *up* says of each slot whether its clients go there."""
        server, count = self._server, self.slots
        ready = [slot.child if slot.life.state.serves else None for slot in server.slots]
        refuses = server.settings.on_down == "refuse"
        return {
            "do": "workers",
            "slots": count,
            "scaled": self.has_scaled,
            "up": up[:count],
            "held": [slot.number for slot in server.slots if slot.is_held],
            "refused": [number for number, child in enumerate(ready) if refuses and not child],
            "rows": [child and child.row for child in ready[:count]],
            "alive": [child.serial for slot in server.slots for child in slot.children],
            "newest": server.estate.newest_serial,
        }

    def _tell_slots(self) -> None:
        """Pass the channels of new slots on to who was there before them."""
        channels = len(self._server.estate.channels)
        for number in range(self._told, channels):
            for member in self._server.members():
                for child in member.children:
                    self.tell_slot(member, child, number)
        self._told = channels

    def tell_slot(self, member: Member, child: Child, number: int) -> None:
        """Pass the channels of slot *number* on to *child*."""
        estate = self._server.estate
        if member.role == "dispatcher":
            child.link.send({"do": "slot", "slot": number}, estate.channels[number].fds)
        elif member.role == "worker" and kind(self._server.settings.server).moves:
            child.link.send({"do": "slot", "slot": number}, estate.moves[number].fds[:1])

    def _end(self, outcome: str, message: str = "") -> None:
        assert self._change is not None
        self._change.outcome, self._change.message = outcome, message
        level = logging.INFO if outcome == "done" else logging.ERROR
        log.log(level, "%s %s%s", self._change.why, outcome, f": {message}" if message else "")
        self._change = None
