"""The parts of a move: connections and copies as the mover sees them, what stays or comes back, how a message is sent.

This file owns the interfaces that a server adapter's connections must have, and the sending of one message with or
without descriptors. It decides nothing: moving/mover.py does the moving. The protocol objects of the server adapters
are the connections and copies; the adapters also use `shut_down`.

1. A function that takes descriptors to send leaves them open: the caller closes its own copies.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from limpet.ipc.baton import Baton, Verdict
from limpet.moving.codec import WITH_ORIGIN
from limpet.protocol.proxy_protocol import BadHeaderError, Origin, parse, write


class Connection(Protocol):
    """A connection of this worker: the protocol object of the server adapter."""

    @property
    def fd(self) -> int:
        """The descriptor of the connection."""

    listener: int  # index of the bind by which it came
    had_by: int  # bit set of the slots that have had it, as far as this worker knows
    origin: Origin | None  # from its PROXY header; None if the socket's own peer is the client
    digest: int  # of the key of the request that makes it move; 0 without a key


class Copy(Connection, Protocol):
    """A paused copy: a connection that this worker has open but does not read."""

    light_head: bytes  # used only by the mover; b"" at first

    def resume(self, leftover: bytes) -> None:
        """Read again. *leftover* comes first; its first request belongs to this slot."""

    def drop(self, verdict: Verdict) -> None:
        """Close this copy, after doing to the connection what *verdict* says."""


class Arrived(NamedTuple):
    """A connection that has come to this worker, which has no copy of it."""

    connection: socket.socket  # non-blocking; the receiver closes it
    leftover: bytes
    listener: int
    baton: Baton | None
    had_by: int
    decided: bool = True  # whether `leftover` begins with a request that belongs to this slot
    keyed: bool = True  # whether a request on it has carried a key
    silent: bool = False  # whether it has carried no request at all
    origin: Origin | None = None
    digest: int = 0


@dataclass(slots=True)
class Kept:
    """The descriptor of a connection under way. A predecessor sent the connection and left this to send it again."""

    fd: int
    listener: int
    had_by: int
    origin: Origin | None
    digest: int


@dataclass(slots=True)
class Back:
    """A light message that came back, to be sent again with the descriptor."""

    slot: int  # the slot that sent it back, to which it goes again
    sender: int  # serial number of the worker that sent the light message
    baton: Baton
    leftover: bytes
    is_last_try: bool = False  # whether the sender is dead and the next try is the last


def origin_header(connection: Connection) -> tuple[int, bytes]:
    """Return the flag and the PROXY header for the origin of *connection*; (0, b"") if its peer is the client."""
    return (0, b"") if connection.origin is None else (WITH_ORIGIN, write(connection.origin))


def split_origin(data: bytes, fd: int) -> tuple[Origin | None, bytes]:
    """Return the origin from the PROXY header at the start of *data*, and the bytes after that header.

    Raises RuntimeError if there is no such header, after closing *fd*.
    """
    try:
        found = parse(data)
    except BadHeaderError:
        found = None
    if found is None:
        os.close(fd)
        raise RuntimeError("not a move: its origin is missing")
    return found.origin, data[found.length :]


FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.EPIPE})


def send(channel: socket.socket | None, message: bytes) -> bool:
    """Send one *message* without descriptors; return False if there is no room for it now."""
    if channel is None:
        return False
    try:
        channel.send(message, socket.MSG_NOSIGNAL)
    except OSError as error:
        if error.errno in FULL:
            return False
        raise
    return True


def send_with(channel: socket.socket | None, head: bytes, leftover: bytes, *fds: int) -> bool:
    """Send one message with copies of *fds*; return False if there is no room for it now."""
    if channel is None:
        return False
    rights = ((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)),)
    try:
        channel.sendmsg((head, leftover), rights, socket.MSG_NOSIGNAL)
    except OSError as error:
        if error.errno in FULL:
            return False
        raise
    return True


def shut_down(fd: int, last: bytes = b"") -> None:
    """Send *last* and FIN, and end the connection for all processes, whatever copies of *fd* are open."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        with contextlib.suppress(OSError):  # a client that does not read needs no answer
            connection.send(last, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        connection.shutdown(socket.SHUT_RDWR)
