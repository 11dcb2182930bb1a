"""The listeners of a dispatcher or terminator: when it accepts, and what it does without free descriptors.

This file owns the listening sockets, and whether they wake the loop. It does not own what it accepts: the dispatcher or
terminator that calls `take` or `spare` closes each connection or passes it on.

1. When accepting fails there is a pause until `again_at`, in which clients wait in the backlog. Without it the loop
   would spin.
2. A short lack of descriptors costs no client its request. Only after _PATIENCE_S without an accepted connection the
   dispatcher answers some clients with 503, using descriptors that it keeps in reserve for that.
3. A connection that is taken after `end` may have come through a door that was closed behind it
   (net/reuseport_group.py). So it is opened with `let_in`.
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

ACCEPTS_PER_TURN: Final = 16  # from one listener, so that request heads do not wait behind many new connections
_PAUSE_S: Final = 0.25  # after accepting has failed, for example without free descriptors
_PATIENCE_S: Final = 5.0  # before clients are refused. Balancers wait for a connection for 10 s or more
_HINT: Final = "`ulimit -Hn` shows how many descriptors are allowed"
RESERVE: Final = 32  # descriptors for refusing clients when no others are free

log = logging.getLogger("limpet")


class _Listener(NamedTuple):
    """One listening socket."""

    sock: socket.socket
    kind: tuple[int, int, int]  # family, type and protocol of the listener and of what it accepts
    name: str
    bind: int

    def accept(self) -> tuple[socket.SocketType, Peer]:
        """Return the next connection and its far end. Raises OSError.

        `socket.accept` would take 3 us more, for enum members and for an object with more methods than needed here.
        """
        number, address = self.sock._accept()  # type: ignore[attr-defined]  # older than Python 3, but unknown to mypy
        return socket.SocketType(*self.kind, number), Peer.of(address, self.name, self.bind)


class _Inner(NamedTuple):
    """The end of an inner channel, on which terminators send the inner connections of one bind."""

    sock: socket.socket
    receiver: Receiver
    name: str
    bind: int

    def accept(self) -> tuple[socket.SocketType, Peer]:
        """Return the next inner connection and its far end, without an address: its PROXY header names the client."""
        connection, _ = self.receiver.take()
        return connection, Peer(None, None, self.name, self.bind)


class Acceptor:
    """Accepts connections from the listeners that a process has inherited. Owns: the listeners, one for each bind."""

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
        """*counted* is the cell of *row* for accepted connections. With *is_inner* all listeners are inner channels."""
        self.again_at = 0.0  # end of the pause, monotonic; 0 without a pause
        self._short_since = 0.0  # when accepting began to fail, monotonic; 0 if the last attempt succeeded
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
        """Return whether *fd* is a listener from which this process accepts now."""
        return self._is_on and fd in self._listeners

    def start(self) -> None:
        """Accept from now on; fill the reserve again."""
        self._reserve.fill()
        self._is_on, self.again_at = True, 0.0
        for fd in self._listeners:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def put_off(self, fd: int, why: str, now: float) -> None:
        """Begin a pause, because listener *fd* cannot be served, and log *why* at most once an hour."""
        self._row.add("accept_errors")
        self._pause(until=now + _PAUSE_S)
        name = self._listeners[fd].name
        if self._hourly.allows(name, now):
            log.warning(
                "%s: clients wait in the backlog: %s (hint: %s)",
                name,
                why,
                _HINT,
                extra={"event": "clients_wait_in_backlog"},
            )

    def end(self, accept: Callable[[int, float, int], None], backlog: int, now: float, *, is_last: bool) -> None:
        """Stop accepting, and close the listeners.

        If *is_last*, no other process accepts after this one. Then first take what waits in the backlogs, by *accept*.
        """
        self._pause(until=0.0)
        self._is_ending = True
        if is_last:
            self.take_rest(accept, backlog, now)
        else:
            self._close()

    def take_rest(self, accept: Callable[[int, float, int], None], backlog: int, now: float) -> None:
        """Call *accept* for the connections that came before the end, then close the listeners.

        If descriptors run out, `again_at` says when to call this again.
        """
        self.again_at = 0.0
        for fd in self._listeners:
            accept(fd, now, backlog + ACCEPTS_PER_TURN)  # bounded: clients still come if another process has the socket
        if not self.again_at:
            self._close()

    def _pause(self, until: float) -> None:
        for fd in self._listeners if self._is_on else ():
            self._epoll.unregister(fd)
        self._is_on, self.again_at = False, until

    def _close(self) -> None:
        """Close the listeners. If the supervisor has closed its own ones, the kernel refuses clients from now on."""
        for listener in self._listeners.values():
            listener.sock.close()
        self._listeners.clear()

    def take(self, fd: int, most: int, now: float) -> Iterator[tuple[socket.SocketType, Peer]]:
        """Yield at most *most* connections that wait at listener *fd*; begin a pause if accepting fails.

        Owns: the caller closes what is yielded. Blocks never.
        """
        listener = self._listeners[fd]
        for _ in range(most):
            try:
                accepted = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # the client reset it while it waited in the backlog
                continue
            except OSError as error:
                if error.errno == errno.EINVAL:  # the socket does not listen yet, so no client waits
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
        """In a long lack of descriptors, use the reserve to yield connections of listener *fd*, for refusing them."""
        is_long = self._short_since and now - self._short_since >= _PATIENCE_S
        for _ in range(self._reserve.release() if is_long else 0):
            try:
                connection, _ = self._listeners[fd].accept()
            except OSError:  # no client waits, or the descriptor number was used for something else
                return
            self._row.add(self._counted)
            self._row.add("no_descriptor")
            yield connection


def let_in(connection: socket.SocketType) -> None:
    """Let packets reach *connection*, behind which a door may have been closed (net/reuseport_group.py)."""
    if connection.family != socket.AF_UNIX:
        open_door(connection)


class Reserve:
    """Up to *size* descriptor numbers, kept so that they can be released later. The process's end closes them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[int] = []
        self.fill()

    def fill(self) -> bool:
        """Take numbers until *size* are here; return whether that succeeded."""
        try:
            while len(self._kept) < self._size:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def release(self) -> int:
        """Free all the numbers; return how many they were."""
        released = len(self._kept)
        while self._kept:
            os.close(self._kept.pop())
        return released
