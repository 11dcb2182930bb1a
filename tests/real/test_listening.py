"""Listeners at the end of the process that has them: nobody who has connected is left without an answer."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from limpet.dispatch.accepting import Acceptor
from limpet.ipc.scoreboard import Row, Scoreboard
from tests.harness import wait_until

BACKLOG = 8


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A bound socket, which does not listen yet."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        yield made


class Process:
    """What a dispatcher or terminator is to its listeners."""

    def __init__(self, listener: socket.socket, stack: contextlib.ExitStack) -> None:
        self.row: Row = Scoreboard.create().dispatcher(0)
        self.taken: list[socket.SocketType] = []
        self.acceptor = Acceptor([(listener, "here")], stack.enter_context(select.epoll()), self.row)
        self._stack = stack

    def accept(self, fd: int, now: float, most: int) -> None:
        for connection, _ in self.acceptor.take(fd, most, now):
            self._stack.callback(connection.close)
            self.taken.append(connection)

    def end(self, *, is_last: bool) -> None:
        self.acceptor.end(self.accept, BACKLOG, now=1.0, is_last=is_last)


@pytest.mark.parametrize("is_last", [True, False])
def test_last_process_takes_who_waits_although_it_was_never_told_to_accept(
    listener: socket.socket, is_last: bool
) -> None:
    """A stop may come in the moment between the end of its predecessor and its turn; with another one that goes on."""
    listener.listen(BACKLOG)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(listener.dup())
        process = Process(listener, stack)
        stack.enter_context(socket.create_connection(listener.getsockname()))
        wait_until(lambda: select.select([kept], [], [], 0)[0], "the client waits")
        process.end(is_last=is_last)
        assert (len(process.taken), process.row["accepted"]) == (is_last, is_last)
        assert listener.fileno() == -1
        assert process.acceptor.again_at == 0


def test_listener_that_does_not_listen_yet_has_nobody_waiting(listener: socket.socket) -> None:
    """A server that is stopped while it starts must not wait for descriptors that nobody lacks."""
    with contextlib.ExitStack() as stack:
        process = Process(listener, stack)
        process.end(is_last=True)
        assert listener.fileno() == -1
        assert (process.acceptor.again_at, process.row["accept_errors"]) == (0, 0)
