"""Where a client without a key goes: `--place least|random|hash`.

Owns the choice. A dispatcher asks if the key chain found no key. A worker asks if a request without a key arrives on a
connection that has carried keys. The loads are read at the moment of the choice, so a burst of clients is spread, too.

A slot that has `--max-connections-per-worker` connections gets no more clients without a key. The next slot by the same
policy gets them. If all slots are full, `place` returns None, and the dispatcher answers 503. A client with a key
always goes to the slot of its key, without placement.

`least` takes the slot with the fewest connections. If clients come one after another, and each is gone before the next,
all slots have equally many. Among those slots, `least` takes the one whose worker has begun the fewest sessions
(affinity cookies set, ids learned, ids minted), then the one on which the fewest clients were placed, and then a random
one.

1. Requests that never carry a key (`belongs_to_no_user`) are placed but not counted. Others without a key are counted,
   and each round is in a random order: no pattern of requests can send all users to one slot.
2. Sessions and clients are compared since the workers changed last, and for a bounded number of clients: a slot that is
   new, or comes back, does not get all clients until it has caught up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Protocol

from limpet.protocol.request import Peer, Request
from limpet.routing.buckets import rank
from limpet.routing.key_chain import Key, KeyChain, Trust
from limpet.routing.router import Router

_WINDOW: Final = 64  # clients for each slot, after which the comparison begins anew: a burst of one user is forgotten
# Paths of health checks. Only unmistakable words count at the end of any path; the short ones must be the whole path.
_HEALTH_WORDS: Final = frozenset(
    ("health", "healthz", "healthy", "healthcheck", "health-check", "livez", "readyz", "liveness", "readiness")
)
_HEALTH_PATHS: Final = frozenset(("/ping", "/up", "/live", "/ready", "/-/ready", "/health/live", "/health/ready"))
_HEALTH_AGENTS: Final = (b"kube-probe/", b"GoogleHC/", b"ELB-HealthChecker/", b"Amazon-Route53-Health-Check-Service")


def belongs_to_no_user(request: Request) -> bool:
    """Return whether *request*, which has no key, is of a kind that never has one: a CORS preflight or a health check.

    Browsers send preflights without cookies and headers of the application. A health check is a GET or HEAD, without a
    cookie and without an upgrade, of one of the usual paths or by one of the usual agents.
    """
    header = request.header_bytes
    if request.method == "OPTIONS":
        return header(b"origin") is not None and header(b"access-control-request-method") is not None
    if request.method not in ("GET", "HEAD") or header(b"cookie") is not None or header(b"upgrade") is not None:
        return False
    path = request.path.rstrip("/")
    is_usual = path in _HEALTH_PATHS or path.rpartition("/")[2] in _HEALTH_WORDS
    return is_usual or (header(b"user-agent") or b"").startswith(_HEALTH_AGENTS)


class Figures(Protocol):
    """The figures of one worker: `connections`, and those that count sessions."""

    def __getitem__(self, name: str, /) -> int: ...


class Board(Protocol):
    """Where the figures of workers are read: the scoreboard."""

    def worker(self, row: int, /) -> Figures: ...


class Placement:
    """Picks the slot of a client of whom nothing but the far end of its connection is known."""

    def __init__(
        self,
        policy: str,
        router: Router,
        board: Board,
        queued: Callable[[int], int],
        draw: random.Random,
        most: int = 0,
    ) -> None:
        """*queued* tells how many connections wait for a slot, as this process can know; *most* 0 is no limit.

        *draw* decides where nothing else does.
        """
        self._order: Callable[[Peer], Iterable[int]] = {
            "least": self._least,
            "random": self._random,
            "hash": self._hash,
        }[policy]
        self._compares = policy == "least"
        self._most = most
        self._router = router
        self._by_address = KeyChain.parse("ip", Trust())
        self._board = board
        self._queued = queued
        self._draw = draw
        self._rows: list[int | None] = [None] * router.slots
        self._workers: list[Figures | None] = [None] * router.slots
        self._open = list(range(router.slots))  # the slots that take new clients
        self._begin_comparing()

    def follow(self, rows: Sequence[int | None], held: Collection[int] = ()) -> None:
        """Take note of the scoreboard row of the worker in each slot, None for none; who is new goes to none *held*."""
        before = self._rows, self._open
        self._rows = list(rows)
        self._open = [slot for slot in range(len(rows)) if slot not in held] or list(range(len(rows)))
        self._workers = [None if row is None else self._board.worker(row) for row in rows]
        if (self._rows, self._open) != before:
            self._begin_comparing()

    def place(self, peer: Peer, request: Request | None = None) -> int | None:
        """Return the slot for the client at *peer*, whose *request* has no key; None when all are full.

        Counts the client there, unless the request belongs to no user.
        """
        slots: Iterable[int] = self._order(peer)
        slot = next((slot for slot in slots if not self._most or self._connections(slot) < self._most), None)
        if slot is not None and self._compares and not (request is not None and belongs_to_no_user(request)):
            self._placed[slot] += 1
            self._left -= 1
            if not self._left:
                self._begin_comparing()
        return slot

    def _begin_comparing(self) -> None:
        """Let all slots be equal, whatever they were given before."""
        self._placed = [0] * len(self._rows)
        self._began_with = [self._sessions(slot) for slot in range(len(self._rows))]
        self._left = _WINDOW * len(self._rows)

    def _least(self, peer: Peer) -> Iterable[int]:
        slots = self._open
        if self._most:
            return sorted(slots, key=lambda slot: (*self._load(slot), *self._tie(slot)))
        loads = [self._load(slot) for slot in slots]
        fewest = min(loads)
        tied = [slot for slot, load in zip(slots, loads, strict=True) if load == fewest]
        return (min(tied, key=self._tie) if len(tied) > 1 else tied[0],)

    def _load(self, slot: int) -> tuple[bool, int]:
        """Return what to compare first: a slot without a worker has no connections, but its clients would wait."""
        return self._workers[slot] is None, self._connections(slot)

    def _tie(self, slot: int) -> tuple[int, int, float]:
        """Return what to compare where the load is the same."""
        return self._sessions(slot) - self._began_with[slot], self._placed[slot], self._draw.random()

    def _sessions(self, slot: int) -> int:
        """Return how many sessions the worker of *slot* has begun."""
        worker = self._workers[slot]
        return worker["cookies"] + worker["learned"] + worker["minted"] if worker else 0

    def _connections(self, slot: int) -> int:
        """Return how many connections *slot* has, those that wait for it included."""
        worker = self._workers[slot]
        return self._queued(slot) + (worker["connections"] if worker else 0)

    def _random(self, peer: Peer) -> Iterable[int]:
        slots = self._open
        return self._draw.sample(slots, len(slots)) if self._most else (self._draw.choice(slots),)

    def _hash(self, peer: Peer) -> Iterable[int]:
        """Hash the client's address as `--by ip` does; clients of a unix socket have none and share one home."""
        key = self._by_address.find(peer, None) or Key(value=b"", element="place", is_address=False)
        route = self._router.where(key)
        ranked = (route.slot, *rank(route.bucket, self._router.slots))
        return ranked if self._most else (next(slot for slot in ranked if slot in self._open),)
