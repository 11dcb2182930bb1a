"""Whether a request belongs to this worker: the question a worker asks for each request but a connection's first.

Owns what a worker knows of where requests belong. Asked by the server adapter; the answer is the router's.
"""

from __future__ import annotations

from limpet.link import Message
from limpet.placement import Placement
from limpet.request import Peer, Request
from limpet.router import Router


class Home:
    """What a worker knows of where requests belong."""

    def __init__(self, slot: int, router: Router, placement: Placement, listeners: list[str]) -> None:
        self.slot = slot
        self.router = router
        self.placement = placement
        self._listeners = listeners

    def follow(self, news: Message) -> None:
        """Take note of what the supervisor says of the workers, and of which slots are up."""
        self.placement.follow(news["rows"], news["held"])
        self.router.follow(news["up"])

    def peer(self, sockaddr: object, listener: int) -> Peer:
        """Return the far end of a connection that came in by the bind number *listener*."""
        return Peer.of(sockaddr, self._listeners[listener], listener)

    def slot_of(self, request: Request, *, keyed: bool) -> tuple[int, bool]:
        """Return the slot of *request*, and whether its connection has carried a key by now.

        A request without a key stays where it is, unless the connection has carried other clients' keys: then it
        is placed like a new client.
        """
        key = self.router.chain.find(request.peer, request)
        if key is not None:
            return self.router.where(key).slot, True
        placed = self.placement.place(request.peer) if keyed else None
        return (self.slot if placed is None else placed), keyed

    def disagrees(self, request: Request) -> bool:
        """Return whether this worker would send *request* on, which another has sent here."""
        key = self.router.chain.find(request.peer, request)
        return key is not None and self.router.where(key).slot != self.slot
