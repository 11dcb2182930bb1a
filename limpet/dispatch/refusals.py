"""Refusals: the few responses that limpet gives itself, without a worker.

This file owns the bytes of these responses and the way to close a connection after one. It does not know why a client
is refused. Dispatchers and terminators call it.

How it works: if a socket is closed while unread bytes wait in it, the kernel sends RST, which may destroy the response
before the client has read it. So a refused connection is first half-closed, and for a moment all that comes is read and
thrown away.

1. Refusals are in the order of their deadlines, because all get the same time.
2. The loop is woken only for new bytes. So each call reads everything that has come, and so does the last call before
   the close.
"""

from __future__ import annotations

import contextlib
import functools
import http
import itertools
import logging
import select
import socket
import time
from collections.abc import Mapping
from typing import Final

from limpet.ipc.scoreboard import Row
from limpet.logs import Hourly
from limpet.protocol.request import Peer

LINGER_S: Final = 2.0  # the time that a refused client has to read its response and close
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | socket.MSG_MORE)  # leaves with the FIN
_DRAIN: Final = int(socket.MSG_DONTWAIT)
_DRAIN_BYTES: Final = 65536  # read at a time of what a refused client still sends
_DRAINS: Final = 16  # reads in a row, so that no connection waits for a client that sends all the time
_NEWS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_TEXT: Final[Mapping[int, str]] = {
    400: "bad request",
    408: "the request head did not arrive in time",
    429: "this address has too many connections",
    431: "the request head is too large",
    503: "no worker can take this request now",
}
_HOURLY: Final = Hourly()
log = logging.getLogger("limpet")


@functools.lru_cache(maxsize=64)  # there are few reasons, and thousands may get the same
def answer(status: int, reason: str = "") -> bytes:
    """Return the whole response for *status*. Its body is *reason*, or a default text."""
    body = f"{reason or _TEXT[status]}\n".encode()
    retry = "Retry-After: 1\r\n" if status in (429, 503) else ""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def turn_away(connection: socket.SocketType, peer: Peer, row: Row, cell: str, why: str) -> None:
    """Close *connection* without a response, count it in *cell*, and log *why* at most once an hour.

    For peers that have not sent HTTP yet, and so could not read a response.
    """
    row.add(cell)
    if _HOURLY.allows(f"{cell} {peer.listener}", time.monotonic()):
        log.warning(
            "%s: a connection from %s was closed: %s",
            peer.listener,
            peer.address or "unix",
            why,
            extra={"event": "connection_closed"},
        )
    connection.close()


class Refused:
    """A client connection that has its response and only has to end. Owns: the connection, until `close`."""

    __slots__ = ("_socket", "deadline")

    def __init__(self, connection: socket.SocketType, status: int, reason: str, now: float) -> None:
        self._socket = connection
        self.deadline = now + LINGER_S
        with contextlib.suppress(OSError):  # the client is gone
            connection.send(answer(status, reason), _SEND)
            connection.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._socket.fileno()

    def drained(self, *, hung_up: bool = False) -> bool | None:
        """Throw away what has come; return whether the client has closed, or None if more may be there. Blocks never.

        *hung_up* says that the client has closed its side, so that nothing follows the bytes that are there.
        """
        try:
            for _ in range(_DRAINS):
                size = len(self._socket.recv(_DRAIN_BYTES, _DRAIN))
                if size < _DRAIN_BYTES:
                    return hung_up or not size
        except BlockingIOError:
            return False
        except OSError:
            return True
        return None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Refusals:
    """The connections that a dispatcher has refused, by descriptor. Owns: these connections."""

    def __init__(self, epoll: select.epoll, row: Row) -> None:
        self._epoll = epoll
        self._row = row
        self._refused: dict[int, Refused] = {}

    def __len__(self) -> int:
        return len(self._refused)

    def answer(
        self, connection: socket.SocketType, status: int, now: float, reason: str = "", *, is_watched: bool = False
    ) -> None:
        """Refuse *connection* with *status*; close it when the client has closed, or after LINGER_S. Owns: this object.

        *is_watched* says that the loop's epoll watches it already, and that every event so far was acted on.
        """
        self._row.add(f"refused_{status}")
        fd = connection.fileno()
        self._refused[fd] = Refused(connection, status, reason, now)
        if not is_watched:
            self._epoll.register(fd, _NEWS)

    def read(self, fd: int, *, hung_up: bool) -> None:
        """Throw away what came on *fd*, if that is a refusal. *hung_up* says that the client has closed its side."""
        refused = self._refused.get(fd)
        if refused is None:
            return
        is_drained = refused.drained(hung_up=hung_up)
        if is_drained:
            del self._refused[fd]
            refused.close()
        elif is_drained is None:
            self._epoll.modify(fd, _NEWS)  # makes epoll report again what is there

    def expire(self, now: float) -> None:
        """Close the connections whose time is over."""
        for fd in [fd for fd, _ in itertools.takewhile(lambda item: item[1].deadline <= now, self._refused.items())]:
            refused = self._refused.pop(fd)
            refused.drained()
            refused.close()
