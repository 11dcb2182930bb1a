"""Real proxies with pooled connections in front: each request of each user reaches the user's home.

200 users ask through 16 client connections, so through about as many connections of the proxy to the server, each of
which carries everybody's requests.
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness import Limpet, fetch
from tests.real.fronts import Front
from tests.traffic import homes, inhabitants, serve
from tests.wire import TEXT, Frame, Wire, frame, upgrade

CLIENTS = 16
FRONTS = ["nginx", "haproxy"]
USERS = {
    "forwarded": [f"203.0.113.{number}" for number in range(200)],
    "header:x-user": [f"user-{number}" for number in range(200)],
}
FLAGS = {
    "forwarded": ["--by", "forwarded", "--trust", "127.0.0.0/8"],
    "header:x-user": ["--by", "header:x-user"],
}
CARRIERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "forwarded": lambda user: {"x_forwarded_for": user},  # as a proxy in front of the proxy passes it on
    "header:x-user": lambda user: {"x_user": user},
}


def documented(by: str) -> Limpet:
    """Return a server as the document starts it."""
    return serve(*FLAGS[by], "--keep-alive-timeout", "75", "--graceful-timeout", "1")


def ask(port: int, by: str, home: Mapping[str, int], number: int, seed: int) -> int:
    """Be one client that sends *number* requests of random users; return how many were answered elsewhere."""
    chance = random.Random(seed)
    misrouted = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for count in range(number):
        user = chance.choice(USERS[by])
        size = chance.choice([0, 10, 10_000, 1_000_000 if count % 50 == 0 else 0])
        body = b"x" * size if size else None
        reply = fetch(connection, f"/{seed}/{count}", "POST" if size else "GET", body, **CARRIERS[by](user))
        assert (reply.status, reply.headers["x-path"]) == (200, f"/{seed}/{count}"), reply
        assert reply.json()["size"] == size
        misrouted += reply.json()["slot"] != home[user]
    connection.close()
    return misrouted


def play(front: Front, server: Limpet, by: str, number: int) -> dict[str, int]:
    """Send *number* requests through *front*; return what came of them."""
    home = homes(server, USERS[by], by)
    assert set(home.values()) == {0, 1, 2, 3}
    before = server.totals()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, front.port, by, home, number // CLIENTS, seed) for seed in range(CLIENTS)]
        misrouted = sum(future.result() for future in asked)
    after = server.totals()
    grown = {name: after[name] - before[name] for name in ("accepted", "requests", "returns", "batons")}
    return {**grown, "misrouted": misrouted}


@pytest.mark.parametrize("by", FLAGS)
@pytest.mark.parametrize("kind", FRONTS)
def test_everybody_is_at_home_behind_a_proxy_with_pooled_connections(kind: str, by: str) -> None:
    """Where servers really live. The reference's users were all on the worker of the first: 6 of 6."""
    with documented(by) as server, Front(kind, server.port) as front:
        seen = play(front, server, by, 4000)
        assert seen["misrouted"] == 0
        assert seen["accepted"] <= 4 * CLIENTS  # one for each client but for chance: the proxy uses them again
        assert seen["returns"] > 2000  # for anybody: most requests come behind one of another slot
        assert seen["batons"] > seen["returns"] / 2


@pytest.mark.parametrize("kind", FRONTS)
def test_websocket_through_a_proxy_reaches_the_home_of_its_user(kind: str) -> None:
    """The upgrade may come on a connection of the proxy that has carried other users' requests."""
    by = "header:x-user"
    with documented(by) as server, Front(kind, server.port) as front:
        home = homes(server, USERS[by], by)
        play(front, server, by, 160)
        for slot, user in inhabitants(home).items():
            with Wire(("127.0.0.1", front.port)) as wire:
                assert wire.send(upgrade("/", x_user=user)).head()[0] == 101
                assert json.loads(wire.frame().payload)["slot"] == slot
                for number in range(20):
                    assert wire.send(frame(b"%d" % number)).frame() == Frame(TEXT, b"%d" % number)
        assert play(front, server, by, 160)["misrouted"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("by", FLAGS)
@pytest.mark.parametrize("kind", FRONTS)
def test_twenty_thousand_requests(kind: str, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures in docs/behind-a-proxy.md; `make soak`."""
    with documented(by) as server, Front(kind, server.port) as front:
        seen = play(front, server, by, 20_000)
    with capsys.disabled():
        print(f"\n{kind}, {by}: {seen}")
    assert seen["misrouted"] == 0
