"""The channel of a slot: how a client connection passes from a dispatcher to the worker that owns it.

Owns the wire format of a hand-over and the rules for the descriptors in it. Knows nothing of keys, heads or servers.
Called by the dispatcher (send) and the worker (receive); the supervisor creates channels and keeps both ends open for
life, so a connection in a channel survives the death of either side (20 of 20 in a kill test).

How it works: a SEQPACKET socketpair; one message of SIZE bytes carries one descriptor (SCM_RIGHTS). The message also
carries the decision (slot, digest), so that the worker need not, and cannot, come to another one, and how many bytes of
a PROXY header are still in front of the client's: `receive` takes them, so exactly one process does.

1. Whoever holds the descriptor closes it. `send` leaves the caller's copy open: close it after success, since a copy
   that stays open would hold back the FIN at the end of the connection.
2. `receive` never reads a message without a free descriptor number: the kernel would drop the connection silently.
3. All messages have SIZE bytes, so the kernel's count of unread bytes tells how many connections wait.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
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

_MESSAGE: Final = struct.Struct("<HHIQQH6x")  # listener, slot, header, digest, accepted at, family
SIZE: Final = _MESSAGE.size
FORM: Final = _MESSAGE.format  # what two versions must agree on
_DESCRIPTOR: Final = struct.Struct("i")
_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTOR.size)
_RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_ONE: Final = [(*_RIGHTS, _DESCRIPTOR.size)]  # what comes with a hand-over
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_STREAM: Final = int(socket.SOCK_STREAM)
_TCP: Final = int(socket.IPPROTO_TCP)
_UNIX: Final = int(socket.AF_UNIX)
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS})
_SEND_BUFFER_BYTES: Final = 4 << 20  # 10,923 connections where net.core.wmem_max allows it, else what it allows
_SO_SNDBUFFORCE: Final = 32  # Linux; beyond wmem_max for CAP_NET_ADMIN


class Handoff(NamedTuple):
    """What travels with a connection: where it was accepted and what was decided."""

    listener: int  # index of the bind
    slot: int
    digest: int  # of the key; 0 without one
    accepted_ns: int  # monotonic
    header: int = 0  # bytes of a PROXY header that come first
    origin: Origin | None = None  # what it says, once `receive` has taken it


_new_handoff: Final = partial(tuple.__new__, Handoff)  # skips the Python function that `Handoff()` is
_PROBE: Final = Handoff(listener=0xFFFF, slot=0, digest=0, accepted_ns=0)
"""Carries no client: a worker sends it to itself, to see whether its server accepts."""


class Bare(socket.socket):
    """A connection for who asks for its kind often, as event loops do: numbers, not enum members made each time."""

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


class ChannelFullError(Exception):
    """The channel takes no message now; the connection is still the caller's."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Both ends of one slot's channel. The supervisor keeps them for life; each child inherits what it uses."""

    sending: socket.socket
    receiving: socket.socket

    @classmethod
    def create(cls) -> Channel:
        """Return a new channel, both ends non-blocking."""
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sending.setblocking(False)
        receiving.setblocking(False)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        with contextlib.suppress(PermissionError):
            sending.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
        return cls(sending, receiving)

    @classmethod
    def inherit(cls, fds: tuple[int, int]) -> Channel:
        """Return the channel whose ends have the numbers *fds* in this process."""
        return cls(socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]))

    @property
    def fds(self) -> tuple[int, int]:
        """The numbers of both ends, sending first."""
        return self.sending.fileno(), self.receiving.fileno()

    def queued(self) -> int:
        """Return how many connections wait to be received. Counted by the kernel, so no death makes it drift."""
        return self._unread() // SIZE

    def has_bytes(self) -> bool:
        """Return whether anything waits to be received, whatever the size of its messages."""
        return self._unread() > 0

    def _unread(self) -> int:
        unread = array.array("i", [0])
        fcntl.ioctl(self.receiving, termios.FIONREAD, unread)
        return unread[0]

    def send(self, connection: socket.SocketType, handoff: Handoff) -> None:
        """Put a copy of *connection* into the channel; the caller's own stays open.

        Raises ChannelFullError when the buffer is full or the kernel has too many descriptors in flight (they are
        counted per user against RLIMIT_NOFILE). Blocks never.
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
        """Yield who waits in the channel now, the caller's to pass on. EMFILE ends it early."""
        receiver = Receiver(self.receiving)
        for _ in range(self.queued()):
            try:
                connection, handoff = receiver.take()
            except OSError:  # BlockingIOError as well: somebody else has taken the rest
                break
            if handoff.listener == _PROBE.listener:
                connection.close()
            else:
                yield connection, handoff


class Outbox:
    """A dispatcher's side of one slot: its channel, and in order those for whom the channel has no room now.

    Closes the connections that it has handed over. `waiting` has a bound and a deadline for each: see `put`, `flush`.
    """

    __slots__ = ("_channel", "_room", "_waiting", "row")

    def __init__(self, channel: Channel | None, row: Row) -> None:
        """Without *channel* all wait until `attach`."""
        self._channel = channel
        self.row = row  # what this dispatcher counts of the slot
        self._waiting: deque[tuple[socket.SocketType, Handoff, float]] = deque()
        self._room = 0  # for so many more there is room, whatever has been taken since it was looked at

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_channel(self) -> bool:
        """Whether connections can leave here."""
        return self._channel is not None

    def attach(self, channel: Channel) -> None:
        """Use *channel* from now on."""
        self._channel = channel

    def queued(self) -> int:
        """Return how many connections wait for the slot's worker, in the channel or here."""
        return (self._channel.queued() if self._channel is not None else 0) + len(self._waiting)

    def put(self, connection: socket.SocketType, handoff: Handoff, deadline: float, bound: int) -> bool:
        """Hand *connection* over, or keep it until *deadline*. False, and still the caller's, if *bound* wait."""
        if self._room <= 0:
            self._room = bound - self.queued()  # not for each one: it is a call of the kernel
        if self._room <= 0:
            return False
        self._room -= 1
        if not self._waiting and self._send(connection, handoff):
            return True
        self._waiting.append((connection, handoff, deadline))
        self.row.set("waiting", len(self._waiting))
        return True

    def flush(self, now: float) -> list[socket.SocketType]:
        """Hand over what fits now; return those whose deadline has passed, now the caller's to answer and close."""
        while self._waiting and self._send(*self._waiting[0][:2]):
            self._waiting.popleft()
        late = []
        while self._waiting and self._waiting[0][2] <= now:
            late.append(self._waiting.popleft()[0])
        self.row.set("waiting", len(self._waiting))
        return late

    def take_back(self) -> Iterator[tuple[socket.SocketType, Handoff]]:
        """Yield those who wait now, the caller's to pass on, with what was decided. EMFILE ends it early.

        For a slot without a worker: what one that reads meanwhile takes is not yielded.
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
        """*sending*, the channel's other end, is for `probe` alone. How long connections waited is counted in *row*."""
        self._row = row
        self._socket = receiving
        self._channel = Channel(sending or receiving, receiving)
        self.queued = self._channel.queued

    def probe(self) -> None:
        """Make the channel readable, if it is not, by a message that `receive` drops. Blocks never."""
        with socket.socket() as nobody, contextlib.suppress(ChannelFullError):
            self._channel.send(nobody, _PROBE)

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._socket.fileno()

    def receive(self) -> tuple[socket.socket, Handoff]:
        """Return the next connection, non-blocking, now the caller's to close, and what came with it.

        Raises BlockingIOError when none waits, OSError with EMFILE when this process has no free descriptor number:
        the connection then stays in the channel. Blocks never.
        """
        connection, handoff = self.receive_bare()
        whole = socket.socket(connection.family, connection.type, connection.proto, connection.detach())
        whole.setblocking(False)  # lives on the open file description: set it whatever the sender had
        return whole, handoff

    def receive_bare(self) -> tuple[Bare, Handoff]:
        """As `receive`, for an event loop; the connection may be blocking."""
        while True:
            connection, handoff = self.take()
            if handoff.listener != _PROBE.listener:
                if self._row is not None:
                    self._row.observe("handoff_0", time.monotonic_ns() - handoff.accepted_ns)
                if not handoff.header:
                    return connection, handoff
                with contextlib.suppress(OSError, BadHeaderError):  # the client is gone, or that is no hand-over
                    return connection, handoff._replace(origin=_take_header(connection, handoff.header))
            connection.close()

    def take(self) -> tuple[Bare, Handoff]:
        """As `receive_bare`, but take probes as well, and leave a PROXY header where it is.

        When nobody is left who could send, nothing waits either.
        """
        os.close(os.dup(self._socket.fileno()))  # rule 2: raises EMFILE here, while nothing is lost yet
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
    """Close what came with a message that is no hand-over."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == _RIGHTS:
            fds.frombytes(data[: len(data) // _DESCRIPTOR.size * _DESCRIPTOR.size])
    for fd in fds:
        os.close(fd)
    raise RuntimeError(f"not a hand-over: {len(message)} bytes with {len(fds)} descriptors, {flags=}")


def _take_header(connection: socket.socket, size: int) -> Origin | None:
    """Take the PROXY header of *size* bytes off *connection*, where all of it was seen; return what it says."""
    found = parse(connection.recv(min(size, MAX_BYTES), _DONTWAIT))
    if found is None:
        raise ConnectionResetError(errno.ECONNRESET, "the connection ends within its PROXY header")
    return found.origin
