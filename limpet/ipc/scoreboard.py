"""The shared memory with the counters: who is where, how much passed, what waits.

Owns the layout of one memory file that the supervisor makes and every child maps. Knows nothing of what the figures
are for. The supervisor, dispatchers and workers write; `status` reads.

1. Each cell has exactly one writer, the process the row was given to, so no lock is needed; a reader may be one
   store behind, never in the middle of one (an aligned 8-byte store is one instruction on every 64-bit machine).
2. A row is given again only after the process that had it was reaped; its totals were added to the slot's before.
3. A cell is declared once, below, as a figure (ipc/figures.py); everything that shows it derives from there.

4. A supervisor that replaces itself (supervisor/upgrade.py) keeps the memory, and with it processes of another version.
   So a row has room for more cells than it has: `misfit` says whether two versions agree on those that both know.

If you add a cell: put it at the end of its table and into `status` or the metrics. A new part of the memory goes to the
end of _SIZES.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

from limpet.ipc.baton import CELLS_PER_WORKER
from limpet.ipc.figures import BOUNDS_NS, Figure, Kind, histogram
from limpet.routing.buckets import MAX_SLOTS
from limpet.routing.learned_ids import CELLS as LEARNED_CELLS
from limpet.system import descriptors

WORKER_CELLS: Final[Mapping[str, Figure]] = {
    "received": Figure("connections taken from the slot's channel or listeners"),
    "connections": Figure("client connections the worker has now", Kind.NOW),
    "requests": Figure("requests answered, a websocket counting as one"),
    "head_timeouts": Figure("connections whose request head did not arrive in time"),
    "returns": Figure("requests passed on, since they belong to another slot"),
    "misrouted": Figure(
        "requests served here although they seem to belong elsewhere: another worker had sent them here"
    ),
    "batons": Figure("requests that came on a connection of which this worker had a copy"),
    "returns_refused": Figure("requests refused: they belong to another slot, which could not take them in time"),
    "key_errors": Figure("key functions that raised or answered something that is not a key"),
    "copies": Figure("paused copies of connections that other workers read", Kind.NOW),
    "heads_too_large": Figure("connections refused by a worker: the request head was too large"),
    "cookies": Figure("cookies of `--by affinity` that were set"),
    "learned": Figure("ids learned"),
    "learned_hits": Figure("requests whose key was a learned id"),
    "learned_evicted": Figure("learned ids that had to make room for others"),
    "lost": Figure("requests refused: the worker that made their session is gone"),
    "asking_since_ns": Figure(
        "monotonic time since which the worker waits for a key function; 0 while it does not", Kind.CLOCK
    ),
    "given": Figure("idle connections given to another worker, as at the end of this one"),
    "beat_ns": Figure(
        "monotonic time of the last heartbeat, which comes through the event loop; 0 where there is none", Kind.CLOCK
    ),
    "lag_ns": Figure("how late the event loop came to the last heartbeat", Kind.NOW),
    "late_ns": Figure("how late the event loop came to its heartbeats, added up"),
    **histogram("handoff", "time from accepting a connection to its worker taking it from the channel"),
    "elements": Figure("elements of the key chain that have found a key, a bit for each", Kind.CLOCK),
    "tls_failures": Figure("connections that ended in the TLS handshake"),
    "address_refused": Figure("connections refused: the worker has `--max-connections-per-address` of the address"),
    "take_errors": Figure("times taking from a channel failed, as without a descriptor, and was put off"),
    "log_lines_lost": Figure("log lines lost: stderr could not be written, since nobody read it or a disk was full"),
    "keys_set": Figure(
        "workers whose application has set a cookie that is the key, to a value whose home is another slot"
    ),
}
DISPATCHER_CELLS: Final[Mapping[str, Figure]] = {
    "busy_since_ns": Figure(
        "monotonic time at which the current turn, or its latest search for a key, began; 0 in between", Kind.CLOCK
    ),
    "accepted": Figure("client connections accepted"),
    "pending": Figure("connections whose request head is awaited now", Kind.NOW),
    "handed": Figure("connections handed to a slot"),
    "keyless": Figure("connections in which the key chain found no key"),
    "key_errors": Figure("key functions that raised or answered something that is not a key"),
    "vanished": Figure("connections that the client ended before its request head was complete"),
    "refused_400": Figure("connections refused: not HTTP, or cut off in the request head", label=("status", "400")),
    "refused_408": Figure(
        "connections refused: the request head did not arrive in time; without an answer if nothing came",
        label=("status", "408"),
    ),
    "refused_431": Figure("connections refused: the request head was too large", label=("status", "431")),
    "refused_503": Figure(
        "connections refused: the slot's queue was full or too slow, or what `crowded_out` and `no_descriptor` say",
        label=("status", "503"),
    ),
    "accept_errors": Figure("times accepting failed and was put off"),
    "proxy_untrusted": Figure(
        "connections closed: the bind takes the PROXY protocol alone, and the peer is not in `--trust`"
    ),
    "proxy_headers_bad": Figure("connections closed: a trusted proxy sent no valid PROXY header, or none in time"),
    "same_address": Figure("connections of the same client address as the one before"),
    "elements": Figure("elements of the key chain that have found a key, a bit for each", Kind.CLOCK),
    "hellos_bad": Figure("connections closed: what came first, where the key chain looks for `sni`, was no TLS"),
    "refused_429": Figure(
        "connections refused: `--max-connections-per-address` others of the address wait for their request head",
        label=("status", "429"),
    ),
    "crowded_out": Figure("connections refused: `--max-pending` others came while their request head was awaited"),
    "no_descriptor": Figure("connections refused: the dispatcher had no free descriptor but those kept for that"),
    "failed_over": Figure("connections that waited for a slot, and were passed on since it stayed without a worker"),
    "room": Figure(
        "connections whose request head may be awaited at a time: `--max-pending`, or fewer for lack of descriptors",
        Kind.NOW,
    ),
    "log_lines_lost": Figure("log lines lost: stderr could not be written, since nobody read it or a disk was full"),
}
TERMINATOR_CELLS: Final[Mapping[str, Figure]] = {
    "tls_accepted": Figure("client connections of TLS accepted"),
    "handshakes": Figure("connections whose TLS handshake is awaited now", Kind.NOW),
    "relayed": Figure("connections whose TLS ends in the terminators now", Kind.NOW),
    "waiting": Figure("connections a terminator holds since the channel to the dispatchers is full", Kind.NOW),
    "tls_failures": Figure("connections that ended in the TLS handshake"),
    "accept_errors": Figure("times accepting failed and was put off"),
    "crowded_out": Figure("connections closed: `--max-pending` others came while their handshake was awaited"),
    "address_refused": Figure(
        "connections closed: `--max-connections-per-address` others of the address await their handshake"
    ),
    "refused_503": Figure("connections refused: no dispatcher took them in time", label=("status", "503")),
    "proxy_untrusted": Figure(
        "connections closed: the bind takes the PROXY protocol alone, and the peer is not in `--trust`"
    ),
    "proxy_headers_bad": Figure("connections closed: a trusted proxy sent no valid PROXY header"),
    "busy_since_ns": Figure("monotonic time at which the current turn began; 0 in between", Kind.CLOCK),
    "room": Figure("connections and handshakes that may be there at a time, each for two descriptors", Kind.NOW),
    "log_lines_lost": Figure("log lines lost: stderr could not be written, since nobody read it or a disk was full"),
}
WAITING_CELLS: Final[Mapping[str, Figure]] = {
    "waiting": Figure("connections a dispatcher holds since the slot's channel is full", Kind.NOW),
}
SUPERVISOR_CELLS: Final[Mapping[str, Figure]] = {
    "backlog_drops": Figure("attempts to connect that the kernel dropped, a backlog being full; clients repeat them"),
    "loops_blocked": Figure("times that the event loop of a worker was blocked for longer than `--block-warning`"),
    "hung": Figure("workers that were replaced since they hung"),
    "recycled": Figure("workers that were renewed for `--max-requests` or `--max-memory`"),
    "log_lines_lost": Figure("log lines lost: stderr could not be written, since nobody read it or a disk was full"),
}

DISPATCHER_ROWS: Final = 64  # of 16 dispatchers at most, each with a successor and predecessors that drain
TERMINATOR_ROWS: Final = 64  # likewise
MAX_WORKERS: Final = 4 * MAX_SLOTS  # rows: one in charge, one starting, and predecessors that still drain
_CELL_BYTES: Final = 8
_ROOM: Final = 64  # cells of a row, most of them for later versions
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
    """Return what the memory looks like in this version: the cells of each table by name, and the size of each part."""
    tables = {"worker": WORKER_CELLS, "dispatcher": DISPATCHER_CELLS, "waiting": WAITING_CELLS}
    tables |= {"supervisor": SUPERVISOR_CELLS, "terminator": TERMINATOR_CELLS}
    return {
        **{name: list(cells) for name, cells in tables.items()},
        "sizes": list(_SIZES),
    }


def misfit(other: Layout) -> str | None:
    """Return where a version with the layout *other* sees something else than this one in the same place, or None."""
    for name, own in layout().items():
        theirs = other.get(name, [])  # a version before this one may not have the table
        both = min(len(own), len(theirs))
        if own[:both] != theirs[:both]:
            return f"the table `{name}` of the scoreboard"
    return None


def position(name: str) -> int:
    """Return where in the row of a worker the cell *name* is."""
    return list(WORKER_CELLS).index(name)


class Row:
    """One row of cells by name. Only the process that the row was given to may `add` or `set`.

    Who counts for each move does so in `cells`, at a `position` asked for before: half of what `add` costs.
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
        """Make *value* the cell *name*'s."""
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
        """Return all cells by name."""
        return {name: int(self.cells[position]) for name, position in self._index.items()}

    def of_kind(self, *kinds: Kind) -> dict[str, int]:
        """Return the cells whose figures are of one of *kinds*, by name."""
        return {name: value for name, value in self.values().items() if self._figures[name].kind in kinds}


class Scoreboard:
    """The mapped memory file. `fd` stays open for the children to inherit; the process's end closes it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, sum(_SIZES) * _CELL_BYTES)).cast("Q")

    @classmethod
    def create(cls) -> Scoreboard:
        """Return a new scoreboard, all cells 0. Runs in the supervisor."""
        board = cls.adopt(descriptors.memory_file("limpet-scoreboard"))
        # A child that could make the file shorter would end every process that has mapped it, by SIGBUS; one that could
        # add seals would keep the next children out.
        fcntl.fcntl(board.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return board

    @classmethod
    def adopt(cls, fd: int) -> Scoreboard:
        """Return the scoreboard in the memory file *fd*, which a version that needs less may have made."""
        os.ftruncate(fd, max(os.fstat(fd).st_size, sum(_SIZES) * _CELL_BYTES))
        return cls(fd)

    def worker(self, row: int) -> Row:
        """Return the row of one worker process."""
        return self._row(0, row, WORKER_CELLS, _ROOM)

    def dispatcher(self, row: int) -> Row:
        """Return the row of one dispatcher process."""
        return self._row(_SIZES[0], row, DISPATCHER_CELLS, _ROOM)

    def waiting(self, row: int, slot: int) -> Row:
        """Return what the dispatcher process with that *row* counts of *slot*."""
        number = row * MAX_SLOTS + slot
        return self._row(sum(_SIZES[:2]), number, WAITING_CELLS, _WAITING_ROOM)

    def batons(self) -> memoryview:
        """Return the cells of all batons; a worker claims from its own segment. Not rows: see ipc/baton.py."""
        return self._cells[sum(_SIZES[:3]) : sum(_SIZES[:4])]

    def supervisor(self) -> Row:
        """Return the row of the supervisor."""
        return self._row(sum(_SIZES[:4]), 0, SUPERVISOR_CELLS, _ROOM)

    def learned(self) -> memoryview[int]:
        """Return the cells of the learned table (routing/learned_ids.py); a worker writes those of its slot."""
        return self._cells[sum(_SIZES[:5]) : sum(_SIZES[:6])]

    def terminator(self, row: int) -> Row:
        """Return the row of one terminator process."""
        return self._row(sum(_SIZES[:6]), row, TERMINATOR_CELLS, _ROOM)

    def _row(self, start: int, number: int, names: Mapping[str, Figure], room: int) -> Row:
        begin = start + number * room
        return Row(self._cells[begin : begin + len(names)], names)


BEAT_S: Final = 0.5  # between two heartbeats
