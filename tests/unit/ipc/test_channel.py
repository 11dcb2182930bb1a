"""The channel of a slot and a dispatcher's outbox, on real sockets: no connection is lost, doubled or left open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from limpet.ipc.channel import SIZE, Channel, ChannelFullError, Handoff, Outbox, Receiver
from limpet.ipc.scoreboard import Scoreboard
from tests.harness import PATIENCE_S

DECIDED = Handoff(listener=1, slot=3, digest=2**64 - 1, accepted_ns=12345)


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A channel as the supervisor makes it."""
    channel = Channel.create()
    with channel.sending, channel.receiving:
        yield channel


@pytest.fixture
def small_channel(channel: Channel) -> Channel:
    """A channel that is full after a few connections, as any channel is at some time."""
    channel.sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    return channel


@pytest.fixture
def outbox(small_channel: Channel) -> Iterator[Outbox]:
    """A dispatcher's side of the small channel."""
    outbox = Outbox(small_channel, Scoreboard.create().waiting(0, 0))
    yield outbox
    for left in outbox.flush(now=float("inf")):
        left.close()


BOUND = 10_000


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """The client ends of the connections that `accepted` makes."""
    ends: list[socket.socket] = []
    yield ends
    for end in ends:
        end.close()


def accepted(clients: list[socket.socket]) -> socket.socket:
    """Return the server's end of a new connection."""
    client, ours = socket.socketpair()
    client.settimeout(PATIENCE_S)
    clients.append(client)
    return ours


def fill(outbox: Outbox, clients: list[socket.socket], more: int) -> int:
    """Put connections into *outbox* until the channel is full, and *more*; return how many are in the channel."""
    while not len(outbox):
        assert outbox.put(accepted(clients), DECIDED, deadline=10.0, bound=BOUND)
    for number in range(more):
        assert outbox.put(accepted(clients), DECIDED, deadline=11.0 + number, bound=BOUND)
    return len(clients) - 1 - more


def test_connection_arrives_with_what_was_decided_and_all_its_bytes(
    channel: Channel, clients: list[socket.socket]
) -> None:
    """The worker cannot come to another decision, and reads what the dispatcher has only peeked at."""
    with accepted(clients) as connection:
        connection.setblocking(True)
        clients[0].sendall(b"GET / HTTP/1.1\r\n")
        connection.recv(100, socket.MSG_PEEK)
        channel.send(connection, DECIDED)
    found, handoff = Receiver(channel.receiving).receive()
    with found.whole() as received:
        assert handoff == DECIDED
        assert received.recv(100) == b"GET / HTTP/1.1\r\n"
        assert not os.get_blocking(received.fileno())
        assert fcntl.fcntl(received, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert clients[0].recv(1) == b""  # both copies are closed: this is the FIN


def test_sender_keeps_its_copy_until_it_closes_it(channel: Channel, clients: list[socket.socket]) -> None:
    """Who holds the descriptor closes it: a copy left open would hold back the FIN at the end of the connection."""
    with accepted(clients) as connection:
        channel.send(connection, DECIDED)
        Receiver(channel.receiving).receive()[0].close()
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            clients[0].recv(1)
    assert clients[0].recv(1) == b""


def test_empty_channel_says_so(channel: Channel) -> None:
    """The worker reads until nothing waits."""
    with pytest.raises(BlockingIOError):
        Receiver(channel.receiving).receive()


def test_worker_without_free_descriptor_leaves_the_connection_in_the_channel(
    channel: Channel, clients: list[socket.socket]
) -> None:
    """The kernel drops a descriptor that finds no number, without a word: the client would wait for ever."""
    with accepted(clients) as connection:
        channel.send(connection, DECIDED)
    receiver = Receiver(channel.receiving)
    with no_free_descriptor():
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                receiver.receive()
    assert channel.queued() == 1
    receiver.receive()[0].close()
    assert clients[0].recv(1) == b""


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Let this process open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_message_that_is_no_handover_is_a_bug_and_leaks_nothing(channel: Channel, clients: list[socket.socket]) -> None:
    """Nobody else can write into a channel; if it happens all the same, it is heard of."""
    with accepted(clients) as one, accepted(clients) as two:
        socket.send_fds(channel.sending, [b"x" * SIZE], [one.fileno(), two.fileno()])
        socket.send_fds(channel.sending, [b"x"], [one.fileno()])
        channel.sending.send(b"x" * SIZE)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not a handoff"):
            Receiver(channel.receiving).receive()
    assert [client.recv(1) for client in clients] == [b"", b""]


def test_full_channel_refuses_without_taking_the_connection(
    small_channel: Channel, clients: list[socket.socket]
) -> None:
    """Whoever cannot hand over still owns the connection, and may try again."""
    with pytest.raises(ChannelFullError):  # noqa: PT012  # it is not known before which one is too many
        while True:
            with accepted(clients) as connection:
                small_channel.send(connection, DECIDED)
    assert small_channel.queued() == len(clients) - 1
    assert clients[-1].recv(1) == b""  # the last one was closed by its owner, and by nobody else before


def test_outbox_hands_over_in_order_when_there_is_room_again(
    outbox: Outbox, small_channel: Channel, clients: list[socket.socket]
) -> None:
    """Clients of a slot that is busy wait in the order in which they came; nobody overtakes."""
    fill(outbox, clients, more=3)
    assert (len(outbox), outbox.queued(), outbox.row["waiting"]) == (4, len(clients), 4)
    receiver = Receiver(small_channel.receiving)
    for client in list(clients):
        with receiver.receive()[0] as connection:
            connection.sendall(b"your turn")
        assert client.recv(100) == b"your turn"
        assert outbox.flush(now=0.0) == []
    assert (len(outbox), outbox.queued(), outbox.row["waiting"]) == (0, 0, 0)


def test_newcomer_waits_behind_those_who_wait_already(
    outbox: Outbox, small_channel: Channel, clients: list[socket.socket]
) -> None:
    """Room in the channel belongs to the first in the outbox, not to whoever happens to come then."""
    fill(outbox, clients, more=0)
    Receiver(small_channel.receiving).receive()[0].close()
    assert outbox.put(accepted(clients), DECIDED, deadline=10.0, bound=BOUND)
    assert len(outbox) == 2


@pytest.mark.parametrize("bound", [1, 2, 100])
def test_queue_has_a_bound_whoever_holds_it(
    outbox: Outbox, small_channel: Channel, clients: list[socket.socket], bound: int
) -> None:
    """Every queue ends somewhere: the channel's part of it, which takes thousands, counts too."""
    for _ in range(bound):
        assert outbox.put(accepted(clients), DECIDED, deadline=20.0, bound=bound)
    receiver = Receiver(small_channel.receiving)
    for _ in range(3):
        with accepted(clients) as refused:
            assert not outbox.put(refused, DECIDED, deadline=20.0, bound=bound)
        receiver.receive()[0].close()
        assert outbox.put(accepted(clients), DECIDED, deadline=20.0, bound=bound)
        assert outbox.queued() == bound


def test_outbox_has_a_deadline(outbox: Outbox, clients: list[socket.socket]) -> None:
    """What waits for too long goes back to be answered."""
    fill(outbox, clients, more=2)
    assert outbox.flush(now=9.9) == []
    for now, waiting in ((10.0, 2), (11.5, 1), (12.0, 0)):
        [late] = outbox.flush(now)
        late.close()
        assert (len(outbox), outbox.row["waiting"]) == (waiting, waiting)
