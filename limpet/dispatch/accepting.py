"""The listeners of a dispatcher or terminator: when it accepts, and what it does without free descriptors.

Owns the listening sockets and whether the loop is woken by them. Who has been accepted is the caller's: `take` and
`spare` yield connections that it closes or passes on.

1. After accepting has failed there is a pause, `again_at`, in which clients wait in the backlog: else the loop would
   spin.
2. A shortage of descriptors costs nobody a request unless it lasts: only when nobody could be taken for _PATIENCE_S
   some clients get 503 from a dispatcher, by descriptors that are kept in reserve for that.
3. Who is taken after `end` may have come through a door that was closed behind it (net/reuseport_group.py), and is let
   in.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from limpet.errors import reason
from limpet.ipc.channel import Receiver
from limpet.ipc.scoreboard import Row
from limpet.logs import Hourly
from limpet.net.reuseport_group import open_door
from limpet.protocol.request import Peer

ACCEPTS_PER_TURN: Final = 16  # of one listener, so that heads that have arrived do not wait behind a storm
_PAUSE_S: Final = 0.25  # after accepting failed, as without free descriptors
_PATIENCE_S: Final = 5.0  # that clients wait in the backlog then: balancers wait for 10 s and more before they give up
_HINT: Final = "`ulimit -Hn` shows how many descriptors are allowed"
RESERVE: Final = 32  # descriptors with which clients are refused when there are no others

log = logging.getLogger("limpet")


class _Listener(NamedTuple):
    """One listening socket."""

    sock: socket.socket
    kind: tuple[int, int, int]  # family, type and protocol, also of what it accepts
    name: str
    bind: int

    def accept(self) -> tuple[socket.SocketType, Peer]:
        """Return the next connection, and its far end.

        `socket.accept` makes enum members for each, and an object with a `makefile` that nobody needs here: 3 us.
        """
        number, address = self.sock._accept()  # type: ignore[attr-defined]  # unknown to mypy, older than Python 3
        return socket.SocketType(*self.kind, number), Peer.of(address, self.name, self.bind)


class _Inner(NamedTuple):
    """The end of an inner channel, by which terminators pass on what comes to one bind."""

    sock: socket.socket
    receiver: Receiver
    name: str
    bind: int

    def accept(self) -> tuple[socket.SocketType, Peer]:
        """Return the next inner connection, and its far end: who the client is stands in its PROXY header."""
        connection, _ = self.receiver.take()
        return connection, Peer(None, None, self.name, self.bind)


class Listening:
    """The listeners that a process has inherited, each the number of a bind."""

    def __init__(
        self,
        listeners: list[tuple[socket.socket, str]],
        epoll: select.epoll,
        row: Row,
        *,
        counted: str = "accepted",
        reserve: int = 0,
        is_inner: bool = False,
    ) -> None:
        """*counted* is the cell of *row* for who is taken; *is_inner* says that all are ends of inner channels."""
        self.again_at = 0.0  # monotonic; 0: there is no pause
        self._short_since = 0.0  # monotonic; 0: the last attempt to accept did not fail
        self._hourly = Hourly()
        self._listeners: dict[int, _Listener | _Inner] = {
            sock.fileno(): _Inner(sock, Receiver(sock), name, index)
            if is_inner
            else _Listener(sock, (int(sock.family), int(sock.type), sock.proto), name, index)
            for index, (sock, name) in enumerate(listeners)
        }
        self._epoll = epoll
        self._row = row
        self._counted = counted
        self._reserve = Reserve(reserve)
        self._is_on = False
        self._is_ending = False

    def accepts(self, fd: int) -> bool:
        """Return whether *fd* is a listener from which connections are to be taken."""
        return self._is_on and fd in self._listeners

    def start(self) -> None:
        """Accept from now on."""
        self._reserve.fill()
        self._is_on, self.again_at = True, 0.0
        for fd in self._listeners:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def put_off(self, fd: int, why: str, now: float) -> None:
        """Begin a pause, since nobody can be taken from listener *fd*."""
        self._row.add("accept_errors")
        self._pause(until=now + _PAUSE_S)
        name = self._listeners[fd].name
        if self._hourly.allows(name, now):
            log.warning("%s: clients wait in the backlog: %s (hint: %s)", name, why, _HINT)

    def end(self, accept: Callable[[int, float, int], None], backlog: int, now: float, *, is_last: bool) -> None:
        """Accept no longer by itself, and close the listeners; if no other process goes on, once the rest is taken."""
        self._pause(until=0.0)
        self._is_ending = True
        if is_last:
            self.take_rest(accept, backlog, now)
        else:
            self._close()

    def take_rest(self, accept: Callable[[int, float, int], None], backlog: int, now: float) -> None:
        """Have *accept* take who has connected before the end.

        What there are no descriptors for is to be tried again at `again_at`.
        """
        self.again_at = 0.0
        for fd in self._listeners:
            accept(fd, now, backlog + ACCEPTS_PER_TURN)  # a bound, since others may still come where another goes on
        if not self.again_at:
            self._close()

    def _pause(self, until: float) -> None:
        for fd in self._listeners if self._is_on else ():
            self._epoll.unregister(fd)
        self._is_on, self.again_at = False, until

    def _close(self) -> None:
        """If the supervisor has closed its own listeners, clients are refused from here on."""
        for listener in self._listeners.values():
            listener.sock.close()
        self._listeners.clear()

    def take(self, fd: int, most: int, now: float) -> Iterator[tuple[socket.SocketType, Peer]]:
        """Yield at most *most* of those who wait at listener *fd*; begin a pause if that fails."""
        listener = self._listeners[fd]
        for _ in range(most):
            try:
                accepted = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # reset while it waited in the backlog
                continue
            except OSError as error:
                if error.errno == errno.EINVAL:  # the supervisor does not listen yet, so nobody waits
                    return
                self._short_since = self._short_since or now
                self.put_off(fd, reason(error), now)
                return
            self._row.add(self._counted)
            self._short_since = 0.0
            if self._is_ending:
                let_in(accepted[0])
            yield accepted

    def spare(self, fd: int, now: float) -> Iterator[socket.SocketType]:
        """In a long shortage, yield as many who wait at listener *fd* as there are descriptors for a refusal."""
        is_long = self._short_since and now - self._short_since >= _PATIENCE_S
        for _ in range(self._reserve.release() if is_long else 0):
            try:
                connection, _ = self._listeners[fd].accept()
            except OSError:  # nobody waits any more, or somebody else has taken the number
                return
            self._row.add(self._counted)
            self._row.add("no_descriptor")
            yield connection


def let_in(connection: socket.SocketType) -> None:
    """Let packets reach *connection*, which may have come through a door that was closed behind it."""
    if connection.family != socket.AF_UNIX:
        open_door(connection)


class Reserve:
    """Up to *size* descriptor numbers. The process's end closes them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[int] = []
        self.fill()

    def fill(self) -> bool:
        """Take numbers until all are here; return whether that is so."""
        try:
            while len(self._kept) < self._size:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def release(self) -> int:
        """Let others have the numbers; return how many those are."""
        released = len(self._kept)
        while self._kept:
            os.close(self._kept.pop())
        return released
