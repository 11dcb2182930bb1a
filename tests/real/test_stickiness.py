"""Each client always reaches the same worker: with real processes, new connections and distinct keys.

What makes a test of stickiness worth something: each request has a connection of its own, keys or source addresses
differ, and all workers must have been used. On one kept-alive connection, or with one key, anything looks sticky.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from limpet.routing.buckets import BUCKETS
from tests.harness import Limpet, Reply, wait_until
from tests.wire import Address, Wire, request, wires

WORKERS = 4
CLIENTS_AT_ONCE = 8
KEYS = [f"user-{number}" for number in range(1000)]
SOURCES = [f"127.0.{number // 200}.{number % 200 + 1}" for number in range(5, 1000, 11)]
CHAIN = r"header:x-user,cookie:user,query:user,path:^/u/([^/]+),python:tests.apps:key,ip"

# How a client carries a key, by the element of the chain that reads it.
CARRIERS: Mapping[str, Callable[[Limpet, str], Reply]] = {
    "header:x-user": lambda server, key: server.request(x_user=key),
    "cookie:user": lambda server, key: server.request(cookie=f"theme=dark; user={key}; lang=en"),
    "query:user": lambda server, key: server.request(f"/?page=1&user={key}&lang=en"),
    "path:^/u/([^/]+)": lambda server, key: server.request(f"/u/{key}/room?page=1"),
    "python:tests.apps:key": lambda server, key: server.request(x_python=key),
    "ip": lambda server, key: server.request(source=key),
}


class Home(NamedTuple):
    """Where a request was served."""

    slot: int
    pid: int


def serve(*args: str, workers: int = WORKERS, by: str = "header:x-user", **how: Any) -> Limpet:
    """Return a server that has not been started."""
    return Limpet("tests.apps:echo", "--workers", str(workers), "--by", by, *args, **how)


def homes(
    server: Limpet, keys: Iterable[str] = KEYS, carry: Callable[[Limpet, str], Reply] = CARRIERS["header:x-user"]
) -> dict[str, Home]:
    """Return where one request for each of *keys* was served: new connections, several at once."""

    def home(key: str) -> Home:
        reply = carry(server, key)
        assert reply.status == 200, reply
        return Home(reply.json()["slot"], reply.json()["pid"])

    keys = list(keys)
    with ThreadPoolExecutor(CLIENTS_AT_ONCE) as clients:
        return dict(zip(keys, clients.map(home, keys), strict=True))


def slots(found: Mapping[str, Home]) -> dict[str, int]:
    """Return the slots alone."""
    return {key: home.slot for key, home in found.items()}


def named(server: Limpet, keys: Iterable[str], element: str) -> dict[str, Home]:
    """Return the homes that `limpet where` names for *keys*."""
    keys = list(keys)
    answer = server.where(*(f"{element}={key}" for key in keys))
    return {key: Home(entry["slot"], entry["pid"]) for key, entry in zip(keys, answer, strict=True)}


@pytest.fixture(scope="module")
def server() -> Iterator[Limpet]:
    """A server that looks for keys in all places."""
    with serve(by=CHAIN) as server:
        yield server


def test_each_of_1000_keys_reaches_one_worker_on_every_request(server: Limpet) -> None:
    """The promise of the project. Every worker gets its share, or one that serves all would pass."""
    first = homes(server)

    assert homes(server, reversed(KEYS)) == first
    assert homes(server, sorted(KEYS)) == first
    assert {home.slot for home in first.values()} == set(range(WORKERS))
    assert len(set(first.values())) == WORKERS
    assert min(Counter(slots(first).values()).values()) > len(KEYS) / WORKERS * 0.8


@pytest.mark.parametrize("element", CARRIERS)
def test_where_names_the_worker_that_serves(server: Limpet, element: str) -> None:
    """An operator who asks before the request, and the dispatcher that reads it, must come to the same answer."""
    keys = SOURCES if element == "ip" else KEYS[:100]
    found = homes(server, keys, CARRIERS[element])

    assert found == named(server, keys, element)
    assert {home.slot for home in found.values()} == set(range(WORKERS))


def test_chain_falls_through_in_order(server: Limpet) -> None:
    """The first element that finds a key decides, whatever those behind it would say."""
    elements = list(CARRIERS)
    others = iter(KEYS)
    wanted: list[int] = []
    keys: list[str] = []
    for number, element in enumerate(elements[:-1]):  # neighbours in the chain live apart
        slot = number % WORKERS
        keys.append(next(key for key in others if slots(named(server, [key], element))[key] == slot))
        wanted.append(slot)
    source = next(source for source in SOURCES if named(server, [source], "ip")[source].slot != wanted[-1])
    wanted.append(named(server, [source], "ip")[source].slot)

    header, cookie, query, path, python = keys
    faulty: dict[str, Any] = {"x_raise": "yes"}
    asked: list[tuple[str, str, str, dict[str, Any]]] = [
        (f"/u/{path}/?user={query}", header, f"user={cookie}", {}),
        (f"/u/{path}/?user={query}", "", f"user={cookie}", {}),
        (f"/u/{path}/?user={query}", "", "other=1", {}),
        (f"/u/{path}/", "", "other=1", {}),
        ("/", "", "other=1", {}),
        ("/", "", "other=1", faulty),
    ]
    found = [
        server.request(target, source=source, x_user=user, cookie=cookies, x_python=python, **fault).json()["slot"]
        for target, user, cookies, fault in asked
    ]

    assert found == wanted
    assert all(one != other for one, other in pairwise(wanted))


def test_same_homes_after_restart_and_after_the_kill_of_every_worker(server: Limpet, tmp_path: Path) -> None:
    """A slot keeps its clients for life: neither a deployment nor a crash may send anybody elsewhere."""
    keys = KEYS[:300]
    before = slots(homes(server, keys))
    with serve(state=tmp_path) as started:
        assert slots(homes(started, keys)) == before

    with serve(state=tmp_path) as restarted:
        now = homes(restarted, keys)
        for slot in range(WORKERS):
            restarted.kill_worker(slot)
            then, now = now, homes(restarted, keys)
            assert slots(now) == before
            assert {then[key].slot for key in keys if then[key] != now[key]} == {slot}
            assert [entry["generation"] for entry in restarted.status()["slots"]] == [
                2 if number <= slot else 1 for number in range(WORKERS)
            ]


def test_another_secret_gives_other_homes(server: Limpet, tmp_path: Path) -> None:
    """Without this the secret might have no part in the homes, and clients could choose theirs."""
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text("a5" * 32)
    keys = KEYS[:300]
    before = slots(homes(server, keys))
    with serve(state=tmp_path) as other:
        moved = [key for key, slot in slots(homes(other, keys)).items() if slot != before[key]]

    assert len(moved) > len(keys) / 2  # of 4 homes the old one is drawn again for a quarter


def test_one_more_worker_moves_its_share_and_nobody_else(server: Limpet) -> None:
    """The reason for not taking the hash modulo the workers: that would move 3 of 4 clients."""
    with serve(workers=WORKERS - 1) as smaller:
        before, after = slots(homes(smaller)), slots(homes(server))
        entries = [
            (small, large)
            for start in range(0, 12 * BUCKETS, BUCKETS)
            for asked in [[f"header:x-user={start + number}" for number in range(BUCKETS)]]
            for small, large in zip(smaller.where(*asked), server.where(*asked), strict=True)
        ]
    owners = {small["bucket"]: (small["slot"], large["slot"]) for small, large in entries}
    moved = {bucket for bucket, (old, new) in owners.items() if old != new}

    assert all(small["bucket"] == large["bucket"] for small, large in entries)
    assert len(owners) == BUCKETS
    assert 0 < len(moved) <= math.ceil(BUCKETS / WORKERS)
    assert {owners[bucket][1] for bucket in moved} == {WORKERS - 1}
    elsewhere = {key for key in KEYS if before[key] != after[key]}
    buckets = {key: entry["bucket"] for key, entry in zip(KEYS, server.where(*KEYS), strict=True)}
    assert elsewhere == {key for key in KEYS if buckets[key] in moved}


def test_address_has_one_home_however_it_arrives(server: Limpet) -> None:
    """A client that comes through the proxy today and directly tomorrow is the same client."""
    direct = slots(homes(server, SOURCES, CARRIERS["ip"]))
    with serve("--trust", "127.0.0.1,10.0.0.0/8", by="forwarded") as behind:
        found = homes(behind, SOURCES, lambda server, key: server.request(x_forwarded_for=f"6.6.6.6, {key}, 10.1.2.3"))
        forged = homes(
            behind, SOURCES, lambda server, key: server.request(source="127.0.0.2", x_forwarded_for=f"{key}")
        )
        assert found == named(behind, SOURCES, "forwarded")
        assert set(forged.values()) == {named(behind, ["127.0.0.2"], "forwarded")["127.0.0.2"]}

    assert slots(found) == direct
    assert set(direct.values()) == set(range(WORKERS))


def test_all_binds_share_the_homes(server: Limpet, tmp_path: Path) -> None:
    """A client that uses two ports of one server, or its socket file, means the same worker."""
    path = str(tmp_path / "bind.sock")
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        binds = ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0", f"unix:{path}", f"fd:{inherited.fileno()}"]
        flags = [part for bind in binds for part in ("--bind", bind)]
        with serve(*flags, bind="", fds=[inherited.fileno()]) as several:
            addresses = [address(url) for url in several.status()["binds"]]
            assert len(set(addresses)) == len(binds)
            found = [homes(several, KEYS[:60], asking(address)) for address in addresses]

    assert all(each == found[0] for each in found)
    assert slots(found[0]) == slots(homes(server, KEYS[:60]))
    assert len(set(found[0].values())) == WORKERS


def test_keyless_clients_are_spread_evenly() -> None:
    """`least` must spread those who come one after another, each gone before the next, as well as a crowd."""
    with serve() as server:
        one_by_one = Counter(server.request().json()["slot"] for _ in range(400))
        assert sum(one_by_one.values()) == 400
        assert max(one_by_one.values()) - min(one_by_one[slot] for slot in range(WORKERS)) <= 4

        wait_until(lambda: server.totals()["connections"] == 0, "the last of them is gone")
        with wires(("127.0.0.1", server.port), 400) as crowd:
            for wire in crowd:
                wire.send(request())
            at_once = Counter(wire.reply().json()["slot"] for wire in crowd)
            open_now = [entry["connections"] for entry in server.status()["slots"]]
        assert open_now == [at_once[slot] for slot in range(WORKERS)]
        assert max(open_now) - min(open_now) <= 4


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("OPTIONS", "/", {"origin": "https://limpet.test", "access_control_request_method": "POST"}),
        ("GET", "/healthz", {}),
    ],
    ids=["preflights", "health checks"],
)
def test_users_spread_whatever_requests_without_a_key_come_before_each(
    before: int, method: str, path: str, headers: dict[str, Any]
) -> None:
    """A browser sends preflights before its first request; 10 users of 2 workers were all on one."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "affinity") as server:

        def ask(*args: Any, **more: Any) -> Reply:
            wait_until(lambda: server.totals()["connections"] == 0, "no connection says where there is room")
            return server.request(*args, **more)

        users: Counter[int] = Counter()
        for _ in range(20):
            for _ in range(before):
                assert "set-cookie" not in ask(path, method, **headers).headers
            reply = ask()
            assert "set-cookie" in reply.headers
            users[reply.json()["slot"]] += 1
        assert users == {0: 10, 1: 10}


def test_keyless_clients_go_where_place_says(server: Limpet) -> None:
    """`hash` gives an address one home, the one that `--by ip` would; `random` gives it none."""
    with serve("--place", "hash") as hashing:
        found = homes(hashing, SOURCES, CARRIERS["ip"])
        assert homes(hashing, SOURCES, CARRIERS["ip"]) == found
        assert slots(found) == slots(homes(server, SOURCES, CARRIERS["ip"]))
    with serve("--place", "random") as rolling:
        drawn = Counter(rolling.request().json()["slot"] for _ in range(200))

    assert len(set(slots(found).values())) == WORKERS
    assert len(drawn) == WORKERS  # 1 in 10**24 runs draws three only


def test_web_concurrency_is_honoured_once() -> None:
    """Platforms set it for the server; an application's server that reads it again would multiply the workers."""
    with Limpet("tests.apps:echo", "--by", "header:x-user", env={"WEB_CONCURRENCY": "3"}) as server:
        assert len(server.status()["slots"]) == 3
        assert len(set(homes(server, KEYS[:60]).values())) == 3
        assert len(server.processes()) == 1 + 1 + 3


def address(url: str) -> Address:
    """Return where to connect for a *url* of `limpet status`."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:")
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def asking(address: Address) -> Callable[[Limpet, str], Reply]:
    """Return a client of the server's bind at *address*."""

    def ask(_: Limpet, key: str) -> Reply:
        with Wire(address) as wire:
            return wire.send(request(x_user=key)).reply()

    return ask
