"""What a figure is: its meaning, how it behaves in time, its unit; and the figures that are looked up, not counted.

Pure. What processes count, in cells of shared memory, is declared in ipc/scoreboard.py; what the supervisor or the
kernel knows without counting, below. Metrics, `limpet top`, warnings and docs/metrics.md are made from these
declarations.

1. The unit is a part of the name, as with settings: `_ns` (shown as seconds), `_s`, `_bytes`; else it is a number.
2. A total never goes back while the server lives: what a process had counted is kept when it has ended
   (operate/status.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

UNITS: Final[Mapping[str, tuple[str, float]]] = {"_ns": ("seconds", 1e-9), "_s": ("seconds", 1), "_bytes": ("bytes", 1)}
"""By the end of a figure's name its unit as it is shown, and what to multiply with."""


class Kind(Enum):
    """How a figure behaves in time."""

    TOTAL = "counter"  # only ever grows
    NOW = "gauge"  # what there is at this moment
    CLOCK = "clock"  # a monotonic time, or bits: for limpet itself, readers show what follows from it
    PART = "histogram"  # one cell of a histogram: a total, but shown with the others


class Figure(NamedTuple):
    """One figure. *label* is name and value for one of several figures that are shown as one."""

    meaning: str
    kind: Kind = Kind.TOTAL
    label: tuple[str, str] | None = None


BOUNDS_NS: Final = (
    *(50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000),
    *(10_000_000, 25_000_000, 100_000_000, 1_000_000_000, 10_000_000_000),
)
"""Upper bounds of all histograms but for the last cell, which has none."""


def histogram(name: str, meaning: str) -> dict[str, Figure]:
    """Return the cells of the histogram *name*, in order: a count for each bound, one for the rest, and the sum."""
    counts = {f"{name}_{number}": Figure(meaning, Kind.PART) for number in range(len(BOUNDS_NS) + 1)}
    return {**counts, f"{name}_sum_ns": Figure(meaning, Kind.PART)}


def cumulative(name: str, figures: Mapping[str, float]) -> tuple[list[tuple[float, float]], float]:
    """Return the histogram *name* of *figures*: for each bound, in seconds, how many are not above it; and the sum."""
    counts = [figures.get(f"{name}_{number}", 0) for number in range(len(BOUNDS_NS) + 1)]
    bounds = [bound / 1e9 for bound in BOUNDS_NS] + [float("inf")]
    return [(bound, sum(counts[: at + 1])) for at, bound in enumerate(bounds)], figures.get(f"{name}_sum_ns", 0) / 1e9


def unit(name: str) -> tuple[str, str, float]:
    """Return the figure's *name* without its unit, that unit in words, and what to multiply with to show it."""
    for end, (words, factor) in UNITS.items():
        if name.endswith(end):
            return name.removesuffix(end), words, factor
    return name, "", 1


SLOT: Final[Mapping[str, Figure]] = {
    "up": Figure("1 while the slot has a worker that is ready, else 0", Kind.NOW),
    "generation": Figure("how many workers the slot has had", Kind.NOW),
    "queued": Figure(
        "connections that wait for the slot's worker: in its channel, its backlog, or a dispatcher", Kind.NOW
    ),
    "draining": Figure("predecessors that still drain", Kind.NOW),
    "heartbeat_age_s": Figure(
        "time since the worker's last heartbeat, which comes twice a second; none where its server has no event loop",
        Kind.NOW,
    ),
    "resident_bytes": Figure("resident memory of the worker in charge", Kind.NOW),
    "cpu_s": Figure("CPU time that the worker in charge has used; begins anew with each worker"),
}
"""Looked up for each slot."""

SERVER: Final[Mapping[str, Figure]] = {
    "serving": Figure("1 while clients can connect, else 0", Kind.NOW),
    "stopping": Figure("1 from the command to stop on", Kind.NOW),
    "slots": Figure("slots in the table", Kind.NOW),
    "upgrades": Figure("times that the supervisor was replaced in place"),
    "uptime_s": Figure("time since this supervisor began", Kind.NOW),
}
"""Looked up for the whole server."""

TABLES: Final[Mapping[str, str]] = {
    "learned": "learned ids of the slot; when its part of a row is full, the id that was unused longest makes room",
    "copies": "paused copies of moved connections (`--max-copies`); the one used longest ago is closed",
    "queue": "connections held back by dispatchers for the slot (`--queue`); when full, clients get 503",
    "pending": "connections whose head a dispatcher awaits (`--max-pending`); when full, the oldest gets 503",
    "workers": "rows of the scoreboard, one for each worker process",
}
"""What is bounded, and what happens when it is full. Each is shown as what is used and what may be."""
