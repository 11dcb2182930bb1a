"""The connections whose head a dispatcher awaits, each until its deadline.

Owns who is among them, what has to come of each, how many there may be, and what wakes the loop. What a head is
dispatch/peek.py knows; who takes a connection out of here, the dispatcher, hands it over, answers or closes it.

1. They are in the order of their deadlines, since all get the same time: the first is the next to go.
2. A slow one (dispatch/peek.py) is looked at by the clock: an epoll of its own keeps what is new of the slow ones until
   then, so those that stand still cost nothing. It is asked for some at a time, since there may be thousands.
"""

from __future__ import annotations

import itertools
import math
import os
import resource
import select
import socket
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from limpet.config.settings import Settings
from limpet.dispatch.address_limit import PerAddress
from limpet.dispatch.peek import Arrival
from limpet.ipc.scoreboard import Row
from limpet.protocol.request import Peer
from limpet.routing.key_chain import KeyChain

HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
NEWS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET  # what is there stays there: once is enough


class Arrivals:
    """Those who wait, by the number of their descriptor."""

    def __init__(self, settings: Settings, chain: KeyChain, epoll: select.epoll, row: Row, *, is_inner: bool) -> None:
        """*is_inner* says that all are inner connections: plain, and behind a PROXY header."""
        self._waiting: OrderedDict[int, Arrival] = OrderedDict()  # a dict looks for its first among all that have left
        self._slow: set[int] = set()  # those of them that are slow
        self._slow_epoll = select.epoll()
        self._left = 0  # so many of them may still be looked at in this round
        self._settings = settings
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = descriptors - len(os.listdir("/proc/self/fd"))
        self._most = min(settings.max_pending, max(1, free // 4 * 3))  # slow clients leave some for the others
        row.set("room", self._most)
        self._wanted = [  # of the connections of each bind
            _wanted(settings, chain.at(bind), each.proxy_protocol == "required", is_inner=is_inner)
            for bind, each in enumerate(settings.served)
        ]
        self._per_address = PerAddress(settings.max_connections_per_address)  # of those who wait
        self._epoll = epoll
        self._row = row

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self._waiting.values())

    def begin(self, connection: socket.SocketType, peer: Peer, now: float) -> Arrival | None:
        """Return what has to be read of *connection* before its slot can be found; None if that is nothing."""
        what = self._wanted[peer.bind]
        return None if what is None else Arrival(connection, peer, now + self._settings.head_timeout_s, *what)

    def find(self, fd: int) -> Arrival | None:
        """Return the one with the descriptor *fd*."""
        return self._waiting.get(fd)

    def enter(self, arrival: Arrival) -> bool:
        """Count *arrival* with the others of its address, once its client is known; return whether it may wait."""
        if arrival.entered_from is None and not arrival.awaits_header:
            if not self._per_address.enter(arrival.peer.address):
                return False
            arrival.entered_from = arrival.peer.address
        return True

    def keep(self, arrival: Arrival) -> Arrival | None:
        """Keep *arrival* until more of it has come. Return the one that has to go if there are too many."""
        fd, oldest = arrival.connection.fileno(), None
        if fd in self._waiting:
            if arrival.slow and fd not in self._slow:
                self._slow.add(fd)
                self._epoll.unregister(fd)
                self._slow_epoll.register(fd, NEWS)
            return None
        if len(self._waiting) >= self._most:
            oldest = next(iter(self))
            self.forget(oldest)
            self._row.add("crowded_out")
        self._waiting[fd] = arrival
        arrival.is_kept = True
        self._row.set("pending", len(self._waiting))
        self._epoll.register(fd, NEWS)
        return oldest

    def forget(self, arrival: Arrival, *, keep_watch: bool = False) -> bool:
        """Keep *arrival*, if it is here, no longer; return whether its news still wake the loop.

        They do so with *keep_watch*, unless it was slow.
        """
        if not arrival.is_kept:
            return False
        arrival.is_kept = is_watched = False
        fd = arrival.connection.fileno()
        del self._waiting[fd]
        if fd in self._slow:
            self._slow.remove(fd)
            self._slow_epoll.unregister(fd)
        elif keep_watch:
            is_watched = True
        else:
            self._epoll.unregister(fd)
        self._row.set("pending", len(self._waiting))
        if arrival.entered_from is not None:
            self._per_address.leave(arrival.entered_from)
            arrival.entered_from = None
        return is_watched

    @property
    def due_at(self) -> float:
        """The first deadline."""
        return next(iter(self._waiting.values())).deadline if self._waiting else math.inf

    def due(self, now: float, most: int) -> list[Arrival]:
        """Return those whose deadline has passed, the first *most* of them."""
        return list(itertools.takewhile(lambda each: each.deadline <= now, itertools.islice(self, most)))

    def slow(self, most: int) -> list[tuple[Arrival, int]]:
        """Return slow ones of which there is news, with what epoll says: the next *most* of this round, or of another.

        A round has as many looks as there are slow ones, so that those who write all the time cannot make it last.
        """
        most = min(most, self._left or len(self._slow))
        events = self._slow_epoll.poll(0, most) if most else []
        self._left = (self._left or len(self._slow)) - most if len(events) == most else 0
        return [(self._waiting[fd], mask) for fd, mask in events]

    @property
    def is_in_round(self) -> bool:
        """Whether there may be news of others in this round."""
        return self._left > 0

    def hurry(self, latest: float, latest_silent: float) -> None:
        """Let nobody wait longer than until *latest*, and nobody who says nothing longer than *latest_silent*."""
        for arrival in self:
            arrival.deadline = min(arrival.deadline, latest, latest_silent if arrival.silent else latest)
        self._waiting = OrderedDict(sorted(self._waiting.items(), key=lambda item: item[1].deadline))


def _wanted(
    settings: Settings, chain: KeyChain, is_proxied: bool, *, is_inner: bool
) -> tuple[tuple[int, int] | None, bool, bool] | None:
    """Return what `Arrival` has to be told of connections of a bind with *chain*; None if nothing is to be read."""
    needs_hello = settings.tls_cert is not None and not is_inner and chain.needs_server_name
    if not (is_proxied or is_inner or needs_hello or chain.needs_head):
        return None
    limits = (settings.max_head_bytes, settings.max_headers) if chain.needs_head else None
    return limits, is_proxied or is_inner, needs_hello
