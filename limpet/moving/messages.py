"""What moves between workers: connections as the mover sees them, what of them stays or returns, and the messages.

moving/mover.py does the moving; the protocols of the server adapters are the connections and copies.
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
from limpet.protocol.proxy_protocol import BadHeaderError, Origin, parse, write

TOLD: Final = 64
"""With the kind of a message: a PROXY header comes before its bytes, and says whose the connection is."""


class Connection(Protocol):
    """A connection of this worker: the adapter's protocol object."""

    @property
    def fd(self) -> int:
        """The descriptor of the connection."""

    listener: int  # number of the bind by which it came
    had_by: int  # bit set of the slots that had it, as far as is known here
    origin: Origin | None  # whose it is, where a PROXY header has said so
    digest: int  # of the key of the request that makes it move; 0 without one


class Copy(Connection, Protocol):
    """A connection that this worker has open but does not read."""

    light_head: bytes  # the mover's to keep; b"" at first

    def resume(self, leftover: bytes) -> None:
        """Read again, after *leftover*, whose first request belongs here."""

    def drop(self, verdict: Verdict) -> None:
        """Close this copy, and do to the connection what *verdict* says."""


class Arrived(NamedTuple):
    """A connection that came without a copy being here."""

    connection: socket.socket  # non-blocking, the receiver's to close
    leftover: bytes
    listener: int
    baton: Baton | None
    had_by: int
    decided: bool = True  # the bytes begin with a request that belongs here
    keyed: bool = True
    silent: bool = False
    origin: Origin | None = None
    digest: int = 0


@dataclass(slots=True)
class Kept:
    """The descriptor of a connection under way that a predecessor has sent, here to be sent again if need be."""

    fd: int
    listener: int
    had_by: int
    origin: Origin | None
    digest: int


@dataclass(slots=True)
class Back:
    """A message that came back to be sent again with the descriptor."""

    slot: int
    sender: int  # serial number
    baton: Baton
    leftover: bytes
    is_last_try: bool = False


def tell(connection: Connection) -> tuple[int, bytes]:
    """Return the flag and the bytes that say whose *connection* is: none where its peer is the client."""
    return (0, b"") if connection.origin is None else (TOLD, write(connection.origin))


def told(data: bytes, fd: int) -> tuple[Origin | None, bytes]:
    """Return what `tell` has put before *data*, and the rest. Closes *fd* and raises RuntimeError if there is none."""
    try:
        found = parse(data)
    except BadHeaderError:
        found = None
    if found is None:
        os.close(fd)
        raise RuntimeError("not a move: it does not say whose the connection is")
    return found.origin, data[found.length :]


FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.EPIPE})


def send(channel: socket.socket | None, message: bytes) -> bool:
    """Send one *message* without descriptors; return False when there is no room for it now."""
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
    """Send one message with descriptors; return False when there is no room for it now."""
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
    """Send *last* and FIN, and let nobody read or write any more, whatever other descriptors are open."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        with contextlib.suppress(OSError):  # a client that does not read needs no answer
            connection.send(last, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        connection.shutdown(socket.SHUT_RDWR)


def write_file(data: bytes) -> int:
    fd = os.memfd_create("limpet-leftover", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def read_file(fd: int) -> bytes:
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
