"""One dispatcher's loop in this process: real sockets and channels, and no other process."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.dispatch.dispatcher import Dispatcher
from limpet.ipc import orders
from limpet.ipc.channel import Channel, Handoff, Outbox, Receiver
from limpet.ipc.control_link import Link
from limpet.ipc.news import Missing, parse
from limpet.ipc.orders import Accept, Stop, Workers
from limpet.ipc.scoreboard import Scoreboard
from limpet.routing.placement import Placement
from tests.harness import PATIENCE_S, wait_until

HEAD = b"GET / HTTP/1.1\r\nHost: limpet.test\r\nX-User: %s\r\n\r\n"


class Desk:
    """A dispatcher that runs in a thread, with the channels of its slots, and the supervisor's end of its line."""

    def __init__(
        self, slots: int = 2, *, reach: Callable[[int, Sequence[int]], bool] = lambda slot, fds: True, **given: Any
    ) -> None:
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
            reach,
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
        for arrival in self.dispatcher.arrivals:
            arrival.connection.close()
        self.dispatcher.refusals.expire(float("inf"))
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


def test_client_whose_head_does_not_end_hears_408() -> None:
    """It would otherwise hold a place that others need, for ever."""
    with desk(head_timeout_s=0.2) as here, here.connect(b"GET / HTTP/1.1\r\nHost: lim") as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_client_that_says_nothing_is_closed_without_an_answer() -> None:
    """Browsers connect ahead of time, and would take a 408 for the answer to their next request."""
    with desk(head_timeout_s=0.2) as here:
        with here.connect() as client:
            assert client.recv(65536) == b""
        wait_until(lambda: here.row["refused_408"] == 1, "it is counted")


def test_client_that_is_gone_before_its_head_is_counted_and_forgotten() -> None:
    """Its descriptor is needed for others."""
    with desk() as here:
        client = here.connect(b"GET / HT")
        wait_until(lambda: len(here.dispatcher.arrivals) == 1, "its head is awaited")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so its end is a reset
        client.close()
        wait_until(lambda: here.row["vanished"] == 1, "it is counted")
        assert len(here.dispatcher.arrivals) == 0


def test_of_too_many_unfinished_heads_the_oldest_hears_503() -> None:
    """Slow clients take each other's places, and no honest client's."""
    with desk(max_pending=2) as here, contextlib.ExitStack() as stack:
        first, *others = [stack.enter_context(here.connect(b"GET / HTTP/1.1\r\nHost: lim")) for _ in range(3)]
        assert first.recv(65536).startswith(b"HTTP/1.1 503 ")
        for other in others:
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)


def test_slot_whose_queue_is_full_refuses() -> None:
    """Every queue has a bound and an answer."""
    with desk(queue=1) as here:
        head = HEAD % here.key_of(1)
        with here.connect(head):
            wait_until(lambda: here.channels[1].queued() == 1, "it waits in the channel")
            with here.connect(head) as client:
                assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert here.taken(1) is not None


def test_proxy_that_is_not_trusted_is_turned_away() -> None:
    """Anybody could say to be another client."""
    with desk(proxy_protocol="required", trust=("10.0.0.0/8",)) as here:
        said = b"PROXY TCP4 10.1.2.3 10.0.0.1 5000 80\r\n" + HEAD % b"ada"
        with here.connect(said) as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(65536) == b""
        wait_until(lambda: here.row["proxy_untrusted"] == 1, "it is counted")


def test_header_of_a_trusted_proxy_stays_for_the_worker() -> None:
    """Exactly one process takes it off, and that is the one which serves the connection."""
    with desk(proxy_protocol="required", trust=("127.0.0.0/8",)) as here:
        said = HEAD % here.key_of(1)
        with here.connect(b"PROXY TCP4 10.1.2.3 10.0.0.1 5000 80\r\n" + said):
            found = here.taken(1)
        assert found is not None
        assert found[0] == said
        assert found[1].origin is not None
        assert found[1].origin.client == ("10.1.2.3", 5000)


def test_what_is_no_proxy_header_is_turned_away() -> None:
    """A client that reaches the port without the proxy has no business there."""
    with desk(proxy_protocol="required", trust=("127.0.0.0/8",)) as here:
        with here.connect(HEAD % b"ada") as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(65536) == b""
        wait_until(lambda: here.row["proxy_headers_bad"] == 1, "it is counted")


def test_channel_for_which_there_was_no_descriptor_is_asked_for_again() -> None:
    """Clients of that slot wait in the dispatcher until it comes."""
    with desk(reach=lambda slot, fds: False) as here:
        orders.send(here.link, orders.Slot(7))
        wait_until(lambda: select.select([here.link], [], [], 0)[0], "the dispatcher asks")
        assert {parse(line) for line in here.link.receive_lines(1 << 16)} == {Missing(7)}


def test_more_slots_are_routed_to_once_all_are_told() -> None:
    """A dispatcher with the old table would send clients to their former slots."""
    with desk() as here:
        here.news([True, True, True])
        wait_until(lambda: here.router.slots == 3, "the table has grown")
        here.news([True, True])
        wait_until(lambda: here.router.slots == 2, "the table has shrunk")
        with here.connect(HEAD % here.key_of(1)):
            assert here.taken(1) is not None
