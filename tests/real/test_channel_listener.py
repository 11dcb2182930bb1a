"""A channel that looks like a listening socket: what servers ask of one, and what they must not do to it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from limpet.ipc.channel import Channel, Handoff, Receiver
from limpet.ipc.scoreboard import Scoreboard
from limpet.worker.channel_listener import FdListener, Tally

NAME = ("192.0.2.1", 80)


@pytest.fixture
def channel() -> Iterator[Channel]:
    """Return a channel."""
    made = Channel.create()
    with made.sending, made.receiving:
        yield made


@pytest.fixture
def tally() -> Tally:
    """Return what counts."""
    return Tally(Scoreboard.create().worker(0))


@contextlib.contextmanager
def client(channel: Channel) -> Iterator[socket.socket]:
    """Put the server's side of a connection into *channel*; return the client's."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connected:
        accepted, _ = server.accept()
        channel.send(accepted, Handoff(0, 0, 0, 0))
        accepted.close()
        yield connected


def test_it_answers_as_a_listening_tcp_socket(channel: Channel) -> None:
    """asyncio, trio, gevent and gunicorn ask before they take one."""
    with FdListener(Receiver(channel.receiving), name=NAME) as listener:
        assert (listener.family, listener.type, listener.proto) == (socket.AF_INET, socket.SOCK_STREAM, 6)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert listener.getsockname() == NAME
        assert (listener.sock, listener.FAMILY) == (listener, socket.AF_INET)


def test_nothing_that_a_server_does_to_it_reaches_the_channel(channel: Channel) -> None:
    """The channel is the slot's: its next worker needs it as it was."""
    with FdListener(Receiver(channel.receiving), name=NAME) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.setblocking(True)
        listener.shutdown(socket.SHUT_RDWR)
        assert not os.get_blocking(channel.receiving.fileno())
    with client(channel) as connected, FdListener(Receiver(channel.receiving)) as listener:
        connection, peer = listener.accept()
        with connection:
            assert (peer, connection.getpeername()) == (connected.getsockname(), connected.getsockname())


def test_accept_blocks_as_long_as_its_time_out_says(channel: Channel) -> None:
    """Servers use all three forms."""
    with FdListener(Receiver(channel.receiving)) as listener:
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.settimeout(0.05)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            listener.accept()
        assert time.monotonic() - began >= 0.05
        with client(channel):
            listener.setblocking(True)
            connection, _ = listener.accept()
            assert connection.getblocking()
            connection.close()


@pytest.mark.parametrize("end", ["close", "detach", "makefile"])
def test_connection_counts_until_its_end(channel: Channel, tally: Tally, end: str) -> None:
    """Placement and drains go by the count, however a server lets go of a connection."""
    with FdListener(Receiver(channel.receiving), tally) as listener, client(channel):
        connection, _ = listener.accept()
        assert tally.open == 1
        if end == "detach":
            os.close(connection.detach())
        elif end == "makefile":
            with connection.makefile("rb"):
                connection.close()
                assert tally.open == 1
        else:
            connection.close()
        del connection
        assert tally.open == 0


def test_probe_is_nobody(channel: Channel) -> None:
    """It makes the channel readable, and no server ever sees it."""
    receiver = Receiver(channel.receiving, channel.sending)
    receiver.probe()
    with FdListener(receiver) as listener, client(channel) as connected:
        assert receiver.queued() == 2
        connection, peer = listener.accept()
        connection.close()
        assert peer == connected.getsockname()
        with pytest.raises(BlockingIOError):
            listener.accept()
