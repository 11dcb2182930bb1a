"""Whether a request belongs to this worker.

Owns what a worker knows about where requests belong. The server adapter asks for every request except the first one of
a connection, which the dispatcher has already decided. The router gives the answer. It moves no connection itself.
"""

from __future__ import annotations

import random
from typing import Final

from limpet.ipc.orders import Workers
from limpet.protocol.request import Peer, Request
from limpet.routing import buckets
from limpet.routing.placement import Placement
from limpet.routing.router import Route, Router

UNTOLD: Final = -1
"""In place of a digest: a dispatcher decided on the request, and told only the slot."""


class Home:
    """What a worker knows about where requests belong."""

    def __init__(self, slot: int, router: Router, placement: Placement, listeners: list[str]) -> None:
        self.slot = slot
        self.router = router
        self.placement = placement
        self._listeners = listeners
        self.has_scaled = False  # whether the number of slots has changed since the server started
        self.has_changed = False  # whether open connections here may now belong to another slot
        # About the latest request. If this worker routed it: its route, or None without a key. If another process did:
        # the digest of its key, 0 without a key, or UNTOLD.
        self.latest: Route | int | None = None
        self._slots = router.slots  # the size of the table that the other processes use

    def follow(self, workers: Workers) -> None:
        """Record what the supervisor says about the workers, and which slots are up."""
        self._slots = workers.slots
        if self._slots <= self.slot:  # a removed slot: requests that still come here, and minted ids, stay
            return
        if self._slots != self.router.slots:
            self.router.resize(self._slots)
        self.has_scaled = workers.scaled
        self.has_changed = self.has_scaled and not self.router.chain.needs_head  # else each request is checked anyway
        self.placement.follow(workers.rows, workers.held)
        self.router.follow(workers.up)

    def peer(self, sockaddr: object, listener: int) -> Peer:
        """Return the peer of a connection that came in by bind number *listener*."""
        return Peer.of(sockaddr, self._listeners[listener], listener)

    def heir(self, peer: Peer) -> int:
        """Return the slot that takes over an idle connection from *peer* while this worker drains."""
        is_left_out = self._slots <= self.slot
        key = None if self.router.chain.needs_head else self.router.chain.find(peer, None)
        if key is not None:
            route = self.router.where(key)
            return buckets.table(self._slots)[route.bucket] if is_left_out else route.slot
        return random.randrange(self._slots) if is_left_out else self.slot  # the heir routes the next request

    def slot_of(self, request: Request, *, keyed: bool) -> tuple[int, bool]:
        """Return the slot of *request*, and whether its connection has carried a key so far.

        *keyed* says whether earlier requests on the connection carried one. A request without a key stays here, unless
        the connection has carried the keys of other clients. Then it is placed like a new client.
        """
        self.latest = route = self.router.route(request.peer, request)
        if route is not None:
            return route.slot, True
        placed = self.placement.place(request.peer, request) if keyed else None
        return (self.slot if placed is None else placed), keyed

    def digest(self) -> int:
        """Return the digest of the key of the latest request, if this worker routed it. Return 0 without a key."""
        return self.latest.digest if isinstance(self.latest, Route) else 0

    def disagrees(self, request: Request) -> bool:
        """Return whether this worker would send *request* to another slot, although another process sent it here."""
        route = self.router.route(request.peer, request)
        return route is not None and route.slot != self.slot
