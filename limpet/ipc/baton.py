"""The baton: the right to read a connection of which several workers have copies, kept in shared memory.

This file owns the states of a baton and their encoding in a cell. It does not know how bytes and descriptors move
(moving/mover.py does that), nor what a connection is (servers/ have those). Pure: cells of shared memory come in as a
sequence, and time comes in as an argument.

How it works: a connection that has moved stays open, paused, in each worker that has had it. One cell says which of
them may read it. A cell holds an epoch, a state, and either the serial number of a worker or a time.

    ENDED  no worker reads it: the connection is over, or the cell was never used
    HELD   the worker with the serial number in the cell reads it
    SENT   it has been under way in a channel since the time in the cell, with the bytes already read
    GIVEN  the same, but the connection is idle, so no client waits for a response

                claim                send                 take
       ENDED ----------> HELD(me) ----------> SENT(now) ----------> HELD(receiver)
         ^                |  ^ keep (channel full) |
         +---- end -------+  +---------------------+      verdict: the holder died, or SENT for too long -> ENDED

1. Only these write a cell: the holder; for a SENT baton first the sender and then the receiver; and any worker that
   finds the holder dead. The message passes through the kernel, so sender and receiver write in that order.
2. While a baton is SENT its sender keeps its copy, because a message without a descriptor may come back
   (moving/mover.py). There is no acknowledgement: the state HELD shows that the message was taken. If the receiver dies
   before it reads the message, the slot's next worker reads it.
3. A worker that dies between reading a message and `take`, which takes a few microseconds, leaves the baton SENT. It is
   lost once `patience_s` is over. In every other case `verdict` tells the copies at once that the holder is dead.
4. A cell is used for one connection after another. Its epoch shows a copy of an earlier connection that it is stale.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

CELLS_PER_WORKER: Final = 4096  # connections that a worker may be the first to move; further ones move without a copy
_LOOK_AGAIN_S: Final = 1.0  # between two searches of a full segment, each of which takes 4 ms
_WHO_BITS: Final = 38  # a worker's serial number, or a time in milliseconds, which wraps after 8 years
_STATE_BITS: Final = 2
_EPOCH_BITS: Final = 64 - _WHO_BITS - _STATE_BITS
_EPOCH_AT: Final = _WHO_BITS + _STATE_BITS
_WHO_MASK: Final = (1 << _WHO_BITS) - 1
_STATE_MASK: Final = (1 << _STATE_BITS) - 1
_EPOCH_MASK: Final = (1 << _EPOCH_BITS) - 1
FORM: Final = [_EPOCH_BITS, _STATE_BITS, _WHO_BITS, "ENDED HELD SENT GIVEN"]  # what two versions must agree on


# The states are plain numbers, since each move reads and writes them. In CPython 3.11 an Enum member costs 0.1 us.
ENDED: Final = 0
HELD: Final = 1
SENT: Final = 2
GIVEN: Final = 3
_UNDER_WAY_AT: Final = _WHO_BITS + 1  # position of the bit that only SENT and GIVEN have


class Verdict(Enum):
    """What a worker has to do with its paused copy."""

    KEEP = "keep"
    FORGET = "forget"  # the connection has ended: close the copy
    SHUT = "shut"  # the holder died: shut the connection down, then close the copy
    REFUSE = "refuse"  # the message was not taken in time: as SHUT, but answer 503 first, since no response has begun
    END = "end"  # the same for an idle connection, but no 503: the client would take it for the answer to a later one


Baton = tuple[int, int]
"""The place of a cell, and the epoch of one use of it. A plain tuple, because one is made for each move."""


class Batons:
    """One worker's view of the cells. *segment* is the range of cells that it may claim; *serial* is its number."""

    def __init__(self, cells: memoryview[int] | list[int], segment: range, serial: int, patience_s: float) -> None:
        self._cells = cells
        self.places = len(cells)
        self._segment = segment
        self.serial = serial
        self._held = HELD << _WHO_BITS | serial & _WHO_MASK  # a cell without its epoch, while held here
        self._patience_ms = int(patience_s * 1000)
        self._free: list[int] = []
        self._look_again_at = 0.0  # when to search again for cells that other workers have ended
        self._alive: Collection[int] = frozenset()
        self._newest = 0

    def alive(self, serials: Collection[int], newest: int) -> None:
        """Note that of all workers up to serial number *newest* only those in *serials* are alive."""
        self._alive, self._newest, self._look_again_at = frozenset(serials), newest, 0.0

    def is_dead(self, serial: int) -> bool:
        """Return whether the worker with serial number *serial* is known to be dead."""
        return serial <= self._newest and serial not in self._alive

    def claim(self, now: float) -> Baton | None:
        """Return a baton, HELD, for a connection that moves for the first time; None if all cells are in use."""
        place = self._next_free(now)
        if place is None and now >= self._look_again_at:
            self._look_again_at = now + _LOOK_AGAIN_S
            self._free = [place for place in reversed(self._segment) if self._is_free(place, now)]
            place = self._next_free(now)
        if place is None:
            return None
        baton = place, (self._read(place)[0] + 1) & _EPOCH_MASK
        self._write(baton, HELD, self.serial)
        return baton

    def send(self, baton: Baton, now: float, *, is_idle: bool = False) -> None:
        """Release *baton*, just before its message is sent. *is_idle* says that no client waits for a response."""
        place, epoch = baton
        since = int(now * 1000) & _WHO_MASK
        self._cells[place] = epoch << _EPOCH_AT | (GIVEN if is_idle else SENT) << _WHO_BITS | since

    def keep(self, baton: Baton) -> None:
        """Hold *baton* again, because its message could not be sent."""
        self._write(baton, HELD, self.serial)

    def take(self, baton: Baton) -> bool:
        """Hold *baton*, whose message has arrived. Return False if the connection has ended since it was sent."""
        place, epoch = baton
        cells = self._cells
        if cells[place] >> _UNDER_WAY_AT != epoch << 1 | 1:
            return False
        cells[place] = epoch << _EPOCH_AT | self._held
        return True

    def is_sent(self, baton: Baton) -> bool:
        """Return whether the message of *baton* is under way: SENT or GIVEN."""
        place, epoch = baton
        return self._cells[place] >> _UNDER_WAY_AT == epoch << 1 | 1

    def end(self, baton: Baton) -> None:
        """Note that the connection has ended. The caller must hold the baton, or act on its verdict."""
        place, epoch = baton
        if self._read(place)[0] == epoch:
            self._write(baton, ENDED, 0)
            if place in self._segment:
                self._free.append(place)  # it may be in the list already, so `_next_free` checks

    def verdict(self, baton: Baton, now: float) -> Verdict:
        """Return what to do with this worker's paused copy of the connection."""
        place, epoch = baton
        current, state, who = self._read(place)
        if current != epoch or state == ENDED:
            return Verdict.FORGET
        if not self._is_lost(state, who, now):
            return Verdict.KEEP
        return {HELD: Verdict.SHUT, SENT: Verdict.REFUSE}.get(state, Verdict.END)

    def _next_free(self, now: float) -> int | None:
        while self._free:
            place = self._free.pop()
            if self._is_free(place, now):
                return place
        return None

    def _is_free(self, place: int, now: float) -> bool:
        _, state, who = self._read(place)
        return state == ENDED or self._is_lost(state, who, now)

    def _is_lost(self, state: int, who: int, now: float) -> bool:
        if state == HELD:
            return self.is_dead(who)
        return int(now * 1000) - who > self._patience_ms

    def _read(self, place: int) -> tuple[int, int, int]:
        cell = self._cells[place]
        return cell >> _EPOCH_AT, cell >> _WHO_BITS & _STATE_MASK, cell & _WHO_MASK

    def _write(self, baton: Baton, state: int, who: int) -> None:
        place, epoch = baton
        self._cells[place] = epoch << _EPOCH_AT | state << _WHO_BITS | who & _WHO_MASK
