"""Each server on each backend keeps the same promises; docs/servers.md has the table that conftest.py makes of it."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.sync.client import connect

from limpet.config.server_kinds import KINDS
from tests.harness import PATIENCE_S, Limpet, fetch, wait_until
from tests.matrix.variants import VARIANTS, Variant
from tests.wire import Wire, request

pytestmark = pytest.mark.matrix
WORKERS = 2
PARALLEL = 64
SOURCES = [f"127.0.0.{number}" for number in range(2, 18)]
USERS = [f"user{number}" for number in range(12)]


class Case(NamedTuple):
    """One row on one backend."""

    variant: Variant
    backend: str

    def __str__(self) -> str:
        words = (self.variant.server, *self.variant.arguments, self.variant.app.rpartition(":")[2], self.backend)
        return "-".join(word.removeprefix("--") for word in words)

    def limpet(self, *more: str, gate: Path | None = None, bind: str = "127.0.0.1:0") -> Limpet:
        """Return a server of this case."""
        arguments = ("--server", self.variant.server, *self.variant.arguments, "--workers", str(WORKERS))
        env = {} if gate is None else {"TEST_GATE": str(gate)}
        return Limpet(self.variant.app, *arguments, "--backend", self.backend, *more, env=env, bind=bind)


CASES = [Case(variant, backend) for variant in VARIANTS for backend in variant.backends]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Return one case; all tests of one come before those of the next."""
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def gate(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file that lets a response at `/gated` end once it exists."""
    return tmp_path_factory.mktemp("gate") / "gate"


@pytest.fixture(scope="module")
def running(case: Case, gate: Path) -> Iterator[Limpet]:
    """Return the server of this case, by address, that its tests share; the last one stops it."""
    with case.limpet(gate=gate) as limpet:
        yield limpet


def test_keep_alive(case: Case, running: Limpet) -> None:
    """A connection for each request would cost more than all the rest."""
    with running.connection() as connection:
        pids = set()
        for _ in range(3):
            pids.add(fetch(connection).json()["pid"])
            assert (connection.sock is not None) == case.variant.keeps_alive
        assert len(pids) == 1
    if not case.variant.keeps_alive:
        pytest.skip("no")


def test_client_address(running: Limpet) -> None:
    """The application sees address and port of the client's own socket: no proxy is in between."""
    with running.connection("127.0.0.9") as connection:
        connection.connect()
        name = list(connection.sock.getsockname())
        assert fetch(connection).json()["client"] == name


def test_body_of_300_kb(running: Limpet) -> None:
    """It does not fit into one read, nor into what a dispatcher has looked at."""
    body = bytes(range(256)) * 1200
    reply = running.request("/", "POST", body).json()
    assert (reply["size"], reply["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_64_in_parallel_by_ip(running: Limpet) -> None:
    """Each address reaches the slot that `limpet where` names, 64 at once, and again."""
    sources = (SOURCES * 4)[:PARALLEL]
    slots = {source: entry["slot"] for source, entry in zip(SOURCES, running.where(*SOURCES), strict=True)}
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
            replies = list(pool.map(lambda source: running.request(source=source).json(), sources))
        assert [reply["slot"] for reply in replies] == [slots[source] for source in sources]
    assert len({reply["pid"] for reply in replies}) == WORKERS


def test_websocket(case: Case, running: Limpet) -> None:
    """Sessions that live in a worker are mostly these."""
    if not case.variant.websocket:
        assert not (KINDS[case.variant.server].websocket and case.variant.app.endswith("asgi"))
        pytest.skip("none")
    url = running.url.replace("http", "ws") + case.variant.websocket
    with connect(url, open_timeout=PATIENCE_S) as websocket:
        assert json.loads(websocket.recv())["slot"] in range(WORKERS)
        websocket.send("x" * 100_000)
        assert len(websocket.recv()) == 100_000


def test_connections_count(case: Case, running: Limpet) -> None:
    """Placement goes by them, and a drain waits for them; docs/servers.md says which server shows none."""
    if KINDS[case.variant.server].takes != "any":
        pytest.skip("no")
    received = running.totals()["received"]
    with running.connection() as connection:
        fetch(connection)
        assert running.totals()["received"] == received + 1
    wait_until(lambda: not any(slot["connections"] for slot in running.status()["slots"]), "all have ended")


def test_kill(running: Limpet) -> None:
    """The clients of a killed worker find the next one in the same slot, wherever they wait meanwhile."""
    before = running.request(source=SOURCES[0]).json()
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: running.worker(before["slot"])["pid"] != before["pid"], "its death is noticed")
    after = running.request(source=SOURCES[0]).json()
    assert after["slot"] == before["slot"]
    assert after["pid"] != before["pid"]


def test_stop_with_a_request_in_flight(running: Limpet, gate: Path) -> None:
    """The response that has begun ends as it should, then the worker does; nothing went wrong in all of this case."""
    running.wait_ready(0), running.wait_ready(1)
    with running.connection() as connection:
        connection.request("GET", "/gated")
        response = connection.getresponse()
        assert response.read(1) == b"{"
        running.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in running.log, "the stop begins")
        gate.touch()
        assert json.loads(b"{" + response.read())["slot"] in range(WORKERS)
    assert running.wait_ended() == 0
    assert "Traceback" not in running.log


def test_by_header(case: Case) -> None:
    """One connection carries many users, and each reaches the own slot: it moves, or ends with each response."""
    kind = KINDS[case.variant.server]
    if case.backend == "kernel" or not kind.http:
        pytest.skip("refused" if not kind.http else "not on this backend")
    if not kind.closes:
        pytest.skip("first request of a connection")
    with case.limpet("--by", "header:x-user") as limpet:
        slots = [entry["slot"] for entry in limpet.where(*USERS)]
        with limpet.connection() as pooled:
            for user, slot in [*zip(USERS, slots, strict=True)] * 2:
                reply = fetch(pooled, x_user=user)
                assert reply.json()["slot"] == slot
                if not kind.moves:
                    assert reply.headers["connection"].lower() == "close"
        assert len(set(slots)) == WORKERS
    if not kind.moves:
        pytest.skip("yes, a connection each")


@pytest.mark.parametrize("first", ["unix", "tcp"])
def test_unix_socket(case: Case, tmp_path: Path, first: str) -> None:
    """Its clients have no address, mostly not even a name; those of a bind of TCP beside it have theirs."""
    if case.backend == "kernel":
        pytest.skip("not on this backend")
    path = str(tmp_path / "socket")
    binds = [f"unix:{path}", "127.0.0.1:0"]
    with case.limpet("--bind", ",".join(binds if first == "unix" else binds[::-1]), bind="") as limpet:
        for name in ("", str(tmp_path / "client"), "\0abc"):  # the last is as long as an address of IPv6
            with Wire(path, name) as wire:
                reply = wire.send(request()).reply().json()
                assert reply["slot"] in range(WORKERS)
        with limpet.connection("127.0.0.9") as connection:
            assert fetch(connection).json()["client"][0] == "127.0.0.9"
        assert limpet.stop() == 0
        assert "Traceback" not in limpet.log
