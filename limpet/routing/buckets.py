"""Which slot owns each bucket, and who stands in for a slot that is down.

Pure. Owns the tables from bucket to slot; knows no key, no secret and no worker, so a table depends on the
number of slots alone. The router looks up here what `hashing` computed; the kernel backend compiles a table
into its program.

1. A released table never changes: machines, versions and backends agree on it without talking.
   `tests/vectors/` pins the tables, and with them everything below.
2. The number of buckets is a power of two: the kernel's program takes the low bits of the digest.

How it works
------------

Each pair of bucket and slot has a score, as in rendezvous hashing. Scores alone would balance by luck, so
here they only choose among what a quota allows. `table(1)` gives all B buckets to slot 0. `table(n + 1)` is
`table(n)` after the new slot has taken q = floor(B / (n + 1)) buckets, one at a time, each from a slot that
owns most at that moment: of all buckets of such slots, the one with the highest score for the new slot.

Balance: in `table(n)` every slot owns floor(B / n) or ceil(B / n) buckets.
    True for n = 1. Let it be true for n. Then what the old slots own differs by at most 1, and taking from
    one that owns most keeps it so: if all own the same, the giver now owns 1 less; if not, it joins those
    that own fewest. So after q takings the n old slots share B - q buckets as evenly as whole numbers allow.
    Write B = q(n + 1) + r with 0 <= r <= n. Then B - q = qn + r, so each old slot owns q or, only if r > 0,
    q + 1. The new slot owns q. And these are floor(B / (n + 1)) and, if r > 0, ceil(B / (n + 1)).

Movement: from n to n + 1 slots exactly q buckets move, all to the new slot; back to n, the same return.
    By construction, and since a table depends on the number of slots alone. No balanced table could move
    fewer: the new slot owned nothing and must own q. No step gives a bucket to an old slot; so for any
    m > n, from n to m move precisely the buckets that `table(m)` gives to the slots n .. m - 1: a share of
    (m - n) / m, but for rounding.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Final

from limpet.routing.digests import shake_128

BUCKETS: Final = 1024  # 4 per slot at most slots; at the usual 4 slots, 1 is 0.4 % of what a slot owns
MAX_SLOTS: Final = 256  # a slot is one byte of a table


@lru_cache(maxsize=MAX_SLOTS)
def table(slots: int) -> bytes:
    """Return who owns each bucket: `table(slots)[bucket]` is a slot. Raises ValueError beyond `MAX_SLOTS`."""
    if not 1 <= slots <= MAX_SLOTS:
        raise ValueError(f"`{slots}` slots: 1 to {MAX_SLOTS} are allowed")
    return reduce(_grow, range(1, slots), bytes(BUCKETS))


@lru_cache(maxsize=BUCKETS)
def rank(bucket: int, slots: int) -> tuple[int, ...]:
    """Return all slots in the order in which they are to serve *bucket*: its owner, then the others by score.

    What a slot owns falls to all others when it is down, not to one neighbour; and slots that do not own the
    bucket keep their order among themselves whatever the number of slots.
    """
    owner = table(slots)[bucket]
    # Not the scores of the tables: who owns a bucket depends on them, so they favour some stand-ins of an owner.
    scores = _scores(b"limpet.rank.%d" % bucket, slots)
    return owner, *sorted(set(range(slots)) - {owner}, key=scores.__getitem__, reverse=True)


def stand_ins(slots: int, is_up: Sequence[bool]) -> bytes:
    """Return `table(slots)` with each bucket of a slot that is down given to the first that is up in its rank.

    Without any slot that is up all buckets stay at home.
    """
    owners = table(slots)
    if all(is_up) or not any(is_up):
        return owners
    return bytes(
        owner if is_up[owner] else next(slot for slot in rank(bucket, slots) if is_up[slot])
        for bucket, owner in enumerate(owners)
    )


@lru_cache(maxsize=MAX_SLOTS)  # so that all tables share their beginnings
def _grow(owners: bytes, new: int) -> bytes:
    """Return the table *owners* after slot *new*, the first that it does not know, has taken its share."""
    scores = _scores(b"limpet.slot.%d" % new, BUCKETS)
    share = BUCKETS // (new + 1)
    fewest = (BUCKETS - share) // new  # what an old slot owns afterwards, if not 1 more
    owned: list[list[int]] = [[] for _ in range(new)]
    for bucket, owner in enumerate(owners):
        owned[owner].append(bucket)
    # A slot gives its best bucket first: sorted by score, the n-th goes when the slot owns n. Takings go from
    # most to fewest, among equals by score: one sort puts the offers of all slots in their order.
    offers: list[tuple[int, int, int]] = []
    for mine in owned:
        if len(mine) > fewest:
            mine.sort(key=scores.__getitem__)
            offers += [(n, scores[bucket], bucket) for n, bucket in enumerate(mine[fewest:], fewest + 1)]
    offers.sort(reverse=True)
    grown = bytearray(owners)
    for _, _, bucket in offers[:share]:
        grown[bucket] = new
    return bytes(grown)


def _scores(row: bytes, count: int) -> tuple[int, ...]:
    """Return the first scores of a *row*: big-endian 64-bit words of a SHAKE-128 stream, no two of them equal.

    One stream per row, since a hash per pair of bucket and slot would take 0.3 s for the largest table.
    """
    return struct.unpack(f">{count}Q", shake_128(row).digest(8 * count))
