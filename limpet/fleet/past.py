"""What ended processes had counted, so that no total decreases when a process is replaced.

Owns these sums: for the workers of each slot, for all dispatchers and for all terminators. It knows no processes, only
rows of the scoreboard. fleet/resources.py adds the row of a process after it was reaped; operate/status.py reads the
sums; supervisor/snapshot.py passes them on in an upgrade.
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
    """The figures of ended processes: for the workers of each slot, for all dispatchers, and for all terminators."""

    slots: list[Counter[str]] = field(default_factory=list)
    dispatchers: Counter[str] = field(default_factory=Counter)
    terminators: Counter[str] = field(default_factory=Counter)

    @classmethod
    def adopt(cls, kept: Mapping[str, Any]) -> Past:
        """Return what the previous supervisor left, in the form that `packed` made."""
        slots = [Counter[str](each) for each in kept["slots"]]
        return cls(slots, Counter(kept["dispatchers"]), Counter(kept.get("terminators", {})))

    def packed(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them. (`dataclasses.asdict` would turn the counters into pairs.)"""
        slots = [dict(each) for each in self.slots]
        return {"slots": slots, "dispatchers": dict(self.dispatchers), "terminators": dict(self.terminators)}

    def grow(self, slots: int) -> None:
        """Make room for *slots* slots."""
        self.slots += [Counter() for _ in range(slots - len(self.slots))]

    def add_worker(self, slot: int, row: Row) -> None:
        """Add the figures of a dead worker of *slot*, and clear its row for the next process."""
        self.slots[slot].update(row.of_kind(Kind.TOTAL, Kind.PART))
        row.clear()

    def add_terminator(self, row: Row) -> None:
        """Add the figures of a dead terminator, and clear its row."""
        self.terminators.update(row.of_kind(Kind.TOTAL))
        row.clear()

    def add_dispatcher(self, board: Scoreboard, row: int) -> None:
        """Add the figures of a dead dispatcher, and clear its row and its counts of waiting connections."""
        self.dispatchers.update(board.dispatcher(row).of_kind(Kind.TOTAL, Kind.PART))
        board.dispatcher(row).clear()
        for slot in range(len(self.slots)):
            board.waiting(row, slot).set("waiting", 0)
