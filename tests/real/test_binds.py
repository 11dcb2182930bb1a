"""Binds with applications and key chains of their own, on the same workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

import limpet
from limpet.errors import SettingsError
from tests.harness import PATIENCE_S, Limpet, fetch, wait_until
from tests.traffic import homes

SHOP, ADMIN = "tests.bind_apps:shop", "tests.bind_apps:admin"
SOURCES = [f"127.0.{number}.3" for number in range(1, 7)]
USERS = [f"user-{number}" for number in range(12)]


@contextlib.contextmanager
def two(tmp_path: Path, admin: str, *arguments: str) -> Iterator[tuple[Limpet, int, int]]:
    """Serve both applications; give the server and their ports."""
    server = Limpet(
        SHOP,
        "--workers",
        "3",
        "--bind",
        admin,
        *arguments,
        bind="127.0.0.1:0",
        env={"TEST_NOTE": str(tmp_path / "note")},
    )
    server.arguments = [text for text in server.arguments if text != "127.0.0.1:0"]
    server.arguments[-1:] = ["--bind", "127.0.0.1:0"]
    with server:
        ports = {int(url.rpartition(":")[2]) for url in server.status()["binds"]}
        found = {ask(port)["app"]: port for port in ports}
        yield server, found["shop"], found["admin"]


def ask(port: int, **headers: Any) -> Any:
    """Return what the application at *port* says on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        return fetch(connection, **headers).json()
    finally:
        connection.close()


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_each_bind_has_its_application_and_a_client_one_home(http: str, tmp_path: Path) -> None:
    """A connection knows where it came in, also after it has moved, and a client is in one worker for both."""
    with two(tmp_path, f"127.0.0.1:0={ADMIN}", "--by", "header:x-user", "--http", http) as (server, shop, admin):
        slots = homes(server, USERS)
        assert set(slots.values()) == {0, 1, 2}
        for name, port in (("shop", shop), ("admin", admin)):
            with contextlib.closing(http_client(port)) as connection:  # of all users: it moves
                for user in USERS * 2:
                    assert fetch(connection, x_user=user).json() == {"app": name, "state": name, "slot": slots[user]}
            with connect(f"ws://127.0.0.1:{port}", additional_headers={"x-user": USERS[0]}) as page:
                assert json.loads(page.recv(PATIENCE_S))["app"] == name
        assert server.totals()["batons"]
    notes = Counter((tmp_path / "note").read_text().splitlines())
    assert notes == {f"lifespan.{kind} {name}": 3 for kind in ("startup", "shutdown") for name in ("shop", "admin")}


def http_client(port: int, source: str = "127.0.0.1") -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S, source_address=(source, 0))


def test_each_bind_has_its_application_on_the_kernel_backend(tmp_path: Path) -> None:
    """There the worker accepts itself, from a listener for each bind."""
    with two(tmp_path, f"127.0.0.1:0={ADMIN}", "--by", "ip", "--backend", "kernel") as (_, shop, admin):
        assert [ask(port)["app"] for port in (shop, admin, shop)] == ["shop", "admin", "shop"]


def test_each_bind_can_have_a_key_chain_of_its_own(tmp_path: Path) -> None:
    """What identifies a client depends on where it comes from: users at the front door, addresses at the back."""
    with two(tmp_path, f"127.0.0.1:0={ADMIN}?by=ip", "--by", "header:x-user") as (server, shop, admin):
        slots = homes(server, USERS)
        assert {user: ask(shop, x_user=user)["slot"] for user in USERS} == slots
        assert {ask(admin, x_user=user)["slot"] for user in USERS} == {server.where("ip=127.0.0.1")[0]["slot"]}
        with contextlib.closing(http_client(admin)) as connection:
            assert len({fetch(connection, x_user=user).json()["slot"] for user in USERS}) == 1
        assert server.status()["by"] == "ip | header:x-user"


def test_server_that_cannot_serve_several_applications_says_so(tmp_path: Path) -> None:
    """Rather than serve one of them everywhere."""
    with Limpet(SHOP, "--server", "hypercorn", "--bind", f"127.0.0.1:0={ADMIN}").launched() as server:
        assert server.wait_ended() == 2
        assert "cannot serve both in one worker" in server.log


def test_cluster_listens_with_several_applications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program says with objects what a command line says with text; each bind finds clients in its own way."""
    monkeypatch.setenv("TEST_NOTE", str(tmp_path / "note"))
    cluster = limpet.Cluster(workers=2, state_dir=str(tmp_path), control=str(tmp_path / "control"))
    cluster.listen(SHOP, 0, by=limpet.Affinity())
    cluster.listen(ADMIN, "127.0.0.1:0", by=[limpet.Header("x-user"), limpet.Path("^/(a{1,2})&[,]?")])
    cluster.listen("tests.real.test_stream:gated", 0, by="ip", server="stream")
    with cluster.start() as handle:
        shop, admin, feed = (int(address.rpartition(":")[2]) for address in handle.addresses)
        assert [ask(port)["app"] for port in (shop, admin)] == ["shop", "admin"]
        assert handle.status()["by"] == "affinity | header:x-user,path:^/(a{1,2})&[,]? | ip"
        with socket.create_connection(("127.0.0.1", feed), PATIENCE_S) as client:
            client.sendall(b"who\n")
            assert client.makefile().readline().split()[0] == str(handle.where("ip=127.0.0.1")[0]["slot"])
        for port, is_given in ((shop, True), (admin, False)):
            with contextlib.closing(http_client(port)) as connection:
                assert ("set-cookie" in fetch(connection).headers) == is_given


@pytest.mark.parametrize("backend", ["dispatcher", "kernel"])
def test_stream_beside_http_has_the_same_home_and_its_own_end(backend: str, tmp_path: Path) -> None:
    """A feed over plain TCP and the pages about it share what a worker has in memory, and one drain."""
    gate = tmp_path / "gate"
    bind = "127.0.0.1:0=tests.real.test_stream:gated?server=stream"
    arguments = ("--workers", "3", "--by", "ip", "--backend", backend, "--bind", bind)
    with Limpet("tests.apps:echo", *arguments, env={"TEST_GATE": str(gate)}) as server:
        feed, web = (int(url.rpartition(":")[2]) for url in server.status()["binds"])
        for source in SOURCES:
            [home] = server.where(source)
            with socket.create_connection(("127.0.0.1", feed), PATIENCE_S, (source, 0)) as client:
                client.sendall(b"who\n")
                assert client.makefile().readline() == f"{home['slot']} {home['pid']}\n"
            with contextlib.closing(http_client(web, source)) as connection:
                assert fetch(connection).json()["pid"] == home["pid"]
        wait_until(lambda: not server.status()["totals"]["connections"], "all connections are counted off")
        with socket.create_connection(("127.0.0.1", feed), PATIENCE_S) as client:
            client.sendall(b"wait\n")
            client.makefile().readline()
            server.signal()
            wait_until(lambda: "stopping" in server.log, "the server stops")
            gate.touch()
            client.sendall(b"who\n")
            client.shutdown(socket.SHUT_WR)
            assert client.makefile().read().endswith("bye\n")
        assert server.wait_ended() == 0


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        ("127.0.0.1:0=shop", "`127.0.0.1:0=shop` is not"),
        ("127.0.0.1:0=shop:", "`127.0.0.1:0=shop:` is not"),
        ("127.0.0.1:0?by=cookie", "`cookie` is not an element"),
        ("127.0.0.1:0?by=ip&by=ip", "`by=ip`"),
        ("127.0.0.1:0?server=apache", "unknown server `apache`"),
    ],
)
def test_mistake_in_a_bind_is_a_mistake_at_the_start(bind: str, says: str) -> None:
    """Nothing may be taken for part of a path or a host in silence."""
    with pytest.raises(SettingsError, match=re.escape(says)):
        limpet.listen(SHOP, bind)
