"""Waiting for a request head without taking it: the bytes stay in the kernel for the worker.

Owns one connection between accept and hand-over. Asks head.py what the bytes mean; the dispatcher drives it and
decides what to do with the outcome.

1. MSG_PEEK only. What the worker reads is all that the client sent: no byte is re-injected, so none can be lost.
2. SO_RCVLOWAT of one more byte than was seen keeps a level-triggered loop from spinning on a partial head. It lives
   on the socket and would delay the worker's reads: it is set back before the connection leaves here.
3. A client that sent FIN wakes the loop for ever, so a partial head with the far end closed ends at once.
4. A client that writes byte by byte would cost one wake-up and one copy of all earlier bytes each: after
   _EAGER_LOOKS looks the connection is only looked at when the dispatcher's clock ticks, and only if more has come:
   thousands of large heads that stand still would be copied at each tick.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from typing import Final

from limpet.head import BadHead, HeadParser
from limpet.request import Peer, Request

_EAGER_LOOKS: Final = 32


class ClientGoneError(Exception):
    """The client closed or reset the connection before it had sent a whole head."""


class Arrival:
    """An accepted connection whose head is awaited. The dispatcher closes `connection`."""

    __slots__ = ("_looks", "_parser", "_seen", "_waiting", "connection", "deadline", "listener", "peer")

    def __init__(
        self, connection: socket.socket, peer: Peer, listener: int, deadline: float, parser: HeadParser
    ) -> None:
        self.connection = connection
        self.peer = peer
        self.listener = listener
        self.deadline = deadline
        self._parser = parser
        self._seen = 0
        self._looks = 0
        self._waiting = False

    @property
    def slow(self) -> bool:
        """Whether only the clock, no longer each byte, should cause the next look."""
        return self._looks > _EAGER_LOOKS

    @property
    def silent(self) -> bool:
        """Whether the client has sent nothing at all."""
        return self._seen == 0

    def has_more(self) -> bool:
        """Return whether more bytes have come since the last look. FIN and RST wake epoll."""
        unread = array.array("i", [0])
        fcntl.ioctl(self.connection, termios.FIONREAD, unread)
        return unread[0] > self._seen

    def look(self, *, hung_up: bool = False) -> Request | None:
        """Return the request when its head is complete, None when more bytes must come.

        *hung_up* says that the client has closed its side. Raises BadHead for what will never be a head and
        ClientGoneError when nobody is there to answer. Blocks never.
        """
        self._looks += 1
        limit = self._parser.max_head
        try:
            data = self.connection.recv(limit, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if hung_up:
                raise ClientGoneError from None
            return None
        except OSError as error:
            raise ClientGoneError from error
        if not data:
            raise ClientGoneError
        if self._parser.feed(data[self._seen :] if self._seen else data):
            self._wait_for(1)
            return self._parser.request(self.peer)
        if len(data) >= limit:
            raise BadHead(431, f"the request head is larger than {limit} bytes")
        if hung_up:
            if self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # reset: what came before is still there
                raise ClientGoneError
            raise BadHead(400, "the connection was closed in the middle of the request head")
        self._seen = len(data)
        self._wait_for(len(data) + 1)
        return None

    def _wait_for(self, size: int) -> None:
        """Make the kernel report the connection as readable from *size* bytes on."""
        if self._waiting or size > 1:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._waiting = size > 1
