"""What all children are told: which slots are up, which worker is in each slot, and the channels of new slots.

Owns these messages and when they are sent. Dispatchers use them to route connections, workers to pass connections on.
Called by supervisor.py when a slot goes up or down, by processes.py after each death and each READY, by scaling.py
after a change of the table, and by commands.py when a slot is drained.

1. The router of this process is updated first, so `limpet where` never answers with an older table than a child's.
2. A child that reads slowly only gets the latest message (ipc/control_link.py).
"""

from __future__ import annotations

from limpet.config.server_kinds import kind
from limpet.fleet.fleet import Fleet, Phase
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.orders import Slot, Workers


class Announcer:
    """Tells the children of one server what they must know about each other."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._told_up: list[bool] = []
        self._told_slots = len(fleet.slots)  # the number of slots whose channels all children have

    def is_due(self, now: float) -> bool:
        """Return whether a slot has gone up or down since the last message."""
        return self._fleet.up(now) != self._told_up

    def tell_workers(self, now: float) -> None:
        """Tell all children which workers live, and which row of the scoreboard belongs to the worker of each slot."""
        fleet, up = self._fleet, self._fleet.up(now)
        if fleet.router.follow(up[: fleet.router.slots]) and fleet.phase is Phase.SERVING:
            fleet.backend.follow(fleet.router.owners)
        self._told_up = up
        order = _workers(fleet, up)
        for _, child in fleet.processes():
            child.tell(order)

    def tell_slots(self) -> None:
        """Pass the channels of new slots to the processes that were started before them."""
        channels = len(self._fleet.resources.channels)
        for number in range(self._told_slots, channels):
            for member, child in self._fleet.processes():
                self.tell_slot(member, child, number)
        self._told_slots = channels

    def tell_slot(self, member: Member, child: Child, number: int) -> None:
        """Pass the channels of slot *number* to *child*."""
        resources = self._fleet.resources
        if member.role == "dispatcher":
            child.tell(Slot(number, resources.channels[number].fds))
        elif member.role == "worker" and kind(self._fleet.settings.server).moves:
            child.tell(Slot(number, resources.moves[number].fds[:1]))


def _workers(fleet: Fleet, up: list[bool]) -> Workers:
    """Return the order about the workers. *up* says for each slot whether its clients are sent there."""
    count = fleet.router.slots
    ready = [slot.child if slot.life.state.serves else None for slot in fleet.slots]
    refuses = fleet.settings.on_down == "refuse"
    return Workers(
        slots=count,
        rows=[None if child is None else child.row for child in ready[:count]],
        up=up[:count],
        held=[slot.number for slot in fleet.slots if slot.is_held],
        refused=[number for number, child in enumerate(ready) if refuses and not child],
        alive=[child.serial for slot in fleet.slots for child in slot.children],
        newest=fleet.resources.newest_serial,
        scaled=fleet.has_scaled,
    )
