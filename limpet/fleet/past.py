"""What processes that have ended had counted, so that no total goes back when one is replaced.

Written by fleet/resources.py when a process was reaped; read by operate/status.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limpet.ipc.figures import Kind
from limpet.ipc.scoreboard import Row, Scoreboard


@dataclass(slots=True)
class Past:
    """The figures of the dead: of each slot's workers, of all dispatchers and of all terminators."""

    slots: list[Counter[str]] = field(default_factory=list)
    dispatchers: Counter[str] = field(default_factory=Counter)
    terminators: Counter[str] = field(default_factory=Counter)

    @classmethod
    def adopt(cls, kept: Mapping[str, Any]) -> Past:
        """Return what another supervisor has left, as `packed` made it."""
        slots = [Counter[str](each) for each in kept["slots"]]
        return cls(slots, Counter(kept["dispatchers"]), Counter(kept.get("terminators", {})))

    def packed(self) -> dict[str, Any]:
        """Return the figures as JSON can say them. (`dataclasses.asdict` would make counters of pairs.)"""
        slots = [dict(each) for each in self.slots]
        return {"slots": slots, "dispatchers": dict(self.dispatchers), "terminators": dict(self.terminators)}

    def grow(self, slots: int) -> None:
        """Make room for *slots* slots."""
        self.slots += [Counter() for _ in range(slots - len(self.slots))]

    def add_worker(self, slot: int, row: Row) -> None:
        """Take over the figures of a dead worker of *slot*, and clear its row for the next."""
        self.slots[slot].update(row.of_kind(Kind.TOTAL, Kind.PART))
        row.clear()

    def add_terminator(self, row: Row) -> None:
        """Take over the figures of a dead terminator, and clear what it had in hand."""
        self.terminators.update(row.of_kind(Kind.TOTAL))
        row.clear()

    def add_dispatcher(self, board: Scoreboard, row: int) -> None:
        """Take over the figures of a dead dispatcher, and clear what it had in hand."""
        self.dispatchers.update(board.dispatcher(row).of_kind(Kind.TOTAL, Kind.PART))
        board.dispatcher(row).clear()
        for slot in range(len(self.slots)):
            board.waiting(row, slot).set("waiting", 0)
