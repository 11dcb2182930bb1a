"""The channel of a slot outlives the worker that reads it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from limpet.ipc.channel import Channel, Handoff, Receiver
from tests.harness import PATIENCE_S

DECIDED = Handoff(listener=1, slot=3, digest=2**64 - 1, accepted_ns=12345)
TAKER = """
import os, socket, sys
from limpet.ipc.channel import Receiver
receiver = Receiver(socket.socket(fileno=int(sys.argv[1])))
for _ in range(2):
    receiver.receive()
print("took two", flush=True)
os.read(0, 1)
"""


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A channel as the supervisor makes it."""
    channel = Channel.create()
    with channel.sending, channel.receiving:
        yield channel


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


def test_connections_in_the_channel_survive_the_worker(channel: Channel, clients: list[socket.socket]) -> None:
    """What was accepted is served: by the successor, if the worker is killed. The kernel counts what waits."""
    for _ in range(5):
        with accepted(clients) as connection:
            channel.send(connection, DECIDED)
    assert channel.queued() == 5
    command = [sys.executable, "-c", TAKER, str(channel.receiving.fileno())]
    fds = [channel.receiving.fileno()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds) as taker:
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"took two\n"
        taker.send_signal(signal.SIGKILL)
    assert channel.queued() == 3
    receiver = Receiver(channel.receiving)
    for client in clients[2:]:
        with receiver.receive()[0] as connection:
            connection.sendall(b"served")
        assert client.recv(100) == b"served"
    assert [client.recv(1) for client in clients] == [b""] * 5
