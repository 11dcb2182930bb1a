"""The general door: programs and adapters of the user's own, and servers that would never accept anybody."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat
from tests.harness import PATIENCE_S, Limpet, limpet_command, wait_until
from tests.matrix import programs
from tests.matrix.facts import response

PROGRAM = "tests.matrix.programs:"


def adapter(app: Any, seat: Seat) -> None:
    """An adapter of ten lines: it answers each connection once. docs/own-server.md shows it."""
    door = Door(seat)
    over = threading.Event()
    door.on_stop(over.set)
    listener = door.listener()
    listener.settimeout(0.1)
    while not over.is_set():
        try:
            connection, client = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.sendall(app(client))


def greeting(client: Any) -> bytes:
    """The application of that adapter."""
    return response(client, b"")


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
@pytest.mark.parametrize("program", ["threads", "uvicorn_on_uvloop"])
def test_program_serves_on_the_listener(program: str, backend: str) -> None:
    """Blocking, and on the loop that ignores what it is given: all clients come, and the stop is clean."""
    with Limpet(PROGRAM + program, "--server", "script", "--workers", "2", "--backend", backend) as limpet:
        pids = {limpet.request(source=f"127.0.0.{number}").json()["pid"] for number in range(2, 12)}
        assert len(pids) == 2
        assert limpet.stop() == 0
        assert "Traceback" not in limpet.log


def test_program_that_knows_no_signal_ends_with_its_connections(tmp_path: Path) -> None:
    """It is not cut off in the middle of a response."""
    gate = tmp_path / "gate"
    arguments = (PROGRAM + "threads", "--server", "script", "--workers", "1", "--backend", "dispatcher")
    with Limpet(*arguments, env={"TEST_GATE": str(gate)}) as limpet, limpet.connection() as connection:
        connection.request("GET", "/gated")
        response = connection.getresponse()
        limpet.signal(signal.SIGTERM)
        wait_until(lambda: refuses(limpet.port), "nobody new is let in")
        assert limpet.running
        gate.touch()
        assert b"slot" in response.read()
        connection.close()
        assert limpet.wait_ended() == 0


def refuses(port: int) -> bool:
    """Return whether nobody listens there."""
    with socket.socket() as probe:
        probe.settimeout(PATIENCE_S)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_server_that_never_accepts_is_refused_at_the_start() -> None:
    """It would come up, and every client would wait for ever."""
    arguments = (PROGRAM + "deaf", "--server", "script", "--workers", "1", "--backend", "dispatcher")
    with Limpet(*arguments, "--start-timeout", "12").launched() as limpet:
        assert limpet.wait_ended() == 4
    assert "did not call its `accept` within 3 s, so it would never serve a client" in limpet.log
    assert "hint: `--by ip --backend kernel`" in limpet.log


def test_program_that_ends_at_once_is_told_of() -> None:
    """A worker that is gone before it was ready is a failed start."""
    with Limpet(PROGRAM + "ends", "--server", "script", "--workers", "1").launched() as limpet:
        assert limpet.wait_ended() == 4
    assert f"`{PROGRAM}ends` returned before it accepted anybody" in limpet.log


def test_adapter_of_the_users_own_serves() -> None:
    """Whoever has a server that limpet does not know writes ten lines."""
    app = "tests.real.test_door:greeting"
    with Limpet(app, "--server", "tests.real.test_door:adapter", "--workers", "2", "--backend", "dispatcher") as limpet:
        assert limpet.request().json()["slot"] == limpet.where("127.0.0.1")[0]["slot"]
        wait_until(lambda: not any(slot["connections"] for slot in limpet.status()["slots"]), "all have ended")
        assert limpet.totals()["received"] == 1
        assert limpet.stop() == 0


def test_listener_outside_of_such_a_worker_says_what_to_do() -> None:
    """Not an object without a meaning."""
    with pytest.raises(RuntimeError, match="limpet run --server script"):
        programs.deaf()


def test_chain_that_reads_requests_is_warned_of_where_only_the_first_counts() -> None:
    """limpet cannot end the connections of a server that it does not know."""
    arguments = (PROGRAM + "threads", "--server", "script", "--by", "header:x-user", "--workers", "1")
    with Limpet(*arguments) as limpet:
        assert (
            "WARNING a client's key is in each request, but limpet sees only the first request of a connection"
            in limpet.log
        )


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_reload_loses_nobody(backend: str) -> None:
    """A server that knows nothing of limpet stops accepting in time, and its successor takes over."""
    arguments = (PROGRAM + "threads", "--server", "script", "--workers", "2", "--backend", backend)
    over = threading.Event()

    def ask(source: str) -> set[int]:
        pids = set()
        while not over.is_set():
            pids.add(limpet.request(source=source).json()["pid"])
        return pids

    with Limpet(*arguments) as limpet, concurrent.futures.ThreadPoolExecutor() as pool:
        clients = [pool.submit(ask, f"127.0.0.{number}") for number in range(2, 8)]
        try:
            assert limpet_command("reload", "--control", limpet.control).returncode == 0
        finally:
            over.set()
        assert len(set().union(*(client.result() for client in clients))) == 4


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_worker_ends_after_its_supervisor(backend: str) -> None:
    """An orphan would keep the port, and nobody would know of it."""
    arguments = (PROGRAM + "threads", "--server", "script", "--workers", "1", "--backend", backend)
    with Limpet(*arguments).launched() as limpet:
        limpet.wait_serving()
        limpet.request()
        limpet.signal(signal.SIGKILL)
        limpet.wait_gone()


def test_stop_serves_who_waits_in_the_channel(tmp_path: Path) -> None:
    """Their connections were accepted, so to them the server has let them in, though it was busy at that moment."""
    gate = tmp_path / "gate"
    arguments = (PROGRAM + "busy", "--server", "script", "--workers", "1", "--backend", "dispatcher")
    with Limpet(*arguments, env={"TEST_GATE": str(gate)}) as limpet, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(limpet.connection()) for _ in range(20)]
        clients[0].request("GET", "/gated")
        wait_until(lambda: limpet.totals()["received"] == 1, "the server is busy with the first")
        for client in clients[1:]:
            client.request("GET", "/")
        wait_until(lambda: limpet.worker(0)["queued"] == len(clients) - 1, "all others wait")
        limpet.signal(signal.SIGTERM)
        wait_until(lambda: limpet.worker(0)["state"] == "draining", "the worker drains")
        gate.touch()
        assert [client.getresponse().status for client in clients] == [200] * len(clients)
        assert limpet.wait_ended() == 0
