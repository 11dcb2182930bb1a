"""Which slot serves a client: key chain, keyed hash and bucket table in one place, for everybody who asks.

Pure. Owns the order of the steps key -> digest -> bucket -> slot. The dispatcher asks it for connections, `limpet
where` for keys as text: one answer, since it is one function.

1. The same key, secret and number of slots give the same answer in every process.
2. A route never depends on which workers are alive: a slot keeps its clients, they wait for the replacement. Only
   `--on-down failover` has them served elsewhere meanwhile (`follow`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from limpet import buckets
from limpet.hashing import Hasher
from limpet.key import Key, KeyChain, Trust
from limpet.request import Peer, Request
from limpet.settings import Settings

LoadFunction = Callable[[str], Callable[..., object]]
OnError = Callable[[str, BaseException | str], None]


_ROUTES: Final = 16_384  # remembered, about 5 MB: a client that comes back is not hashed again


class Route(NamedTuple):
    """Where a key is served, and where it is at home: the same but in a failover."""

    slot: int
    bucket: int
    digest: int
    home: int


class Router:
    """The key chain, the secret's hash and the bucket table of one server."""

    def __init__(self, chain: KeyChain, hasher: Hasher, slots: int, *, failover: bool = False) -> None:
        self.chain = chain
        self.hasher = hasher
        self.slots = slots
        self.failover = failover
        self.where = lru_cache(maxsize=_ROUTES)(self._where)
        self._homes = self.owners = buckets.table(slots)  # of each bucket: its home, and the slot that serves it now

    @classmethod
    def from_settings(
        cls, settings: Settings, secret: bytes, load: LoadFunction | None = None, on_error: OnError | None = None
    ) -> Router:
        """Return the router that *settings* describe. Without *load* user functions stay unresolved, so never run."""
        chain = KeyChain.parse(settings.by, Trust.parse(",".join(settings.trust)), load, on_error)
        return cls(chain, Hasher(secret), settings.workers, failover=settings.on_down == "failover")

    def follow(self, is_up: Sequence[bool]) -> bool:
        """Take note of which slots have a worker that is ready; return whether that moves any bucket."""
        before = self.owners
        if self.failover:
            self.owners = buckets.stand_ins(self.slots, is_up)
        if self.owners == before:
            return False
        self.where.cache_clear()
        return True

    def route(self, peer: Peer, request: Request | None) -> Route | None:
        """Return where the client's key lives, None when the chain finds no key."""
        key = self.chain.find(peer, request)
        return None if key is None else self.where(key)

    def _where(self, key: Key) -> Route:
        """Return where *key* is served; `where` remembers."""
        digest = self.hasher.digest(key.value, key.is_address)
        bucket = self.hasher.bucket(digest)
        return Route(self.owners[bucket], bucket, digest, self._homes[bucket])
