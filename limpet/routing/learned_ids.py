"""The learned table: ids that the application made, and the slot whose worker made each.

Pure: the memory comes in as 8-byte cells, and time as an argument. This file owns the layout of the cells. It knows an
id only as a digest of the hasher. routing/router.py looks ids up, and sessions/sessions.py learns them.

How it works: the memory belongs to the scoreboard, which the supervisor keeps. So the end of a child loses no entry. A
dispatcher finds an entry as soon as a worker has stored it, without a message. A digest selects a row. In a row, each
slot has WAYS entries of its own, and the entries of all slots are side by side. So one search finds a digest of any
slot. An entry is two cells:

    digest | check 9 bits, forgotten 1, generation 14, seen 40        seen: milliseconds, monotonic

1. Only the worker of a slot writes the slot's entries, so there is no lock. While a predecessor drains, two workers
   write. They look for free entries from different ends.
2. To replace an entry, a worker writes digest 0, then the second cell, then the new digest. A reader copies the row
   first. It may see the old digest with the new cell. That is harmless, because the position of the entry gives the
   slot. It may also see a new digest with an old cell, which the check shows. If a process dies between these writes,
   only an id is lost that no client has received yet.
3. Several slots may have the same id. The entry seen last counts. A slot that forgets an id frees its own entry. If
   another slot has the id, too, it writes a mark instead, so that the older entry does not count again.
4. A full row is not an error. First, entries that have no effect are replaced: expired entries, entries of an id that
   another slot has seen since, and marks without an older entry to cover. Then a new id replaces the entry that was
   seen longest ago, and that is counted. A mark never replaces such an entry: the id stays known instead.
5. Only memory that holds ids is touched: 4 KiB for each row and 16 slots, so at most 4 MiB for up to 16 slots.
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
_TOUCH_MS: Final = 1000  # between two notes that an id is in use: as exact as "seen longest ago" is
_TOUCHES: Final = 16  # at least, in the time after which an unused id is forgotten


class Entry(NamedTuple):
    """Where an id was learned."""

    slot: int
    generation: int  # of the worker, modulo 2^14
    seen_ms: int
    is_forgotten: bool
    place: int  # of its first cell

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
        self._touch_ms = min(_TOUCH_MS, self._idle_ms // _TOUCHES)

    @property
    def is_empty(self) -> bool:
        """Whether no id was ever learned, so that nobody has to look."""
        return not self.cells[0]

    def size(self, slot: int) -> int:
        """Return how many entries *slot* has, those too old to count included."""
        return self.cells[1 + slot]

    def find(self, digest: int, slots: int, now: float) -> Entry | None:
        """Return where the id with this *digest* was learned last, None if it is unknown. Looks at *slots* slots."""
        found = self._fresh(digest or 1, slots, int(now * 1000))
        newest = max(found, key=attrgetter("seen_ms"), default=None)
        return None if newest is None or newest.is_forgotten else newest

    def learn(self, digest: int, slot: int, generation: int, now: float) -> Outcome:
        """Note that the id with this *digest* belongs to *slot*.

        Only the worker of *slot* may call it, one thread at a time.
        """
        digest, now_ms = digest or 1, int(now * 1000)
        info = _info(digest, generation, now_ms)
        places = self._places(digest, slot, generation)
        for place in places:
            if self.cells[place] == digest:
                self.cells[place + 1] = info
                return Outcome.KNOWN
        place, has_room = self._room(places, slot, now_ms)
        self._put(place, slot, digest, info)
        return Outcome.NEW if has_room else Outcome.EVICTED

    def forget(self, digest: int, slot: int, generation: int, slots: int, now: float) -> bool:
        """Make the id unknown again; return whether it was known. Only the worker of *slot* may call it."""
        digest, now_ms = digest or 1, int(now * 1000)
        entry = self.find(digest, slots, now)
        if entry is None:
            return False
        places = self._places(digest, slot, generation)
        mine = [place for place in places if self.cells[place] == digest]
        entries = self._fresh(digest, max(slots, self._reach()), now_ms)
        if all(other.is_forgotten or other.slot == slot for other in entries):
            for place in mine:
                self.cells[place] = 0
                self.cells[1 + slot] = max(0, self.cells[1 + slot] - 1)  # two writers in a drain may have miscounted
            return True
        mark = _info(digest, generation, max(now_ms, entry.seen_ms + 1)) | _FORGOTTEN
        for place in mine:
            self.cells[place + 1] = mark
        if not mine:
            place, has_room = self._room(places, slot, now_ms)
            if has_room:
                self._put(place, slot, digest, mark)
        return True

    def is_due(self, entry: Entry, now: float) -> bool:
        """Return whether *entry*, whose id was used, should be noted again."""
        return int(now * 1000) - entry.seen_ms >= self._touch_ms

    def touch(self, digest: int, entry: Entry, now: float) -> None:
        """Note that the id of *entry* is in use, if the entry is as it was found: it may have been forgotten since.

        Only the worker of its slot may call it, one thread at a time.
        """
        digest, place = digest or 1, entry.place
        as_found = _info(digest, entry.generation, entry.seen_ms)
        if self.cells[place] == digest and self.cells[place + 1] == as_found:
            self.cells[place + 1] = _info(digest, entry.generation, int(now * 1000))

    def _fresh(self, digest: int, slots: int, now_ms: int) -> list[Entry]:
        """Return the entries and marks of *digest* in the first *slots* slots that have not expired."""
        begin, needle = self._row(digest), _NEEDLE.pack(digest)
        for _ in range(_LOOKS):
            row = self.cells[begin : begin + slots * _OF_SLOT].tobytes()
            if needle not in row:
                return []
            entries = list(_entries(row, needle, digest, begin))
            if None not in entries:
                break
        oldest_ms = now_ms - self._idle_ms
        return [entry for entry in entries if entry is not None and entry.seen_ms >= oldest_ms]

    def _room(self, places: list[int], slot: int, now_ms: int) -> tuple[int, bool]:
        """Return which of *places*, all of *slot*, to use for another id, and whether no id is lost by that."""
        for place in places:
            if not self.cells[place]:
                return place, True
        oldest = min(places, key=self._seen_ms)
        if now_ms - self._seen_ms(oldest) > self._idle_ms:
            return oldest, True
        reach = self._reach()
        for place in places:
            if self._is_useless(place, slot, reach, now_ms):
                return place, True
        return oldest, False

    def _is_useless(self, place: int, slot: int, reach: int, now_ms: int) -> bool:
        """Return whether what *slot* has at *place* changes no answer."""
        seen_ms = self._seen_ms(place)
        others = [entry for entry in self._fresh(self.cells[place], reach, now_ms) if entry.slot != slot]
        if self.cells[place + 1] & _FORGOTTEN:
            return all(other.is_forgotten or other.seen_ms > seen_ms for other in others)
        return any(other.seen_ms > seen_ms for other in others)

    def _put(self, place: int, slot: int, digest: int, info: int) -> None:
        if not self.cells[place]:
            self.cells[1 + slot] += 1
        self.cells[place] = 0
        self.cells[place + 1] = info
        self.cells[place] = digest
        self.cells[0] = 1

    def _seen_ms(self, place: int) -> int:
        return self.cells[place + 1] & _SEEN_MASK

    def _reach(self) -> int:
        """Return how many slots have to be looked at to see all entries: those of slots that are gone may come back."""
        return max((slot + 1 for slot in range(MAX_SLOTS) if self.cells[1 + slot]), default=0)

    def _places(self, digest: int, slot: int, generation: int) -> list[int]:
        """Return where *slot* may have *digest*, in the order in which the worker of that *generation* looks."""
        begin = self._row(digest) + slot * _OF_SLOT
        ways = range(begin, begin + _OF_SLOT, 2)
        start = generation % 2 * (WAYS // 2)
        return [*ways[start:], *ways[:start]]

    def _row(self, digest: int) -> int:
        return _HEADER + (digest >> 20) % ROWS * _OF_ROW  # bits that the bucket does not use


def _info(digest: int, generation: int, seen_ms: int) -> int:
    """Return the second cell of an entry."""
    by = (digest >> 55) << _CHECK_SHIFT | (generation & _GENERATION_MASK) << _SEEN_BITS
    return by | seen_ms & _SEEN_MASK


def _entries(row: bytes, needle: bytes, digest: int, begin: int) -> Iterator[Entry | None]:
    """Yield the entries of *digest* in the *row* that begins in cell *begin*, None for one that is being written."""
    at = row.find(needle)
    while at >= 0:
        if at % (2 * _CELL_BYTES) == 0:
            [info] = _NEEDLE.unpack_from(row, at + _CELL_BYTES)
            place = begin + at // _CELL_BYTES
            is_whole = info >> _CHECK_SHIFT == digest >> 55
            yield _entry(at // (_OF_SLOT * _CELL_BYTES), info, place) if is_whole else None
        at = row.find(needle, at + 1)


def _entry(slot: int, info: int, place: int) -> Entry:
    generation = info >> _SEEN_BITS & _GENERATION_MASK
    return Entry(slot, generation, info & _SEEN_MASK, bool(info & _FORGOTTEN), place)
