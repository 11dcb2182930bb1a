"""Where a client without a key goes: `--place least|random|hash`.

Owns the choice. Asked by the dispatcher when the key chain found nothing, and by a worker when a connection that has
carried keys brings a request without one. The loads are read at the moment of the choice, so that a burst of clients
spreads as well as a trickle.

`least` takes the slot with the fewest connections, ties going to the one on which fewest were placed: clients that
come one after another, each gone before the next, would else all get slot 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from limpet.key import Key, KeyChain, Trust
from limpet.request import Peer
from limpet.router import Router
from limpet.scoreboard import Row, Scoreboard


class Placement:
    """Picks the slot of a client of whom nothing but the far end of its connection is known."""

    def __init__(self, policy: str, router: Router, board: Scoreboard, queued: Callable[[int], int]) -> None:
        """*queued* tells how many connections wait for a slot, as far as this process can know."""
        self._pick: Callable[[Peer], int] = {"least": self._least, "random": self._random, "hash": self._hash}[policy]
        self._router = router
        self._by_address = KeyChain.parse("ip", Trust.parse(""))
        self._board = board
        self._queued = queued
        self._placed = [0] * router.slots
        self._workers: list[Row | None] = [None] * router.slots

    def follow(self, rows: Sequence[int | None]) -> None:
        """Take note of the scoreboard row of the worker that is in each slot now, None for none."""
        self._workers = [None if row is None else self._board.worker(row) for row in rows]

    def place(self, peer: Peer) -> int:
        """Return the slot for the client at *peer*, and count it there."""
        slot = self._pick(peer)
        self._placed[slot] += 1
        return slot

    def _least(self, peer: Peer) -> int:
        return min(range(self._router.slots), key=self._load)

    def _load(self, slot: int) -> tuple[bool, int, int]:
        """Return what to compare: a slot without a worker has no connections, but its clients would wait."""
        worker = self._workers[slot]
        connections = worker["connections"] if worker else 0
        return worker is None, self._queued(slot) + connections, self._placed[slot]

    def _random(self, peer: Peer) -> int:
        return random.randrange(self._router.slots)

    def _hash(self, peer: Peer) -> int:
        """Hash the client's address as `--by ip` does; clients of a unix socket have none and share one home."""
        key = self._by_address.find(peer, None) or Key(value=b"", element="place", is_address=False)
        return self._router.where(key).slot
