"""One client connection of TLS in a terminator, and the inner connection to which it is decrypted.

Owns what is read, written and held back between the two, and in which order both end. Knows nothing of HTTP, nor of
who has the inner connection's other end: for dispatchers and workers that is a client connection like any other.

1. What is read on one side is written to the other before any more is read: in each direction at most one read
   (READ_BYTES) waits here, so a side that does not read holds the other back, and memory has a bound.
2. A mask of epoll says only what to try. An event may be of a connection whose number has been given anew.
3. What is not to be read is not watched at all: epoll reports a far end that has closed in any case, again and again.
4. The end of the inner connection is passed on as close_notify and FIN, and what the client still sends is thrown away
   for a moment: a socket that is closed with bytes unread sends RST, by which the end of a response may be lost.
5. The client's end is half an end, as with plain connections: its request may still be answered.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Final

from limpet.dispatch.refusals import LINGER_S

READ_BYTES: Final = 65_536  # at once; the kernel takes it to the other side in one call where that reads
_READS_PER_TURN: Final = 4  # of one connection, so that others need not wait behind a large body
_RECORD_BYTES: Final = 16_384  # the most that a record of TLS holds, and so one read
_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_buffer: Final = memoryview(bytearray(READ_BYTES))  # of the process: what does not leave at once is copied
_TRY_AGAIN: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Relay:
    """A client connection whose handshake is over. Owns both sockets, and closes them when `is_over`."""

    __slots__ = (
        "_client_ended", "_down", "_epoll", "_inner_deaf", "_inner_ended", "_is_told", "_masks", "_turned", "_up",
        "client", "inner", "is_over", "stalled_since",
    )  # fmt: skip

    def __init__(self, client: ssl.SSLSocket, inner: socket.socket, epoll: select.epoll) -> None:
        """Both are non-blocking, and neither is registered with *epoll*, where this will do it."""
        self.client = client
        self.inner = inner
        self.is_over = False
        self.stalled_since: float | None = None  # monotonic: see `expire`
        self._epoll = epoll
        self._masks = {client.fileno(): 0, inner.fileno(): 0}  # what is watched
        self._up = b""  # from the client, for the inner connection
        self._down = b""
        self._client_ended = False  # it sends no more
        self._inner_ended = False
        self._inner_deaf = False  # what is behind it reads no more
        self._is_told = False  # the client, that there is no more
        self._turned = False  # reading has to wait until something can be written, as TLS does at times

    @property
    def fds(self) -> tuple[int, ...]:
        """The numbers of both, while they are open."""
        return tuple(self._masks)

    def go_on(self, fd: int, mask: int) -> None:
        """Do what can be done since epoll has reported *mask* for *fd*. Blocks never."""
        try:
            if self._is_told:
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
        except OSError:  # of the client: it is gone, or what it sends is no TLS
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
        except OSError:  # it is closed; what it has said before is still to be read
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
            except OSError:  # it was closed with bytes unread
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
        if not self._is_told:
            self._from_inner()

    def _written(self, data: memoryview) -> bytes:
        """Write *data* to the client; return what did not leave."""
        at = 0
        while at < len(data):
            try:
                at += self.client.send(data[at:])  # a record at a time
            except _TRY_AGAIN:
                break
        return bytes(data[at:])

    def _tell_end(self) -> None:
        """Tell the client, once it has all, that there is no more."""
        if not self._inner_ended or self._down:
            return
        try:
            self.client.unwrap()
        except ssl.SSLWantWriteError:
            return
        except OSError:  # its own close_notify has not come, which needs nobody to wait for it
            pass
        self.client.shutdown(socket.SHUT_WR)  # from here on the socket is a plain one
        self._is_told, self._up = True, b""
        with contextlib.suppress(OSError):
            self.inner.shutdown(socket.SHUT_RDWR)
        if self._client_ended:
            self.close()

    def _throw_away(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self.client.recv_into(_buffer):
                self.close()

    def _watch(self) -> None:
        """Watch for what may come next: rules 1 and 3."""
        reads = _READ if self._is_told or not (self._up or self._client_ended) else 0
        writes = _WRITE if not self._is_told and (self._down or self._inner_ended or self._turned) else 0
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
        """Close what cannot end by itself, *now*: called once a second.

        That is a client which has been told the end and does not close, and one which reads nothing for *patience_s*
        although nobody is left who could close the connection. For all others the worker has deadlines.
        """
        if not (self._inner_ended or self._down):
            self.stalled_since = None
        elif self.stalled_since is None:
            self.stalled_since = now
        elif self._is_told:
            if now - self.stalled_since > LINGER_S:
                self.close()
        elif now - self.stalled_since > patience_s and _is_abandoned(self.inner):
            self.close()

    def close(self) -> None:
        """End both at once. Twice is no harm."""
        self.is_over = True
        self.client.close()  # epoll forgets what is closed: nobody else has these descriptors
        self.inner.close()


def _is_abandoned(inner: socket.socket) -> bool:
    """Return whether the other end of *inner* is closed."""
    poll = select.poll()
    poll.register(inner, 0)
    return bool(poll.poll(0))
