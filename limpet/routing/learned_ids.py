"""The learned table: ids that the application made, and the slot whose worker made each.

Pure: the memory comes in as 8-byte cells, time as an argument. Owns their layout. Refuses to know what an id is (a
digest of the hasher) and who asks: routing/router.py looks ids up, sessions/sessions.py learns them.

How it works: the memory belongs to the scoreboard, which the supervisor keeps, so nothing that a child does or suffers
loses an entry, and nobody has to be told: what a worker has stored the next dispatcher that looks finds. A digest
selects a row; there each slot has WAYS entries of its own, side by side, so that one search finds a digest whoever
learned it. An entry is two cells:

    digest | check 9 bits, forgotten 1, generation 14, seen 40        seen: milliseconds, monotonic

1. A slot's entries are written by its worker alone, so there is no lock. While a predecessor drains there are two: they
   look for room from different ends.
2. To replace an entry: digest 0, then the second cell, then the digest. A reader, who copies the row, may see the old
   digest with the new cell, which is harmless (the slot is the place), or a new one with an old cell, which the check
   tells. A process that dies between the stores has lost an id that no client has heard of yet.
3. Several slots may have the same id: the one seen last counts. One that forgets an id of another leaves a mark.
4. Full is not an error: the entry seen longest ago makes room, and is counted.
5. Memory is touched only where ids are: 4 KiB for each row and 16 slots, 4 MiB at most for up to 16 slots.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from operator import attrgetter
from typing import Final, NamedTuple

from limpet.routing.buckets import MAX_SLOTS

ROWS: Final = 1024
WAYS: Final = 16  # entries of a slot in a row; with a quarter of them in use a row overflows once in a million
_HEADER: Final = 512  # cells: whether anything was ever learned, then the number of entries of each slot
_OF_SLOT: Final = 2 * WAYS  # cells of one slot in a row
_OF_ROW: Final = MAX_SLOTS * _OF_SLOT
CAPACITY: Final = ROWS * WAYS  # entries of each slot
CELLS: Final = _HEADER + ROWS * _OF_ROW  # 64 MiB of addresses
_CELL_BYTES: Final = 8
_NEEDLE: Final = struct.Struct("=Q")
_SEEN_BITS: Final = 40  # 34 years of uptime
_GENERATION_BITS: Final = 14
_SEEN_MASK: Final = (1 << _SEEN_BITS) - 1
_GENERATION_MASK: Final = (1 << _GENERATION_BITS) - 1
_FORGOTTEN: Final = 1 << (_SEEN_BITS + _GENERATION_BITS)
_CHECK_SHIFT: Final = _SEEN_BITS + _GENERATION_BITS + 1
_LOOKS: Final = 3  # at a row in which an entry is just being written
_TOUCHES: Final = 16  # in the time after which an unused id is forgotten


class Entry(NamedTuple):
    """Where an id was learned."""

    slot: int
    generation: int  # of the worker, modulo 2^14
    seen_ms: int
    is_forgotten: bool

    def is_by(self, generation: int) -> bool:
        """Return whether the worker of that *generation* learned it."""
        return self.generation == generation & _GENERATION_MASK


class Outcome(Enum):
    """What became of an id that was to be learned."""

    KNOWN = "known"  # to its slot already
    NEW = "new"
    EVICTED = "evicted"  # another one, to make room


class Learned:
    """The table, as one process sees it. An id that was not seen for *idle_s* counts as unknown.

    `cells[0]` is what `is_empty` says, for who asks for each request.
    """

    def __init__(self, cells: memoryview[int], idle_s: float) -> None:
        self.cells = cells
        self._idle_ms = int(idle_s * 1000)

    @property
    def is_empty(self) -> bool:
        """Whether no id was ever learned, so that nobody has to look."""
        return not self.cells[0]

    def size(self, slot: int) -> int:
        """Return how many entries *slot* has, those too old to count included."""
        return self.cells[1 + slot]

    def find(self, digest: int, slots: int, now: float) -> Entry | None:
        """Return where the id with this *digest* was learned last, None if it is unknown. Looks at *slots* slots."""
        digest = digest or 1
        begin, needle = self._row(digest), _NEEDLE.pack(digest)
        for _ in range(_LOOKS):
            row = self.cells[begin : begin + slots * _OF_SLOT].tobytes()
            if needle not in row:
                return None
            entries = list(_entries(row, needle, digest))
            if None not in entries:
                break
        oldest_ms = int(now * 1000) - self._idle_ms
        found = [entry for entry in entries if entry is not None and entry.seen_ms >= oldest_ms]
        newest = max(found, key=attrgetter("seen_ms"), default=None)
        return None if newest is None or newest.is_forgotten else newest

    def learn(self, digest: int, slot: int, generation: int, now: float, *, forget: bool = False) -> Outcome:
        """Note that the id with this *digest* belongs to *slot*; with *forget*, to nobody.

        Only the worker of *slot* may call it, one thread at a time.
        """
        digest, seen_ms = digest or 1, int(now * 1000) & _SEEN_MASK
        info = (digest >> 55) << _CHECK_SHIFT | (generation & _GENERATION_MASK) << _SEEN_BITS | seen_ms
        info |= _FORGOTTEN if forget else 0
        begin = self._row(digest) + slot * _OF_SLOT
        ways = range(begin, begin + _OF_SLOT, 2)
        start = generation % 2 * (WAYS // 2)
        places = [*ways[start:], *ways[:start]]
        for place in places:
            if self.cells[place] == digest:
                self.cells[place + 1] = info
                return Outcome.KNOWN
        free = next((place for place in places if not self.cells[place]), None)
        if free is not None:
            self.cells[1 + slot] += 1
            place, has_room = free, True
        else:
            place = min(places, key=lambda place: self.cells[place + 1] & _SEEN_MASK)
            has_room = seen_ms - (self.cells[place + 1] & _SEEN_MASK) > self._idle_ms
        self.cells[place] = 0
        self.cells[place + 1] = info
        self.cells[place] = digest
        self.cells[0] = 1
        return Outcome.NEW if has_room else Outcome.EVICTED

    def forget(self, digest: int, slot: int, generation: int, slots: int, now: float) -> bool:
        """Make the id unknown again; return whether it was known. Only the worker of *slot* may call it."""
        entry = self.find(digest, slots, now)
        if entry is not None:
            self.learn(digest, slot, generation, now, forget=True)
        return entry is not None

    def is_due(self, entry: Entry, now: float) -> bool:
        """Return whether *entry*, whose id was used, should be noted again."""
        return int(now * 1000) - entry.seen_ms > self._idle_ms / _TOUCHES

    def touch(self, digest: int, entry: Entry, now: float) -> None:
        """Note that the id of *entry* is in use. Only the worker of its slot may call it."""
        self.learn(digest, entry.slot, entry.generation, now)

    def _row(self, digest: int) -> int:
        return _HEADER + (digest >> 20) % ROWS * _OF_ROW  # bits that the bucket does not use


def _entries(row: bytes, needle: bytes, digest: int) -> Iterator[Entry | None]:
    """Yield the entries of *digest*, None for one that is just being written."""
    at = row.find(needle)
    while at >= 0:
        if at % (2 * _CELL_BYTES) == 0:
            [info] = _NEEDLE.unpack_from(row, at + _CELL_BYTES)
            slot = at // (_OF_SLOT * _CELL_BYTES)
            yield _entry(slot, info) if info >> _CHECK_SHIFT == digest >> 55 else None
        at = row.find(needle, at + 1)


def _entry(slot: int, info: int) -> Entry:
    return Entry(slot, info >> _SEEN_BITS & _GENERATION_MASK, info & _SEEN_MASK, bool(info & _FORGOTTEN))
