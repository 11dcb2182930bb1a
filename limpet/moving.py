"""Moving a client connection to another worker, between two requests: the other half of sticky per request.

Owns the move channels (one for each slot; every worker may send, the slot's worker receives) and this worker's paused
copies. baton.py says who may read; the server adapter stops and starts the reading and knows what the bytes are.

How it works: a worker that finds a request of another slot's client stops reading, and sends the bytes that it has
read of it, with the descriptor, into that slot's move channel. It keeps its own copy, paused. When the connection
comes back, the copy reads on: no transport, protocol or parser is made again, which is most of what a move costs.

1. `pass_on` sends the whole of what was read and not served: what is not in the message is still in the kernel.
2. Copies are bounded: the one that was used longest ago is closed. The connection then comes with its descriptor.
3. Copies keep the FIN of a plain close from the client: who ends the connection calls `ended`, which shuts it down.
4. Like all channels these are kept by the supervisor: a message survives its sender and its receiver.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from limpet.baton import Baton, Batons, Verdict
from limpet.scoreboard import Row

_MESSAGE: Final = struct.Struct("<HHIQ")  # listener, 1 when the bytes are in a memory file, place + 1 or 0, epoch
FORM: Final = _MESSAGE.format  # what two versions must agree on
_INLINE_BYTES: Final = 60_000  # of leftover in the message itself; more travels in a memory file
_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(2 * _DESCRIPTOR_BYTES)
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.EPIPE})
TAKES_PER_TURN: Final = 32  # messages, so that connections already here do not wait behind a storm


_new_baton: Final = partial(tuple.__new__, Baton)  # skips the Python function that `Baton()` is: once for each move


class Copy(Protocol):
    """A connection that this worker has open but does not read: the adapter's protocol object."""

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


class Mover:
    """This worker's side of all moves."""

    def __init__(
        self, batons: Batons, sending: list[socket.socket], receiving: socket.socket, row: Row, most_copies: int
    ) -> None:
        self._batons = batons
        self._sending = sending
        self._receiving = receiving
        self._row = row
        self._most_copies = most_copies
        self._copies: OrderedDict[Baton, Copy] = OrderedDict()
        self._sure = False
        self._buffers = [bytearray(_MESSAGE.size + _INLINE_BYTES)]

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._receiving.fileno()

    def pass_on(
        self, copy: Copy, fd: int, baton: Baton | None, slot: int, listener: int, leftover: bytes, now: float
    ) -> tuple[bool, Baton | None]:
        """Send the connection *fd* to *slot*; return whether that was done, and its baton.

        Done and a baton: *copy* is kept, paused, and will be resumed or dropped. Done and no baton: all cells are in
        use, and *copy* is to be closed now. Not done: the channel is full, the caller still reads. Blocks never.
        """
        baton = baton or self._batons.claim(now)
        if baton is not None:
            self._batons.send(baton, now)
        if not self._send(self._sending[slot], fd, baton, listener, leftover):
            if baton is not None:
                self._batons.keep(baton)
            return False, baton
        self._row.add("returns")
        if baton is not None:
            self._copies[baton] = copy
            if len(self._copies) > self._most_copies:
                self._copies.popitem(last=False)[1].drop(Verdict.FORGET)
        return True, baton

    def receive(self, adopt: Callable[[Arrived], None], *, sure: bool = False) -> bool:
        """Take the next message; return False when none waits. A connection without a copy here goes to *adopt*.

        *sure* says that nothing but this ran since the last call, so that a descriptor number is free still. Raises
        OSError with EMFILE when this process has none: the message then stays. Blocks never.
        """
        if not (sure and self._sure):
            self._ensure_free_numbers()
        try:
            size, ancillary, _, _ = self._receiving.recvmsg_into(
                self._buffers, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        data = self._buffers[0]
        fds = array.array("i", ancillary[0][2])
        listener, in_file, place, epoch = _MESSAGE.unpack_from(data)
        leftover = _read_file(fds[1]) if in_file else bytes(data[_MESSAGE.size : size])
        baton = _new_baton((place - 1, epoch)) if place else None
        copy = self._copies.pop(baton, None) if baton is not None else None
        self._sure = True
        if baton is not None and not self._batons.take(baton):
            os.close(fds[0])
            if copy is not None:
                copy.drop(Verdict.FORGET)
        elif copy is not None:
            os.close(fds[0])
            self._row.add("batons")
            copy.resume(leftover)
        else:
            connection = socket.socket(fileno=fds[0])
            connection.setblocking(False)
            self._sure = False
            adopt(Arrived(connection, leftover, listener, baton))
        return True

    def _ensure_free_numbers(self) -> None:
        """Raise EMFILE unless two descriptors fit: the kernel would drop those that find no number."""
        spares = [os.dup(self._receiving.fileno())]
        try:
            spares.append(os.dup(self._receiving.fileno()))
        finally:
            for spare in spares:
                os.close(spare)

    def ended(self, fd: int, baton: Baton) -> None:
        """End the connection for the client, whatever copies there are. The caller held it and closes *fd*."""
        self._batons.end(baton)
        shut_down(fd)

    def forget(self, copy: Copy, baton: Baton) -> None:
        """Take note that *copy* has closed by itself."""
        if self._copies.get(baton) is copy:  # else dropped already, and there may be a newer one
            del self._copies[baton]

    def spare_numbers(self) -> bool:
        """Drop half of the copies, those used longest ago, since descriptors run out; return whether there were any."""
        number = (len(self._copies) + 1) // 2
        for _ in range(number):
            self._copies.popitem(last=False)[1].drop(Verdict.FORGET)
        return number > 0

    def settled(self, baton: Baton) -> None:
        """Note that the connection will never move again: the other workers close their copies in time."""
        self._batons.end(baton)

    def alive(self, serials: list[int], newest: int, now: float) -> None:
        """Take note of which workers live, and end the connections that a dead one held."""
        self._batons.alive(serials, newest)
        self.sweep(now)

    def sweep(self, now: float) -> None:
        """Drop the copies of connections that have ended."""
        for baton, copy in list(self._copies.items()):
            verdict = self._batons.verdict(baton, now)
            if verdict is Verdict.KEEP:
                continue
            del self._copies[baton]
            if verdict is not Verdict.FORGET:
                self._batons.end(baton)
            copy.drop(verdict)
        self._row.set("copies", len(self._copies))

    def close_copies(self) -> None:
        """Drop all copies; the connections live on where they are."""
        while self._copies:
            self._copies.popitem()[1].drop(Verdict.FORGET)

    def _send(self, channel: socket.socket, fd: int, baton: Baton | None, listener: int, leftover: bytes) -> bool:
        place, epoch = (0, 0) if baton is None else (baton.place + 1, baton.epoch)
        in_file = len(leftover) > _INLINE_BYTES
        head = _MESSAGE.pack(listener, in_file, place, epoch)
        fds = [fd]
        try:
            if in_file:
                fds.append(_write_file(leftover))
            channel.sendmsg(
                (head, b"" if in_file else leftover),
                ((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)),),
                socket.MSG_NOSIGNAL,
            )
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        finally:
            for file in fds[1:]:
                os.close(file)
        return True


def shut_down(fd: int, last: bytes = b"") -> None:
    """Send *last* and FIN, and let nobody read or write any more, whatever other descriptors are open."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        with contextlib.suppress(OSError):  # a client that does not read needs no answer
            connection.send(last, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        connection.shutdown(socket.SHUT_RDWR)


def _write_file(data: bytes) -> int:
    fd = os.memfd_create("limpet-leftover", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def _read_file(fd: int) -> bytes:
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
