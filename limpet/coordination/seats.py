"""The seat of this process among those that count: a number that no other living process of the server has.

Owns which seat is whose. A seat is a byte of the shared memory file that a process locks for its life
(coordination/place.py), and a page of that file, which only the holder of the seat writes. Counters and metrics use it.

1. A process takes the first free seat when it counts for the first time. When it dies, the kernel frees the seat. The
   next holder adds to what it finds in the page, so no count is lost and the number of pages in use stays small.
2. A forked child has not inherited the lock, so it takes a seat of its own.
3. The first cell of a page says that the seat was taken once. Whoever takes a seat marks all pages up to it first, so a
   reader can stop at the first page without a mark.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from limpet.coordination import place

_MARK: Final = 1
_guard = threading.Lock()
_mine: int | None = None


def mine() -> int:
    """Return the seat of this process. Raises RuntimeError if too many processes count. Blocks never."""
    global _mine
    if _mine is None:
        with _guard:
            if _mine is None:
                _mine = _taken()
    return _mine


def _taken() -> int:
    here = place.here()
    for seat in range(place.SEATS):
        if here.try_lock(place.SEAT_LOCKS + seat):
            for each in range(seat + 1):
                here.seat(each)[0] = _MARK
            return seat
    raise RuntimeError(f"{place.SEATS} processes of this server count already")


def _forget() -> None:
    global _guard, _mine
    _guard, _mine = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
