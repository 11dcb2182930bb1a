"""Where a client without a key goes: `--place least|random|hash`.

Owns the choice. Asked by the dispatcher when the key chain found nothing, and by a worker when a connection that has
carried keys brings a request without one. The loads are read at the moment of the choice, so that a burst of clients
spreads as well as a trickle.

A slot that has `--max-connections-per-worker` gets no more of them: the next by the same policy does, and when all are
full nobody, which the dispatcher answers with 503. Clients with a key are none of placement's: they go home.

`least` takes the slot with the fewest connections, ties going to the one on which fewest were placed: clients that
come one after another, each gone before the next, would else all get slot 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from limpet.protocol.request import Peer
from limpet.routing.buckets import rank
from limpet.routing.key_chain import Key, KeyChain, Trust
from limpet.routing.router import Router


class Figures(Protocol):
    """The figures of one worker: `connections` is what counts here."""

    def __getitem__(self, name: str, /) -> int: ...


class Board(Protocol):
    """Where the figures of workers are read: the scoreboard."""

    def worker(self, row: int, /) -> Figures: ...


class Placement:
    """Picks the slot of a client of whom nothing but the far end of its connection is known."""

    def __init__(self, policy: str, router: Router, board: Board, queued: Callable[[int], int], most: int = 0) -> None:
        """*queued* tells how many connections wait for a slot, as this process can know; *most* 0 is no limit."""
        self._order: Callable[[Peer], Iterable[int]] = {
            "least": self._least,
            "random": self._random,
            "hash": self._hash,
        }[policy]
        self._most = most
        self._router = router
        self._by_address = KeyChain.parse("ip", Trust.parse(""))
        self._board = board
        self._queued = queued
        self._placed = [0] * router.slots
        self._workers: list[Figures | None] = [None] * router.slots
        self._open = list(range(router.slots))  # the slots that take new clients

    def follow(self, rows: Sequence[int | None], held: Collection[int] = ()) -> None:
        """Take note of the scoreboard row of the worker in each slot, None for none; who is new goes to none *held*."""
        self._placed += [0] * (len(rows) - len(self._placed))
        self._workers = [None if row is None else self._board.worker(row) for row in rows]
        self._open = [slot for slot in range(len(rows)) if slot not in held] or list(range(len(rows)))

    def place(self, peer: Peer) -> int | None:
        """Return the slot for the client at *peer*, and count it there; None when all are full."""
        slots: Iterable[int] = self._order(peer)
        slot = next((slot for slot in slots if not self._most or self._connections(slot) < self._most), None)
        if slot is not None:
            self._placed[slot] += 1
        return slot

    def _least(self, peer: Peer) -> Iterable[int]:
        slots = self._open
        return sorted(slots, key=self._load) if self._most else (min(slots, key=self._load),)

    def _load(self, slot: int) -> tuple[bool, int, int]:
        """Return what to compare: a slot without a worker has no connections, but its clients would wait."""
        return self._workers[slot] is None, self._connections(slot), self._placed[slot]

    def _connections(self, slot: int) -> int:
        """Return how many connections *slot* has, those that wait for it included."""
        worker = self._workers[slot]
        return self._queued(slot) + (worker["connections"] if worker else 0)

    def _random(self, peer: Peer) -> Iterable[int]:
        slots = self._open
        return random.sample(slots, len(slots)) if self._most else (random.choice(slots),)

    def _hash(self, peer: Peer) -> Iterable[int]:
        """Hash the client's address as `--by ip` does; clients of a unix socket have none and share one home."""
        key = self._by_address.find(peer, None) or Key(value=b"", element="place", is_address=False)
        route = self._router.where(key)
        ranked = (route.slot, *rank(route.bucket, self._router.slots))
        return ranked if self._most else (next(slot for slot in ranked if slot in self._open),)
