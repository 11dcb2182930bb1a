"""Which slot serves a client: key chain, keyed hash and bucket table in one place, for everybody who asks.

Pure. Owns the order of the steps key -> digest -> bucket -> slot. The dispatcher asks it for connections, `limpet
where` for keys as text: one answer, since it is one function.

1. The same key, secret and number of slots give the same answer in every process.
2. A route never depends on which workers are alive: a slot keeps its clients, they wait for the replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from limpet import buckets
from limpet.hashing import Hasher
from limpet.key import Key, KeyChain, Trust
from limpet.request import Peer, Request
from limpet.settings import Settings

LoadFunction = Callable[[str], Callable[..., object]]
OnError = Callable[[str, BaseException | str], None]


class Route(NamedTuple):
    """Where a key lives."""

    slot: int
    bucket: int
    digest: int


class Router:
    """The key chain, the secret's hash and the bucket table of one server."""

    def __init__(self, chain: KeyChain, hasher: Hasher, slots: int) -> None:
        self.chain = chain
        self.hasher = hasher
        self.slots = slots
        self._table = buckets.table(slots)

    @classmethod
    def from_settings(
        cls, settings: Settings, secret: bytes, load: LoadFunction | None = None, on_error: OnError | None = None
    ) -> Router:
        """Return the router that *settings* describe. Without *load* user functions stay unresolved, so never run."""
        chain = KeyChain.parse(settings.by, Trust.parse(",".join(settings.trust)), load, on_error)
        return cls(chain, Hasher(secret), settings.workers)

    def route(self, peer: Peer, request: Request | None) -> Route | None:
        """Return where the client's key lives, None when the chain finds no key."""
        key = self.chain.find(peer, request)
        return None if key is None else self.where(key)

    def where(self, key: Key) -> Route:
        """Return where *key* lives."""
        digest = self.hasher.digest(key.value, key.is_address)
        bucket = self.hasher.bucket(digest)
        return Route(self._table[bucket], bucket, digest)
