"""A slot's connections for servers that expect a listening socket: objects whose `accept` returns the next connection.

Owns two such objects, one for the slot's channel and one for a listener of the slot, and how they differ from real
sockets. They are only for servers that call the object's `accept`. Native code and uvloop use the descriptor directly:
given a channel's, they would wait forever. Servers may close these objects; the channel and the listener stay open.

1. The descriptors are shared with other processes, and so is O_NONBLOCK: it stays set. Timeouts belong to the object.
2. A server passes the gate when it listens and before it takes a connection. Behind a closed gate none arrives.
3. Setting a socket option does nothing: TCP options do not fit a channel, and they would apply to all processes.
4. Adapters import this file before anything is monkey-patched, so the base classes are the standard library's.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from typing import Any, Final, Protocol, Self

from limpet.ipc.channel import Receiver
from limpet.ipc.scoreboard import Row
from limpet.net.reuseport_group import open_door
from limpet.protocol.proxy_protocol import Origin

_Socket = socket.socket  # rule 4
_Address = Any  # an address of `socket`: a tuple or a path
_ANY: Final = {socket.AF_INET: ("0.0.0.0", 0), socket.AF_INET6: ("::", 0, 0, 0), socket.AF_UNIX: ""}


class Gate(Protocol):
    """What stands before the connections of a worker; worker/listener_bridge.py implements it."""

    shut: bool

    def enter(self) -> None:
        """Record that the server accepts. Block until it may."""

    def asked(self) -> None:
        """Record that the server knows the descriptor."""


class Tally:
    """Counts in a row of the scoreboard the connections that a worker takes and has. Threads may end connections."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._lock = threading.Lock()
        self.open = 0

    def took(self) -> None:
        """Count a connection that the worker took."""
        with self._lock:
            self._row.add("received")
            self._add(1)

    def ended(self) -> None:
        """Count the end of a connection."""
        with self._lock:
            self._add(-1)

    def requested(self) -> None:
        """Count a request that was answered."""
        with self._lock:
            self._row.add("requests")

    def _add(self, number: int) -> None:
        self.open += number
        self._row.set("connections", self.open)


class Told(_Socket):
    """A client connection that reports the client named in its PROXY header as its peer."""

    peer: _Address = None  # None: the peer that the kernel knows

    def getpeername(self) -> _Address:
        """Return the client's address."""
        return super().getpeername() if self.peer is None else self.peer

    @classmethod
    def of(cls, connection: socket.socket, peer: _Address) -> Self:
        """Return *connection* as one whose peer is *peer*. The given object no longer has a descriptor afterwards."""
        told = cls(connection.family, connection.type, connection.proto, fileno=connection.detach())
        told.setblocking(False)
        told.peer = peer
        return told


class Counted(Told):
    """A client connection that counts until it is closed, or given up by `detach`."""

    _tally: Tally | None = None

    @classmethod
    def counting(cls, connection: socket.socket, tally: Tally) -> Counted:
        """Return *connection* as one that counts. The given object no longer has a descriptor afterwards."""
        counted = cls.of(connection, getattr(connection, "peer", None))
        counted._tally = tally
        tally.took()
        return counted

    def _real_close(self, *arguments: Any) -> None:
        super()._real_close(*arguments)  # type: ignore[misc]  # both `close` and the end of a makefile come here
        self._end()

    def detach(self) -> int:
        """Give up the descriptor. uvloop calls this when it closes the connection."""
        self._end()
        return super().detach()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        tally, self._tally = self._tally, None
        if tally is not None:
            tally.ended()


class _Listener(_Socket):
    """What both kinds of listener share."""

    def __init__(self, fd: int, tally: Tally | None, gate: Gate | None) -> None:
        super().__init__(fileno=fd)
        super().setblocking(False)
        self._tally = tally
        self._gate = gate
        self._timeout_s: float | None = 0.0

    def _next(self) -> tuple[socket.socket, _Address]:
        """Return the next connection. Raises BlockingIOError if there is none."""
        raise NotImplementedError

    @property
    def sock(self) -> socket.socket:
        """This object: gunicorn expects its listeners to hold a socket."""
        return self

    @property
    def FAMILY(self) -> int:
        return self.family

    def accept(self) -> tuple[socket.socket, _Address]:
        """Return the next connection, which the caller then closes, and the address of its peer.

        Blocks for the timeout of this object, which is 0 at first. Raises OSError with EMFILE if this process has no
        free descriptor number; the connection then stays where it is.
        """
        connection, peer = self._accepted()
        if self._tally is not None:
            connection = Counted.counting(connection, self._tally)
        connection.settimeout(socket.getdefaulttimeout())  # as the standard library's `accept` does
        return connection, peer

    def _accept(self) -> tuple[int, _Address]:
        """Return the descriptor of the next connection, and its peer.

        Never blocks. gevent makes its own socket from it.
        """
        if self._gate is not None:
            self._gate.enter()
        if self._is_shut():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        connection, peer = self._next()
        return connection.detach(), peer

    def _accepted(self) -> tuple[socket.socket, _Address]:
        if self._gate is not None:
            self._gate.enter()
        until = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            try:
                if self._is_shut():
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                return self._next()
            except BlockingIOError:
                if self._timeout_s == 0:
                    raise
            self._wait(until)

    def _is_shut(self) -> bool:
        return self._gate is not None and self._gate.shut

    def _wait(self, until: float | None) -> None:
        poll = select.poll()  # looked up at each call: gevent may have replaced it
        if not self._is_shut():  # behind a closed gate it only waits: an error could end a program with clients
            poll.register(_Socket.fileno(self), select.POLLIN)
        left_ms = None if until is None else max(0.0, until - time.monotonic()) * 1000
        if not poll.poll(left_ms):
            raise TimeoutError(errno.ETIMEDOUT, "timed out")

    def settimeout(self, value: float | None) -> None:
        """Make `accept` block for up to *value* seconds."""
        self._timeout_s = value

    def gettimeout(self) -> float | None:
        """Return for how many seconds `accept` blocks."""
        return self._timeout_s

    @property
    def timeout(self) -> float | None:
        """For how many seconds `accept` blocks."""
        return self._timeout_s

    def setblocking(self, flag: bool) -> None:
        """Make `accept` block, or not."""
        self._timeout_s = None if flag else 0.0

    def getblocking(self) -> bool:
        """Return whether `accept` blocks."""
        return self._timeout_s != 0

    def bind(self, address: _Address) -> None:
        """Do nothing: the socket is already bound."""

    def listen(self, backlog: int = 0) -> None:
        """Do nothing: limpet listens."""

    def shutdown(self, how: int) -> None:
        """Do nothing: it would shut down the socket in all processes."""

    def setsockopt(self, *arguments: Any) -> None:
        """Do nothing (rule 3)."""


class FdListener(_Listener):
    """The slot's channel as a listening TCP socket. Owns a duplicate of the channel's descriptor."""

    def __init__(
        self,
        receiver: Receiver,
        tally: Tally | None = None,
        gate: Gate | None = None,
        *,
        family: int = socket.AF_INET,
        name: _Address = None,
    ) -> None:
        """*family* and *name* are the bind's.

        Without *name*, `getsockname` returns the local address of the last connection.
        """
        super().__init__(os.dup(receiver.fileno()), tally, gate)
        self._receiver = receiver
        self._family = socket.AddressFamily(family)
        self._name = _ANY[self._family] if name is None else name
        self._is_named = name is not None

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of the first bind."""
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        """SOCK_STREAM: asyncio accepts no other type."""
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """TCP, because asyncio otherwise does not set TCP_NODELAY."""
        return 0 if self._family == socket.AF_UNIX else socket.IPPROTO_TCP

    def getsockname(self) -> _Address:
        """Return the address of the bind, or the local address of the last connection."""
        return self._name

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        """Return what a listening socket would return."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return 1
        if (level, option) == (socket.SOL_SOCKET, socket.SO_TYPE):
            return int(socket.SOCK_STREAM)
        if level != socket.SOL_SOCKET:
            return bytes(*size) if size else 0
        return super().getsockopt(level, option, *size)

    def fileno(self) -> int:
        """Return the descriptor, which may only be watched for readability."""
        if self._gate is not None:
            self._gate.asked()
        return super().fileno()

    def dup(self) -> FdListener:
        """Return another object for the same channel."""
        name = self._name if self._is_named else None
        twin = FdListener(self._receiver, self._tally, self._gate, family=self._family, name=name)
        twin.settimeout(self._timeout_s)
        return twin

    def _next(self) -> tuple[socket.socket, _Address]:
        while True:
            found, handoff = self._receiver.receive()
            connection = found.whole()
            try:
                peer, name = connection.getpeername(), connection.getsockname()
            except OSError:  # the client has already gone
                connection.close()
                continue
            if not self._is_named:
                self._name = name
            if handoff.origin is not None:
                peer = _sockaddr(handoff.origin)
                connection = Told.of(connection, peer)
            return connection, peer


class SlotListener(_Listener):
    """A listener of the slot, of which this process has a copy. Owns a duplicate of its descriptor."""

    def __init__(self, listener: socket.socket, tally: Tally | None = None, gate: Gate | None = None) -> None:
        super().__init__(os.dup(listener.fileno()), tally, gate)

    def listen(self, backlog: int = 0) -> None:
        """Tell limpet that the server accepts from now on. Blocks until limpet listens, with its own backlog."""
        if self._gate is not None:
            self._gate.enter()

    def dup(self) -> SlotListener:
        """Return another object for the same listener."""
        twin = SlotListener(self, self._tally, self._gate)
        twin.settimeout(self._timeout_s)
        return twin

    def _next(self) -> tuple[socket.socket, _Address]:
        while True:
            try:
                fd, peer = _Socket._accept(self)  # type: ignore[attr-defined]  # defined in C
            except ConnectionError:  # it was reset while it waited
                continue
            connection = _Socket(self.family, self.type, self.proto, fileno=fd)
            connection.setblocking(False)
            open_door(connection)  # its listener may have had its door closed after it arrived
            return connection, peer


def _sockaddr(origin: Origin) -> _Address:
    """Return *origin* in the form in which `accept` names peers."""
    if origin.address is None:
        return ""
    return (origin.address, origin.port, 0, 0) if ":" in origin.address else (origin.address, origin.port)
