"""How limpet itself answers a client: the few responses that no worker gives.

Owns the bytes of these answers and the manner of closing after one. Called by dispatchers and terminators; knows
nothing of why.

A socket that is closed while unread bytes wait in it sends RST, which may destroy the answer before the client has
read it. So a refused connection is half-closed and drained for a moment first.

1. Refusals are in the order of their deadlines, since all get the same time.
2. The loop is told of news only, so all that has come is taken each time, and before the end.
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

LINGER_S: Final = 2.0  # how long a refused client may take to read its answer and close
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | socket.MSG_MORE)  # it leaves together with the FIN
_DRAIN: Final = int(socket.MSG_DONTWAIT)
_DRAIN_BYTES: Final = 65536  # read at once of what a refused client still sends
_DRAINS: Final = 16  # in a row: others must not wait for one who sends all the time
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


@functools.lru_cache(maxsize=64)  # reasons are texts of the program, and thousands may get the same
def answer(status: int, reason: str = "") -> bytes:
    """Return the whole response for *status*; *reason* says more than the status does."""
    body = f"{reason or _TEXT[status]}\n".encode()
    retry = "Retry-After: 1\r\n" if status in (429, 503) else ""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def turn_away(connection: socket.SocketType, peer: Peer, row: Row, cell: str, why: str) -> None:
    """Close *connection*, on which nothing came that is believed: whoever is there speaks no HTTP yet."""
    row.add(cell)
    if _HOURLY.allows(f"{cell} {peer.listener}", time.monotonic()):
        log.warning("%s: a connection from %s was closed: %s", peer.listener, peer.address or "unix", why)
    connection.close()


class Refused:
    """A client connection that has its answer and now only has to end. Closes it."""

    __slots__ = ("_socket", "deadline")

    def __init__(self, connection: socket.SocketType, status: int, reason: str, now: float) -> None:
        self._socket = connection
        self.deadline = now + LINGER_S
        with contextlib.suppress(OSError):  # a client that has gone needs no answer
            connection.send(answer(status, reason), _SEND)
            connection.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._socket.fileno()

    def drained(self, *, hung_up: bool = False) -> bool | None:
        """Throw away what came; return whether the client has closed, None if there may be more. Blocks never.

        *hung_up* says that it has, so that nothing comes behind what is there.
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
    """Those whom a dispatcher has answered, by the number of their descriptor. Closes them."""

    def __init__(self, epoll: select.epoll, row: Row) -> None:
        self._epoll = epoll
        self._row = row
        self._refused: dict[int, Refused] = {}

    def __len__(self) -> int:
        return len(self._refused)

    def answer(
        self, connection: socket.SocketType, status: int, now: float, reason: str = "", *, is_watched: bool = False
    ) -> None:
        """Answer *connection* with *status*, and close it when the client has, or has had its time to.

        *is_watched* says that its news wake the loop already, and that none has been told that was not looked at.
        """
        self._row.add(f"refused_{status}")
        fd = connection.fileno()
        self._refused[fd] = Refused(connection, status, reason, now)
        if not is_watched:
            self._epoll.register(fd, _NEWS)

    def read(self, fd: int, *, hung_up: bool) -> None:
        """Take what came from *fd*, if it is one of these; *hung_up* says that the client has closed its side."""
        refused = self._refused.get(fd)
        if refused is None:
            return
        is_drained = refused.drained(hung_up=hung_up)
        if is_drained:
            del self._refused[fd]
            refused.close()
        elif is_drained is None:
            self._epoll.modify(fd, _NEWS)  # makes it tell again what is there

    def expire(self, now: float) -> None:
        """Close those who have had their time."""
        for fd in [fd for fd, _ in itertools.takewhile(lambda item: item[1].deadline <= now, self._refused.items())]:
            refused = self._refused.pop(fd)
            refused.drained()
            refused.close()
