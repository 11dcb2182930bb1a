"""What the supervisor knows about its server: settings, slots, processes, and which changes are running.

Owns these facts, and the questions that can be answered from them. It acts on nothing: the actors in supervisor/ change
it, and operate/ reads it. A unit test can make a `Fleet` without starting a process.

1. Each field has one writer, which the comment beside the field names; `tests/unit/fleet/test_fleet.py` compares the
   comments with the code. A field without a writer keeps the object that it started with.
2. Time comes in as an argument, in monotonic seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from limpet.config.settings import Settings
from limpet.errors import ControlError
from limpet.fleet.changes import Changes
from limpet.fleet.lifecycle import State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.fleet.resources import Resources
from limpet.net.backend import Backend
from limpet.routing.router import Router


class Phase(StrEnum):
    """The phase of life that a server is in."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(slots=True, eq=False, kw_only=True)
class Fleet:
    """One server. The comment beside a field names the module of supervisor/ that writes it."""

    settings: Settings  # scaling: the number of workers changes
    router: Router
    backend: Backend
    resources: Resources
    slots: list[Member]
    dispatchers: list[Member]
    terminators: list[Member]
    began_at: float
    started_in: str  # the directory as it was entered: a symbolic link in it may point elsewhere later
    changes: Changes = field(default_factory=Changes)
    is_serving: bool = False  # supervisor: clients can connect
    is_stopping: bool = False  # shutdown
    has_scaled: bool = False  # scaling: open connections may be in the slot that an older table chose
    is_scaling: bool = False  # scaling
    upgrades: int = 0  # how often the supervisor was replaced in its process
    upgrade_refusal: str | None = None  # upgrade: why the last upgrade did not happen
    is_upgrade_due: bool = False  # upgrade: it waits only for changes that are running, so no new change may begin

    def __repr__(self) -> str:
        return f"<fleet {self.phase}: {', '.join(map(str, self.members()))}>"

    @property
    def phase(self) -> Phase:
        """The phase of life that the server is in."""
        if self.is_stopping:
            return Phase.STOPPING
        return Phase.SERVING if self.is_serving else Phase.STARTING

    @property
    def is_changing(self) -> bool:
        """Whether slots are being renewed or their number is changing."""
        return self.is_scaling or self.changes.current is not None

    def members(self) -> list[Member]:
        """Return all members, in the order in which they start and stop."""
        return [*self.terminators, *self.dispatchers, *self.slots]

    def processes(self) -> Iterator[tuple[Member, Child]]:
        """Yield each process that has not been reaped, together with its member."""
        for member in self.members():
            for child in member.children:
                yield member, child

    def slot(self, number: object) -> Member:
        """Return the slot with this *number*. Raises ControlError if there is none."""
        found = next((slot for slot in self.slots if slot.number == number), None)
        if found is None:
            raise ControlError(f"there is no slot {number}", hint="`limpet status` shows all slots")
        return found

    def refuse_unless_serving(self) -> None:
        """Raise ControlError while the server is starting or stopping."""
        if self.phase is not Phase.SERVING:
            raise ControlError(f"the server is {'stopping' if self.is_stopping else 'starting'}")

    def shown(self) -> list[Member]:
        """Return the slots that are in the table or still have processes."""
        return [
            slot
            for slot in self.slots
            if slot.number < self.router.slots or slot.children or slot.life.state is not State.STOPPED
        ]

    def up(self, now: float) -> list[bool]:
        """Return for each slot whether its clients are sent to it, also if they wait there for its next worker."""
        return [slot.is_up(self.settings, now) for slot in self.slots]

    def resized(self, slots: int) -> Settings:
        """Return the settings with *slots* as the number of workers."""
        return dataclasses.replace(self.settings, workers=slots)
