"""Messages of moving connections, and the copies that stay behind: nothing is lost, doubled or left open."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from limpet.ipc.baton import Batons, Verdict
from limpet.ipc.channel import Channel
from limpet.ipc.scoreboard import WORKER_CELLS, Row
from limpet.moving.messages import Arrived, shut_down
from limpet.moving.mover import TAKES_PER_TURN, Mover
from limpet.protocol.proxy_protocol import Origin

PATIENCE_S = 30.0


class Paused:
    """A copy that notes what becomes of it."""

    def __init__(self, sock: socket.socket, *, listener: int = 0, had_by: int = 0) -> None:
        self.fd = sock.fileno()
        self.listener = listener
        self.had_by = had_by
        self.digest = 0
        self.light_head = b""
        self.origin: Origin | None = None
        self.resumed: list[bytes] = []
        self.dropped: list[Verdict] = []

    def resume(self, leftover: bytes) -> None:
        self.resumed.append(leftover)

    def drop(self, verdict: Verdict) -> None:
        self.dropped.append(verdict)


class Two:
    """The movers of two workers, and a connection."""

    def __init__(self, most_copies: int = 3) -> None:
        self.channels = [Channel.create(), Channel.create()]
        self.cells = cells = [0] * 24
        self.movers = []
        for slot in (0, 1):
            batons = Batons(cells, range(slot * 8, slot * 8 + 8), slot + 1, PATIENCE_S)
            batons.alive([1, 2], 2)
            row = Row(memoryview(bytearray(8 * len(WORKER_CELLS))).cast("Q"), WORKER_CELLS)
            sending = [channel.sending for channel in self.channels]
            self.movers.append(Mover(slot, batons, sending, self.channels[slot].receiving, row, most_copies))
        self.client, self.server = socket.socketpair()
        self.arrived: list[Arrived] = []

    def take(self, slot: int) -> bool:
        return self.movers[slot].receive(self.arrived.append) > 0

    def close(self) -> None:
        for arrived in self.arrived:
            arrived.connection.close()
        for channel in self.channels:
            channel.sending.close()
            channel.receiving.close()
        self.client.close()
        self.server.close()


@pytest.fixture
def two() -> Iterator[Two]:
    """Two workers."""
    gc.collect()  # what earlier tests have left must not be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    two = Two()
    yield two
    two.close()
    assert len(os.listdir("/proc/self/fd")) == before


@contextlib.contextmanager
def free_numbers(number: int) -> Iterator[None]:
    """Let this process open no more than *number* descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    filling = [os.dup(0)]
    while filling[-1] < highest:
        filling.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (filling[-1] + 1 + number, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filling:
            os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 59_999, 60_000, 60_001, 5_000_000])
def test_leftover_of_any_size_arrives_whole(two: Two, size: int) -> None:
    """What was read is nowhere else: a byte that does not arrive is a request that is never served."""
    leftover, fd = os.urandom(size), two.server.fileno()
    away = Paused(two.server, listener=7)
    done, baton = two.movers[0].pass_on(away, None, 1, leftover, 0.0)
    assert done
    assert two.take(1)
    [arrived] = two.arrived
    assert (arrived.leftover, arrived.listener, arrived.baton) == (leftover, 7, baton)
    assert os.path.sameopenfile(arrived.connection.fileno(), fd)

    back = Paused(arrived.connection, had_by=arrived.had_by)
    assert two.movers[1].pass_on(back, baton, 0, leftover, 0.0)[0]
    assert two.take(0)
    assert (away.resumed, back.resumed) == ([leftover], [])
    assert not two.take(0)


@pytest.mark.parametrize("size", [0, 60_000, 100_000])
def test_origin_that_a_proxy_reported_moves_with_the_connection(two: Two, size: int) -> None:
    """The PROXY header was taken off the connection, so the next worker could not learn of the client otherwise."""
    away = Paused(two.server)
    away.origin = Origin("10.1.2.3", 5000, is_tls=True, server_name="shop.test")
    assert two.movers[0].pass_on(away, None, 1, b"x" * size, 0.0)[0]
    assert two.take(1)
    [arrived] = two.arrived
    assert (arrived.origin, arrived.leftover) == (away.origin, b"x" * size)


def test_message_that_does_not_fit_leaves_everything_with_its_sender(two: Two) -> None:
    """The sender goes on reading, so it must hold the baton still, and keep no copy of what it has."""
    copy = Paused(two.server)
    sent = 0
    while two.movers[0].pass_on(Paused(two.server), None, 1, b"x" * 60_000, 0.0)[0]:
        sent += 1
    done, baton = two.movers[0].pass_on(copy, None, 1, b"x" * 60_000, 0.0)
    assert not done
    for _ in range(sent):
        assert two.take(1)
    assert two.movers[0].pass_on(copy, baton, 1, b"again", 1.0) == (True, baton)
    assert two.take(1)
    assert two.arrived[-1].leftover == b"again"


def test_connection_stays_when_no_memory_file_can_be_made(two: Two) -> None:
    """Without a free descriptor number a large leftover cannot travel yet; that must not end the connection."""
    leftover = b"x" * 100_000
    with free_numbers(0):
        done, baton = two.movers[0].pass_on(Paused(two.server), None, 1, leftover, 0.0)
    assert not done
    assert two.movers[0].pass_on(Paused(two.server), baton, 1, leftover, 0.0) == (True, baton)
    assert two.take(1)


@pytest.mark.parametrize("free", [0, 1])
def test_message_waits_while_there_are_no_free_descriptor_numbers(two: Two, free: int) -> None:
    """The kernel would hand out the bytes and drop the descriptors without a word."""
    two.movers[0].pass_on(Paused(two.server), None, 1, b"x" * 100_000, 0.0)
    with free_numbers(free), pytest.raises(OSError) as caught:
        two.take(1)
    assert caught.value.errno == errno.EMFILE
    assert two.take(1)
    assert two.arrived[0].leftover == b"x" * 100_000


def test_message_without_descriptor_needs_no_free_number(two: Two) -> None:
    """A worker that has all the connections it may have goes on serving them."""
    away = Paused(two.server)
    _, baton = two.movers[0].pass_on(away, None, 1, b"", 0.0)
    assert two.take(1)
    two.movers[1].pass_on(Paused(two.arrived[0].connection, had_by=0b11), baton, 0, b"back", 0.0)
    with free_numbers(0):
        assert two.take(0)
    assert away.resumed == [b"back"]


def test_receiver_takes_all_that_wait_but_not_for_ever(two: Two) -> None:
    """One that is left waits for a wake-up of its own; and who is in a storm has connections to serve, too."""
    two.movers[1].take(two.arrived.append)
    assert not two.arrived
    for _ in range(TAKES_PER_TURN + 3):
        two.movers[0].pass_on(Paused(two.server), None, 1, b"", 0.0)
    two.movers[1].take(two.arrived.append)
    assert len(two.arrived) == TAKES_PER_TURN
    two.movers[1].take(two.arrived.append)
    assert len(two.arrived) == TAKES_PER_TURN + 3
    assert not two.movers[1].waiting_bytes()


def test_light_message_tells_what_has_changed_since_the_one_before(two: Two) -> None:
    """What stays of a message from one move to the next must not outlive what it says."""
    away = Paused(two.server, had_by=0b10)
    _, baton = two.movers[0].pass_on(away, None, 1, b"", 0.0)
    assert baton is not None
    two.movers[1]._copies[baton] = back = Paused(two.server)
    assert two.take(1)
    assert back.had_by == 0b11
    for had_by in (0b1011, 0b1111):
        back.had_by, back.light_head, back.digest = had_by, b"", had_by << 60
        two.movers[1].pass_on(back, baton, 0, b"", 0.0)
        assert two.take(0)
        assert (away.had_by, away.digest) == (had_by, back.digest)
        away.digest = had_by
        two.movers[0].pass_on(away, baton, 1, b"", 0.0)
        assert two.take(1)
        assert (back.had_by, back.digest) == (had_by, had_by)


def test_copy_that_was_used_longest_ago_goes_first(two: Two) -> None:
    """The bound on descriptors; the connection lives on where it is."""
    copies = [Paused(two.server) for _ in range(5)]
    for copy in copies:
        two.movers[0].pass_on(copy, None, 1, b"", 0.0)
        two.take(1)
    assert [copy.dropped for copy in copies] == [[Verdict.FORGET], [Verdict.FORGET], [], [], []]
    assert two.movers[0].spare_numbers()
    assert [len(copy.dropped) for copy in copies] == [1, 1, 1, 1, 0]
    assert two.movers[0].spare_numbers()
    assert not two.movers[0].spare_numbers()


def test_message_without_descriptor_is_sent_again_with_it(two: Two) -> None:
    """Where the connection has been, nobody may have a copy any more: the request must arrive all the same."""
    copy = Paused(two.server, had_by=0b10)
    _, baton = two.movers[0].pass_on(copy, None, 1, b"request", 0.0)
    assert two.take(1)
    assert two.arrived == []
    assert two.take(0)
    assert two.take(1)
    [arrived] = two.arrived
    assert (arrived.leftover, arrived.baton, arrived.had_by) == (b"request", baton, 0b11)
    assert copy.dropped == []


def test_message_comes_back_to_a_slot_that_was_not_known_yet(two: Two) -> None:
    """A slot that is new may send before all have heard of it; a request that nobody sends back is lost."""
    two.movers[1]._sending.clear()
    copy = Paused(two.server, had_by=0b10)
    two.movers[0].pass_on(copy, None, 1, b"request", 0.0)
    assert two.take(1)
    assert not two.take(0)
    for slot in (0, 1):
        two.movers[1].reach(slot, [os.dup(two.channels[slot].sending.fileno())])
    two.movers[1].sweep(0.0)
    assert two.take(0)
    assert two.take(1)
    assert two.arrived[0].leftover == b"request"
    for sending in two.movers[1]._sending:
        assert sending is not None
        sending.close()


def test_copy_stays_while_its_message_is_under_way(two: Two) -> None:
    """The message may come back for the descriptor, and there might be no other."""
    copies = [Paused(two.server, had_by=0b10) for _ in range(5)]
    for copy in copies:
        two.movers[0].pass_on(copy, None, 1, b"", 0.0)
    assert not two.movers[0].spare_numbers()
    two.movers[0].close_copies()
    assert [copy.dropped for copy in copies] == [[]] * 5


def succeeded(two: Two) -> Mover:
    """Return the mover of a worker in slot 0 that comes after the first one."""
    batons = Batons(two.cells, range(16, 24), 3, PATIENCE_S)
    batons.alive([1, 2, 3], 3)
    sending = [channel.sending for channel in two.channels]
    row = Row(memoryview(bytearray(8 * len(WORKER_CELLS))).cast("Q"), WORKER_CELLS)
    return Mover(0, batons, sending, two.channels[0].receiving, row, 3)


@pytest.mark.parametrize("early", [False, True])
def test_message_that_comes_back_after_its_sender_has_left_is_sent_again_by_the_next(two: Two, early: bool) -> None:
    """In a rolling reload both are new: the sender's successor, and the receiver, who has no copy yet."""
    copy, following = Paused(two.server, had_by=0b10), succeeded(two)
    _, baton = two.movers[0].pass_on(copy, None, 1, b"request", 0.0)
    if early:
        two.movers[0].leave()
    two.take(1)
    if not early:  # it has come back before the successor has the descriptor
        following.receive(two.arrived.append)
        two.movers[0].leave()
    assert copy.dropped == [Verdict.FORGET]
    while following.receive(two.arrived.append):
        pass
    assert two.take(1)
    [arrived] = two.arrived
    assert (arrived.leftover, arrived.baton, arrived.had_by) == (b"request", baton, 0b11)
    following.sweep(1.0)  # closes what it was left


def test_worker_that_is_to_leave_sends_the_descriptor(two: Two) -> None:
    """What comes back would not come to it any more."""
    assert two.movers[0].settle()
    two.movers[0].pass_on(Paused(two.server, had_by=0b10), None, 1, b"request", 0.0)
    assert two.take(1)
    assert [arrived.leftover for arrived in two.arrived] == [b"request"]


def test_message_that_comes_back_after_its_sender_has_died_ends_the_connection(two: Two) -> None:
    """The only descriptor died with the sender: whoever has a copy still must not wait for a reader."""
    following = succeeded(two)
    _, baton = two.movers[0].pass_on(Paused(two.server, had_by=0b10), None, 1, b"request", 0.0)
    assert baton is not None
    two.take(1)
    following.receive(two.arrived.append)
    following.sweep(1.0)
    assert Batons(two.cells, range(0), 4, PATIENCE_S).is_sent(baton)
    following.alive([2, 3], 3, 2.0)
    following.sweep(3.0)
    assert not Batons(two.cells, range(0), 4, PATIENCE_S).is_sent(baton)
    assert two.arrived == []


def test_copy_that_closed_by_itself_is_not_resumed(two: Two) -> None:
    """Its descriptor number may be another connection's by now."""
    copy, newer = Paused(two.server), Paused(two.server)
    _, baton = two.movers[0].pass_on(copy, None, 1, b"", 0.0)
    assert baton is not None
    two.movers[0].forget(newer, baton)  # some other copy: nothing happens
    two.take(1)
    two.movers[1].pass_on(newer, baton, 0, b"first", 0.0)
    two.movers[0].forget(copy, baton)
    two.take(0)
    assert copy.resumed == []
    assert two.arrived[-1].leftover == b"first"


def test_message_that_nobody_takes_in_time_is_refused_once(two: Two) -> None:
    """Whoever asked gets an answer, and is not served later when it has left."""
    copy = Paused(two.server)
    two.movers[0].pass_on(copy, None, 1, b"late", 0.0)
    two.movers[0].sweep(PATIENCE_S)
    assert copy.dropped == []
    two.movers[0].sweep(PATIENCE_S + 0.1)
    assert copy.dropped == [Verdict.REFUSE]
    assert two.take(1)
    assert two.arrived == []


def test_idle_connection_that_nobody_takes_in_time_ends_without_an_answer(two: Two) -> None:
    """A client would take a 503 for the answer to the request that it is just about to send."""
    copy = Paused(two.server)
    _, baton = two.movers[0].pass_on(copy, None, 1, b"request", 0.0)
    two.take(1)
    held = Paused(two.arrived[0].connection)
    assert two.movers[1].give(held, baton, 0, b"", 1.0, keyed=True, silent=False)
    two.movers[0].sweep(PATIENCE_S)
    assert copy.dropped == []
    two.movers[0].sweep(1.0 + PATIENCE_S + 1)
    assert copy.dropped == [Verdict.END]
    two.take(0)
    assert len(two.arrived) == 1, "it is not served later"


def test_holder_that_dies_is_noticed_with_the_news(two: Two) -> None:
    """The kernel does not end a connection of which there are copies."""
    copy = Paused(two.server)
    two.movers[0].pass_on(copy, None, 1, b"", 0.0)
    two.take(1)
    two.movers[0].alive([1, 2, 3], 3, 0.0)
    assert copy.dropped == []
    two.movers[0].alive([1, 3], 3, 0.0)
    assert copy.dropped == [Verdict.SHUT]


def test_last_words_reach_the_client_before_the_end(two: Two) -> None:
    """Whatever other descriptors of the connection are open."""
    shut_down(two.server.fileno(), b"503")
    assert two.client.recv(100) == b"503"
    assert two.client.recv(100) == b""


def test_worker_of_a_slot_from_64_on_moves_connections_whole() -> None:
    """The message has a bit for each of 64 slots; a bit of a higher slot would not fit, and every move would raise."""
    channels = [Channel.create(), Channel.create()]
    batons = Batons([0] * 8, range(8), 1, PATIENCE_S)
    batons.alive([1], 1)
    row = Row(memoryview(bytearray(8 * len(WORKER_CELLS))).cast("Q"), WORKER_CELLS)
    mover = Mover(64, batons, [channels[0].sending], channels[1].receiving, row, 3)
    client, server = socket.socketpair()
    with client, server:
        done, baton = mover.pass_on(Paused(server), None, 0, b"GET", 1.0)
        assert done
        assert baton is not None
        assert channels[0].has_bytes()
    for channel in channels:
        channel.sending.close()
        channel.receiving.close()
