"""The channel of a slot: how a client connection passes from a dispatcher to the slot's worker.

This file owns the wire format of a handoff and the rules for the descriptors in it. It does not know keys, heads or
servers. Dispatchers and terminators send, workers receive, and dispatchers receive on inner channels. The supervisor
creates the channels and keeps both ends open for life, so a connection in a channel survives the death of either side
(20 of 20 in a kill test).

How it works: a channel is a SEQPACKET socketpair. One message of SIZE bytes carries one descriptor (SCM_RIGHTS) and the
decision (slot and digest), so the worker cannot come to a different decision. The message also says how many bytes of a
PROXY header are still before the client's bytes. `receive` takes that header, so exactly one process does.

1. The process that holds a descriptor closes it. `send` leaves the caller's copy open. Close that copy after success:
   while it is open, it holds back the FIN at the end of the connection.
2. `receive` reads a message only when a descriptor number is free. Without one the kernel would silently drop the
   connection.
3. All messages have SIZE bytes. So the kernel's count of unread bytes gives the number of waiting connections.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, NoReturn

from limpet.ipc.scoreboard import Row
from limpet.protocol.proxy_protocol import MAX_BYTES, BadHeaderError, Origin, parse
from limpet.system import descriptors

_MESSAGE: Final = struct.Struct("<HHIQQH6x")  # listener, slot, header, digest, accepted at, family
SIZE: Final = _MESSAGE.size
FORM: Final = _MESSAGE.format  # two versions that share channels must agree on it
_DESCRIPTOR: Final = struct.Struct("i")
_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTOR.size)
_RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_ONE: Final = [(*_RIGHTS, _DESCRIPTOR.size)]  # the ancillary data of a handoff
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_STREAM: Final = int(socket.SOCK_STREAM)
_TCP: Final = int(socket.IPPROTO_TCP)
_UNIX: Final = int(socket.AF_UNIX)
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS})
# 10,923 connections, or 5,000 to 10,000 small messages of the bus; fewer if net.core.wmem_max is lower
_SEND_BUFFER_BYTES: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32  # Linux; with CAP_NET_ADMIN it may exceed wmem_max


def make_roomy(sending: socket.socket) -> None:
    """Let as much wait in the channel that begins at *sending* as the system allows, up to 4 MiB."""
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    with contextlib.suppress(PermissionError):
        sending.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)


class Handoff(NamedTuple):
    """What travels with a connection: the bind and time at which it was accepted, and the decision about it."""

    listener: int  # index of the bind
    slot: int
    digest: int  # of the key; 0 without one
    accepted_ns: int  # monotonic
    header: int = 0  # bytes of a PROXY header before the client's bytes
    origin: Origin | None = None  # what that header says, once `receive` has taken it


_new_handoff: Final = partial(tuple.__new__, Handoff)  # faster: `Handoff()` is a Python function
_PROBE: Final = Handoff(listener=0xFFFF, slot=0, digest=0, accepted_ns=0)
"""Marks a message without a client. A worker sends it to itself to see whether its server accepts."""


class Bare(socket.socket):
    """A socket whose `family` and `type` are plain numbers. Event loops read them often, and enum members cost time."""

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]

    def whole(self) -> socket.socket:
        """Return the same connection as an ordinary non-blocking socket. Owns: the caller; this object is closed."""
        found = socket.socket(self.family, self.type, self.proto, self.detach())
        found.setblocking(False)  # a flag of the open file description, which the sender may have left blocking
        return found


class ChannelFullError(Exception):
    """The channel has no room for a message now. The connection is still the caller's."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Both ends of one slot's channel. The supervisor keeps both for life; a child inherits the ends that it uses."""

    sending: socket.socket
    receiving: socket.socket

    @classmethod
    def create(cls) -> Channel:
        """Return a new channel. Both ends are non-blocking."""
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sending.setblocking(False)
        receiving.setblocking(False)
        make_roomy(sending)
        return cls(sending, receiving)

    @classmethod
    def inherit(cls, fds: tuple[int, int]) -> Channel:
        """Return the channel whose ends have the numbers *fds* in this process."""
        return cls(socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]))

    @property
    def fds(self) -> tuple[int, int]:
        """The descriptors of both ends, the sending one first."""
        return self.sending.fileno(), self.receiving.fileno()

    def queued(self) -> int:
        """Return how many connections wait in the channel. The kernel counts, so deaths of processes do not matter."""
        return self._unread() // SIZE

    def has_bytes(self) -> bool:
        """Return whether anything waits in the channel, whatever the size of its messages."""
        return self._unread() > 0

    def _unread(self) -> int:
        unread = array.array("i", [0])
        fcntl.ioctl(self.receiving, termios.FIONREAD, unread)
        return unread[0]

    def send(self, connection: socket.SocketType, handoff: Handoff) -> None:
        """Put a copy of *connection* into the channel. Owns: the caller's own copy stays open (rule 1).

        Raises ChannelFullError if the buffer is full, or if too many descriptors are in flight. The kernel counts those
        for each user, against RLIMIT_NOFILE. Blocks never.
        """
        listener, slot, digest, accepted_ns, header, _ = handoff
        message = _MESSAGE.pack(listener, slot, header, digest, accepted_ns, connection.family)
        fds = _DESCRIPTOR.pack(connection.fileno())
        try:
            self.sending.sendmsg((message,), ((*_RIGHTS, fds),), _NO_SIGNAL)
        except OSError as error:
            if error.errno in _FULL:
                raise ChannelFullError from error
            raise

    def take_back(self) -> Iterator[tuple[socket.SocketType, Handoff]]:
        """Yield each connection that waits in the channel now. Owns: the caller. EMFILE ends it early."""
        receiver = Receiver(self.receiving)
        for _ in range(self.queued()):
            try:
                connection, handoff = receiver.take()
            except OSError:  # including BlockingIOError, if another process has taken the rest
                break
            if handoff.listener == _PROBE.listener:
                connection.close()
            else:
                yield connection, handoff


class Outbox:
    """A dispatcher's side of one slot: its channel, and the connections for which the channel has no room now.

    It closes its copy of each connection that it has handed over. The number that wait here is bounded (`put`), and
    each of them has a deadline (`flush`).
    """

    __slots__ = ("_channel", "_room", "_waiting", "row")

    def __init__(self, channel: Channel | None, row: Row) -> None:
        """Without a *channel* all connections wait until `attach`."""
        self._channel = channel
        self.row = row  # the cells in which this dispatcher counts for the slot
        self._waiting: deque[tuple[socket.SocketType, Handoff, float]] = deque()
        self._room = 0  # a lower bound: how many more fit, even if none has been taken since `queued`

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_channel(self) -> bool:
        """Whether there is a channel, so that connections can leave."""
        return self._channel is not None

    def attach(self, channel: Channel) -> None:
        """Use *channel* from now on."""
        self._channel = channel

    def queued(self) -> int:
        """Return how many connections wait for the slot's worker, in the channel or here."""
        return (self._channel.queued() if self._channel is not None else 0) + len(self._waiting)

    def put(self, connection: socket.SocketType, handoff: Handoff, deadline: float, bound: int) -> bool:
        """Hand *connection* over, or keep it until *deadline*; return whether that was done.

        It is not done if *bound* connections wait for the slot already. Then *connection* is still the caller's.
        """
        if self._room <= 0:
            self._room = bound - self.queued()  # not for each connection: it is a system call
        if self._room <= 0:
            return False
        self._room -= 1
        if not self._waiting and self._send(connection, handoff):
            return True
        self._waiting.append((connection, handoff, deadline))
        self.row.set("waiting", len(self._waiting))
        return True

    def flush(self, now: float) -> list[socket.SocketType]:
        """Hand over what fits now; return connections whose deadline has passed. Owns: the caller closes those."""
        while self._waiting and self._send(*self._waiting[0][:2]):
            self._waiting.popleft()
        late = []
        while self._waiting and self._waiting[0][2] <= now:
            late.append(self._waiting.popleft()[0])
        self.row.set("waiting", len(self._waiting))
        return late

    def take_back(self) -> Iterator[tuple[socket.SocketType, Handoff]]:
        """Yield each connection that waits for the slot, with its handoff. Owns: the caller. EMFILE ends it early.

        Meant for a slot without a worker. A connection that a worker takes in the meantime is not yielded.
        """
        if self._channel is not None:
            yield from self._channel.take_back()
        waiting, self._waiting = self._waiting, deque()
        self.row.set("waiting", 0)
        for waited, handoff, _ in waiting:
            yield waited, handoff

    def _send(self, connection: socket.SocketType, handoff: Handoff) -> bool:
        if self._channel is None:
            return False
        try:
            self._channel.send(connection, handoff)
        except ChannelFullError:
            return False
        connection.close()
        return True


class Receiver:
    """The worker's end of its slot's channel."""

    def __init__(self, receiving: socket.socket, sending: socket.socket | None = None, row: Row | None = None) -> None:
        """Only `probe` needs *sending*, the channel's other end. *row* counts how long connections waited."""
        self._row = row
        self._socket = receiving
        self._channel = Channel(sending or receiving, receiving)
        self.queued = self._channel.queued

    def refuse_end(self) -> None:
        """Raise ConnectionResetError if a worker has shut the channel down, for whoever reads it. Blocks never."""
        poll = select.poll()
        poll.register(self._socket, 0)
        if poll.poll(0):  # POLLHUP: the supervisor has both ends open, so closing one end does not lead to that
            raise ConnectionResetError(errno.ECONNRESET, "the channel was ended by a worker")

    def probe(self) -> None:
        """Make the channel readable with a message that `receive` drops. Blocks never."""
        with socket.socket() as dummy, contextlib.suppress(ChannelFullError):
            self._channel.send(dummy, _PROBE)

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._socket.fileno()

    def receive(self) -> tuple[Bare, Handoff]:
        """Return the next connection, which may be blocking, and its handoff. Owns: the caller closes the connection.

        Raises BlockingIOError if no connection waits. Raises OSError with EMFILE if this process has no free descriptor
        number; then the connection stays in the channel. Blocks never.
        """
        while True:
            connection, handoff = self.take()
            if handoff.listener != _PROBE.listener:
                if self._row is not None:
                    self._row.observe("handoff_0", time.monotonic_ns() - handoff.accepted_ns)
                if not handoff.header:
                    return connection, handoff
                with contextlib.suppress(OSError, BadHeaderError):  # the client is gone, or the header is not one
                    return connection, handoff._replace(origin=_take_header(connection, handoff.header))
            connection.close()

    def take(self) -> tuple[Bare, Handoff]:
        """Do as `receive`, but return probes too, and leave a PROXY header on the connection.

        Raises BlockingIOError also if every sending end is closed.
        """
        os.close(os.dup(self._socket.fileno()))  # rule 2: EMFILE is raised here, before anything is lost
        message, ancillary, flags, _ = self._socket.recvmsg(SIZE, _ANCILLARY_BYTES, _CLOEXEC)
        if not message:
            raise BlockingIOError(errno.EAGAIN, "the other end is closed")
        if len(message) != SIZE or flags & _CUT or [(*each[:2], len(each[2])) for each in ancillary] != _ONE:
            _reject(message, ancillary, flags)
        listener, slot, header, digest, accepted_ns, family = _MESSAGE.unpack(message)
        [fd] = _DESCRIPTOR.unpack(ancillary[0][2])
        connection = Bare(family, _STREAM, 0 if family == _UNIX else _TCP, fd)
        return connection, _new_handoff((listener, slot, digest, accepted_ns, header, None))


def _reject(message: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> NoReturn:
    """Close the descriptors of a message that is not a handoff, and raise RuntimeError."""
    fds = descriptors.received(ancillary)
    for fd in fds:
        os.close(fd)
    raise RuntimeError(f"not a handoff: {len(message)} bytes with {len(fds)} descriptors, {flags=}")


def _take_header(connection: socket.socket, size: int) -> Origin | None:
    """Take the PROXY header of *size* bytes off *connection*, and return what it says.

    The dispatcher has seen all of it already. Raises OSError, also if it is no longer whole, and BadHeaderError.
    """
    found = parse(connection.recv(min(size, MAX_BYTES), _DONTWAIT))
    if found is None:
        raise ConnectionResetError(errno.ECONNRESET, "the connection ends within its PROXY header")
    return found.origin
