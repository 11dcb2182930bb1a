"""The channel of a slot outlives the worker that reads it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

from limpet.ipc.channel import Channel, Receiver
from tests.unit.ipc.test_channel import DECIDED, accepted, channel, clients

__all__ = ["channel", "clients"]  # fixtures
TAKER = """
import os, socket, sys
from limpet.ipc.channel import Receiver
receiver = Receiver(socket.socket(fileno=int(sys.argv[1])))
for _ in range(2):
    receiver.receive()
print("took two", flush=True)
os.read(0, 1)
"""


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
