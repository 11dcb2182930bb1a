"""`limpet.limit`: at most n times in any period, counted over all workers.

Owns the shards of the shared memory (coordination/place.py): each is a list of what was admitted, with the time until
which it counts. A key belongs to one shard, by a hash with the server's salt.

How it works: cell 0 of a shard is the number of its records. A record is two cells, the digest of the key and the end
of its time. A process that asks locks the shard, counts the records of its key whose time is not over, and appends one
if there are fewer than n.

1. A record counts once cell 0 says so, by one store, so a process that is killed in the middle leaves nothing torn.
   Compacting moves records down one by one: killed in the middle it leaves some twice, which admits less, never more.
2. A process that is stopped while it has the lock holds up its shard alone. Others wait _WAIT_S and then refuse:
   the promise is that there are never more than n.
3. Times are of the monotonic clock, which all processes of a machine share and nobody sets.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Final

from limpet.coordination import place
from limpet.routing.digests import blake2b

_WAIT_S: Final = 0.05  # for another process that asks in the same shard, which takes some microseconds
_POLL_S: Final = 0.0005
_FIRST: Final = 2  # the cell of the first record
_RECORDS: Final = place.SHARD_BYTES // 16 - 1
MOST: Final = _RECORDS // 2
"""The largest n."""
LONGEST_S: Final = 30 * 86_400.0


def limit(name: str, key: str, n: int, per: float) -> bool:
    """Return True, and count it, unless *key* was admitted *n* times in the last *per* seconds, by all workers.

    There are never more than *n* in any period of that length; what is refused does not count. Calls with another
    *name*, *n* or *per* are counted apart. If a worker was stopped while it counted, or the table is full, this returns
    False. Blocks at most 0.05 s. Raises ValueError.
    """
    if not (1 <= n <= MOST and 0 < per <= LONGEST_S):
        raise ValueError(f"a limit is of 1 to {MOST} times in up to {LONGEST_S:.0f} seconds, and this is {n} in {per}")
    here = place.here()
    asked = f"{len(name)} {name} {key} {n} {per:g}".encode()
    digest = int.from_bytes(blake2b(asked, digest_size=8, key=here.salt).digest(), "little") or 1
    number = digest % place.SHARDS
    until = time.monotonic() + _WAIT_S
    while True:
        with _guard:
            if here.try_lock(place.SHARD_LOCKS + number):
                try:
                    return _admitted(here.shard(number), digest, n, math.ceil(per * 1e9))
                finally:
                    here.unlock(place.SHARD_LOCKS + number)
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)


def _admitted(cells: memoryview[int], digest: int, n: int, per_ns: int) -> bool:
    """Return whether there is room for one more, and take it. The shard is locked."""
    now_ns, count = time.monotonic_ns(), cells[0]
    end = _FIRST + 2 * count
    digests, ends = cells[_FIRST:end:2].tolist(), cells[_FIRST + 1 : end : 2].tolist()
    if sum(each > now_ns for of, each in zip(digests, ends, strict=True) if of == digest) >= n:
        return False
    if count == _RECORDS or (count % 64 == 0 and 2 * sum(each > now_ns for each in ends) < count):
        count = _compact(cells, now_ns)
        if count == _RECORDS:
            return False
    cells[_FIRST + 2 * count] = digest
    cells[_FIRST + 2 * count + 1] = now_ns + per_ns
    cells[0] = count + 1
    return True


def _compact(cells: memoryview[int], now_ns: int) -> int:
    """Remove the records whose time is over. Return how many are left."""
    kept = 0
    for number in range(cells[0]):
        at, to = _FIRST + 2 * number, _FIRST + 2 * kept
        if cells[at + 1] > now_ns:
            cells[to], cells[to + 1] = cells[at], cells[at + 1]
            kept += 1
    cells[0] = kept
    return kept


_guard = threading.Lock()


def _forget() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_forget)
