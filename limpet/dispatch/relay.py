"""The relay in a terminator between one TLS connection of a client and its inner connection.

This file owns what is read, written and held back between the two, and the order in which both end. It does not know
HTTP, nor which process has the other end of the inner connection: for dispatchers and workers that is a client
connection like any other. dispatch/terminator.py calls it.

1. What is read on one side is written to the other before more is read. So in each direction at most one read
   (READ_BYTES) waits here: a side that does not read holds the other back, and memory is bounded.
2. An epoll mask only says what to try. An event may be for a closed connection whose descriptor number is in use again.
3. A side that is not to be read is not watched at all. epoll always reports a far end that has closed, again and again.
4. The end of the inner connection is passed on as close_notify and FIN. Then, for a moment, whatever the client still
   sends is thrown away: closing a socket with unread bytes sends RST, which may destroy the end of a response.
5. When the client closes its side, only that direction ends, as with connections without TLS: its request may still be
   answered.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Final

from limpet.dispatch.refusals import LINGER_S

READ_BYTES: Final = 65_536  # at a time; if the other side reads, one call writes as much
_READS_PER_TURN: Final = 4  # of one connection, so that others do not wait behind a large body
_RECORD_BYTES: Final = 16_384  # the most that one TLS record holds, and so the most that one read returns
_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_buffer: Final = memoryview(bytearray(READ_BYTES))  # shared by all relays: the rest of a write is copied
_TRY_AGAIN: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Relay:
    """A client connection whose handshake is over, and its inner connection. Owns: both, closed once `is_over`."""

    __slots__ = (
        "_client_ended",
        "_down",
        "_end_sent",
        "_epoll",
        "_inner_deaf",
        "_inner_ended",
        "_masks",
        "_turned",
        "_up",
        "client",
        "inner",
        "is_over",
        "stalled_since",
    )  # fmt: skip

    def __init__(self, client: ssl.SSLSocket, inner: socket.socket, epoll: select.epoll) -> None:
        """*client* and *inner* must be non-blocking, and not registered with *epoll*: this object registers them."""
        self.client = client
        self.inner = inner
        self.is_over = False
        self.stalled_since: float | None = None  # monotonic: see `expire`
        self._epoll = epoll
        self._masks = {client.fileno(): 0, inner.fileno(): 0}  # what epoll watches
        self._up = b""  # read from the client, to be written to the inner connection
        self._down = b""  # read from the inner connection, to be written to the client
        self._client_ended = False  # the client sends no more
        self._inner_ended = False  # the inner connection sends no more
        self._inner_deaf = False  # the other end of the inner connection reads no more
        self._end_sent = False  # the client has got close_notify and FIN
        self._turned = False  # TLS must write before it can read more

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors of both connections, which they have while open."""
        return tuple(self._masks)

    def go_on(self, fd: int, mask: int) -> None:
        """Read and write what is possible, since epoll has reported *mask* for *fd*. Blocks never."""
        try:
            if self._end_sent:
                self._throw_away()
            elif fd == self.client.fileno():
                if mask & _WRITE:
                    self._to_client()
                if mask & ~_WRITE or self._turned:
                    self._from_client()
            elif mask & _WRITE:
                self._to_inner()
            else:
                self._from_inner()
        except OSError:  # from the client: it is gone, or it has sent something that is not TLS
            self.close()
        if not self.is_over:
            self._watch()

    def _from_client(self) -> None:
        self._turned = False
        for _ in range(_READS_PER_TURN):
            if self._up or self._client_ended:
                return
            try:
                size = self.client.recv_into(_buffer)
            except ssl.SSLWantWriteError:
                self._turned = True
                return
            except _TRY_AGAIN:
                return
            if not size:
                self._client_ended = True
            self._up = bytes(_buffer[:size])
            self._to_inner()
            if size < _RECORD_BYTES:
                return

    def _to_inner(self) -> None:
        try:
            if self._up and not self._inner_deaf:
                self._up = self._up[self.inner.send(self._up, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:  # the other end is closed; what it sent before is still to be read
            self._inner_deaf = True
        if self._inner_deaf:
            self._up = b""
        if self._client_ended and not self._up:
            with contextlib.suppress(OSError):
                self.inner.shutdown(socket.SHUT_WR)

    def _from_inner(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._down or self._inner_ended:
                return
            try:
                size = self.inner.recv_into(_buffer)
            except BlockingIOError:
                return
            except OSError:  # the other end was closed with unread bytes
                size = 0
            if not size:
                self._inner_ended = True
            self._down = self._written(_buffer[:size])
            self._tell_end()
            if size < READ_BYTES:
                return

    def _to_client(self) -> None:
        self._down = self._written(memoryview(self._down))
        self.stalled_since = None
        self._tell_end()
        if not self._end_sent:
            self._from_inner()

    def _written(self, data: memoryview) -> bytes:
        """Write *data* to the client; return the rest that could not be written."""
        at = 0
        while at < len(data):
            try:
                at += self.client.send(data[at:])  # one record at a time
            except _TRY_AGAIN:
                break
        return bytes(data[at:])

    def _tell_end(self) -> None:
        """Send close_notify and FIN to the client, once it has got everything."""
        if not self._inner_ended or self._down:
            return
        try:
            self.client.unwrap()
        except ssl.SSLWantWriteError:
            return
        except OSError:  # the client's own close_notify has not come; there is no need to wait for it
            pass
        self.client.shutdown(socket.SHUT_WR)  # from here on the socket is used without TLS
        self._end_sent, self._up = True, b""
        with contextlib.suppress(OSError):
            self.inner.shutdown(socket.SHUT_RDWR)
        if self._client_ended:
            self.close()

    def _throw_away(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self.client.recv_into(_buffer):
                self.close()

    def _watch(self) -> None:
        """Watch for the events that can be used next: rules 1 and 3."""
        reads = _READ if self._end_sent or not (self._up or self._client_ended) else 0
        writes = _WRITE if not self._end_sent and (self._down or self._inner_ended or self._turned) else 0
        self._set(self.client.fileno(), reads | writes)
        reads = 0 if self._down or self._inner_ended else _READ
        self._set(self.inner.fileno(), reads | (_WRITE if self._up else 0))

    def _set(self, fd: int, mask: int) -> None:
        before = self._masks[fd]
        if mask == before:
            return
        self._masks[fd] = mask
        if not before:
            self._epoll.register(fd, mask)
        elif mask:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.unregister(fd)

    def expire(self, now: float, patience_s: float) -> None:
        """Close the connections if they cannot end by themselves. Called once a second.

        There are two such cases. The client has got close_notify and FIN, but does not close. Or the client has read
        nothing for *patience_s*, and the other end of the inner connection is closed. Otherwise the worker has
        deadlines.
        """
        if not (self._inner_ended or self._down):
            self.stalled_since = None
        elif self.stalled_since is None:
            self.stalled_since = now
        elif self._end_sent:
            if now - self.stalled_since > LINGER_S:
                self.close()
        elif now - self.stalled_since > patience_s and _is_abandoned(self.inner):
            self.close()

    def close(self) -> None:
        """Close both connections at once. A second call does nothing."""
        self.is_over = True
        self.client.close()  # epoll forgets closed sockets, because there are no other copies of these descriptors
        self.inner.close()


def _is_abandoned(inner: socket.socket) -> bool:
    """Return whether the other end of *inner* is closed."""
    poll = select.poll()
    poll.register(inner, 0)
    return bool(poll.poll(0))
