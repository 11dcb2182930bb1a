"""Trailers on every server: what comes behind a chunked body is never taken for a header of the request."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from limpet.config.server_kinds import KINDS
from limpet.system.proc import memory
from tests.harness import Limpet, wait_until
from tests.wire import Wire, request

TRAILERS = b"0\r\nX-User: evil\r\nX-Forwarded-For: 6.6.6.6\r\nX-Verified: evil\r\n\r\n"
HEADERS = {"transfer_encoding": "chunked", "x_user": "ada", "x_forwarded_for": "1.2.3.4"}
MOST_MIB = 8  # for 9 MB of trailers; as headers they are 275
REFUSE = ("tornado", "sanic")  # all others drop them: docs/servers.md
CLASSES = ("gthread", "sync", "gevent", "asgi", "uvicorn-worker")
HTTP = [name for name, kind in KINDS.items() if kind.http and name not in ("socketserver", "script")]


class Case(NamedTuple):
    """One server, with what makes it another one underneath."""

    server: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.server, *(part.strip("-") for part in self.arguments)])

    @property
    def app(self) -> str:
        """Return the application of its kind."""
        interface = KINDS[self.server].interface
        if self.server == "gunicorn":
            interface = "asgi" if self.arguments[1] in ("asgi", "uvicorn-worker") else "wsgi"
        return f"tests.header_apps:{interface if interface in ('asgi', 'wsgi') else self.server}"


CASES = [
    *(Case(name) for name in HTTP if name not in ("uvicorn", "gunicorn")),
    *(Case("gunicorn", ("--worker-class", name)) for name in CLASSES),
    *(Case("uvicorn", ("--http", name)) for name in ("httptools", "h11")),
    Case("hypercorn", ("--loop", "trio")),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("began")


@pytest.fixture(scope="module")
def server(case: Case, began: Path) -> Iterator[Limpet]:
    flags = ("--workers", "1", "--backend", "kernel", "--by", "ip", "--trust", "127.0.0.1", "--server", case.server)
    with Limpet(case.app, *flags, *case.arguments, env={"TEST_BEGAN": str(began)}) as server:
        yield server


def _told(wire: Wire, case: Case) -> str:
    """Return what the application has seen, nothing if its server has refused the request."""
    reply = wire.reply()
    assert reply.status == (400 if case.server in REFUSE else 200)
    if reply.status == 400:
        return ""
    seen = json.loads(reply.body)
    assert seen["size"] == 3
    return f"{seen['before']} {seen['after']}"


def test_trailers_that_come_with_the_head_are_no_headers(case: Case, server: Limpet) -> None:
    """Behind a proxy that sets a header the application would see two values, and the second one is anybody's."""
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/one", "POST", **HEADERS) + b"3\r\nabc\r\n" + TRAILERS)
        told = _told(wire, case)
    assert "evil" not in told
    assert "6.6.6.6" not in told


def test_trailers_that_come_later_are_no_headers(case: Case, server: Limpet, began: Path) -> None:
    """The application may look at its headers at any time, also when it has read the body."""
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/later", "POST", **HEADERS) + b"3\r\nabc\r\n")
        with contextlib.suppress(AssertionError):  # some servers begin when the body is whole
            wait_until((began / "later").exists, "the application has begun", 1)
        wire.send(TRAILERS)
        told = _told(wire, case)
    assert "evil" not in told
    assert "6.6.6.6" not in told


def test_trailers_are_no_part_of_the_next_request(server: Limpet, began: Path) -> None:
    """What a proxy has passed on as the end of one request must not become the beginning of another one's."""
    smuggled = b"0\r\nX-GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    for trailers in (TRAILERS, smuggled, b"0\r\nX: y\r\n\r\n"):
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request("/first", "POST", **HEADERS) + b"3\r\nabc\r\n" + trailers)
            wire.send(request("/second", connection="close"))
            seen = b"".join(iter(lambda: wire.sock.recv(65536), b""))
        assert b"evil" not in seen
        assert seen.count(b"HTTP/1.1 ") <= 2
    assert not (began / "smuggled").exists()


def test_trailers_cost_no_memory(server: Limpet) -> None:
    """They are kept nowhere, or refused: else each client could have as much of the machine as it sends."""
    pid = server.worker(0)["pid"]
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/warm", "POST", **HEADERS) + b"3\r\nabc\r\n0\r\n\r\n")
        wire.reply()
    before = memory(pid)
    with Wire(("127.0.0.1", server.port)) as wire, contextlib.suppress(OSError):  # it may end in the midst
        wire.send(request("/many", "POST", **HEADERS) + b"3\r\nabc\r\n0\r\n" + b"x: y\r\n" * 1_500_000)
    grown = (memory(pid) - before) >> 20
    assert grown < MOST_MIB
