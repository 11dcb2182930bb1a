"""Which slot serves a client: key chain, keyed hash and bucket table in one place, for everybody who asks.

Pure. Owns the order of the steps key -> digest -> bucket -> slot. The dispatcher asks it for connections, `limpet
where` for keys as text: one answer, since it is one function.

1. The same key, secret and number of slots give the same answer in every process.
2. A route never depends on which workers are alive: a slot keeps its clients, they wait for the replacement. Only
   `--on-down failover` has them served elsewhere meanwhile (`follow`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from limpet.protocol.request import Peer, Request
from limpet.routing import buckets
from limpet.routing.affinity_cookie import Jar
from limpet.routing.elements import AFFINITY
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import Key, KeyChain
from limpet.routing.learned_ids import Entry, Learned

_LONGEST: Final = 256  # bytes of a key that is remembered: clients may send 60 KB
_UNSETTLED_S: Final = 60.0  # after all clients are at home again: news take milliseconds, but a blocked worker is late
_ROUTES: Final = 16_384  # remembered, about 5 MB: a client that comes back is not hashed again


class Route(NamedTuple):
    """Where a key is served, and where it is at home: the same but in a failover."""

    slot: int
    bucket: int
    digest: int
    home: int
    learned: Entry | None = None
    is_cookie: bool = False  # the key is limpet's own cookie

    @property
    def how(self) -> str:
        """By what the slot was found, in a word."""
        return "learned" if self.learned is not None else "cookie" if self.is_cookie else "hash"


class Router:
    """The key chain, the secret's hash, the bucket table and the learned ids of one server."""

    def __init__(
        self,
        chain: KeyChain,
        hasher: Hasher,
        slots: int,
        *,
        failover: bool = False,
        jar: Jar | None = None,
        learned: Learned | None = None,
        on_found: Callable[[int], None] = lambda bits: None,
        now: Callable[[], float] = float,
    ) -> None:
        """*now* tells the monotonic time.

        *on_found* hears when an element of *chain* has found its first key: of all that have, a bit for each.
        """
        self.chain = chain
        self.hasher = hasher
        self.slots = slots
        self.failover = failover
        self.jar = jar
        self.learned = learned
        self._on_found = on_found
        self._found: set[str] = set()
        self._now = now
        self._is_up: Sequence[bool] = ()
        self._asks_functions = chain.asks_functions
        self._unsettled_until = 0.0  # others may not know yet, or still, that clients are away from home
        self._hashed = lru_cache(maxsize=_ROUTES)(self._hash)
        self._known = lru_cache(maxsize=_ROUTES)(self._know)
        self._homes = self.owners = buckets.table(slots)  # of each bucket: its home, and the slot that serves it now

    def resize(self, slots: int) -> None:
        """Take the table of *slots* slots; all of them count as up until `follow` says otherwise."""
        self.slots = slots
        self._is_up = ()
        self._homes = self.owners = buckets.table(slots)
        self._forget()

    def follow(self, is_up: Sequence[bool]) -> bool:
        """Take note of which slots are up, so that their clients are served there; return whether that moves any."""
        before, self._is_up = self.owners, is_up
        if self.failover:
            self.owners = buckets.stand_ins(self.slots, is_up)
        if self.owners == before:
            return False
        self._unsettled_until = self._now() + _UNSETTLED_S if self.owners == self._homes else math.inf
        self._forget()
        return True

    @property
    def may_differ(self) -> bool:
        """Whether another process could find another slot for a request than this one, which may know more or less."""
        if self._unsettled_until and self._unsettled_until <= self._now():
            self._unsettled_until = 0.0
        is_learning = self.learned is not None and self.learned.cells[0] != 0
        return is_learning or self._unsettled_until > 0.0 or self._asks_functions

    def route(self, peer: Peer, request: Request | None) -> Route | None:
        """Return where the client's key lives, None when the chain finds no key."""
        value_of, learned = self.chain.value, self.learned
        if value_of is not None and request is not None and (learned is None or not learned.cells[0]):
            value = value_of(request)
            if not value:
                return None
            if len(value) <= _LONGEST:
                return self._known(value)
        key = self.chain.find(peer, request)
        return None if key is None else self.where(key)

    def where(self, key: Key) -> Route:
        """Return where *key* is served: where it was learned, else at the home of its bucket."""
        route = self._hashed(key) if len(key.value) <= _LONGEST else self._hash(key)
        learned = self.learned
        if learned is None or not learned.cells[0] or key.is_address or key.element == AFFINITY:
            return route
        return self._as_learned(route, learned)

    def route_of(self, digest: int) -> Route:
        """Return where the key with *digest* is served now."""
        bucket = self.hasher.bucket(digest)
        route = Route(self.owners[bucket], bucket, digest, self._homes[bucket])
        if self.learned is None or self.learned.is_empty:
            return route
        return self._as_learned(route, self.learned)

    def _as_learned(self, route: Route, learned: Learned) -> Route:
        """Return *route*, or the route to the slot where its key was learned."""
        entry = learned.find(route.digest, self.slots, self._now())
        if entry is None:
            return route
        if self.failover and self._is_up and not self._is_up[entry.slot]:
            return route._replace(home=entry.slot)
        return Route(entry.slot, route.bucket, route.digest, entry.slot, entry)

    def serves(self, digest: int) -> int:
        """Return the slot that serves the keys with *digest* now."""
        return self.owners[self.hasher.bucket(digest)]

    def lives_at(self, slot: int) -> Callable[[int], bool]:
        """Return what tells whether the home of a digest is *slot*."""
        return lambda digest: self._homes[digest % buckets.BUCKETS] == slot

    def home_of(self, digest: int) -> int:
        """Return the slot that is the home of *digest*."""
        return self._homes[self.hasher.bucket(digest)]

    def _forget(self) -> None:
        self._hashed.cache_clear()
        self._known.cache_clear()

    def _know(self, value: bytes) -> Route:
        """Return where the key is served that *value* is in a chain of one element; `_known` remembers."""
        return self._hash(Key(value, self.chain.spec, False))

    def _hash(self, key: Key) -> Route:
        """Return where *key* is served by its hash; `_hashed` remembers."""
        if key.element not in self._found:  # here, where only keys come that are new
            self._found.add(key.element)
            self._on_found(self.chain.bits_of(self._found))
        is_cookie = key.element == AFFINITY
        digest = int.from_bytes(key.value, "big") if is_cookie else self.hasher.digest(key.value, key.is_address)
        bucket = self.hasher.bucket(digest)
        return Route(self.owners[bucket], bucket, digest, self._homes[bucket], None, is_cookie)
