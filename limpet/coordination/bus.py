"""The bus: what is published in one worker is heard in all workers of the server that have subscribed to the topic.

This file owns publishing and hearing, in one process. interest.py is the shared memory, roster.py the channels,
packet.py the form of a message, subscription.py the queues. entry/worker.py calls `become`; the application calls
`publish`, `publish_sync` and `subscribe`. Outside limpet the same calls work inside the one process.

How it works: `subscribe` writes the digest of the topic into the worker's row of shared memory. `publish` looks at the
rows of all others, and sends the message into the channel of each that has the topic; one datagram, and no process in
between. A topic that nobody listens to costs this look.

    publisher: full channel -> the message is not sent; shared memory counts it for this receiver and topic
    receiver:  full queue of a subscription -> its oldest message is dropped
    both:      `message.lost` says how many, at the place in the order where they are missing

1. At most once, never twice, and in order for each publisher and topic. The publisher's own worker hears it, too.
2. A publisher never waits: each system call returns at once, and no process answers.
3. A subscription hears what is published after it was entered. Before that, the channel is emptied.
4. A worker that is killed loses what it had not read. Its successor has another channel, and hears none of that.
5. Losses are counted by the publisher in each message, and in shared memory for the case that none follows. The
   receiver looks there when its channel is empty, so a loss is told once, and before what was published after it.
6. One event loop or one thread reads the channel for all subscriptions. `lock` is held for everything but waiting.
7. A forked process of a worker is not part of the bus: its calls work inside it alone.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from limpet.coordination import interest, packet
from limpet.coordination.interest import ANY, TOPICS, Memory
from limpet.coordination.roster import Peers
from limpet.coordination.subscription import Message, Subscription, in_trio, running_loop
from limpet.ipc.boot import BusPlace
from limpet.ipc.scoreboard import Row, position
from limpet.system import descriptors

__all__ = ["Message", "Subscription", "publish", "publish_sync", "subscribe"]

UNDER_WAY_BYTES: Final = 64 << 20  # of memory files in the channel of one receiver
_MOST_KNOWN: Final = 4096  # topics that a publisher remembers for each receiver
_PER_TURN: Final = 256  # messages that the event loop takes before others have their turn
_AT_ONCE: Final = 100_000  # messages that `subscribe` takes from the channel at most, which is more than fit into it
_PUBLISHED_PER_TURN: Final = 32  # messages that a task publishes before others have their turn
_PER_POLL: Final = 1024
_POLL_S: Final = 0.001
_BUSY_TURNS: Final = 4  # so many within _BUSY_S: from 2,000 wake-ups a second on, the channel is read by the clock
_BUSY_S: Final = 0.002
_LOOK_AGAIN_S: Final = 1.0
_SEND: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_TAKE: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize)
_GONE: Final = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET})
_PUBLISHED, _SENT, _DROPPED, _RECEIVED, _LOST, _INVALID, _SUBSCRIPTIONS = (
    position(f"bus_{name}") for name in ("published", "sent", "dropped", "received", "lost", "invalid", "subscriptions")
)
log = logging.getLogger("limpet.worker")


class _Target:
    """The entry of one topic in a receiver's row, and how many messages to it this publisher has lost."""

    __slots__ = ("entry", "lost", "tag")

    def __init__(self, entry: int, tag: int, lost: int) -> None:
        self.entry, self.tag, self.lost = entry, tag, lost


class _Receiver:
    """Another participant, as a publisher sees it."""

    __slots__ = ("channel", "known", "row", "serial", "version", "version_at")

    def __init__(self, row: int, serial: int, version_at: int) -> None:
        self.row, self.serial, self.version_at = row, serial, version_at
        self.channel: socket.socket | None = None
        self.version = -1  # of its interest, when `known` was looked up
        self.known: dict[str, _Target | None] = {}


class _Entry:
    """An entry of this participant's row: its topics, which are several only for `ANY`, and which losses were told."""

    __slots__ = ("number", "tag", "told", "topics")

    def __init__(self, number: int, tag: int) -> None:
        self.number, self.tag = number, tag
        self.told: dict[int, int] = {}  # by publisher's row
        self.topics: set[str] = set()


class Seat:
    """The place of this process among the participants: the shared memory, its row, its channel, and the others'."""

    def __init__(self, place: BusPlace) -> None:
        self.memory = Memory(place.memory_fds)
        self.row, self.serial = place.row, place.serial
        self.channel = socket.socket(fileno=place.receiving_fd)
        self.channel.setblocking(False)
        self.peers = Peers(self.memory, socket.socket(fileno=place.line_fd), place.peers)


class Bus:
    """The bus in one process. *seat* is None outside limpet; *row* counts."""

    def __init__(self, seat: Seat | None = None, row: Row | None = None) -> None:
        self._seat = seat
        self._cells = None if row is None else row.cells
        self.lock: Any = threading.RLock() if seat is None else seat.peers.lock
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._receivers: list[_Receiver] = []
        self._seen_changes = -1
        self._is_complete = True  # the channels of all receivers are known
        self._entries: dict[str, _Entry] = {}
        self._others: _Entry | None = None  # the topics that found no entry
        self._free = list(range(TOPICS - 1, -1, -1))
        self._reader = _Reader(self)
        self._signals = b""  # the counts of losses, when they were last looked at
        self.taken = 0  # messages that were taken from the channel
        self._unaccounted = 0, 0.0  # bytes of memory files sent and not taken, and since when

    # Publishing.

    def publish(self, topic: str, data: Any) -> None:
        """Send *data* to all subscriptions to *topic*. Never waits. Raises TypeError or ValueError."""
        name = packet.name(topic)
        kind, payload = packet.encode(data)
        with self.lock:
            self._count(_PUBLISHED)
            self._deliver(topic, kind, payload)
            if self._seat is not None:
                self._send(self._seat, topic, name, kind, payload)

    def _send(self, seat: Seat, topic: str, name: bytes, kind: int, payload: bytes) -> None:
        memory, cells = seat.memory, seat.memory.cells
        if memory.changes != self._seen_changes or not self._is_complete:
            self._look_who_is_there(seat)
        plain, fd = packet.pack(seat.row, name, 0, 0, kind, payload), -1
        try:
            for receiver in self._receivers:
                if cells[receiver.version_at] != receiver.version or len(receiver.known) > _MOST_KNOWN:
                    receiver.version = cells[receiver.version_at]  # before the search, so that no change is missed
                    receiver.known.clear()
                    interest.fence()
                try:
                    target = receiver.known[topic]
                except KeyError:
                    target = receiver.known[topic] = self._search(seat, receiver, topic)
                if target is None:
                    continue
                datagram = plain
                if target.lost:
                    datagram = packet.pack(seat.row, name, target.entry, target.lost, kind, payload)
                try:
                    if len(payload) <= packet.INLINE_BYTES:
                        if receiver.channel is None:
                            raise BlockingIOError(errno.EAGAIN, "its channel has not come")
                        receiver.channel.send(datagram, _SEND)
                    else:
                        fd = packet.memory_file(payload) if fd < 0 else fd
                        self._send_file(seat, receiver, datagram, fd, len(payload))
                    self._count(_SENT)
                except OSError as error:
                    if error.errno not in _GONE:
                        self._drop(seat, receiver, target)
        finally:
            if fd >= 0:
                os.close(fd)

    def _send_file(self, seat: Seat, receiver: _Receiver, datagram: bytes, fd: int, size: int) -> None:
        memory = seat.memory
        if receiver.channel is None or memory.under_way(receiver.row) + size > UNDER_WAY_BYTES:
            raise BlockingIOError(errno.EAGAIN, "too many bytes are under way")
        memory.send(receiver.row, seat.row, size)
        try:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            receiver.channel.sendmsg([datagram], [rights], _SEND)
        except OSError:
            memory.send(receiver.row, seat.row, -size)
            raise

    def _drop(self, seat: Seat, receiver: _Receiver, target: _Target) -> None:
        target.lost += 1
        self._count(_DROPPED)
        with contextlib.suppress(OSError):
            seat.memory.lose(receiver.row, seat.row, target.entry, target.tag, target.lost)

    def _search(self, seat: Seat, receiver: _Receiver, topic: str) -> _Target | None:
        digest = interest.digest(topic)
        entry = seat.memory.find(receiver.row, digest)
        if entry is None:
            return None
        tag = interest.tag(b"" if entry == ANY else digest, receiver.serial)
        if entry == ANY:  # one count for all its topics, so all have the same target
            others = (each for each in receiver.known.values() if each is not None and each.entry == ANY)
            if (known := next(others, None)) is not None:
                return known
        return _Target(entry, tag, seat.memory.losses(receiver.row, seat.row, entry, tag))

    def _look_who_is_there(self, seat: Seat) -> None:
        memory = seat.memory
        self._seen_changes = memory.changes  # before the rows are read, so that no change is missed
        seat.peers.read()
        known = {(each.row, each.serial): each for each in self._receivers}
        self._receivers = []
        for row in range(memory.height):
            serial = memory.serial(row)
            if serial and row != seat.row:
                receiver = known.get((row, serial)) or _Receiver(row, serial, memory.version_at(row))
                receiver.channel = seat.peers.channel(row, serial)
                self._receivers.append(receiver)
        self._is_complete = all(each.channel is not None for each in self._receivers)

    # Hearing.

    def add(self, subscription: Subscription, loop: asyncio.AbstractEventLoop | None) -> None:
        """Let *subscription* hear its topics from now on; *loop* is that of its task, if it is asyncio's."""
        for topic in subscription.topics:
            self.listen(subscription, topic)
        self._count(_SUBSCRIPTIONS)
        if self._seat is not None:
            self._reader.begin(self._seat.channel, subscription, loop)

    def remove(self, subscription: Subscription) -> None:
        """Let *subscription* hear nothing more."""
        for topic in subscription.topics:
            self.ignore(subscription, topic)
        self._count(_SUBSCRIPTIONS, -1)
        self._reader.end(subscription)

    def listen(self, subscription: Subscription, topic: str) -> None:
        """Let *subscription* hear *topic* from now on."""
        if self._seat is not None:
            self.take(_AT_ONCE)  # what was published before is not for it
        heard = self._subscriptions.setdefault(topic, [])
        if not heard and self._seat is not None:
            self._begin(self._seat, topic)
        heard.append(subscription)

    def ignore(self, subscription: Subscription, topic: str) -> None:
        """Let *subscription* hear nothing more of *topic*."""
        heard = self._subscriptions[topic]
        heard.remove(subscription)
        if not heard:
            del self._subscriptions[topic]
            if self._seat is not None:
                self._end(self._seat, topic)

    def others(self, topic: str) -> list[tuple[int, int]]:
        """Return the row and serial number of each other participant that has subscribed to *topic*."""
        seat = self._seat
        if seat is None:
            return []
        with self.lock:
            self._look_who_is_there(seat)
            digest = interest.digest(topic)
            found = ((each.row, each.serial, seat.memory.find(each.row, digest)) for each in self._receivers)
            return [(row, serial) for row, serial, entry in found if entry not in (None, ANY)]

    @property
    def identity(self) -> tuple[int, int]:
        """This participant's row and serial number, as `others` returns them."""
        return (self._seat.row, self._seat.serial) if self._seat is not None else (0, 0)

    def _begin(self, seat: Seat, topic: str) -> None:
        digest = interest.digest(topic)
        if self._free:
            entry = _Entry(self._free.pop(), interest.tag(digest, seat.serial))
            self._remember_losses(seat, entry)
            seat.memory.write(seat.row, entry.number, digest)
        elif self._others is None:
            entry = self._others = _Entry(ANY, interest.tag(b"", seat.serial))
            self._remember_losses(seat, entry)
            seat.memory.hear_all(seat.row, wanted=True)
        else:
            entry = self._others
        entry.topics.add(topic)
        self._entries[topic] = entry

    def _end(self, seat: Seat, topic: str) -> None:
        entry = self._entries.pop(topic)
        entry.topics.discard(topic)
        if entry.number != ANY:
            seat.memory.write(seat.row, entry.number, bytes(8))
            self._free.append(entry.number)
        elif not entry.topics:
            seat.memory.hear_all(seat.row, wanted=False)
            self._others = None

    def _remember_losses(self, seat: Seat, entry: _Entry) -> None:
        """Note what was lost for an earlier use of *entry*."""
        for publisher, count in enumerate(seat.memory.lost_signals(seat.row)):
            if count:
                entry.told[publisher] = seat.memory.losses(seat.row, publisher, entry.number, entry.tag)

    def take(self, most: int = _PER_TURN) -> bool:
        """Deliver up to *most* messages from the channel. Return whether it is empty. Never waits."""
        seat = self._seat
        assert seat is not None
        channel = seat.channel
        with self.lock:
            for _ in range(most):
                try:
                    datagram, ancillary, flags, _ = channel.recvmsg(packet.DATAGRAM_BYTES, _ANCILLARY_BYTES, _TAKE)
                except BlockingIOError:
                    return self._is_settled(seat)
                self.taken += 1
                self._hear(seat, datagram, ancillary, flags)
        return False

    def take_one(self) -> None:
        """Deliver one message from the channel, or all if something was lost. Never waits."""
        seat = self._seat
        assert seat is not None
        with self.lock:
            self.take(1)
            if bytes(seat.memory.lost_signals(seat.row)) != self._signals:
                self.take()

    def _hear(self, seat: Seat, datagram: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        fds: Sequence[int] = descriptors.received(ancillary) if ancillary else ()
        try:
            found = packet.unpack(datagram)
            self._count(_RECEIVED)
            if found.lost:
                entry = self._entries.get(found.topic)
                if entry is not None and entry.number == found.entry:
                    self._tell_loss(entry, found.publisher, found.lost)
            if not found.size:
                self._deliver(found.topic, found.kind, found.payload)
                return
            seat.memory.take(seat.row, found.size)
            if not ancillary and flags & socket.MSG_CTRUNC:  # no descriptor was free in this process
                self._lose([found.topic], 1)
                return
            if len(fds) != 1:
                raise packet.InvalidError(f"{len(fds)} memory files")
            self._deliver(found.topic, found.kind, packet.read(fds[0], found.size))
        except packet.InvalidError as error:
            log.debug("a message on the bus is not valid: %s", error, extra={"event": "bus_invalid"})
            self._count(_INVALID)
        finally:
            for fd in fds:
                os.close(fd)

    def _deliver(self, topic: str, kind: int, payload: bytes) -> None:
        for subscription in self._subscriptions.get(topic, ()):
            if dropped := subscription.put(topic, kind, payload):
                self._count(_LOST, dropped)

    def _tell_loss(self, entry: _Entry, publisher: int, lost: int) -> None:
        told = entry.told.get(publisher, 0)
        if lost > told:
            entry.told[publisher] = lost
            self._lose(entry.topics, lost - told)

    def _lose(self, topics: Any, count: int) -> None:
        for topic in topics:
            for subscription in self._subscriptions.get(topic, ()):
                subscription.lose(count)
                self._count(_LOST, count)

    def _is_settled(self, seat: Seat) -> bool:
        """Look at what was lost and told in no message, with an empty channel. Return False if it filled meanwhile."""
        signals = bytes(seat.memory.lost_signals(seat.row))
        if signals != self._signals:
            entries = set(self._entries.values())
            changed = [
                row
                for row, (now, before) in enumerate(itertools.zip_longest(_cells(signals), _cells(self._signals)))
                if now != before
            ]
            found = [
                (entry, row, seat.memory.losses(seat.row, row, entry.number, entry.tag))
                for row in changed
                for entry in entries
            ]
            if not self._is_empty(seat):
                return False  # a later message says it at its place
            self._signals = signals
            for entry, row, lost in found:
                self._tell_loss(entry, row, lost)
        return True

    def account(self, now: float) -> None:
        """Forget memory files whose publisher was killed before it sent them. The channel must be empty."""
        seat = self._seat
        if seat is not None and seat.memory.under_way(seat.row):
            sent = seat.memory.sent(seat.row)
            before, since = self._unaccounted
            if sent != before:
                self._unaccounted = sent, now
            elif now - since >= _LOOK_AGAIN_S:
                seat.memory.settle(seat.row, sent)

    def _is_empty(self, seat: Seat) -> bool:
        try:
            seat.channel.recv(1, _TAKE | socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def look(self) -> None:
        """Take the channels of new participants. Runs in whatever thread hears the supervisor."""
        if self._seat is not None:
            self._seat.peers.read()

    def hear_all(self) -> None:
        """Hear all topics, for a bridge."""
        assert self._seat is not None
        self._seat.memory.hear_all(self._seat.row, wanted=True)

    def _count(self, place: int, amount: int = 1) -> None:
        if self._cells is not None:
            self._cells[place] += amount


def _cells(signals: bytes) -> memoryview:
    return memoryview(signals).cast("Q")


class _Reader:
    """Who reads the channel: the event loop of the first subscription, as long as it has one, or else a thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop: asyncio.AbstractEventLoop | None = None
        self._of_loop: set[Subscription] = set()
        self._others: set[Subscription] = set()
        self._channel: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._is_due = False  # another look is planned
        self._is_polling = False
        self._turns: deque[float] = deque([0.0] * _BUSY_TURNS, _BUSY_TURNS)  # when they were

    def begin(self, channel: socket.socket, subscription: Subscription, loop: asyncio.AbstractEventLoop | None) -> None:
        """Read *channel* from now on, if nobody does. The bus is locked."""
        self._channel = channel
        if self._loop is not None and self._loop.is_closed():
            self._others |= self._of_loop
            self._loop, self._of_loop = None, set()
        if self._loop is None and self._thread is None and loop is not None and not self._others:
            with contextlib.suppress(NotImplementedError):  # a thread reads for a loop that cannot
                loop.add_reader(channel.fileno(), self._turn)
                self._loop = loop
        if loop is not None and loop is self._loop:
            self._of_loop.add(subscription)
        else:
            self._others.add(subscription)
        if self._loop is None:
            self._begin_thread()

    def end(self, subscription: Subscription) -> None:
        """Let somebody else read if the loop of *subscription* has no other one. The bus is locked."""
        self._others.discard(subscription)
        if subscription not in self._of_loop:
            return
        self._of_loop.remove(subscription)
        if not self._of_loop and self._loop is not None and self._channel is not None:
            loop, fd = self._loop, self._channel.fileno()
            self._loop = None
            with contextlib.suppress(RuntimeError):  # it is closed
                if running_loop() is loop:
                    loop.remove_reader(fd)
                else:
                    loop.call_soon_threadsafe(self._leave, loop, fd)
            if self._others:
                self._begin_thread()

    def _leave(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        with self._bus.lock:
            if self._loop is not loop:
                loop.remove_reader(fd)

    def _turn(self) -> None:
        """Take what is there. If that happens too often, look at the clock instead of waking up for each message."""
        self._bus.take_one()  # if that was not all, the loop calls again: the channel is still readable
        loop, channel = self._loop, self._channel
        if loop is None or channel is None:
            return
        now = loop.time()
        self._turns.append(now)
        if self._turns[0] > now - _BUSY_S and not self._is_polling:
            self._is_polling = True
            loop.remove_reader(channel.fileno())
            loop.call_later(_POLL_S, self._poll, loop)
        if not self._is_due:
            self._is_due = True
            loop.call_later(_LOOK_AGAIN_S, self._look)

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        before = self._bus.taken
        if self._loop is loop and self._channel is not None:
            self._bus.take(_PER_POLL)
            if self._bus.taken > before:
                loop.call_later(_POLL_S, self._poll, loop)
                return
            loop.add_reader(self._channel.fileno(), self._turn)
        self._is_polling = False

    def _look(self) -> None:
        """Look at losses after which nothing came: one may have been counted just after the last look."""
        self._is_due = False
        if self._bus.take():
            self._bus.account(time.monotonic())

    def _begin_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="limpet-bus", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        channel, is_quiet = self._channel, False
        assert channel is not None
        with socket.socket(fileno=os.dup(channel.fileno())) as waiting:
            while channel.fileno() >= 0:
                waiting.settimeout(None if is_quiet else _LOOK_AGAIN_S)  # each `take` says itself that it never waits
                is_quiet = False
                try:
                    waiting.recv(1, socket.MSG_PEEK)
                except TimeoutError:
                    is_quiet = True
                while channel.fileno() >= 0 and not self._bus.take():
                    pass
                if is_quiet:
                    self._bus.account(time.monotonic())


_bus: Bus | None = None


def become(place: BusPlace | None, row: Row) -> Callable[[], None] | None:
    """Make this process the participant that *place* describes.

    Return what must be called whenever the supervisor has said something. Runs in a worker, before the application is
    imported.
    """
    global _bus
    if place is None:  # the supervisor is of a version that has no bus
        return None
    _bus = Bus(Seat(place), row)
    return _bus.look


def here() -> Bus:
    """Return the bus in this process."""
    global _bus
    if _bus is None:
        _bus = Bus()
    return _bus


def _forked() -> None:
    global _bus
    _bus = None


os.register_at_fork(after_in_child=_forked)


def publish_sync(topic: str, data: Any) -> None:
    """Send *data* to all subscriptions to *topic*, in all workers of this server. Never waits; any thread may call it.

    *data* is bytes, text, or what JSON can say. Raises TypeError for other data, and ValueError for more than 16 MiB.
    Outside limpet it reaches the subscriptions in this process.
    """
    here().publish(topic, data)


_turns = itertools.count(1)


async def publish(topic: str, data: Any) -> None:
    """Send *data* to all subscriptions to *topic*, in all workers of this server. For tasks of asyncio and trio.

    *data* is bytes, text, or what JSON can say. It waits for nobody, and lets other tasks run now and then. Raises
    TypeError for other data, and ValueError for more than 16 MiB.
    """
    here().publish(topic, data)
    if next(_turns) % _PUBLISHED_PER_TURN == 0:
        if in_trio():
            await sys.modules["trio"].lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)


def subscribe(*topics: str) -> Subscription:
    """Return the messages of *topics* from now on: `async with` and `async for` in tasks, `with` and `for` in threads.

    It hears what is published after `with` was entered, in all workers of this server. Each message has `topic`, `data`
    and `lost`, which says how many messages the subscription has lost before it, as it did not read in time.
    """
    for topic in topics:
        packet.name(topic)
    if not topics:
        raise ValueError('a subscription needs at least one topic: `limpet.subscribe("room:1")`')
    return Subscription(here, topics)
