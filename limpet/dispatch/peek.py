"""Waiting for a request head without taking it: the bytes stay in the kernel for the worker.

Owns one connection between accept and hand-over, and what has to be read of it: a PROXY header; behind that a request
head, or the start of TLS. Asks protocol/proxy_protocol.py, protocol/head.py and protocol/client_hello.py what the bytes
mean; the dispatcher drives it and decides what to do then.

1. MSG_PEEK only. What the worker reads is all that the client sent: no byte is re-injected, so none can be lost.
   A PROXY header is taken by who receives the connection (ipc/channel.py).
2. What stays in the kernel must not wake the loop again: it is told of new bytes only (EPOLLET).
3. SO_RCVLOWAT of one more byte than was seen makes the kernel have room for a long head, none of which is taken off.
   It lives on the socket and would delay the worker's reads: it is set back before the connection leaves here.
4. A FIN is told once as well, so a partial head with the far end closed ends at once.
5. A client that writes byte by byte would cost one wake-up and one copy of all earlier bytes each: after
   _EAGER_LOOKS looks the connection is only looked at when the dispatcher's clock ticks, and only if more has come:
   thousands of large heads that stand still would be copied at each tick.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from typing import Final

from limpet.protocol import client_hello, proxy_protocol
from limpet.protocol.head import BadHead, HeadParser, plain
from limpet.protocol.request import Peer, Request, UnparsedRequest

_EAGER_LOOKS: Final = 32
_LONG: Final = 4096  # bytes for which each socket has room: the least that net.ipv4.tcp_rmem should be
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)  # here: `|` of two enum members takes CPython 3.11 1 us


class ClientGoneError(Exception):
    """The client closed or reset the connection before it had sent a whole head."""


class Arrival:
    """An accepted connection of which something has to be read. The dispatcher closes `connection`."""

    __slots__ = (
        "_limits", "_looks", "_needs_hello", "_parser", "_seen", "_waiting",
        "awaits_header", "connection", "deadline", "entered_from", "header", "is_kept", "peer", "request",
    )  # fmt: skip

    def __init__(
        self,
        connection: socket.SocketType,
        peer: Peer,
        deadline: float,
        limits: tuple[int, int] | None,
        awaits_header: bool = False,
        needs_hello: bool = False,
    ) -> None:
        """*limits* are those of a request head, its bytes and its headers; None where no request is read.

        *awaits_header* says that a PROXY header comes first.

        With *needs_hello* the connection is one of TLS, and the server name in it is looked for.
        """
        self.connection = connection
        self.peer = peer
        self.deadline = deadline
        self.awaits_header = awaits_header
        self.entered_from: str | None = None  # the address with whose connections it is counted: `peer` may change
        self.is_kept = False  # with those who wait
        self.header = 0  # bytes of the PROXY header, once it is there
        self.request: Request | None = None
        self._limits = limits
        self._parser: HeadParser | None = None  # for a head that is not a plain one
        self._needs_hello = needs_hello
        self._seen = 0
        self._looks = 0
        self._waiting = False

    @property
    def slow(self) -> bool:
        """Whether only the clock, no longer each byte, should cause the next look."""
        return self._looks > _EAGER_LOOKS

    @property
    def silent(self) -> bool:
        """Whether the client has sent nothing at all, or nothing in which an answer could be understood."""
        return self._seen == self.header or self._needs_hello

    def has_more(self) -> bool:
        """Return whether more bytes have come since the last look. FIN and RST wake epoll."""
        unread = array.array("i", [0])
        fcntl.ioctl(self.connection, termios.FIONREAD, unread)
        return unread[0] > self._seen

    def _limit(self) -> int:
        """Return how many bytes there may be of all that is awaited."""
        limit = proxy_protocol.MAX_BYTES if self.awaits_header else self.header
        if self._needs_hello:
            limit += client_hello.MAX_BYTES
        return limit + self._limits[0] if self._limits is not None else limit

    def look(self, *, hung_up: bool = False) -> bool:
        """Return whether all that is to be read is there, so that `peer` and `request` are what they should be.

        *hung_up* says that the client has closed its side. Raises BadHead for what will never be a head, BadHelloError
        and BadHeaderError for what will never be TLS or a PROXY header, ClientGoneError when nobody is there to answer.
        Blocks never.
        """
        self._looks += 1
        limit = self._limit()
        try:
            data = self.connection.recv(limit, _PEEK)
        except BlockingIOError:
            if hung_up:
                raise ClientGoneError from None
            return False
        except OSError as error:
            raise ClientGoneError from error
        if not data:
            raise ClientGoneError
        if self._is_complete(data):
            if self._waiting:
                self._wait_for(1)
            return True
        if len(data) >= limit and self._limits is not None:
            raise BadHead(431, f"the request head is larger than {self._limits[0]} bytes")
        if hung_up:
            is_reset = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # what came before is still there
            if is_reset or self.awaits_header or self._needs_hello:
                raise ClientGoneError
            raise BadHead(400, "the connection was closed in the middle of the request head")
        self._seen = len(data)
        if self._seen >= _LONG:
            self._wait_for(self._seen + 1)
        return False

    def _is_complete(self, data: bytes) -> bool:
        """Read what is new in *data*, all that has come."""
        if self.awaits_header:
            found = proxy_protocol.parse(data)
            if found is None:
                return False
            self.awaits_header, self.header, self._seen = False, found.length, found.length
            if found.origin is not None:
                address, port, _, server_name = found.origin
                self.peer = self.peer._replace(address=address, port=port, server_name=server_name)
        if self._needs_hello:
            hello = client_hello.parse(data[self.header :])
            if hello is None:
                return False
            self.peer = self.peer._replace(server_name=hello.server_name)
        if self._limits is None:
            return True
        max_head, max_headers = self._limits
        if self._parser is None:
            head = data[self.header :] if self.header else data
            if size := plain(head, max_headers):
                self.request = UnparsedRequest(head[:size], self.peer)
                return True
            self._parser = HeadParser(max_head, max_headers)
            self._seen = self.header
        if not self._parser.feed(data[self._seen :] if self._seen else data):
            return False
        self.request = self._parser.request(self.peer)
        return True

    def _wait_for(self, size: int) -> None:
        """Make the kernel report the connection as readable from *size* bytes on."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        self._waiting = size > 1
