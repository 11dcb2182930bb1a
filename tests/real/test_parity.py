"""What a user of sticky-session-custom or @socket.io/sticky had, and has here: the rows of docs/coming-from.md.

One cluster with a bind for each way to find a key serves most of them. Rows that other files test are named in that
document; a test there sees that the tests exist.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import limpet
from limpet.errors import SettingsError
from tests import parity_keys
from tests.harness import PATIENCE_S, fetch, wait_until

ECHO = "tests.apps:echo"
WORKERS = 3
SOURCES = [f"127.0.{number}.7" for number in range(1, 13)]
USERS = [f"user-{number}" for number in range(12)]


class Running(NamedTuple):
    """The cluster, and the port of each way to find a key."""

    handle: limpet.Handle
    ports: dict[str, int]

    def ask(self, way: str, source: str = "127.0.0.1", path: str = "/", **headers: str) -> Any:
        """Return what the application says on a new connection from *source*."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.ports[way], timeout=PATIENCE_S, source_address=(source, 0)
        )
        try:
            reply = fetch(connection, path, **headers)  # type: ignore[arg-type]
        finally:
            connection.close()
        assert reply.status == 200, reply
        return reply.json()

    def homes(self, element: str, keys: list[str]) -> dict[str, int]:
        """Return the slot of each key, all slots being used."""
        answer = self.handle.where(*(f"{element}={key}" for key in keys))
        found = {key: entry["slot"] for key, entry in zip(keys, answer, strict=True)}
        assert set(found.values()) == set(range(WORKERS))
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Return a cluster that all tests share; its secret is the tests' own, since homes are compared."""
    place = tmp_path_factory.mktemp("parity")
    (place / "secret").touch(mode=0o600)
    (place / "secret").write_text("5a" * 32)
    cluster = limpet.Cluster(
        workers=WORKERS, secret_file=str(place / "secret"), control=str(place / "control"), trust=["127.0.0.1"]
    )
    ways: dict[str, Any] = {
        "default": None,
        "header": limpet.Header("x-forwarded-for"),
        "forwarded": limpet.Forwarded(),
        "request": parity_keys.of_request,
        "peer": parity_keys.of_peer,
    }
    for by in ways.values():
        cluster.listen(ECHO, 0, by=by)
    with cluster.start() as handle:
        ports = [int(address.rpartition(":")[2]) for address in handle.addresses]
        yield Running(handle, dict(zip(ways, ports, strict=True)))


def test_listen_starts_workers_and_each_address_has_one(running: Running) -> None:
    """Row `listen(server, port)`: one port, N workers, one of them for each client address."""
    homes = running.homes("ip", SOURCES)
    assert {source: running.ask("default", source)["slot"] for source in SOURCES} == homes
    pids = {slot["pid"] for slot in running.handle.status()["slots"]}
    assert len(pids) == WORKERS


def test_listen_gives_the_program_a_handle_and_the_workers_nothing(running: Running) -> None:
    """Row `close handle in the master`: the program is neither a worker nor the supervisor."""
    status = running.handle.status()
    assert os.getpid() not in {status["pid"], *(slot["pid"] for slot in status["slots"])}
    with pytest.raises(RuntimeError, match="not a limpet worker"):
        limpet.current_worker()


def test_number_of_workers_is_an_option_and_the_cpus_by_default(running: Running) -> None:
    """Row `options.workers`."""
    from limpet.config.settings import load, usable_cpus

    assert len(running.handle.status()["slots"]) == WORKERS
    assert load({"app": ECHO}, {}).workers == usable_cpus()


def test_address_is_the_key_by_default_and_no_header_is_read(running: Running) -> None:
    """Row `default balancing`: a header chooses nothing that nobody asked to look at."""
    asked = {running.ask("default", SOURCES[0], x_forwarded_for=f"203.0.113.{n}")["slot"] for n in range(8)}
    assert asked == {running.homes("ip", SOURCES)[SOURCES[0]]}


def test_header_can_be_the_key(running: Running) -> None:
    """Row `proxyHeader`, taken as it is."""
    homes = running.homes("header:x-forwarded-for", USERS)
    assert {user: running.ask("header", x_forwarded_for=user)["slot"] for user in USERS} == homes


def test_address_that_a_trusted_proxy_reports_can_be_the_key(running: Running) -> None:
    """Row `proxyHeader`, done right: the address has the home that it has without a proxy, and nobody can forge it."""
    homes = running.homes("ip", SOURCES)
    reported = {source: running.ask("forwarded", x_forwarded_for=f"6.6.6.6, {source}") for source in SOURCES}
    assert {source: reply["slot"] for source, reply in reported.items()} == homes
    forged = {running.ask("forwarded", SOURCES[0], x_forwarded_for=f"203.0.113.{n}")["slot"] for n in range(8)}
    assert forged == {homes[SOURCES[0]]}


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        ("str", USERS),
        ("bytes", USERS),
        ("int", [str(n) for n in range(40, 52)]),
        ("ints", [f"10,0,0,{n}" for n in range(12)]),
    ],
)
def test_function_of_a_request_gives_the_key(running: Running, form: str, keys: list[str]) -> None:
    """Row `generatePrehashArray`: bytes, text, a number or an iterable of numbers."""
    homes = running.homes("python:tests.parity_keys:of_request", keys)
    found = {key: running.ask("request", path=f"/?key={key}", x_form=form)["slot"] for key in keys}
    assert found == homes


def test_function_of_a_request_may_have_no_answer(running: Running) -> None:
    """Row `generatePrehashArray`, where undefined killed the master: such clients are placed."""
    assert {running.ask("request", x_form="nothing")["slot"] for _ in range(2 * WORKERS)} == set(range(WORKERS))


def test_function_of_a_peer_gives_the_key(running: Running) -> None:
    """Row `generatePrehashArrayNoParsing`: nothing of the client is read, and it is at home by its socket alone."""
    homes = running.homes("python:tests.parity_keys:of_peer", [source.split(".")[2] for source in SOURCES])
    for source in SOURCES:
        assert running.ask("peer", source)["slot"] == homes[source.split(".")[2]]


def test_contradiction_is_an_error_at_the_start() -> None:
    """Row `TypeError at start`: there is one chain, and what can never be is said before anything starts."""
    with pytest.raises(SettingsError, match="key chain"):
        limpet.listen(ECHO, 0, by=[])
    with pytest.raises(SettingsError, match="is not an element"):
        limpet.listen(ECHO, 0, by="proxyHeader")


def test_client_has_one_worker_on_every_port(running: Running) -> None:
    """Row `several listen() calls`: they share workers and secret."""
    for source in SOURCES:
        assert running.ask("default", source)["slot"] == running.ask("forwarded", source)["slot"]


def test_worker_knows_its_id(running: Running) -> None:
    """Row `cluster.worker.id`: the slot that the environment names is the one that status names."""
    by_slot = {slot["slot"]: slot["pid"] for slot in running.handle.status()["slots"]}
    replies = [running.ask("default", source) for source in SOURCES]
    assert {reply["slot"]: reply["pid"] for reply in replies} == by_slot


def test_dead_worker_is_replaced_for_the_same_clients(running: Running) -> None:
    """Row `a dead worker is replaced`, and the defect that everybody moved."""
    before = {source: running.ask("default", source) for source in SOURCES}
    victim = before[SOURCES[0]]
    os.kill(victim["pid"], signal.SIGKILL)

    def replaced() -> bool:
        slot = running.handle.status()["slots"][victim["slot"]]
        return bool(slot["state"] == "ready" and slot["pid"] != victim["pid"])

    wait_until(replaced, "the worker is replaced")
    after = {source: running.ask("default", source) for source in SOURCES}
    assert {s: reply["slot"] for s, reply in after.items()} == {s: reply["slot"] for s, reply in before.items()}
    for source, reply in after.items():
        assert (reply["pid"] == before[source]["pid"]) == (reply["slot"] != victim["slot"])


def test_hundred_requests_are_answered(running: Running) -> None:
    """The reference's own first scenario: a hundred requests, at once, each with its answer."""
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        replies = list(clients.map(lambda n: running.ask("default", path=f"/{n}"), range(100)))
    assert [reply["path"] for reply in replies] == [f"/{n}" for n in range(100)]
    assert len({reply["pid"] for reply in replies}) == 1


def test_two_clients_behind_a_proxy_reach_two_workers_of_eight(tmp_path: Path) -> None:
    """The reference's own second scenario; `where` chooses two clients of different homes, where theirs were lucky."""
    options: dict[str, Any] = {"state_dir": str(tmp_path), "control": str(tmp_path / "control")}
    with limpet.listen(ECHO, 0, workers=8, by=limpet.Header("x-forwarded-for"), **options) as handle:
        running = Running(handle, {"header": int(handle.address.rpartition(":")[2])})
        clients = [f"203.0.113.{number}" for number in range(1, 100)]
        homes = {client: entry["slot"] for client, entry in zip(clients, handle.where(*clients), strict=True)}
        first = clients[0]
        second = next(client for client in clients if homes[client] != homes[first])
        served = [running.ask("header", x_forwarded_for=client)["pid"] for client in (first, second) * 10]
        assert len(set(served)) == 2
        assert served[0::2] == [served[0]] * 10


def test_homes_are_the_same_after_a_restart(tmp_path: Path) -> None:
    """Row `random per-start seed`: the secret is kept, so that a restart moves nobody."""
    options: dict[str, Any] = {"workers": 2, "state_dir": str(tmp_path), "control": str(tmp_path / "control")}
    found = []
    for _ in range(2):
        with limpet.listen(ECHO, 0, by="header:x-user", **options) as handle:
            found.append([entry["slot"] for entry in handle.where(*USERS)])
    assert found[0] == found[1]
