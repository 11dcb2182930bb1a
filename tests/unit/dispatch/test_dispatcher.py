"""One dispatcher's loop in this process: real sockets and channels, and no other process."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.dispatch.dispatcher import Dispatcher
from limpet.ipc import orders
from limpet.ipc.channel import Channel, Handoff, Outbox, Receiver
from limpet.ipc.control_link import Link
from limpet.ipc.orders import Accept, Stop, Workers
from limpet.ipc.scoreboard import Scoreboard
from limpet.routing.placement import Placement
from tests.harness import PATIENCE_S, wait_until

HEAD = b"GET / HTTP/1.1\r\nHost: limpet.test\r\nX-User: %s\r\n\r\n"


class Desk:
    """A dispatcher that runs in a thread, with the channels of its slots, and the supervisor's end of its line."""

    def __init__(self, slots: int = 2, **given: Any) -> None:
        settings = Settings(**{"app": "app:app", "workers": slots, "by": "header:x-user", **given})
        self.board = Scoreboard.create()
        self.router = build_router(settings, b"secret")
        self.channels = [Channel.create() for _ in range(slots)]
        self.row = self.board.dispatcher(0)
        outboxes = [Outbox(channel, self.board.waiting(0, slot)) for slot, channel in enumerate(self.channels)]
        queued = lambda slot: outboxes[slot].queued()  # noqa: E731
        placement = Placement(settings.place, self.router, self.board, queued, random.Random(5))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.link, theirs = Link.pair()
        self._line = Link(theirs)
        self.dispatcher = Dispatcher(
            settings,
            self.router,
            placement,
            outboxes,
            [(self.listener, "127.0.0.1:0")],
            self._line,
            self.row,
            lambda slot, fds: True,
            is_inner=False,
        )
        self._thread = threading.Thread(target=self.dispatcher.run)

    def __enter__(self) -> Desk:
        self._thread.start()
        orders.send(self.link, Accept())
        return self

    def __exit__(self, *_: object) -> None:
        orders.send(self.link, Stop(timeout=0.0, last=True))
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self.close()

    def close(self) -> None:
        """Close what a process's end would close."""
        self.link.close()
        self._line.close()
        self.listener.close()
        for channel in self.channels:
            channel.sending.close()
            channel.receiving.close()
        os.close(self.board.fd)

    def news(self, up: list[bool], refused: list[int] | None = None) -> None:
        """Tell the dispatcher which slots are up."""
        rows = [number if is_up else None for number, is_up in enumerate(up)]
        told = Workers(len(up), rows, up, held=[], refused=refused or [], alive=[], newest=0, scaled=False)
        orders.send(self.link, told)

    def connect(self, data: bytes = b"") -> socket.socket:
        """Return a client that has sent *data*."""
        client = socket.create_connection(self.address, PATIENCE_S)
        client.sendall(data)
        return client

    def taken(self, slot: int, *, wait_s: float = PATIENCE_S) -> tuple[bytes, Handoff] | None:
        """Return the first bytes of the next connection in the channel of *slot*, and what was decided of it."""
        receiving = socket.socket(fileno=os.dup(self.channels[slot].fds[1]))
        try:
            if not select.select([receiving], [], [], wait_s)[0]:
                return None
            connection, handoff = Receiver(receiving).receive()
            with connection:
                connection.settimeout(PATIENCE_S)
                return connection.recv(65536), handoff
        finally:
            receiving.close()

    def key_of(self, slot: int) -> bytes:
        """Return a user whose home is *slot*."""
        names = (b"user-%d" % number for number in range(1000))
        return next(
            name for name in names if self.router.where(self.router.chain.from_text(name.decode())).slot == slot
        )


@contextlib.contextmanager
def desk(**given: Any) -> Iterator[Desk]:
    """Yield a dispatcher that runs."""
    with Desk(**given) as found:
        yield found


@pytest.mark.parametrize("slot", [0, 1])
def test_connection_goes_to_the_home_of_its_key_with_all_its_bytes(slot: int) -> None:
    """What the dispatcher has looked at is still the worker's to read."""
    with desk() as here:
        head = HEAD % here.key_of(slot)
        with here.connect(head):
            found = here.taken(slot)
        assert found is not None
        assert (found[0], found[1].slot) == (head, slot)
        wait_until(lambda: here.row["handed"] == 1, "it is counted, after it has been passed on")


def test_head_split_across_packets_waits_for_more() -> None:
    """The key may be in the last line of it."""
    with desk() as here:
        head = HEAD % here.key_of(1)
        with here.connect(head[:-9]) as client:
            assert here.taken(1, wait_s=0.1) is None
            client.sendall(head[-9:])
            found = here.taken(1)
        assert found is not None
        assert found[0] == head


def test_client_of_a_slot_that_is_refused_hears_503() -> None:
    """`--on-down refuse`: it may try another machine, and does not wait."""
    with desk(on_down="refuse") as here:
        here.news([True, False], refused=[1])
        with here.connect(HEAD % here.key_of(1)) as client:
            assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
        with here.connect(HEAD % here.key_of(0)):
            assert here.taken(0) is not None


def test_connections_that_wait_for_a_slot_go_elsewhere_when_it_is_failed_over() -> None:
    """Nobody else can take them out of its channel, and they would wait for a worker that does not come."""
    with desk(on_down="failover") as here:
        head = HEAD % here.key_of(1)
        with here.connect(head):
            wait_until(lambda: here.channels[1].queued() == 1, "it waits in the channel")
            here.news([True, False])
            found = here.taken(0)
        assert found is not None
        assert found[0] == head
        wait_until(lambda: here.row["failed_over"] == 1, "it is counted")


def test_what_is_not_http_is_answered_and_ends_nothing() -> None:
    """Anybody can send anything."""
    with desk() as here:
        with here.connect(b"\x16\x03\x01 this is no request\r\n\r\n") as client:
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        with here.connect(HEAD % here.key_of(0)):
            assert here.taken(0) is not None
        wait_until(lambda: here.row["refused_400"] == 1, "it is counted")


def test_client_without_a_key_is_placed_and_counted() -> None:
    """It has no home, and gets a worker all the same."""
    with desk() as here:
        head = b"GET / HTTP/1.1\r\nHost: limpet.test\r\n\r\n"
        with here.connect(head):
            ready = select.select([channel.fds[1] for channel in here.channels], [], [], PATIENCE_S)[0]
            assert len(ready) == 1
            wait_until(lambda: here.row["keyless"] == 1, "it is counted")


def test_dispatcher_whose_supervisor_is_gone_ends() -> None:
    """An orphan that accepts hands connections to channels that nobody reads."""
    here = Desk()
    here._thread.start()
    here.link.close()
    here._thread.join(PATIENCE_S)
    assert not here._thread.is_alive()
    here.close()
