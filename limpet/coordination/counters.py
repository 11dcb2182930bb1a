"""`limpet.counter`: numbers to which all workers of a server add.

Owns the names and values in the page of this process's seat (coordination/seats.py). A value is the sum over all seats.

1. Only this process writes its page, so adding waits for nobody, and a process that is stopped or killed in the middle
   holds up nobody. A value is one aligned store of 8 bytes.
2. An `add` that has returned is in shared memory: it survives the death of the process, and of all workers. A restart
   of the server begins at 0.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from limpet.coordination import place, seats
from limpet.routing.digests import blake2b

MOST_NAMES: Final = place.PAGE // 16 - 1
"""How many names the processes in one seat may use: each takes two cells of the page, after the mark."""


class Counter:
    """A number to which all workers add."""

    __slots__ = ("_digest", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._digest = blake2b(name.encode(), digest_size=8).digest()

    def __repr__(self) -> str:
        return f"<counter {self.name!r}: {self.value}>"

    def add(self, amount: int = 1) -> None:
        """Add *amount*. It is counted when this returns, whatever happens to the worker then.

        Raises RuntimeError if the server has too many names already. Blocks never.
        """
        with _guard:
            cells = _page()
            position = _positions.get(self._digest)
            if position is None:
                position = _positions[self._digest] = _claimed(cells, self._digest)
            cells[position] += amount

    def drop_dead(self) -> None:
        """Set to 0 what processes have added that are dead: for a number that says what living ones do now."""
        here, mine = place.here(), seats.mine()
        for seat, cell in here.seats_with(self._digest):
            if seat != mine and here.seat(seat)[cell + 1] and here.try_lock(place.SEAT_LOCKS + seat):
                here.seat(seat)[cell + 1] = 0
                here.unlock(place.SEAT_LOCKS + seat)

    def restart(self) -> None:
        """Set to 0 what the seat of this process has added, which was a dead one's before."""
        with _guard:
            cells = _page()
            if self._digest in _positions:
                cells[_positions[self._digest]] = 0

    @property
    def value(self) -> int:
        """What all workers, living and dead, have added since the server started."""
        here = place.here()
        return sum(here.seat(seat)[cell + 1] for seat, cell in here.seats_with(self._digest))


def counter(name: str) -> Counter:
    """Return the counter with this *name*. All workers of the server add to the same one.

    `add` returns at once and never loses what it has counted, not even when the worker is killed. A server has at most
    255 names.
    """
    return Counter(name)


_guard = threading.Lock()
_cells: memoryview[int] | None = None
_positions: dict[bytes, int] = {}  # by digest: the cell of the value in this process's page


def _page() -> memoryview[int]:
    global _cells
    if _cells is None:
        _cells = place.here().seat(seats.mine())
        for position in range(2, len(_cells), 2):
            if _cells[position]:
                _positions[_cells[position].to_bytes(8, "little", signed=True)] = position + 1
    return _cells


def _claimed(cells: memoryview[int], digest: bytes) -> int:
    position = next((each for each in range(2, len(cells), 2) if not cells[each]), None)
    if position is None:
        raise RuntimeError(f"this server has {MOST_NAMES} counters already: counters are not meant for single users")
    cells[position] = int.from_bytes(digest, "little", signed=True)
    return position + 1


def _forget() -> None:
    global _guard, _cells
    _guard, _cells = threading.Lock(), None
    _positions.clear()


os.register_at_fork(after_in_child=_forget)
