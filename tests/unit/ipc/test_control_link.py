"""The line between the supervisor and a child: nothing that was said is lost, doubled or waited for."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest

from limpet.ipc.control_link import Link, LinkClosedError


@contextlib.contextmanager
def line() -> Iterator[tuple[Link, Link]]:
    """Yield the supervisor's end and the child's."""
    ours, theirs = Link.pair()
    child = Link(theirs)
    yield ours, child
    ours.close()
    child.close()


def fill(link: Link) -> int:
    """Say things that are each as large as half a socket's buffer until the other side has no room; return how many."""
    said = 0
    while not link.unsent:
        link.send({"do": "slot", "slot": said, "padding": "x" * 50_000})
        said += 1
    return said


def hear_all(link: Link, flush: Link) -> list[dict[str, object]]:
    """Return everything that comes at *link* while the other side goes on sending."""
    heard: list[dict[str, object]] = []
    while True:
        flush.flush()
        if not select.select([link], [], [], 0)[0]:
            return heard
        heard += link.receive()


def test_message_that_arrives_in_pieces_is_heard_once_it_is_whole() -> None:
    """A stream has no borders; half a message would be taken for a broken child."""
    ours, theirs = Link.pair()
    theirs.send(b'{"news": "re')
    assert ours.receive() == []
    theirs.send(b'ady"}\n{"news"')
    assert ours.receive() == [{"news": "ready"}]
    theirs.send(b': "left"}\n')
    assert ours.receive() == [{"news": "left"}]
    ours.close()
    theirs.close()


def test_side_that_does_not_read_loses_no_message() -> None:
    """A worker may be busy for seconds while slots are added."""
    with line() as (ours, child):
        said = fill(ours)
        ours.send({"do": "drain"})
        heard = hear_all(child, ours)
        assert [each.get("slot") for each in heard] == [*range(said), None]


def test_of_the_news_of_workers_only_the_latest_waits() -> None:
    """A stopped child would otherwise make the supervisor keep all that has happened since."""
    with line() as (ours, child):
        fill(ours)
        for number in range(1000):
            ours.send({"do": "workers", "alive": [number]}, is_latest=True)
        assert len(ours.unsent) <= 3
        assert hear_all(child, ours)[-1] == {"do": "workers", "alive": [999]}


def test_descriptors_arrive_with_their_message() -> None:
    """A channel that was taken for another slot's would send clients to a stranger."""
    with line() as (ours, child):
        pairs = [socket.socketpair() for _ in range(2)]
        for number, pair in enumerate(pairs):
            ours.send({"do": "slot", "slot": number}, [end.fileno() for end in pair])
        ours.send({"do": "accept"})
        first, second, last = child.receive()
        for message, pair in ((first, pairs[0]), (second, pairs[1])):
            assert [os.path.sameopenfile(fd, end.fileno()) for fd, end in zip(message["fds"], pair, strict=True)] == [
                True,
                True,
            ]
        assert "fds" not in last
        for fd in (*first["fds"], *second["fds"]):
            os.close(fd)
        for end in (*pairs[0], *pairs[1]):
            end.close()


def test_what_was_said_before_the_end_is_heard_before_the_end() -> None:
    """A child says why it failed as the last thing that it does."""
    with line() as (ours, child):
        child.send({"news": "failed"})
        child.close()
        assert ours.receive() == [{"news": "failed"}]
        with pytest.raises(LinkClosedError):
            ours.receive()


def test_saying_something_to_who_has_ended_is_no_error() -> None:
    """Its death is seen by the supervisor's wait, and only there."""
    with line() as (ours, child):
        child.close()
        ours.send({"do": "drain"})
        assert not ours.unsent
