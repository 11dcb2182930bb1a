"""Every server with every backend that it can have: the same promises, whatever serves the application."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.sync.client import connect

from limpet.config.server_kinds import KINDS
from tests.harness import PATIENCE_S, Limpet, fetch, wait_until

SERVERS = {name: KINDS[name] for name in ("uvicorn", "hypercorn", "granian", "gunicorn")}  # all: tests/matrix
WORKERS = 2
SOURCES = [f"127.0.0.{number}" for number in range(2, 14)]


class Case(NamedTuple):
    """One cell of the matrix."""

    server: str
    backend: str
    loop: str = "auto"

    def arguments(self, *more: str) -> tuple[str, ...]:
        """Return what starts it."""
        app = f"tests.server_apps:{SERVERS[self.server].interface}"
        return (app, "--server", self.server, "--loop", self.loop, "--workers", str(WORKERS), *more)

    def __str__(self) -> str:
        return "-".join(self)


CASES = [
    Case(server, backend)
    for server, kind in SERVERS.items()
    for backend in ("kernel", "dispatcher")
    if backend == "kernel" or kind.takes == "any"
]
CASES_ON_DEFAULT_LOOP = CASES.copy()
CASES += [Case("hypercorn", "kernel", "asyncio"), Case("hypercorn", "dispatcher", "asyncio")]
UNMOVING = [case for case in CASES if case.backend == "dispatcher" and not SERVERS[case.server].moves]


def ends_with(connection: http.client.HTTPConnection) -> bool:
    """Return whether the response to one more request ends *connection*."""
    return fetch(connection).headers.get("connection", "").lower() == "close"


def states(pid: int) -> set[str]:
    """Return the states of all threads of a process."""
    return {path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")}


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Return one cell; all tests of one come before those of the next."""
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def running(case: Case) -> Iterator[Limpet]:
    """Return a server of this cell that all of its tests share."""
    with Limpet(*case.arguments("--backend", case.backend)) as limpet:
        yield limpet


def test_connection_stays_open_for_the_next_request(running: Limpet) -> None:
    """A connection per request would cost more than all the rest."""
    with running.connection() as connection:
        pids = set()
        for _ in range(3):
            pids.add(fetch(connection).json()["pid"])
            sock = connection.sock
            assert sock is not None
        assert len(pids) == 1


def test_application_sees_the_address_of_its_client(running: Limpet) -> None:
    """Whoever accepted the connection, no proxy is in between."""
    with running.connection("127.0.0.9") as connection:
        reply = fetch(connection)
        assert reply.json()["client"] == list(connection.sock.getsockname())
        assert reply.json()["scheme"] == "http"


def test_large_body_arrives_whole(running: Limpet) -> None:
    """300 kB do not fit into one read, nor into what a dispatcher has looked at."""
    body = bytes(range(256)) * 1200
    reply = running.request("/", "POST", body).json()
    assert (reply["size"], reply["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_every_address_has_its_slot_in_parallel_and_again(running: Limpet) -> None:
    """32 clients at once reach the worker that `limpet where` names, and do so again."""
    sources = list(itertools.islice(itertools.cycle(SOURCES), 32))
    slots = {source: entry["slot"] for source, entry in zip(SOURCES, running.where(*SOURCES), strict=True)}
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            replies = list(pool.map(lambda source: running.request(source=source).json(), sources))
        assert [reply["slot"] for reply in replies] == [slots[source] for source in sources]
    assert len({reply["pid"] for reply in replies}) == WORKERS


def test_websocket_is_served(case: Case, running: Limpet) -> None:
    """Sessions that live in a worker are mostly these."""
    if not SERVERS[case.server].websocket:
        pytest.skip("WSGI has none")
    with connect(running.url.replace("http", "ws"), open_timeout=PATIENCE_S) as websocket:
        assert json.loads(websocket.recv())["slot"] in range(WORKERS)
        websocket.send("x" * 100_000)
        assert len(websocket.recv()) == 100_000


def test_failing_request_does_not_end_the_worker(running: Limpet) -> None:
    """An exception of the application is a response of 500."""
    pid = running.request().json()["pid"]
    assert running.request("/raise").status == 500
    assert running.request().json()["pid"] == pid


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_connection_that_the_application_has_closed_is_counted_off_once(backend: str) -> None:
    """simple-websocket, which Flask-SocketIO uses, closes the socket itself when a websocket ends."""
    arguments = Case("gunicorn", backend).arguments("--backend", backend, "--workers", "1")
    with Limpet(*arguments) as limpet:
        pid = limpet.worker(0)["pid"]
        assert [limpet.request("/taken").body for _ in range(3)] == [b"taken"] * 3
        assert limpet.request().status == 200
        wait_until(lambda: limpet.worker(0)["connections"] == 0, "no connection is left")
        assert limpet.worker(0)["pid"] == pid


def test_requests_and_connections_are_counted(case: Case, running: Limpet) -> None:
    """Placement goes by connections; docs/servers.md says which server shows none."""
    before = running.totals()["requests"]
    with running.connection() as connection:
        slot = fetch(connection).json()["slot"]
        wait_until(lambda: running.totals()["requests"] > before, "the request counts")
        if SERVERS[case.server].takes == "any":
            assert running.worker(slot)["connections"] == 1
    wait_until(lambda: running.worker(slot)["connections"] == 0, "the connection does not count any more")


def test_killed_worker_is_replaced_in_its_slot(running: Limpet) -> None:
    """Its clients find the next one, on their next connection, wherever they wait meanwhile."""
    before = running.request(source=SOURCES[0]).json()
    running.kill_worker(before["slot"], wait_for_next=False)
    after = running.request(source=SOURCES[0]).json()
    assert after["slot"] == before["slot"]
    assert after["pid"] != before["pid"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stop_finishes_what_is_in_flight(case: Case, tmp_path: Path) -> None:
    """The response that has begun ends as it should, then the worker does, and nobody new is let in."""
    gate = tmp_path / "gate"
    with Limpet(*case.arguments("--backend", case.backend), env={"TEST_GATE": str(gate)}) as limpet:
        with limpet.connection() as connection, limpet.connection() as idle:
            connection.request("GET", "/gated")
            response = connection.getresponse()
            assert response.read(1) == b"{"
            fetch(idle)
            limpet.signal(signal.SIGTERM)
            wait_until(lambda: ends_with(idle), "the idle client is told that its connection ends")
            gate.touch()
            assert json.loads(b"{" + response.read())["slot"] in range(WORKERS)
        assert limpet.wait_ended() == 0
        assert "Traceback" not in limpet.log


@pytest.mark.parametrize("case", CASES_ON_DEFAULT_LOOP, ids=str)
def test_stop_serves_who_waits_for_a_worker(case: Case) -> None:
    """Their connections were answered by the kernel, so to them the server has let them in."""
    with (
        Limpet(*case.arguments("--backend", case.backend, "--workers", "1")) as limpet,
        contextlib.ExitStack() as stack,
    ):
        worker = limpet.worker(0)["pid"]
        limpet.request()
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: states(worker) == {"T"}, "all threads of the worker stand still")
        clients = [stack.enter_context(limpet.connection()) for _ in range(40)]
        for client in clients:
            client.request("GET", "/")
        wait_until(lambda: limpet.worker(0)["queued"] == len(clients), "all of them wait")
        limpet.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in limpet.log, "the stop begins")
        os.kill(worker, signal.SIGCONT)
        assert [client.getresponse().status for client in clients] == [200] * len(clients)
        for client in clients:
            client.close()
        assert limpet.wait_ended() == 0


@pytest.mark.parametrize("case", CASES_ON_DEFAULT_LOOP, ids=str)
def test_workers_end_after_their_supervisor(case: Case) -> None:
    """An orphan would keep the port, and nobody would know of it."""
    with Limpet(*case.arguments("--backend", case.backend)).launched() as limpet:
        limpet.wait_serving()
        limpet.request()
        limpet.signal(signal.SIGKILL)
        limpet.wait_gone()


@pytest.mark.parametrize("server", SERVERS)
def test_application_sees_whom_a_trusted_proxy_reports(server: str) -> None:
    """Addresses, links and redirects of an application would be the proxy's own; and the log is limpet's."""
    with Limpet(*Case(server, "").arguments("--trust", "127.0.0.1", "--debug-header", "--access-log")) as limpet:
        reply = limpet.request(x_forwarded_for="203.0.113.7", x_forwarded_proto="https")
        assert (reply.json()["client"], reply.json()["scheme"]) == (["203.0.113.7", 0], "https")
        assert int(reply.headers["x-limpet-pid"]) == reply.json()["pid"]
        wait_until(lambda: re.search(r"^[\d:]{8} INFO    GET / 200 in ", limpet.log, re.MULTILINE), "the log line")


@pytest.mark.parametrize("server", [name for name, kind in SERVERS.items() if kind.interface == "asgi"])
def test_client_without_a_whole_head_is_let_go(server: str) -> None:
    """Connections of clients that never ask would add up. docs/servers.md says how gunicorn differs."""
    with Limpet(*Case(server, "").arguments("--head-timeout", "0.5", "--keep-alive-timeout", "0.5")) as limpet:
        for sent in (b"", b"GET / HT"):
            with socket.create_connection(("127.0.0.1", limpet.port), PATIENCE_S) as client:
                client.sendall(sent)
                while client.recv(4096):
                    pass


def test_gunicorn_takes_no_more_connections_than_it_has_descriptors_for() -> None:
    """Each thread needs one to wait for its client; without it gunicorn drops the connection."""
    arguments = Case("gunicorn", "").arguments("--workers", "1", "--threads", "4")
    with Limpet(*arguments, descriptors=(120, 120)) as limpet, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(limpet.connection()) for _ in range(100)]
        for client in clients:
            client.request("GET", "/", headers={"connection": "close"})
        assert [client.getresponse().status for client in clients] == [200] * len(clients)


@pytest.mark.parametrize("case", UNMOVING, ids=str)
def test_pooled_connection_with_mixed_users_is_never_misrouted(case: Case) -> None:
    """A server that cannot move connections ends each with its response, so each request is placed anew."""
    users = [f"user{number}" for number in range(20)]
    with Limpet(*case.arguments("--by", "header:x-user")) as limpet:
        assert f"each response closes its connection, because {case.server} cannot move it" in limpet.log
        slots = [entry["slot"] for entry in limpet.where(*users)]
        with limpet.connection() as pooled:
            for user, slot in [*zip(users, slots, strict=True)] * 3:
                reply = fetch(pooled, x_user=user)
                assert reply.json()["slot"] == slot
                assert reply.headers["connection"].lower() == "close"
                assert fetch(pooled, "/raise", x_user=user).headers["connection"].lower() == "close"
        assert len(set(slots)) == WORKERS


@pytest.mark.parametrize("case", UNMOVING, ids=str)
def test_only_the_first_request_of_a_connection_is_served(case: Case) -> None:
    """What a client sends ahead, or would send after a change to HTTP/2, may be another user's."""
    first = b"GET / HTTP/1.1\r\nhost: h\r\nx-user: a\r\n"
    upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    second = b"GET / HTTP/1.1\r\nhost: h\r\nx-user: b\r\n\r\n"
    with Limpet(*case.arguments("--by", "header:x-user")) as limpet:
        for sent in (first + b"\r\n" + second, first + upgrade + b"\r\n"):
            with socket.create_connection(("127.0.0.1", limpet.port), PATIENCE_S) as client:
                client.sendall(sent)
                received = b"".join(iter(lambda: client.recv(65536), b""))
            assert received.startswith(b"HTTP/1.1 200")
            assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("server", [name for name, kind in SERVERS.items() if kind.takes == "accepted"])
@pytest.mark.parametrize("arguments", [("--backend", "dispatcher"), ("--by", "header:x-user")])
def test_native_accept_is_refused_where_a_dispatcher_would_be(server: str, arguments: tuple[str, ...]) -> None:
    """It would start, and never serve anybody."""
    with Limpet(*Case(server, "").arguments(*arguments)).launched() as limpet:
        assert limpet.wait_ended() == 6
    assert f"{server} serves only connections that it accepts itself" in limpet.log
    assert "hint: `--by ip --backend kernel`" in limpet.log


@pytest.mark.parametrize("server", [name for name, kind in SERVERS.items() if kind.interface == "asgi"])
def test_failed_startup_ends_the_start_with_what_the_application_said(server: str) -> None:
    """A server that came up without its application would answer 500 to everybody."""
    with Limpet("tests.apps:fails_to_start", "--server", server, "--workers", "1").launched() as limpet:
        assert limpet.wait_ended() == 4
    assert "error: the start-up of `tests.apps:fails_to_start` failed" in limpet.log
    assert "RuntimeError: the database is not there" in limpet.log


def test_gunicorn_refuses_an_asgi_application() -> None:
    """Its threads call WSGI."""
    with Limpet("tests.apps:echo", "--server", "gunicorn", "--workers", "1").launched() as limpet:
        assert limpet.wait_ended() == 4
    assert "`gunicorn` serves WSGI alone" in limpet.log


@pytest.mark.parametrize("server", [name for name, kind in SERVERS.items() if kind.extra])
def test_server_that_is_not_installed_is_named_with_its_remedy(server: str, tmp_path: Path) -> None:
    """The base install has uvicorn alone."""
    (tmp_path / f"{server}.py").write_text(f"raise ModuleNotFoundError('No module named {server}', name='{server}')\n")
    with Limpet(*Case(server, "").arguments(), env={"PYTHONPATH": str(tmp_path)}).launched() as limpet:
        assert limpet.wait_ended() == 4
    assert f"hint: `pip install 'limpet[{SERVERS[server].extra}]'`" in limpet.log
