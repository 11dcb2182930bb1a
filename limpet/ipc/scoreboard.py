"""The scoreboard: shared memory in which every process counts what it does.

This file owns the layout of one memory file, which the supervisor makes and every child maps. It does not know what
the figures are used for. The supervisor, dispatchers, terminators and workers write; `status` reads.

1. Each cell has exactly one writer, the process that got the row, so no lock is needed. A reader may be one store
   behind, but never sees half a store: an aligned store of 8 bytes is one instruction on every 64-bit machine.
2. A row is given to another process only after its process was reaped and its totals were added to the slot's.
3. Each cell is declared once, below, as a figure (ipc/figures.py). Everything that shows it uses that declaration.
4. A supervisor that replaces itself (supervisor/upgrade.py) keeps the memory, and also processes of another version.
   So a row has room for more cells than it has now, and `misfit` says whether two versions agree on the cells that
   both know.

If you change this, also change: for a new cell, the end of its table, and `status` or the metrics; for a new part of
the memory, the end of _SIZES.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

from limpet.ipc.baton import CELLS_PER_WORKER
from limpet.ipc.figures import BOUNDS_NS, Figure, Kind, histogram
from limpet.routing.buckets import MAX_SLOTS
from limpet.routing.learned_ids import CELLS as LEARNED_CELLS
from limpet.system import memfile

WORKER_CELLS: Final[Mapping[str, Figure]] = {
    "received": Figure("connections taken from the slot's channel or listeners"),
    "connections": Figure("client connections that the worker has now", Kind.NOW),
    "requests": Figure("requests answered; a websocket counts as one"),
    "head_timeouts": Figure("connections whose request head did not arrive in time"),
    "returns": Figure("requests passed to another worker because they belong to its slot"),
    "misrouted": Figure(
        "requests served here although they seem to belong to another slot: another worker had sent them here"
    ),
    "batons": Figure("requests that came on a connection of which this worker had a copy"),
    "returns_refused": Figure("requests refused: they belong to another slot, which did not take them in time"),
    "key_errors": Figure("calls of key functions that raised an exception or returned something that is not a key"),
    "copies": Figure("paused copies of connections that other workers read", Kind.NOW),
    "heads_too_large": Figure("connections refused by a worker: the request head was too large"),
    "cookies": Figure("cookies set by `--by affinity`"),
    "learned": Figure("ids learned"),
    "learned_hits": Figure("requests whose key was a learned id"),
    "learned_evicted": Figure("learned ids dropped to make room for others"),
    "lost": Figure("requests refused: the worker that made their session is gone"),
    "asking_since_ns": Figure(
        "monotonic time at which the worker's current call of a key function began; 0 without one", Kind.CLOCK
    ),
    "given": Figure("idle connections given to another worker, for example when this one ends"),
    "beat_ns": Figure(
        "monotonic time of the last heartbeat, which comes through the event loop; 0 without an event loop", Kind.CLOCK
    ),
    "lag_ns": Figure("delay of the last heartbeat of the event loop", Kind.NOW),
    "late_ns": Figure("sum of the delays of all heartbeats of the event loop"),
    **histogram("handoff", "time from accepting a connection to its worker taking it from the channel"),
    "elements": Figure("elements of the key chain that have found a key, one bit each", Kind.CLOCK),
    "tls_failures": Figure("connections that ended in the TLS handshake"),
    "address_refused": Figure(
        "connections refused: the worker has `--max-connections-per-address` others from the address"
    ),
    "take_errors": Figure("times taking from a channel failed and was put off, for example without a free descriptor"),
    "log_lines_lost": Figure("log lines lost because stderr was not read or a disk was full"),
    "keys_set": Figure("workers whose application has set the key cookie to a value that belongs to another slot"),
    "minted": Figure("ids minted, by `limpet.mint` or `--mint`"),
    "bus_published": Figure("messages that the application has published on the bus"),
    "bus_sent": Figure("messages of the bus sent to other processes of this server; one for each receiver"),
    "bus_dropped": Figure("messages of the bus not sent because the channel of the receiver was full"),
    "bus_received": Figure("messages of the bus received from other processes of this server"),
    "bus_lost": Figure(
        "messages of the bus that subscriptions have missed: their queue or the worker's channel was full"
    ),
    "bus_invalid": Figure("messages on the channel of the bus that were not valid, and dropped"),
    "bus_subscriptions": Figure("subscriptions that the application has now", Kind.NOW),
}
DISPATCHER_CELLS: Final[Mapping[str, Figure]] = {
    "busy_since_ns": Figure(
        "monotonic time at which the current turn, or its latest search for a key, began; 0 in between", Kind.CLOCK
    ),
    "accepted": Figure("client connections accepted"),
    "pending": Figure("connections whose request head the dispatcher waits for now", Kind.NOW),
    "handed": Figure("connections handed to a slot"),
    "keyless": Figure("connections in which the key chain found no key"),
    "key_errors": Figure("calls of key functions that raised an exception or returned something that is not a key"),
    "vanished": Figure("connections that the client closed before its request head was complete"),
    "refused_400": Figure("connections refused: not HTTP, or cut off in the request head", label=("status", "400")),
    "refused_408": Figure(
        "connections refused: the request head did not arrive in time (no response if nothing came)",
        label=("status", "408"),
    ),
    "refused_431": Figure("connections refused: the request head was too large", label=("status", "431")),
    "refused_503": Figure(
        "connections refused: the slot's queue was full or too slow, or for a reason counted in `crowded_out` or "
        "`no_descriptor`",
        label=("status", "503"),
    ),
    "accept_errors": Figure("times accepting failed and was put off"),
    "proxy_untrusted": Figure(
        "connections closed: the bind takes only the PROXY protocol, and the peer is not in `--trust`"
    ),
    "proxy_headers_bad": Figure("connections closed: a trusted proxy sent no valid PROXY header, or none in time"),
    "same_address": Figure("connections from the same client address as the connection before"),
    "elements": Figure("elements of the key chain that have found a key, one bit each", Kind.CLOCK),
    "hellos_bad": Figure("connections closed: the key chain looks for `sni`, and the first bytes were not TLS"),
    "refused_429": Figure(
        "connections refused: `--max-connections-per-address` others from the address wait for their request head",
        label=("status", "429"),
    ),
    "crowded_out": Figure("connections refused: `--max-pending` newer ones came before their request head did"),
    "no_descriptor": Figure("connections refused: the dispatcher had only the descriptors reserved for refusals"),
    "failed_over": Figure("connections passed to another slot because their slot stayed without a worker"),
    "room": Figure(
        "connections whose request head a dispatcher may wait for at a time: `--max-pending`, or fewer for lack of "
        "descriptors",
        Kind.NOW,
    ),
    "log_lines_lost": Figure("log lines lost because stderr was not read or a disk was full"),
}
TERMINATOR_CELLS: Final[Mapping[str, Figure]] = {
    "tls_accepted": Figure("client connections of TLS accepted"),
    "handshakes": Figure("connections whose TLS handshake the terminator waits for now", Kind.NOW),
    "relayed": Figure("connections whose TLS ends in the terminators now", Kind.NOW),
    "waiting": Figure("connections a terminator holds because the channel to the dispatchers is full", Kind.NOW),
    "tls_failures": Figure("connections that ended in the TLS handshake"),
    "accept_errors": Figure("times accepting failed and was put off"),
    "crowded_out": Figure("connections closed: `--max-pending` newer ones came before their handshake ended"),
    "address_refused": Figure(
        "connections closed: `--max-connections-per-address` others from the address are in their handshake"
    ),
    "refused_503": Figure("connections refused: no dispatcher took them in time", label=("status", "503")),
    "proxy_untrusted": Figure(
        "connections closed: the bind takes only the PROXY protocol, and the peer is not in `--trust`"
    ),
    "proxy_headers_bad": Figure("connections closed: a trusted proxy sent no valid PROXY header"),
    "busy_since_ns": Figure("monotonic time at which the current turn began; 0 in between", Kind.CLOCK),
    "room": Figure("connections and handshakes a terminator may have at a time; each needs two descriptors", Kind.NOW),
    "log_lines_lost": Figure("log lines lost because stderr was not read or a disk was full"),
}
WAITING_CELLS: Final[Mapping[str, Figure]] = {
    "waiting": Figure("connections a dispatcher holds because the slot's channel is full", Kind.NOW),
}
SUPERVISOR_CELLS: Final[Mapping[str, Figure]] = {
    "backlog_drops": Figure("connection attempts the kernel dropped because a backlog was full; clients repeat them"),
    "loops_blocked": Figure("times a worker's event loop was blocked for longer than `--block-warning`"),
    "hung": Figure("workers replaced because they hung"),
    "recycled": Figure("workers replaced because of `--max-requests` or `--max-memory`"),
    "log_lines_lost": Figure("log lines lost because stderr was not read or a disk was full"),
}

DISPATCHER_ROWS: Final = 64  # for at most 16 dispatchers, each with a successor and predecessors that drain
TERMINATOR_ROWS: Final = 64  # likewise for terminators
MAX_WORKERS: Final = 4 * MAX_SLOTS  # rows: for each slot its worker, one that starts, and predecessors that still drain
_CELL_BYTES: Final = 8
_ROOM: Final = 64  # cells for a row; the rest of them are for later versions
_WAITING_ROOM: Final = 4
_SIZES: Final = (
    MAX_WORKERS * _ROOM,
    DISPATCHER_ROWS * _ROOM,
    DISPATCHER_ROWS * MAX_SLOTS * _WAITING_ROOM,
    MAX_WORKERS * CELLS_PER_WORKER,
    _ROOM,
    LEARNED_CELLS,
    TERMINATOR_ROWS * _ROOM,
)
Layout = dict[str, list[Any]]


def layout() -> Layout:
    """Return the layout of the memory in this version: the names of each table's cells, and the size of each part."""
    tables = {"worker": WORKER_CELLS, "dispatcher": DISPATCHER_CELLS, "waiting": WAITING_CELLS}
    tables |= {"supervisor": SUPERVISOR_CELLS, "terminator": TERMINATOR_CELLS}
    return {
        **{name: list(cells) for name, cells in tables.items()},
        "sizes": list(_SIZES),
    }


def misfit(other: Layout) -> str | None:
    """Return the first place where the layout *other* of another version contradicts this one's; None if none does."""
    for name, own in layout().items():
        theirs = other.get(name, [])  # an older version may lack the table
        both = min(len(own), len(theirs))
        if own[:both] != theirs[:both]:
            return f"the table `{name}` of the scoreboard"
    return None


def position(name: str) -> int:
    """Return the position of the cell *name* in the row of a worker."""
    return list(WORKER_CELLS).index(name)


class Row:
    """One row of cells by name. Only the process that got the row may `add` or `set`.

    Code that counts once for each move uses `cells` directly, at a `position` looked up before: half the cost of `add`.
    """

    __slots__ = ("_figures", "_index", "cells")

    def __init__(self, cells: memoryview, names: Mapping[str, Figure]) -> None:
        self.cells = cells
        self._figures = names
        self._index = {name: position for position, name in enumerate(names)}

    def __getitem__(self, name: str) -> int:
        return int(self.cells[self._index[name]])

    def add(self, name: str, amount: int = 1) -> None:
        """Add *amount* to the cell *name*."""
        self.cells[self._index[name]] += amount

    def set(self, name: str, value: int) -> None:
        """Set the cell *name* to *value*."""
        self.cells[self._index[name]] = value

    def observe(self, first: str, value_ns: int) -> None:
        """Count *value_ns*, at least 0, in the histogram whose first cell is *first*."""
        start = self._index[first]
        self.cells[start + bisect_left(BOUNDS_NS, value_ns)] += 1
        self.cells[start + len(BOUNDS_NS) + 1] += value_ns

    def clear(self) -> None:
        """Set all cells to 0, before the row is given to another process."""
        for position in range(len(self.cells)):
            self.cells[position] = 0

    def values(self) -> dict[str, int]:
        """Return the values of all cells by name."""
        return {name: int(self.cells[position]) for name, position in self._index.items()}

    def of_kind(self, *kinds: Kind) -> dict[str, int]:
        """Return the values of the cells of *kinds*, by name."""
        return {name: value for name, value in self.values().items() if self._figures[name].kind in kinds}


class Scoreboard:
    """The mapped memory file. `fd` stays open until the process ends, so that children can inherit it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, sum(_SIZES) * _CELL_BYTES)).cast("Q")

    @classmethod
    def create(cls) -> Scoreboard:
        """Return a new scoreboard with all cells 0. Runs in the supervisor."""
        return cls(memfile.create_shared("limpet-scoreboard", sum(_SIZES) * _CELL_BYTES))

    @classmethod
    def adopt(cls, fd: int) -> Scoreboard:
        """Return the scoreboard in the memory file *fd*. A file from a version that needs less memory is extended."""
        os.ftruncate(fd, max(os.fstat(fd).st_size, sum(_SIZES) * _CELL_BYTES))
        return cls(fd)

    def worker(self, row: int) -> Row:
        """Return the row of one worker process."""
        return self._row(0, row, WORKER_CELLS, _ROOM)

    def dispatcher(self, row: int) -> Row:
        """Return the row of one dispatcher process."""
        return self._row(_SIZES[0], row, DISPATCHER_CELLS, _ROOM)

    def waiting(self, row: int, slot: int) -> Row:
        """Return the cells in which the dispatcher process with row *row* counts for *slot*."""
        number = row * MAX_SLOTS + slot
        return self._row(sum(_SIZES[:2]), number, WAITING_CELLS, _WAITING_ROOM)

    def batons(self) -> memoryview:
        """Return the cells of all batons (ipc/baton.py). They are not rows: a worker claims from its own segment."""
        return self._cells[sum(_SIZES[:3]) : sum(_SIZES[:4])]

    def supervisor(self) -> Row:
        """Return the row of the supervisor."""
        return self._row(sum(_SIZES[:4]), 0, SUPERVISOR_CELLS, _ROOM)

    def learned(self) -> memoryview[int]:
        """Return the cells of the learned table (routing/learned_ids.py). A worker writes only those of its slot."""
        return self._cells[sum(_SIZES[:5]) : sum(_SIZES[:6])]

    def terminator(self, row: int) -> Row:
        """Return the row of one terminator process."""
        return self._row(sum(_SIZES[:6]), row, TERMINATOR_CELLS, _ROOM)

    def _row(self, start: int, number: int, names: Mapping[str, Figure], room: int) -> Row:
        begin = start + number * room
        return Row(self._cells[begin : begin + len(names)], names)


BEAT_S: Final = 0.5  # seconds between two heartbeats
