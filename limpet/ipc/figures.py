"""What a figure is: its meaning, how it behaves in time, its unit. Also the figures that are looked up, not counted.

This file owns the declarations of looked-up figures, which the supervisor or the kernel knows without counting. The
figures that processes count in shared memory are declared in ipc/scoreboard.py. Metrics, `limpet top`, warnings and
docs/metrics.md are made from both. Pure.

1. The unit is the end of the name, as with settings: `_ns` (shown in seconds), `_s`, `_bytes`. A name without one of
   these is a number.
2. A total never decreases while the server lives: the counts of a process are kept when it has ended
   (operate/status.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

UNITS: Final[Mapping[str, tuple[str, float]]] = {"_ns": ("seconds", 1e-9), "_s": ("seconds", 1), "_bytes": ("bytes", 1)}
"""For each end of a name: the unit in which the figure is shown, and the factor that converts to it."""


class Kind(Enum):
    """How a figure behaves in time."""

    TOTAL = "counter"  # only grows
    NOW = "gauge"  # the value at this moment
    CLOCK = "clock"  # a monotonic time, or bits. Never shown itself: limpet computes other figures from it
    PART = "histogram"  # one cell of a histogram: a total that is shown together with the other cells


class Figure(NamedTuple):
    """One figure. *label* is the name and value of a label, for one of several figures that are shown as one."""

    meaning: str
    kind: Kind = Kind.TOTAL
    label: tuple[str, str] | None = None


BOUNDS_NS: Final = (
    *(50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000),
    *(10_000_000, 25_000_000, 100_000_000, 1_000_000_000, 10_000_000_000),
)
"""Upper bounds of the cells of all histograms. One more cell follows, without a bound."""


def histogram(name: str, meaning: str) -> dict[str, Figure]:
    """Return the cells of histogram *name* in order: a count for each bound, a count for the rest, and the sum."""
    counts = {f"{name}_{number}": Figure(meaning, Kind.PART) for number in range(len(BOUNDS_NS) + 1)}
    return {**counts, f"{name}_sum_ns": Figure(meaning, Kind.PART)}


def cumulative(name: str, figures: Mapping[str, float]) -> tuple[list[tuple[float, float]], float]:
    """Return histogram *name* of *figures*: for each bound in seconds the count of values up to it; and the sum."""
    counts = [figures.get(f"{name}_{number}", 0) for number in range(len(BOUNDS_NS) + 1)]
    bounds = [bound / 1e9 for bound in BOUNDS_NS] + [float("inf")]
    return [(bound, sum(counts[: at + 1])) for at, bound in enumerate(bounds)], figures.get(f"{name}_sum_ns", 0) / 1e9


def unit(name: str) -> tuple[str, str, float]:
    """Return *name* without its unit, the unit in words, and the factor that converts a value to that unit."""
    for end, (words, factor) in UNITS.items():
        if name.endswith(end):
            return name.removesuffix(end), words, factor
    return name, "", 1


SLOT: Final[Mapping[str, Figure]] = {
    "up": Figure("1 while the slot has a ready worker, else 0", Kind.NOW),
    "generation": Figure("how many workers the slot has had", Kind.NOW),
    "queued": Figure(
        "connections that wait for the slot's worker: in its channel, in its backlog, or in a dispatcher", Kind.NOW
    ),
    "draining": Figure("former workers of the slot that still drain", Kind.NOW),
    "heartbeat_age_s": Figure(
        "time since the worker's last heartbeat, which comes twice a second; absent if its server has no event loop",
        Kind.NOW,
    ),
    "bus_queued_bytes": Figure(
        "memory of messages of the bus that the slot's workers have yet to read; without memory files", Kind.NOW
    ),
    "resident_bytes": Figure("resident memory of the slot's current worker", Kind.NOW),
    "cpu_s": Figure("CPU time that the slot's current worker has used; starts at 0 with each new worker"),
}
"""Figures that are looked up for each slot."""

SERVER: Final[Mapping[str, Figure]] = {
    "serving": Figure("1 while clients can connect, else 0", Kind.NOW),
    "stopping": Figure("1 after the command to stop, else 0", Kind.NOW),
    "slots": Figure("slots in the table", Kind.NOW),
    "upgrades": Figure("times the supervisor was replaced in place"),
    "uptime_s": Figure("time since this supervisor started", Kind.NOW),
}
"""Figures that are looked up for the whole server."""

TABLES: Final[Mapping[str, str]] = {
    "learned": "learned ids of the slot; when its part of a row is full, the id unused for longest is dropped",
    "copies": "paused copies of moved connections (`--max-copies`); when full, the copy unused for longest is closed",
    "queue": "connections that dispatchers hold for the slot (`--queue`); when full, clients get 503",
    "pending": "connections without a complete request head (`--max-pending`); when full, the oldest gets 503",
    "workers": "rows of the scoreboard, one for each worker process",
}
"""Tables with a bound, and what happens when each is full. Each is shown as two figures: used, and allowed."""
