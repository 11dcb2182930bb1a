"""Waiting for a request head without taking it: the bytes stay in the kernel for the worker.

This file owns one connection between accept and handoff, and what has to be read of it: a PROXY header, and after that
a request head or the start of TLS. protocol/proxy_protocol.py, protocol/head.py and protocol/client_hello.py say what
the bytes mean. The dispatcher and the terminator call `look` and decide what to do then.

1. Only MSG_PEEK is used. So the worker reads everything that the client sent: no byte is injected again, and none can
   be lost. The process that receives the connection takes a PROXY header (ipc/channel.py).
2. Bytes that stay in the kernel must not wake the loop again. So it is woken only for new bytes (EPOLLET).
3. SO_RCVLOWAT of one byte more than was seen makes the kernel have room for a long head of which nothing is taken. The
   option stays on the socket and would delay the worker's reads, so it is reset before the connection leaves here.
4. A FIN also wakes the loop only once. So an incomplete head is refused as soon as the client has closed its side.
5. A client that writes byte by byte would cost one wake-up and one copy of all earlier bytes for each byte. So after
   _EAGER_LOOKS looks the connection is looked at only when the dispatcher's clock ticks, and only if more bytes have
   come: otherwise thousands of large heads without anything new would be copied at each tick.
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

_EAGER_LOOKS: Final = 32  # looks at one connection before it counts as slow
_LONG: Final = 4096  # bytes for which every socket has room: the smallest sensible minimum in net.ipv4.tcp_rmem
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)  # `|` of enum members takes 1 us in CPython 3.11


class ClientGoneError(Exception):
    """The client closed or reset the connection before it had sent a whole head."""


class Arrival:
    """An accepted connection of which something has to be read first. Owns: its user closes `connection`."""

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
        """*limits* are the most bytes and headers of a request head; None if no request is read.

        *awaits_header* says that a PROXY header comes first. *needs_hello* says that the connection is TLS, and that
        the server name in its ClientHello is needed.
        """
        self.connection = connection
        self.peer = peer
        self.deadline = deadline
        self.awaits_header = awaits_header
        self.entered_from: str | None = None  # the address for which it is counted; `peer` may change later
        self.is_kept = False  # whether it is among the arrivals that wait
        self.header = 0  # bytes of the PROXY header, once that is complete
        self.request: Request | None = None
        self._limits = limits
        self._parser: HeadParser | None = None  # for a head that is not a plain one
        self._needs_hello = needs_hello
        self._seen = 0
        self._looks = 0
        self._waiting = False

    @property
    def slow(self) -> bool:
        """Whether only a tick of the clock, and no longer each new byte, should cause the next look."""
        return self._looks > _EAGER_LOOKS

    @property
    def silent(self) -> bool:
        """Whether the client has sent nothing, or uses TLS, in which it could not understand an HTTP response."""
        return self._seen == self.header or self._needs_hello

    def has_more(self) -> bool:
        """Return whether more bytes have come since the last look. It does not see FIN and RST, which wake epoll."""
        unread = array.array("i", [0])
        fcntl.ioctl(self.connection, termios.FIONREAD, unread)
        return unread[0] > self._seen

    def _limit(self) -> int:
        """Return the largest possible size of everything that has to be read, in bytes."""
        limit = proxy_protocol.MAX_BYTES if self.awaits_header else self.header
        if self._needs_hello:
            limit += client_hello.MAX_BYTES
        return limit + self._limits[0] if self._limits is not None else limit

    def look(self, *, hung_up: bool = False) -> bool:
        """Return whether everything that has to be read has come. Then `peer` and `request` are final.

        *hung_up* says that the client has closed its side. Raises BadHead, BadHelloError or BadHeaderError if the bytes
        can never become a request head, a ClientHello or a PROXY header. Raises ClientGoneError if the client cannot be
        answered any more. Blocks never.
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
            is_reset = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # a RST leaves earlier bytes
            if is_reset or self.awaits_header or self._needs_hello:
                raise ClientGoneError
            raise BadHead(400, "the connection was closed in the middle of the request head")
        self._seen = len(data)
        if self._seen >= _LONG:
            self._wait_for(self._seen + 1)
        return False

    def _is_complete(self, data: bytes) -> bool:
        """Return whether *data*, all bytes that have come, is complete. Raises as `look`."""
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
        """Make the kernel report the connection as readable when it has *size* bytes."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        self._waiting = size > 1
