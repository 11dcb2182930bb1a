"""Those whose head is awaited share the dispatcher's time: thousands of them are looked at some at a time."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from limpet.config.settings import Settings
from limpet.dispatch.arrivals import HUNG_UP, Arrivals
from limpet.dispatch.peek import Arrival
from limpet.ipc.scoreboard import Scoreboard
from limpet.protocol.request import Peer
from limpet.routing.key_chain import KeyChain, Trust

CROWD = 40
AT_A_TIME = 16
LOOKS = 33  # after which a client is slow


class Crowd:
    """Clients that have written a part of their head, and what waits for the rest."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        epoll = stack.enter_context(contextlib.closing(select.epoll()))
        settings = Settings(app="x:app", by="header:x-user")
        row = Scoreboard.create().dispatcher(0)
        self.arrivals = Arrivals(settings, KeyChain.parse(settings.by, Trust.parse("")), epoll, row, is_inner=False)
        self.clients: list[socket.socket] = []
        self.waiting: list[Arrival] = []
        for number in range(CROWD):
            client, connection = socket.socketpair()
            stack.callback(client.close)
            stack.callback(connection.close)
            client.send(b"GET")
            arrival = Arrival(connection, Peer(None, None, "here"), float(number), (65536, 256))
            assert not arrival.look()
            self.arrivals.keep(arrival)
            self.clients.append(client)
            self.waiting.append(arrival)

    def be_slow(self) -> None:
        """Have all of them looked at so often that they count as slow."""
        for arrival in self.waiting:
            for _ in range(LOOKS):
                arrival.look()
            self.arrivals.keep(arrival)
        while self.slow(CROWD):  # what was there before they were slow
            pass

    def slow(self, most: int) -> list[Arrival]:
        """Return who is to be looked at next."""
        return [arrival for arrival, _ in self.arrivals.slow(most)]


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        yield Crowd(stack)


def test_a_round_comes_to_each_slow_client_once_some_at_a_time(crowd: Crowd) -> None:
    """A turn in which thousands were looked at would make an honest client wait for all of them."""
    crowd.be_slow()
    for client in crowd.clients:
        client.send(b" ")
    crowd.arrivals.forget(crowd.waiting[0])  # it has had its time, in the middle of the round
    turns = [crowd.slow(AT_A_TIME)]
    while crowd.arrivals.is_in_round:
        turns.append(crowd.slow(AT_A_TIME))
    assert [len(turn) for turn in turns] == [AT_A_TIME, AT_A_TIME, CROWD - 2 * AT_A_TIME - 1]
    assert {id(arrival) for turn in turns for arrival in turn} == {id(arrival) for arrival in crowd.waiting[1:]}


def test_who_writes_all_the_time_does_not_make_a_round_last(crowd: Crowd) -> None:
    """All get one look in a round: else those who write faster than the dispatcher looks would have all its time."""
    crowd.be_slow()
    found: list[Arrival] = []
    for _ in range(CROWD):
        for client in crowd.clients:
            client.send(b" ")
        found += crowd.slow(AT_A_TIME)
        if not crowd.arrivals.is_in_round:
            break
    assert found == crowd.waiting


def test_the_end_of_a_slow_client_is_noticed(crowd: Crowd) -> None:
    """It would keep its place until the deadline."""
    crowd.be_slow()
    crowd.clients[3].close()
    [(arrival, mask)] = crowd.arrivals.slow(CROWD)
    assert arrival is crowd.waiting[3]
    assert mask & HUNG_UP


def test_who_sent_nothing_new_is_not_looked_at(crowd: Crowd) -> None:
    """Each look copies all that has come so far: thousands of large heads that stand still would cost a core."""
    crowd.be_slow()
    crowd.clients[3].send(b" ")
    found = crowd.slow(CROWD)
    assert found == [crowd.waiting[3]]


def test_those_that_are_late_are_given_some_at_a_time_the_first_first(crowd: Crowd) -> None:
    """A thousand answers at once would make everybody else late."""
    late = crowd.arrivals.due(now=CROWD / 2, most=AT_A_TIME)
    assert late == crowd.waiting[:AT_A_TIME]
    for arrival in late:
        crowd.arrivals.forget(arrival)
    assert crowd.arrivals.due(now=CROWD / 2, most=AT_A_TIME) == crowd.waiting[AT_A_TIME : CROWD // 2 + 1]
