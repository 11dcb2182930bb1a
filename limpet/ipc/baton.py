"""The right to read a connection that several workers have: its states and the memory that tells who has it.

Pure: cells of shared memory come in as a sequence, time as an argument. Owns what a baton may do; moving/mover.py moves
bytes and descriptors, servers/ hold the connections.

How it works: a connection that has moved stays open, paused, in each worker that has seen it. Which of them may read
it is written in one cell: an epoch, a state, and who.

    ENDED  nobody: the connection is over, or the cell was never used
    HELD   the worker with the serial number in the cell reads it
    SENT   it is under way in a channel since the time in the cell, with a descriptor and the bytes already read
    GIVEN  the same, but nobody waits for an answer on it

                claim                send                 take
       ENDED ----------> HELD(me) ----------> SENT(now) ----------> HELD(receiver)
         ^                |  ^ keep (channel full) |
         +---- end -------+  +---------------------+      verdict: a holder that died, or SENT for too long -> ENDED

1. A cell is written by the holder; by the sender and then the receiver of a SENT baton; and by anybody who finds
   that its holder is dead. The message passes through the kernel, so the writes are in that order.
2. While a baton is SENT its sender keeps the copy: a message without descriptor may come back (moving/mover.py).
   Nothing is acknowledged: that the state is HELD says that it was taken. A message that its receiver did not live to
   read is read by the successor.
3. A worker that dies between reading a message and `take`, a few microseconds, leaves SENT for ever: it ends after
   `patience_s`. In every other case the copies learn at once, by `verdict`, that the holder is dead.
4. An epoch makes a copy of an earlier connection in the same cell notice that it is stale.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

CELLS_PER_WORKER: Final = 4096  # connections that a worker may be the first to move; more move without a copy
_LOOK_AGAIN_S: Final = 1.0  # to look at all cells takes 4 ms, which a full segment would cost each move
_WHO_BITS: Final = 38  # serial number of a worker, or milliseconds: 8 years
_STATE_BITS: Final = 2
_EPOCH_BITS: Final = 64 - _WHO_BITS - _STATE_BITS
_EPOCH_AT: Final = _WHO_BITS + _STATE_BITS
_WHO_MASK: Final = (1 << _WHO_BITS) - 1
_STATE_MASK: Final = (1 << _STATE_BITS) - 1
_EPOCH_MASK: Final = (1 << _EPOCH_BITS) - 1
FORM: Final = [_EPOCH_BITS, _STATE_BITS, _WHO_BITS, "ENDED HELD SENT GIVEN"]  # what two versions must agree on


# States, plain numbers: they are read and written for each move, and members of an Enum cost 0.1 us each in 3.11.
ENDED: Final = 0
HELD: Final = 1
SENT: Final = 2
GIVEN: Final = 3
_UNDER_WAY_AT: Final = _WHO_BITS + 1  # the bit that SENT and GIVEN have, and the others have not


class Verdict(Enum):
    """What to do with a paused copy."""

    KEEP = "keep"
    FORGET = "forget"  # the connection has ended: close the copy
    SHUT = "shut"  # its holder died: shut the connection down, then close the copy
    REFUSE = "refuse"  # its message was not taken in time: answer 503 first, since no response is under way
    END = "end"  # the same for one that was idle: a 503 would be taken for the answer to a request not sent yet


Baton = tuple[int, int]
"""One connection's cell, in one use of it: its place and an epoch. No class: one is made for each move."""


class Batons:
    """One worker's view of the cells. *segment* are the cells that it may claim, *serial* is its number."""

    def __init__(self, cells: memoryview[int] | list[int], segment: range, serial: int, patience_s: float) -> None:
        self._cells = cells
        self.places = len(cells)
        self._segment = segment
        self.serial = serial
        self._held = HELD << _WHO_BITS | serial & _WHO_MASK  # in a cell, behind the epoch, when it is held here
        self._patience_ms = int(patience_s * 1000)
        self._free: list[int] = []
        self._look_again_at = 0.0  # for cells that others have ended
        self._alive: Collection[int] = frozenset()
        self._newest = 0

    def alive(self, serials: Collection[int], newest: int) -> None:
        """Take note that of the workers up to the serial number *newest* those in *serials* live."""
        self._alive, self._newest, self._look_again_at = frozenset(serials), newest, 0.0

    def is_dead(self, serial: int) -> bool:
        """Return whether the worker with the number *serial* is known to have died."""
        return serial <= self._newest and serial not in self._alive

    def claim(self, now: float) -> Baton | None:
        """Return a baton, held, for a connection that moves for the first time; None when all cells are in use."""
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
        """Let go of *baton*, right before its message is sent; *is_idle* says that nobody waits for an answer."""
        place, epoch = baton
        since = int(now * 1000) & _WHO_MASK
        self._cells[place] = epoch << _EPOCH_AT | (GIVEN if is_idle else SENT) << _WHO_BITS | since

    def keep(self, baton: Baton) -> None:
        """Hold *baton* again, since its message could not be sent."""
        self._write(baton, HELD, self.serial)

    def take(self, baton: Baton) -> bool:
        """Hold *baton*, whose message has arrived; return False if its connection has ended meanwhile."""
        place, epoch = baton
        cells = self._cells
        if cells[place] >> _UNDER_WAY_AT != epoch << 1 | 1:
            return False
        cells[place] = epoch << _EPOCH_AT | self._held
        return True

    def is_sent(self, baton: Baton) -> bool:
        """Return whether the connection is under way."""
        place, epoch = baton
        return self._cells[place] >> _UNDER_WAY_AT == epoch << 1 | 1

    def end(self, baton: Baton) -> None:
        """Note that the connection has ended; the caller holds the baton, or acts on its verdict."""
        place, epoch = baton
        if self._read(place)[0] == epoch:
            self._write(baton, ENDED, 0)
            if place in self._segment:
                self._free.append(place)  # may stand there already: `_next_free` looks again

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
