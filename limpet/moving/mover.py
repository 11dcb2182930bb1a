"""Moving a client connection to another worker, between two requests: the other half of sticky per request.

Owns the move channels (one for each slot; every worker may send, the slot's worker receives) and this worker's paused
copies. ipc/baton.py says who may read; the server adapter stops and starts the reading and knows what the bytes are.

How it works: a worker that finds a request of another slot's client stops reading, and sends the bytes that it has
read of it into that slot's move channel. It keeps its own copy, paused. When the connection comes back, the copy reads
on: no transport, protocol or parser is made again, which is most of what a move costs.

The message carries the descriptor unless a worker of that slot has had the connection; which slots have, travels
along. A receiver that has no copy after all (it was evicted, or a successor) sends the message back, and the sender,
whose copy stays until the baton was taken, sends it again with the descriptor. For that a worker that is replaced reads
its channel until nothing of its own is under way, and only then its successor does (`settle`). If that takes too long,
since a receiver is busy, it leaves the descriptors to its successor (`leave`), which reads what comes back.

An idle connection may be given away for good, as at the end of a worker: then whose request comes next is not decided.

1. `pass_on` sends the whole of what was read and not served: what is not in the message is still in the kernel.
2. Copies are bounded: the one that was used longest ago is closed, but none whose message is under way.
3. Copies keep the FIN of a plain close from the client: who ends the connection calls `ended`, which shuts it down.
4. Like all channels these are kept by the supervisor: a message survives its sender and its receiver.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Final

from limpet.ipc.baton import Baton, Batons, Verdict
from limpet.ipc.scoreboard import Row, position
from limpet.moving.messages import (
    FULL,
    TOLD,
    Arrived,
    Back,
    Connection,
    Copy,
    Kept,
    read_file,
    send,
    send_with,
    shut_down,
    tell,
    told,
    write_file,
)
from limpet.protocol.proxy_protocol import Origin

# kind, listener, slot and serial number of the sender, place + 1 or 0, epoch, slots that had it, digest
_MESSAGE: Final = struct.Struct("<HHHIIQQQ")
FORM: Final = _MESSAGE.format  # what two versions must agree on
_WHICH: Final = struct.Struct("<10xIQQQ")  # of that what who has a copy needs: from the place on
_WHOLE: Final = 0  # kinds: with the descriptor
_IN_FILE: Final = 1  # with the descriptor, and the bytes in a memory file
_LIGHT: Final = 2  # without: the receiver should have a copy
_BACK: Final = 3  # a light message whose receiver has none; the serial number is still its sender's
_KIND: Final = 3  # mask
_UNDECIDED: Final = (
    4  # with a kind: the connection is idle, and whose request comes next is for the receiver to find out
)
_KEYED: Final = 8  # it has carried a key
_SILENT: Final = 16  # it has carried no request at all
_KEPT: Final = 32  # to the sender's own slot: the descriptor of a connection under way, from a worker that leaves
_NUMBERS: Final = {  # kinds there are, with how many descriptors come along
    **{
        kind | flags: 1 + (kind == _IN_FILE)
        for kind in (_WHOLE, _IN_FILE)
        for flags in (0, *(_UNDECIDED | keyed | silent for keyed in (0, _KEYED) for silent in (0, _SILENT)))
    },
    **{_LIGHT: 0, _BACK: 0, _KEPT: 1},
}
_MOST_TOLD: Final = 64  # slots for which it travels along that they had the connection; to others it goes whole
_INLINE_BYTES: Final = 60_000  # of leftover in the message itself; more travels in a memory file
_MOST_BYTES: Final = _MESSAGE.size + _INLINE_BYTES
_KIND_BYTES: Final = 2  # at its beginning
_LIGHT_KIND: Final = _LIGHT.to_bytes(_KIND_BYTES, "little")
_DIGEST_BYTES: Final = 8  # at the end of what comes before the bytes
_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(2 * _DESCRIPTOR_BYTES)
TAKES_PER_TURN: Final = 32  # messages, so that connections already here do not wait behind a storm


_NO_NUMBERS: Final = array.array("i")
_RETURNS: Final = position("returns")
_BATONS: Final = position("batons")


class Mover:
    """This worker's side of all moves."""

    def __init__(
        self,
        slot: int,
        batons: Batons,
        sending: list[socket.socket],
        receiving: socket.socket,
        row: Row,
        most_copies: int,
    ) -> None:
        self._slot = slot
        self._bit = 1 << slot if slot < _MOST_TOLD else 0
        self._batons = batons
        self._sending: list[socket.socket | None] = [*sending]
        self._receiving = receiving
        self._row = row
        self._most_copies = most_copies
        self._copies: dict[Baton, Copy] = {}  # the one that was used longest ago comes first
        self._kept: dict[Baton, Kept] = {}
        self._unsent: list[Callable[[], bool]] = []  # what had no room, or no descriptor yet, to be tried again
        self._may_be_light = True
        self._awaited: set[Baton] = set()  # what was under way when that ended
        self._waiting = array.array("i", [0])

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._receiving.fileno()

    def pass_on(
        self, copy: Copy, baton: Baton | None, slot: int, leftover: bytes, now: float
    ) -> tuple[bool, Baton | None]:
        """Send the connection of *copy* to *slot*; return whether that was done, and its baton.

        Done and a baton: *copy* is kept, paused, and will be resumed or dropped. Done and no baton: all cells are in
        use, and *copy* is to be closed now. Not done: the channel is full, the caller still reads. Blocks never.
        """
        baton = baton or self._batons.claim(now)
        if baton is None:
            sent = self._send_whole(slot, copy, None, leftover)
        else:
            self._batons.send(baton, now)
            if copy.had_by >> slot & self._may_be_light and len(leftover) <= _INLINE_BYTES:
                head = copy.light_head or self._light_head(copy, baton)
                sent = send(self._sending[slot], head + copy.digest.to_bytes(_DIGEST_BYTES, "little") + leftover)
            else:
                sent = self._send_whole(slot, copy, baton, leftover)
            if not sent:
                self._batons.keep(baton)
        if not sent:
            return False, baton
        self._row.cells[_RETURNS] += 1
        if baton is not None:
            self._copies[baton] = copy
            if len(self._copies) > self._most_copies:
                self._evict()
        return True, baton

    def give(
        self,
        connection: Connection,
        baton: Baton | None,
        slot: int,
        leftover: bytes,
        now: float,
        *,
        keyed: bool,
        silent: bool,
    ) -> bool:
        """Send *connection*, which is idle, to *slot* for good; return whether that was done. Blocks never.

        Done: the caller closes its descriptor, and no more than that. Not done: the channel is full, it still reads.
        """
        if baton is not None:
            self._batons.send(baton, now, is_idle=True)
        flags = _UNDECIDED | _KEYED * keyed | _SILENT * silent
        if self._send_whole(slot, connection, baton, leftover, flags):
            self._row.add("given")
            return True
        if baton is not None:
            self._batons.keep(baton)
        return False

    def reach(self, slot: int, fds: list[int]) -> None:
        """Take note of the move channel of *slot*, a new one; this process owns the descriptors."""
        while len(self._sending) <= slot:
            self._sending.append(None)
        if fds and self._sending[slot] is None:
            self._sending[slot] = socket.socket(fileno=fds.pop())
        for fd in fds:
            os.close(fd)

    def missing(self) -> list[int]:
        """Return the slots that cannot be reached: there was no free descriptor number when their channels came."""
        return [slot for slot, channel in enumerate(self._sending) if channel is None]

    def settle(self) -> bool:
        """Send descriptors along from now on; return whether no message is under way that might come back."""
        if self._may_be_light:
            self._may_be_light = False
            self._awaited = set(self._copies)
        self._awaited = {baton for baton in self._awaited if self._batons.is_sent(baton)}
        return not (self._unsent or self._awaited)

    def waiting_bytes(self) -> int:
        """Return the size of all messages that wait: asked behind one, cheaper than an attempt that fails."""
        fcntl.ioctl(self._receiving.fileno(), termios.FIONREAD, self._waiting)
        return self._waiting[0]

    def take(self, adopt: Callable[[Arrived], None]) -> None:
        """Take the messages that wait, `TAKES_PER_TURN` at most, as `receive` does."""
        waiting_bytes = self.waiting_bytes() if self.receive(adopt) else 0
        for _ in range(1, TAKES_PER_TURN):
            if waiting_bytes <= 0:
                break
            waiting_bytes -= self.receive(adopt)

    def receive(self, adopt: Callable[[Arrived], None]) -> int:
        """Take the next message; return its size, 0 when none waits. A connection without a copy here goes to *adopt*.

        Raises OSError with EMFILE when the message holds descriptors and this process has no numbers for them: the
        message then stays; RuntimeError for what is no message, which is gone then. Blocks never.
        """
        channel = self._receiving
        try:
            kind = channel.recv(_KIND_BYTES, socket.MSG_PEEK)
            if kind != _LIGHT_KIND and _NUMBERS.get(int.from_bytes(kind, "little")) != 0:
                self._ensure_free_numbers()
            # with room for descriptors in any case: who is late to leave the channel may have taken what was seen
            message, ancillary, _, _ = channel.recvmsg(_MOST_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return 0
        size = len(message)
        if ancillary or size < _MESSAGE.size or message[:_KIND_BYTES] != _LIGHT_KIND:
            self._receive_any(message, array.array("i", ancillary[0][2]) if ancillary else _NO_NUMBERS, adopt)
            return size
        place, epoch, had_by, digest = _WHICH.unpack_from(message)
        if not 0 < place <= self._batons.places:
            raise RuntimeError(f"not a move: {size} bytes, light, {place=}")
        baton = place - 1, epoch
        copy = self._copies.pop(baton, None)
        if copy is not None:
            self._hand_to(copy, baton, message[_MESSAGE.size :], had_by, digest)
        else:
            self._send_back(message)
        return size

    def _receive_any(self, message: bytes, fds: array.array[int], adopt: Callable[[Arrived], None]) -> None:
        """Act on *message*, which came with *fds*: as `receive`, for all but a light one."""
        size = len(message)
        numbers = _MESSAGE.unpack_from(message.ljust(_MESSAGE.size))
        kind, listener, slot, sender, place, epoch, had_by, digest = numbers
        is_told, kind = kind & TOLD, kind & ~TOLD
        is_message = size >= _MESSAGE.size and _NUMBERS.get(kind) == len(fds) and place <= self._batons.places
        if not is_message or kind == _LIGHT or (place == 0 and kind in (_BACK, _KEPT)):
            for fd in fds:
                os.close(fd)
            raise RuntimeError(f"not a move: {size} bytes with {len(fds)} descriptors, {kind=}, {place=}")
        leftover = message[_MESSAGE.size :]
        baton = (place - 1, epoch) if place else None
        if kind & _UNDECIDED or baton is None or kind < _LIGHT:
            if kind & _KIND == _IN_FILE:
                leftover = read_file(fds[1])
            origin, leftover = told(leftover, fds[0]) if is_told else (None, leftover)
            decided = not kind & _UNDECIDED
            state = decided, decided or bool(kind & _KEYED), bool(kind & _SILENT), origin, digest
            self._take_whole(fds[0], leftover, listener, baton, had_by, state, adopt)
        elif kind == _KEPT:
            origin = told(leftover, fds[0])[0] if is_told else None
            self._keep(baton, Kept(fds[0], listener, had_by, origin, digest))
        else:
            self._insist(partial(self._send_again, Back(slot, sender, baton, leftover)))

    def _take_whole(
        self,
        fd: int,
        leftover: bytes,
        listener: int,
        baton: Baton | None,
        had_by: int,
        state: tuple[bool, bool, bool, Origin | None, int],
        adopt: Callable[[Arrived], None],
    ) -> None:
        """Take the connection *fd*, of which there may be a copy here: of no use when what comes next is undecided."""
        copy = self._copies.pop(baton, None) if baton is not None else None
        if copy is not None and not state[0]:
            copy.drop(Verdict.FORGET)
            copy = None
        if copy is not None and baton is not None:
            os.close(fd)
            self._hand_to(copy, baton, leftover, had_by, state[-1])
        elif baton is not None and not self._batons.take(baton):
            os.close(fd)
        else:
            connection = socket.socket(fileno=fd)
            connection.setblocking(False)
            adopt(Arrived(connection, leftover, listener, baton, had_by, *state))

    def _hand_to(self, copy: Copy, baton: Baton, leftover: bytes, had_by: int, digest: int) -> None:
        """Let *copy*, to which the connection has come back, read on."""
        if self._batons.take(baton):
            self._row.cells[_BATONS] += 1
            copy.digest = digest
            if copy.had_by != had_by:
                copy.had_by, copy.light_head = had_by, b""
            copy.resume(leftover)
        else:
            copy.drop(Verdict.FORGET)

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
        spared = [self._evict() for _ in range((len(self._copies) + 1) // 2)]
        return any(spared)

    def settled(self, baton: Baton) -> None:
        """Note that the connection will never move again: the other workers close their copies in time."""
        self._batons.end(baton)

    def alive(self, serials: list[int], newest: int, now: float) -> None:
        """Take note of which workers live, and end the connections that a dead one held."""
        self._batons.alive(serials, newest)
        self.sweep(now)

    def sweep(self, now: float) -> None:
        """Drop the copies of connections that have ended, and send what had no room."""
        self._retry()
        for baton in [baton for baton in self._kept if not self._batons.is_sent(baton)]:
            os.close(self._kept.pop(baton).fd)
        for baton, copy in list(self._copies.items()):
            verdict = self._batons.verdict(baton, now)
            if verdict is Verdict.KEEP:
                continue
            del self._copies[baton]
            if verdict is not Verdict.FORGET:
                self._batons.end(baton)
            copy.drop(verdict)
        while len(self._copies) > self._most_copies and self._evict():  # those that were under way
            pass
        self._row.set("copies", len(self._copies))

    def close_copies(self) -> None:
        """Drop all copies but those under way; the connections live on where they are."""
        while self._evict():
            pass

    def _evict(self) -> bool:
        """Drop the copy that was used longest ago; return whether there was one that is not under way (rule 2)."""
        for baton, copy in self._copies.items():
            if not self._batons.is_sent(baton):
                del self._copies[baton]
                copy.drop(Verdict.FORGET)
                return True
        return False

    @property
    def is_needed(self) -> bool:
        """Whether messages of this worker are under way, which may come back."""
        return any(map(self._batons.is_sent, self._copies))

    def leave(self) -> None:
        """Leave what comes back to the slot's next worker, with the descriptors that it needs for that.

        The caller reads the channel no more, and has called `settle`.
        """
        self._retry()
        for baton, copy in list(self._copies.items()):
            if self._batons.is_sent(baton) and self._send_kept(copy, baton):
                del self._copies[baton]
                copy.drop(Verdict.FORGET)
        for baton, kept in self._kept.items():
            self._send_kept(kept, baton)

    def _send_kept(self, kept: Connection, baton: Baton) -> bool:
        flag, header = tell(kept)
        return send_with(self._sending[self._slot], self._head(_KEPT | flag, kept, baton), header, kept.fd)

    def _keep(self, baton: Baton, kept: Kept) -> None:
        """Keep what a predecessor has left until its message was taken, which may have come back already."""
        if baton in self._kept or not self._batons.is_sent(baton):
            os.close(kept.fd)
        else:
            self._kept[baton] = kept
            self._retry()

    def _send_again(self, back: Back) -> bool:
        """Send *back* to where it came from, with the descriptor; False when that cannot be done yet."""
        copy = self._copies.get(back.baton) or self._kept.get(back.baton)
        if copy is not None:
            return self._send_whole(back.slot, copy, back.baton, back.leftover)
        if self._batons.is_sent(back.baton):
            if not self._batons.is_dead(back.sender):
                return False  # it is leaving, and will say so
            if not back.is_last_try:  # what it left, if it could, may be behind this in the channel
                back.is_last_try = True
                return False
            self._batons.end(back.baton)  # the last descriptors go with the copies of others
        return True

    def _retry(self) -> None:
        self._unsent = [again for again in self._unsent if not again()]

    def _insist(self, send: Callable[[], bool]) -> None:
        """Call *send* now, and from time to time until it has succeeded."""
        if not send():
            self._unsent.append(send)

    def _channel(self, slot: int) -> socket.socket | None:
        """Return the sending end to *slot*, None while it is not known: the slot may be newer than the last news."""
        return self._sending[slot] if slot < len(self._sending) else None

    def _head(self, kind: int, copy: Connection, baton: Baton | None) -> bytes:
        place, epoch = baton or (-1, 0)
        had_by, serial = copy.had_by | self._bit, self._batons.serial
        return _MESSAGE.pack(kind, copy.listener, self._slot, serial, place + 1, epoch, had_by, copy.digest)

    def _light_head(self, copy: Copy, baton: Baton) -> bytes:
        """Return a light message of *copy* up to the digest; kept, since that is the same as long as `had_by` is."""
        copy.light_head = self._head(_LIGHT, copy, baton)[:-_DIGEST_BYTES]
        return copy.light_head

    def _send_back(self, message: bytes) -> None:
        """Send a light *message* back, since the connection is not here."""
        _, listener, slot, *others = _MESSAGE.unpack_from(message)
        head = _MESSAGE.pack(_BACK, listener, self._slot, *others)
        self._insist(lambda: send(self._channel(slot), head + message[_MESSAGE.size :]))

    def _send_whole(self, slot: int, copy: Connection, baton: Baton | None, leftover: bytes, flags: int = 0) -> bool:
        """Send the connection with its descriptor; return whether there was room."""
        if copy.origin is not None:
            flag, header = tell(copy)
            flags, leftover = flags | flag, header + leftover
        if len(leftover) <= _INLINE_BYTES:
            return send_with(self._channel(slot), self._head(_WHOLE | flags, copy, baton), leftover, copy.fd)
        try:
            file = write_file(leftover)
        except OSError as error:
            if error.errno in FULL:
                return False
            raise
        try:
            return send_with(self._channel(slot), self._head(_IN_FILE | flags, copy, baton), b"", copy.fd, file)
        finally:
            os.close(file)
