"""Moving a client connection to another worker between two requests, so that each request reaches its key's slot.

This file owns the move channels and this worker's paused copies. Each slot has one move channel: every worker may send
into it, and the slot's worker receives. ipc/baton.py owns who may read a connection. The server adapter calls this
file, stops and starts the reading, and knows what the bytes mean.

1. `pass_on` sends everything that was read and not yet served. Bytes that are not in the message are still in the
   kernel.
2. The number of copies is bounded. The copy that was used longest ago is closed, but never one whose message is under
   way.
3. A copy keeps a plain close from reaching the client as a FIN. To end a connection, call `ended`, which shuts it down.
4. The supervisor keeps these channels open, as it does all others. So a message survives its sender and its receiver.

How it works
------------

A worker that finds a request for another slot stops reading. It sends the bytes of the request into that slot's move
channel, and keeps its own copy of the connection, paused. When the connection comes back, the copy reads on. So no
transport, protocol or parser is made again, which would be most of the cost of a move.

A message carries the descriptor, unless a worker of the receiving slot has had the connection: then it is "light". Each
message says which slots have had the connection. If the receiver has no copy after all, since it closed its copy or is
a new worker, it sends the message back. The sender keeps its copy until the baton is taken, so it can send the message
again with the descriptor.

For that reason a worker that is replaced reads its channel until none of its own messages is under way (`settle`). Only
then its successor reads the channel. If a receiver is busy and this takes too long, the worker leaves the descriptors
to its successor (`leave`), which then handles what comes back.

An idle connection may be given away for good (`give`), for example at the end of a worker. Then the receiver finds out
which slot the next request belongs to.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import termios
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from limpet.ipc.baton import Baton, Batons, Verdict
from limpet.ipc.scoreboard import Row, position
from limpet.moving import codec
from limpet.moving.messages import (
    FULL,
    Arrived,
    Back,
    Connection,
    Copy,
    Kept,
    origin_header,
    send,
    send_with,
    shut_down,
    split_origin,
)
from limpet.protocol.proxy_protocol import Origin
from limpet.system import memfile

_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(2 * _DESCRIPTOR_BYTES)
TAKES_PER_TURN: Final = 32  # messages at a time, so that connections already here do not wait behind many arriving ones


_NO_FDS: Final = array.array("i")
_RETURNS: Final = position("returns")
_BATONS: Final = position("batons")


class Mover:
    """This worker's side of all moves. Owns: the move channels and the kept descriptors."""

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
        self._bit = 1 << slot if slot < codec.HAD_BY_SLOTS else 0
        self._batons = batons
        self._sending: list[socket.socket | None] = [*sending]
        self._receiving = receiving
        self._row = row
        self._most_copies = most_copies
        self._copies: dict[Baton, Copy] = {}  # the copy that was used longest ago comes first
        self._kept: dict[Baton, Kept] = {}  # what predecessors left
        self._unsent: list[Callable[[], bool]] = []  # sends to try again: they had no room, or no descriptor yet
        self._may_be_light = True
        self._awaited: set[Baton] = set()  # batons that were under way when `_may_be_light` ended
        self._waiting = array.array("i", [0])

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._receiving.fileno()

    def pass_on(
        self, copy: Copy, baton: Baton | None, slot: int, leftover: bytes, now: float
    ) -> tuple[bool, Baton | None]:
        """Send the connection of *copy* to *slot*; return whether that was done, and the connection's baton.

        Done, with a baton: *copy* is kept, paused, and is resumed or dropped later. Done, without a baton: all cells
        are in use, and the caller must close *copy* now. Not done: the channel is full, and the caller still reads the
        connection. Blocks never.
        """
        baton = baton or self._batons.claim(now)
        if baton is None:
            sent = self._send_whole(slot, copy, None, leftover)
        else:
            self._batons.send(baton, now)
            if copy.had_by >> slot & self._may_be_light and len(leftover) <= codec.INLINE_BYTES:
                head = copy.light_head or self._light_head(copy, baton)
                sent = send(self._sending[slot], codec.light(head, copy.digest, leftover))
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

        Done: the caller closes its descriptor and does nothing else. Not done: the channel is full, and the caller
        still reads the connection.
        """
        if baton is not None:
            self._batons.send(baton, now, is_idle=True)
        flags = codec.idle(keyed=keyed, silent=silent)
        if self._send_whole(slot, connection, baton, leftover, flags):
            self._row.add("given")
            return True
        if baton is not None:
            self._batons.keep(baton)
        return False

    def reach(self, slot: int, fds: Sequence[int]) -> None:
        """Use the move channel *fds* for the new *slot*. Owns: this object. With no *fds* the slot stays missing."""
        while len(self._sending) <= slot:
            self._sending.append(None)
        rest = list(fds)
        if rest and self._sending[slot] is None:
            self._sending[slot] = socket.socket(fileno=rest.pop())
        for fd in rest:
            os.close(fd)

    def missing(self) -> list[int]:
        """Return the slots without a channel here: no descriptor number was free when their channels came."""
        return [slot for slot, channel in enumerate(self._sending) if channel is None]

    def settle(self) -> bool:
        """Send no light messages from now on; return whether none of the messages under way can come back any more."""
        if self._may_be_light:
            self._may_be_light = False
            self._awaited = set(self._copies)
        self._awaited = {baton for baton in self._awaited if self._batons.is_sent(baton)}
        return not (self._unsent or self._awaited)

    def waiting_bytes(self) -> int:
        """Return the size of all messages that wait. This is cheaper than a `receive` that finds none."""
        fcntl.ioctl(self._receiving.fileno(), termios.FIONREAD, self._waiting)
        return self._waiting[0]

    def take(self, adopt: Callable[[Arrived], None]) -> None:
        """Do as `receive` for each message that waits, but at most `TAKES_PER_TURN` times."""
        waiting_bytes = self.waiting_bytes() if self.receive(adopt) else 0
        for _ in range(1, TAKES_PER_TURN):
            if waiting_bytes <= 0:
                break
            waiting_bytes -= self.receive(adopt)

    def receive(self, adopt: Callable[[Arrived], None]) -> int:
        """Act on the next message and return its size; 0 if none waits.

        A connection of which there is no copy here goes to *adopt*. Raises OSError with EMFILE if the message carries
        descriptors and this process has no free numbers for them; then the message stays in the channel. Raises
        ConnectionResetError if a worker has shut the channel down, which ends it for every reader. Raises RuntimeError
        if the message is invalid; then it is gone. Blocks never.
        """
        channel = self._receiving
        try:
            if codec.brings_descriptors(channel.recv(codec.KIND_BYTES, socket.MSG_PEEK)):
                self._ensure_free_numbers()
            # Always with room for descriptors: a predecessor that still reads the channel may have taken the message
            # that was peeked at, and the next message may be of another kind.
            message, ancillary, _, _ = channel.recvmsg(codec.MOST_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return 0
        size = len(message)
        if not size and not ancillary:
            raise ConnectionResetError(errno.ECONNRESET, "the channel was ended by a worker")
        if ancillary or size < codec.HEAD_BYTES or message[: codec.KIND_BYTES] != codec.LIGHT_KIND:
            self._receive_any(message, array.array("i", ancillary[0][2]) if ancillary else _NO_FDS, adopt)
            return size
        baton, had_by, digest = codec.parse_light(message, self._batons.places)
        copy = self._copies.pop(baton, None)
        if copy is not None:
            self._hand_to(copy, baton, message[codec.HEAD_BYTES :], had_by, digest)
        else:
            slot, answer = codec.sent_back(message, self._slot)  # there is no copy of its connection here
            self._insist(lambda: send(self._channel(slot), answer))
        return size

    def _receive_any(self, message: bytes, fds: array.array[int], adopt: Callable[[Arrived], None]) -> None:
        """Act on *message* of any kind but light, which came with *fds*. Raises RuntimeError if it is invalid."""
        try:
            moved = codec.parse(message, len(fds), self._batons.places)
        except codec.NotAMoveError:
            for fd in fds:
                os.close(fd)
            raise
        if moved.kind == codec.BACK:
            assert moved.baton is not None
            self._insist(partial(self._send_again, Back(moved.slot, moved.sender, moved.baton, moved.leftover)))
            return
        leftover = memfile.read(fds[1]) if moved.kind == codec.IN_FILE else moved.leftover
        origin, leftover = split_origin(leftover, fds[0]) if moved.has_origin else (None, leftover)
        if moved.kind == codec.KEPT:
            assert moved.baton is not None
            self._keep(moved.baton, Kept(fds[0], moved.listener, moved.had_by, origin, moved.digest))
            return
        state = moved.is_decided, moved.is_keyed, moved.is_silent, origin, moved.digest
        self._take_whole(fds[0], leftover, moved.listener, moved.baton, moved.had_by, state, adopt)

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
        """Take the connection *fd*: resume a copy of it, or give it to *adopt*.

        A copy is of no use if the slot of the next request is undecided; then it is dropped. Owns: *fd*.
        """
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
        """Resume *copy*, to which the connection has come back; drop it if the connection has ended."""
        if self._batons.take(baton):
            self._row.cells[_BATONS] += 1
            copy.digest = digest
            if copy.had_by != had_by:
                copy.had_by, copy.light_head = had_by, b""
            copy.resume(leftover)
        else:
            copy.drop(Verdict.FORGET)

    def _ensure_free_numbers(self) -> None:
        """Raise OSError with EMFILE unless two descriptor numbers are free: else the kernel would drop descriptors."""
        spares = [os.dup(self._receiving.fileno())]
        try:
            spares.append(os.dup(self._receiving.fileno()))
        finally:
            for spare in spares:
                os.close(spare)

    def ended(self, fd: int, baton: Baton) -> None:
        """End the connection for the client, whatever copies exist. The caller must hold it. Owns: it closes *fd*."""
        self._batons.end(baton)
        shut_down(fd)

    def forget(self, copy: Copy, baton: Baton) -> None:
        """Note that *copy* has closed by itself."""
        if self._copies.get(baton) is copy:  # otherwise it was dropped already, and there may be a newer copy
            del self._copies[baton]

    def spare_numbers(self) -> bool:
        """Free descriptors: drop the half of the copies that was used longest ago. Return whether any was dropped."""
        spared = [self._evict() for _ in range((len(self._copies) + 1) // 2)]
        return any(spared)

    def settled(self, baton: Baton) -> None:
        """Note that the connection will never move again. The other workers then close their copies at their sweeps."""
        self._batons.end(baton)

    def alive(self, serials: list[int], newest: int, now: float) -> None:
        """Note which workers are alive, and end the connections that a dead one held."""
        self._batons.alive(serials, newest)
        self.sweep(now)

    def sweep(self, now: float) -> None:
        """Drop the copies of connections that have ended, and try again to send what had no room."""
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
        while len(self._copies) > self._most_copies and self._evict():  # more than the bound were under way before
            pass
        self._row.set("copies", len(self._copies))

    def close_copies(self) -> None:
        """Drop all copies except those under way. The connections live on in the workers that hold them."""
        while self._evict():
            pass

    def _evict(self) -> bool:
        """Drop the copy that was used longest ago and is not under way (rule 2); return whether there was one."""
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
        """Leave messages that come back to the slot's next worker, and send it the descriptors that it needs for them.

        The caller must have called `settle`, and no longer reads the channel.
        """
        self._retry()
        for baton, copy in list(self._copies.items()):
            if self._batons.is_sent(baton) and self._send_kept(copy, baton):
                del self._copies[baton]
                copy.drop(Verdict.FORGET)
        for baton, kept in self._kept.items():
            self._send_kept(kept, baton)

    def _send_kept(self, kept: Connection, baton: Baton) -> bool:
        flag, header = origin_header(kept)
        return send_with(self._sending[self._slot], self._head(codec.KEPT | flag, kept, baton), header, kept.fd)

    def _keep(self, baton: Baton, kept: Kept) -> None:
        """Keep *kept*, which a predecessor left, until its message is taken. The message may have come back already."""
        if baton in self._kept or not self._batons.is_sent(baton):
            os.close(kept.fd)
        else:
            self._kept[baton] = kept
            self._retry()

    def _send_again(self, back: Back) -> bool:
        """Send *back* to the slot that it came from, with the descriptor; return False if that is not possible yet.

        It is no longer needed, and counts as sent, if the connection has ended.
        """
        copy = self._copies.get(back.baton) or self._kept.get(back.baton)
        if copy is not None:
            return self._send_whole(back.slot, copy, back.baton, back.leftover)
        if self._batons.is_sent(back.baton):
            if not self._batons.is_dead(back.sender):
                return False  # the sender is leaving, and will send the descriptor
            if not back.is_last_try:  # a descriptor that the sender left may be behind this message in the channel
                back.is_last_try = True
                return False
            self._batons.end(back.baton)  # other workers then drop their copies, and with them the last descriptors
        return True

    def _retry(self) -> None:
        self._unsent = [again for again in self._unsent if not again()]

    def _insist(self, send: Callable[[], bool]) -> None:
        """Call *send* now, and again at each `_retry` until it returns True."""
        if not send():
            self._unsent.append(send)

    def _channel(self, slot: int) -> socket.socket | None:
        """Return the sending end to *slot*; None if this worker has not heard of it yet."""
        return self._sending[slot] if slot < len(self._sending) else None

    def _head(self, kind: int, copy: Connection, baton: Baton | None) -> bytes:
        had_by, serial = copy.had_by | self._bit, self._batons.serial
        return codec.head(kind, copy.listener, self._slot, serial, baton, had_by, copy.digest)

    def _light_head(self, copy: Copy, baton: Baton) -> bytes:
        """Return a light message of *copy* up to the digest, and keep it: it changes only with `had_by`."""
        copy.light_head = codec.light_start(self._head(codec.LIGHT, copy, baton))
        return copy.light_head

    def _send_whole(self, slot: int, copy: Connection, baton: Baton | None, leftover: bytes, flags: int = 0) -> bool:
        """Send the connection with its descriptor; return whether there was room."""
        if copy.origin is not None:
            flag, header = origin_header(copy)
            flags, leftover = flags | flag, header + leftover
        if len(leftover) <= codec.INLINE_BYTES:
            return send_with(self._channel(slot), self._head(codec.WHOLE | flags, copy, baton), leftover, copy.fd)
        try:
            file = memfile.create("limpet-leftover", leftover)
        except OSError as error:
            if error.errno in FULL:
                return False
            raise
        try:
            return send_with(self._channel(slot), self._head(codec.IN_FILE | flags, copy, baton), b"", copy.fd, file)
        finally:
            os.close(file)
