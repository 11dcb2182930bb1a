"""Open websockets while slots come and go: exactly those whose clients move are closed, and their clients come home."""

from __future__ import annotations

import contextlib
import json
import re
import select
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.harness import Limpet, fetch, wait_until
from tests.real.test_scale import scale
from tests.wire import CLOSE, Frame, Wire, frame, request, upgrade

RESTARTS = Frame(CLOSE, (1012).to_bytes(2, "big"))
USERS = 12


class Client:
    """A client with two websockets. Its key is its address, or a header that it sends."""

    def __init__(self, server: Limpet, user: str, *, by_address: bool) -> None:
        self._server = server
        self._user = user
        self._source = user if by_address else None
        self.home = self.where()
        self.sockets = [self.open(after_another=bool(number)) for number in range(2)]

    def where(self) -> int:
        """Return the slot where `limpet where` says that the client lives."""
        return int(self._server.where(self._user)[0]["slot"])

    def open(self, *, after_another: bool = False) -> Wire:
        """Return a new websocket at the client's home; *after_another* client's request on the same connection."""
        wire = Wire(("127.0.0.1", self._server.port), self._source)
        if after_another:
            assert wire.send(request(x_user="another")).reply().status == 200
        assert wire.send(upgrade(x_user=self._user)).head()[0] == 101
        assert json.loads(wire.frame().payload)["slot"] == self.where()
        return wire

    def close(self) -> None:
        """Close both websockets."""
        for wire in self.sockets:
            wire.close()

    def stays(self) -> None:
        """See that both websockets are served."""
        for wire in self.sockets:
            assert wire.send(frame(b"still here")).frame().payload == b"still here"

    def goes(self) -> None:
        """See that both are closed with 1012, and open them again at home."""
        for wire in self.sockets:
            assert wire.frame() == RESTARTS
            assert wire.rest() == b""
            wire.close()
        self.home = self.where()
        self.sockets = [self.open() for _ in self.sockets]


@contextlib.contextmanager
def clients(server: Limpet, backend: str) -> Iterator[list[Client]]:
    """Open the websockets of all clients."""
    by_address = backend == "kernel"
    users = [f"127.0.{number}.1" if by_address else f"user {number}" for number in range(1, USERS + 1)]
    with contextlib.ExitStack() as stack:
        found = []
        for user in users:
            found.append(client := Client(server, user, by_address=by_address))
            stack.callback(client.close)
        yield found


def closed(server: Limpet) -> int:
    """Return how many websockets the workers say that they have closed."""
    return sum(int(number) for number in re.findall(r"closes (\d+) websockets", server.log))


@pytest.mark.parametrize(
    ("backend", "chain", "library"),
    [
        ("kernel", "ip", "websockets"),
        ("dispatcher", "header:x-user", "wsproto"),
        ("dispatcher", "header:x-user", "websockets-sansio"),
    ],
)
def test_websockets_of_clients_that_move_are_closed_and_no_others(backend: str, chain: str, library: str) -> None:
    """4 -> 5 -> 4: else a user would have websockets in one worker, and the answers to requests from another."""
    arguments = ["--by", chain, "--backend", backend, "--ws", library, "--websocket-spread", "0.5", "--workers", "4"]
    with Limpet("tests.apps:echo", *arguments) as server:
        by = "kernel" if chain == "ip" else backend
        with clients(server, by) as all_clients, Wire(("127.0.0.1", server.port)) as nobody:
            assert chain == "ip" or nobody.send(upgrade()).head()[0] == 101
            scale(server, 5)
            moved = [client for client in all_clients if client.where() != client.home]
            assert 0 < len(moved) < USERS / 2
            for client in moved:
                client.goes()
                assert client.home == 4
            wait_until(lambda: closed(server) == 2 * len(moved), "the log says so")
            scale(server, 4)
            for client in moved:
                client.goes()
            for client in all_clients:
                assert client.home == client.where()
                client.stays()
            if chain != "ip":
                assert nobody.frame().payload
                assert nobody.send(frame(b"no key")).frame().payload == b"no key"
            assert closed(server) == 2 * len(moved)


def test_clients_with_the_cookie_of_limpet_move_as_others_do() -> None:
    """A cookie that comes with the handshake's own answer says where the client's next request goes."""
    arguments = ["--by", "affinity", "--workers", "1", "--websocket-spread", "0.5"]
    with Limpet("tests.apps:echo", *arguments) as server, contextlib.ExitStack() as stack:
        sockets = []
        for number in range(12):
            wire = stack.enter_context(Wire(("127.0.0.1", server.port)))
            known = {"cookie": server.request().headers["set-cookie"].partition(";")[0]} if number % 2 else {}
            status, headers = wire.send(upgrade(**known)).head()
            assert (status, wire.frame().opcode) == (101, 1)
            sockets.append((wire, known.get("cookie") or headers["set-cookie"].partition(";")[0]))
        scale(server, 2)
        homes = [server.request(cookie=cookie).json()["slot"] for _, cookie in sockets]
        assert {(number % 2, home) for number, home in enumerate(homes)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
        for (wire, _), home in zip(sockets, homes, strict=True):
            if home == 1:
                assert wire.frame() == RESTARTS
        wait_until(lambda: closed(server) == sum(homes), "the log says so")
        for (wire, _), home in zip(sockets, homes, strict=True):
            if home == 0:
                assert wire.send(frame(b"still here")).frame().payload == b"still here"


def test_websockets_of_clients_that_move_are_closed_one_after_another() -> None:
    """Their clients come back at once: all of them in one moment would be more than a new worker can bear."""
    arguments = ["--by", "header:x-user", "--workers", "1", "--websocket-spread", "2"]
    with Limpet("tests.apps:echo", *arguments) as server, clients(server, "dispatcher") as all_clients:
        scale(server, 2)
        moved = [wire.sock for client in all_clients if client.where() == 1 for wire in client.sockets]
        assert len(moved) >= USERS / 2
        times = []
        while moved:
            readable, _, _ = select.select(moved, [], [], 10)
            assert readable, "the others are closed, too"
            times += [time.monotonic()] * len(readable)
            moved = [each for each in moved if each not in readable]
    assert times[-1] - times[0] > 1.0, "over 2 s"
    assert max(later - earlier for earlier, later in pairwise(times)) < (times[-1] - times[0]) / 2, "not in two crowds"


def test_left_websockets_stay_where_they_are() -> None:
    """`--on-scale leave` is for applications whose websocket is all that a client has."""
    arguments = ["--by", "ip", "--backend", "kernel", "--workers", "4", "--on-scale", "leave"]
    with Limpet("tests.apps:echo", *arguments) as server, clients(server, "kernel") as all_clients:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(server.connection(client._user)) for client in all_clients]
            for connection, client in zip(idle, all_clients, strict=True):
                assert fetch(connection).json()["slot"] == client.home
            scale(server, 5)
            homes = [client.where() for client in all_clients]
            assert 4 in homes

            def at_home() -> bool:
                return [fetch(connection).json()["slot"] for connection in idle] == homes

            wait_until(at_home, "all workers have looked at their connections")
        for client in all_clients:
            client.stays()
        assert closed(server) == 0
