"""Arrivals: the connections whose request head a dispatcher waits for, each until its deadline.

This file owns the set of these connections, how many there may be, what has to be read of each, and which of them wake
the loop. It does not know what a head is (dispatch/peek.py does). The dispatcher, its caller, takes a connection out of
here and then hands it over, answers it or closes it.

1. Connections are in the order of their deadlines, because all get the same time. So the first one is due first.
2. Slow connections (dispatch/peek.py) have an epoll of their own, which is asked only at ticks of the clock. So a slow
   connection with nothing new costs nothing. Each call asks for a few of them, because there may be thousands.
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
NEWS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET  # EPOLLET: the bytes stay in the kernel


class Arrivals:
    """The connections that wait, by descriptor."""

    def __init__(self, settings: Settings, chain: KeyChain, epoll: select.epoll, row: Row, *, is_inner: bool) -> None:
        """*is_inner* says that all are inner connections: without TLS, and with a PROXY header first."""
        self._waiting: OrderedDict[int, Arrival] = OrderedDict()  # in a dict, finding the first one passes removed ones
        self._slow: set[int] = set()  # the descriptors of the slow ones
        self._slow_epoll = select.epoll()
        self._left = 0  # how many slow ones may still be returned in this round
        self._settings = settings
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = descriptors - len(os.listdir("/proc/self/fd"))
        self._most = min(settings.max_pending, max(1, free // 4 * 3))  # a quarter stays free for other connections
        row.set("room", self._most)
        self._wanted = [  # for each bind: what to read of its connections
            _wanted(settings, chain.at(bind), each.proxy_protocol == "required", is_inner=is_inner)
            for bind, each in enumerate(settings.served)
        ]
        self._per_address = PerAddress(settings.max_connections_per_address)  # counts the connections that wait
        self._epoll = epoll
        self._row = row

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self._waiting.values())

    def begin(self, connection: socket.SocketType, peer: Peer, now: float) -> Arrival | None:
        """Return an arrival for *connection*; None if nothing has to be read of it before its slot can be found."""
        what = self._wanted[peer.bind]
        return None if what is None else Arrival(connection, peer, now + self._settings.head_timeout_s, *what)

    def find(self, fd: int) -> Arrival | None:
        """Return the waiting arrival with descriptor *fd*; None if there is none."""
        return self._waiting.get(fd)

    def enter(self, arrival: Arrival) -> bool:
        """Return whether *arrival* may wait. It is counted for its address as soon as its client is known."""
        if arrival.entered_from is None and not arrival.awaits_header:
            if not self._per_address.enter(arrival.peer.address):
                return False
            arrival.entered_from = arrival.peer.address
        return True

    def keep(self, arrival: Arrival) -> Arrival | None:
        """Keep *arrival* until more of it comes. If there are too many, return the oldest, for the caller to end."""
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
        """Stop keeping *arrival*, if it is here; return whether the loop's epoll still watches it.

        With *keep_watch* it does, unless *arrival* was slow. Owns: the caller has the connection from now on.
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
        """The earliest deadline; infinity if no connection waits."""
        return next(iter(self._waiting.values())).deadline if self._waiting else math.inf

    def due(self, now: float, most: int) -> list[Arrival]:
        """Return the arrivals whose deadline has passed, but at most *most*."""
        return list(itertools.takewhile(lambda each: each.deadline <= now, itertools.islice(self, most)))

    def slow(self, most: int) -> list[tuple[Arrival, int]]:
        """Return at most *most* slow arrivals with something new, each with its epoll mask: a part of a round.

        A round returns at most as many as there were slow ones at its start. So clients that write all the time cannot
        make it last for ever.
        """
        most = min(most, self._left or len(self._slow))
        events = self._slow_epoll.poll(0, most) if most else []
        self._left = (self._left or len(self._slow)) - most if len(events) == most else 0
        return [(self._waiting[fd], mask) for fd, mask in events]

    @property
    def is_in_round(self) -> bool:
        """Whether this round may have more slow arrivals with something new."""
        return self._left > 0

    def hurry(self, latest: float, latest_silent: float) -> None:
        """Let no connection wait beyond *latest*, and none that is silent beyond *latest_silent*."""
        for arrival in self:
            arrival.deadline = min(arrival.deadline, latest, latest_silent if arrival.silent else latest)
        self._waiting = OrderedDict(sorted(self._waiting.items(), key=lambda item: item[1].deadline))


def _wanted(
    settings: Settings, chain: KeyChain, is_proxied: bool, *, is_inner: bool
) -> tuple[tuple[int, int] | None, bool, bool] | None:
    """Return the last arguments of `Arrival` for connections of a bind with *chain*; None if nothing is to be read."""
    needs_hello = settings.tls_cert is not None and not is_inner and chain.needs_server_name
    if not (is_proxied or is_inner or needs_hello or chain.needs_head):
        return None
    limits = (settings.max_head_bytes, settings.max_headers) if chain.needs_head else None
    return limits, is_proxied or is_inner, needs_hello
