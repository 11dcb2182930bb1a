"""Where the client of an open websocket is at home, and whether that has changed since the websocket opened.

Owns the answer for one websocket. A websocket cannot move to another worker, so it stays here when its client's home
moves: the client's later requests then go to another slot. The server adapter asks `has_moved` of each open websocket
when the number of slots has changed, and closes those that it is true of.

1. Only a change of the number of slots moves a home. A failover does not: a client that is served here while the worker
   of its home is down has the same home before and after.
2. A websocket that another process sent here by an older table than this worker has counts as moved.
3. A learned id stays with its slot, whatever the table says.
"""

from __future__ import annotations

from limpet.routing.router import Router


class Residence:
    """The home of one client, as it was when its websocket opened."""

    __slots__ = ("_digest", "_has_moved", "_home", "_router", "_slots")

    def __init__(self, router: Router, slot: int, digest: int) -> None:
        """*digest* is that of the client's key, *slot* that of this worker."""
        self._router = router
        self._digest = digest
        route = router.route_of(digest)
        self._home = route.home if route.slot == slot else slot  # rule 2
        self._has_moved = self._home != route.home
        self._slots = router.slots  # the table for which `_has_moved` is true

    def has_moved(self) -> bool:
        """Return whether the client's home is another slot than it was."""
        if self._slots != self._router.slots:
            self._slots = self._router.slots
            self._has_moved = self._router.route_of(self._digest).home != self._home
        return self._has_moved
