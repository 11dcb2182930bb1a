"""Clients that have an answer of limpet's own can read it to the end, and are kept no longer than that takes."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from limpet.dispatch.refusals import LINGER_S, Refusals
from limpet.ipc.scoreboard import Scoreboard

NEWS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class Refusing:
    """One client, its connection at a dispatcher, and what the dispatcher has for those whom it refuses."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=10))
        self.connection, _ = listener.accept()
        stack.callback(self.connection.close)
        self.epoll = stack.enter_context(contextlib.closing(select.epoll()))
        self.refusals = Refusals(self.epoll, Scoreboard.create().dispatcher(0))

    def turn(self) -> None:
        """Do what the dispatcher's loop does when something comes, within 10 s."""
        [(fd, mask)] = self.epoll.poll(10)
        self.refusals.read(fd, hung_up=bool(mask & select.EPOLLRDHUP))

    def answer_read(self) -> bytes:
        """Return all that the client gets, up to an orderly end."""
        found = b""
        while data := self.client.recv(4096):
            found += data
        assert self.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "it was reset"
        return found


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with contextlib.ExitStack() as stack:
        yield Refusing(stack)


def test_who_has_closed_its_side_before_the_answer_is_not_kept(refusing: Refusing) -> None:
    """Its end is told once, and nothing comes behind it: it would keep a descriptor for two seconds more."""
    refusing.client.send(b"GET /")
    refusing.client.shutdown(socket.SHUT_WR)
    refusing.refusals.answer(refusing.connection, 400, now=0.0)
    refusing.turn()
    assert len(refusing.refusals) == 0
    assert refusing.answer_read().startswith(b"HTTP/1.1 400 ")


def test_who_was_watched_before_is_let_go_as_soon_as_it_closes(refusing: Refusing) -> None:
    """Else it would keep a descriptor for two seconds more."""
    refusing.epoll.register(refusing.connection, NEWS)
    refusing.client.send(b"GET /")
    assert refusing.epoll.poll(10)
    refusing.refusals.answer(refusing.connection, 408, now=0.0, is_watched=True)
    refusing.client.close()
    refusing.turn()
    assert len(refusing.refusals) == 0


def test_what_came_before_the_answer_does_not_make_the_end_a_reset(refusing: Refusing) -> None:
    """A reset may destroy the answer before the client has read it."""
    refusing.epoll.register(refusing.connection, NEWS)
    refusing.client.send(b"GET /")
    assert refusing.epoll.poll(10)
    refusing.refusals.answer(refusing.connection, 408, now=0.0, is_watched=True)
    refusing.refusals.expire(LINGER_S)
    assert len(refusing.refusals) == 0
    assert refusing.answer_read().startswith(b"HTTP/1.1 408 ")
