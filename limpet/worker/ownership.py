"""Whether a request belongs to this worker: the question a worker asks for each request but a connection's first.

Owns what a worker knows of where requests belong. Asked by the server adapter; the answer is the router's.
"""

from __future__ import annotations

import random
from typing import Final

from limpet.ipc.control_link import Message
from limpet.protocol.request import Peer, Request
from limpet.routing import buckets
from limpet.routing.placement import Placement
from limpet.routing.router import Route, Router

UNTOLD: Final = -1
"""In place of a digest: a dispatcher has decided on the request, and says no more than the slot."""


class Home:
    """What a worker knows of where requests belong."""

    def __init__(self, slot: int, router: Router, placement: Placement, listeners: list[str]) -> None:
        self.slot = slot
        self.router = router
        self.placement = placement
        self._listeners = listeners
        self.has_changed = False  # connections may be here whose home is elsewhere now
        # Of the latest request: its route, None without a key. Where another process decided, the digest of the key, 0
        # without one, or UNTOLD.
        self.latest: Route | int | None = None
        self._slots = router.slots  # in the table of the others

    def follow(self, news: Message) -> None:
        """Take note of what the supervisor says of the workers, and of which slots are up."""
        self._slots = news["slots"]
        if self._slots <= self.slot:  # left out of the table: what comes here still, and what is minted, stays
            return
        if self._slots != self.router.slots:
            self.router.resize(self._slots)
        self.has_changed = news["scaled"] and not self.router.chain.needs_head  # else each request is looked at
        self.placement.follow(news["rows"], news["held"])
        self.router.follow(news["up"])

    def peer(self, sockaddr: object, listener: int) -> Peer:
        """Return the far end of a connection that came in by the bind number *listener*."""
        return Peer.of(sockaddr, self._listeners[listener], listener)

    def heir(self, peer: Peer) -> int:
        """Return the slot to which an idle connection from *peer* is given by a worker that drains."""
        is_left_out = self._slots <= self.slot
        key = None if self.router.chain.needs_head else self.router.chain.find(peer, None)
        if key is not None:
            route = self.router.where(key)
            return buckets.table(self._slots)[route.bucket] if is_left_out else route.slot
        return random.randrange(self._slots) if is_left_out else self.slot  # who gets it asks whose the next request is

    def slot_of(self, request: Request, *, keyed: bool) -> tuple[int, bool]:
        """Return the slot of *request*, and whether its connection has carried a key by now.

        A request without a key stays where it is, unless the connection has carried other clients' keys: then it
        is placed like a new client.
        """
        self.latest = route = self.router.route(request.peer, request)
        if route is not None:
            return route.slot, True
        placed = self.placement.place(request.peer) if keyed else None
        return (self.slot if placed is None else placed), keyed

    def digest(self) -> int:
        """Return the digest of the key of the latest request, which was asked for here; 0 if it has none."""
        return self.latest.digest if isinstance(self.latest, Route) else 0

    def disagrees(self, request: Request) -> bool:
        """Return whether this worker would send *request* on, which another has sent here."""
        route = self.router.route(request.peer, request)
        return route is not None and route.slot != self.slot
