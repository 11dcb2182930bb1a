"""The memory of the bus: who listens to which topic, what was lost, and how many bytes are under way.

This file owns the layout of two memory files, which the supervisor makes and each participant of the bus opens. It does
not know messages or channels. roster.py writes which participant has which row; bus.py does everything else.

How it works: each participant has a row. It writes the digest of a topic into its row before `subscribe` returns, and
then counts its version up. A publisher that has seen this version need not search the row again. It reads the version
before it searches, so it never misses a change.

1. Each cell has one writer. The supervisor writes the serial number of a row, and clears a row that nobody has. The
   participant writes the rest of its row. A pair of publisher and receiver has cells that only the publisher writes.
2. A full row hears everything: the participant then drops what nobody in it asked for.
3. What a publisher lost for a receiver is counted for each entry of the receiver's row. The count has a tag of topic
   and serial number, so it is never taken for the count of a later topic or a later participant.
4. Any participant may write anything here, as it runs the user's code. So a number from here is at most an index into
   this memory, checked before, and whoever reads nonsense loses messages and nothing else.

If you change this, also change: `FORM`, which two versions that share the memory must agree on.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import zlib
from typing import Final

from limpet.ipc.scoreboard import MAX_WORKERS
from limpet.routing.digests import blake2b
from limpet.system import memfile

BRIDGES: Final = 8  # rows after those of the workers, whose numbers are those of the scoreboard
ROWS: Final = MAX_WORKERS + BRIDGES
TOPICS: Final = 1024  # entries of a row: 8 KiB, which a publisher searches in about a microsecond
ANY: Final = TOPICS  # in place of an entry, for topics that found no room in the row
_CELL: Final = 8
_HEADER: Final = 8  # cells before the entries of a row; those without a name are for later versions
_SERIAL, _VERSION, _USED, _UNNAMED, _TAKEN = range(5)
_CHANGES, _HEIGHT = range(2)  # cells of the whole memory: changes of the roster, and how many rows were ever used
_ROW: Final = _HEADER + TOPICS
_ROWS_AT: Final = 8
_LOST_AT: Final = _ROWS_AT + ROWS * _ROW
_SENT_AT: Final = _LOST_AT + ROWS * ROWS
_CELLS: Final = _SENT_AT + ROWS * ROWS  # 26 MB, of which the kernel provides only pages that are in use
FORM: Final = [ROWS, TOPICS, _HEADER, "SERIAL VERSION USED UNNAMED TAKEN", 1]
_LOSS: Final = struct.Struct("=Q")
_COUNT_BITS: Final = 32
_COUNT_MASK: Final = (1 << _COUNT_BITS) - 1
_ALL_BITS: Final = (1 << 64) - 1


_gate: Final = threading.Lock()


def fence() -> None:
    """Have all processors see what was written before this ahead of what is written after it; likewise for reading.

    Python has no barrier. Letting a lock go and taking it again is one, which only other machines than x86 need.
    """
    for _ in range(2):
        with _gate:
            pass


def digest(topic: str) -> bytes:
    """Return the 8 bytes that stand for *topic* in a row; they are never all zero."""
    return blake2b(topic.encode(), digest_size=_CELL).digest().replace(bytes(_CELL), b"\1" * _CELL)


def tag(topic: bytes, serial: int) -> int:
    """Return what marks the losses of the topic with digest *topic*, or of b"" for `ANY`, for participant *serial*."""
    return zlib.crc32(serial.to_bytes(_CELL, "big") + topic)


class Memory:
    """The two memory files. They stay open until the process ends, so that children can inherit them."""

    def __init__(self, fds: tuple[int, int]) -> None:
        self.fds = fds
        self._map = mmap.mmap(fds[0], _CELLS * _CELL)
        self.cells = memoryview(self._map).cast("Q")
        self._losses = fds[1]

    @classmethod
    def create(cls) -> Memory:
        """Return an empty memory. Runs in the supervisor."""
        return cls((memfile.create_shared("limpet-bus", _CELLS * _CELL), memfile.create("limpet-bus-losses")))

    # The roster: written by the supervisor.

    def begin(self, row: int, serial: int) -> None:
        """Give *row*, which nobody has, to the participant *serial*."""
        at = self._row(row)
        self.cells[at : at + _ROW] = memoryview(bytes(_ROW * _CELL)).cast("Q")
        self.cells[_HEIGHT] = max(self.height, row + 1)
        self.settle(row, self.sent(row) & _ALL_BITS)
        self.cells[at + _SERIAL] = serial
        self._add(_CHANGES, 1)

    def end(self, row: int) -> None:
        """Note that the participant of *row* has ended: nobody sends to it any more."""
        self.cells[self._row(row) + _SERIAL] = 0
        self._add(_CHANGES, 1)

    @property
    def changes(self) -> int:
        """How often the roster has changed."""
        return self.cells[_CHANGES]

    @property
    def height(self) -> int:
        """How many rows, from the first, may be in use."""
        return min(self.cells[_HEIGHT], ROWS)

    def serial(self, row: int) -> int:
        """Return who has *row*; 0 if nobody has."""
        return self.cells[self._row(row) + _SERIAL]

    # The interest: written by each participant in its own row.

    def version_at(self, row: int) -> int:
        """Return the place of the cell that changes whenever the interest of *row* does."""
        return self._row(row) + _VERSION

    def write(self, row: int, entry: int, topic: bytes) -> None:
        """Make *topic* entry number *entry* of *row*; bytes of zero clear the entry."""
        at = self._row(row)
        self.cells[at + _HEADER + entry] = int.from_bytes(topic, sys.byteorder)
        self.cells[at + _USED] = max(self.cells[at + _USED], entry + 1)
        fence()
        self._add(at + _VERSION, 1)

    def hear_all(self, row: int, *, wanted: bool) -> None:
        """Make *row* hear the topics that are not in it, too."""
        at = self._row(row)
        self.cells[at + _UNNAMED] = wanted
        fence()
        self._add(at + _VERSION, 1)

    def find(self, row: int, topic: bytes) -> int | None:
        """Return the entry of *topic* in *row*, `ANY` if the row hears all topics, or None if it does not hear it."""
        at = self._row(row)
        start = (at + _HEADER) * _CELL
        end = start + min(self.cells[at + _USED], TOPICS) * _CELL
        found = self._map.find(topic, start, end)
        while found >= 0 and (found - start) % _CELL:
            found = self._map.find(topic, found + 1, end)
        if found >= 0:
            return (found - start) // _CELL
        return ANY if self.cells[at + _UNNAMED] else None

    # What was lost: written by the publisher of each pair.

    def lost_signals(self, receiver: int) -> memoryview[int]:
        """Return for each publisher how many messages it has ever lost for the row *receiver*."""
        at = _LOST_AT + receiver * ROWS
        return self.cells[at : at + self.height]

    def losses(self, receiver: int, publisher: int, entry: int, tag: int) -> int:
        """Return how many messages to *entry* of *receiver* the row *publisher* has lost, for this *tag* alone."""
        found = os.pread(self._losses, _CELL, _place(receiver, publisher, entry))
        value = _LOSS.unpack(found)[0] if len(found) == _CELL else 0
        return value & _COUNT_MASK if value >> _COUNT_BITS == tag else 0

    def lose(self, receiver: int, publisher: int, entry: int, tag: int, count: int) -> None:
        """Note that *publisher* has now lost *count* messages to *entry* of *receiver*. Raises OSError."""
        value = tag << _COUNT_BITS | count & _COUNT_MASK
        os.pwrite(self._losses, _LOSS.pack(value), _place(receiver, publisher, entry))
        self._add(_LOST_AT + receiver * ROWS + publisher, 1)

    # Bytes of memory files in a channel: sent is written by the publisher of each pair, taken by the receiver.

    def under_way(self, receiver: int) -> int:
        """Return how many bytes of memory files wait for the row *receiver*."""
        return self.sent(receiver) - self.cells[self._row(receiver) + _TAKEN]

    def send(self, receiver: int, publisher: int, size: int) -> None:
        """Note that *publisher* sends a memory file of *size* bytes, or with a negative *size* that it did not."""
        self._add(_SENT_AT + receiver * ROWS + publisher, size)

    def take(self, receiver: int, size: int) -> None:
        """Note that *receiver* has taken a memory file of *size* bytes."""
        self._add(self._row(receiver) + _TAKEN, size)

    def sent(self, receiver: int) -> int:
        """Return how many bytes of memory files were ever sent to the row *receiver*."""
        at = _SENT_AT + receiver * ROWS
        return sum(self.cells[at : at + self.height])

    def settle(self, receiver: int, sent: int) -> None:
        """Note that *receiver* has taken everything of the *sent* bytes, because its channel is empty."""
        self.cells[self._row(receiver) + _TAKEN] = sent

    def _add(self, at: int, amount: int) -> None:
        self.cells[at] = (self.cells[at] + amount) & _ALL_BITS  # who writes nonsense here must not raise elsewhere

    def _row(self, row: int) -> int:
        return _ROWS_AT + row * _ROW


def _place(receiver: int, publisher: int, entry: int) -> int:
    """Return where the losses of a pair are in the file: pairs of low rows first, so that the file stays small."""
    high, low = max(receiver, publisher), min(receiver, publisher)
    pair = high * high + (high + low if receiver >= publisher else low)
    return (pair * (TOPICS + 1) + entry) * _CELL
