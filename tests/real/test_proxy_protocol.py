"""Clients that a proxy tells of by the PROXY protocol: who they are, who may say so, what becomes of the others."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet.config.router import build_router
from limpet.config.server_kinds import KINDS
from limpet.config.settings import load
from limpet.errors import LimpetError
from limpet.net.backend import choose
from limpet.protocol.proxy_protocol import Origin, write
from tests.harness import Limpet, fetch, wait_until
from tests.matrix.variants import VARIANTS, Variant
from tests.real.fronts import Front
from tests.wire import Wire, portions, request, upgrade

CLIENTS = [f"203.0.113.{number}" for number in range(1, 30)]
V1 = "PROXY TCP4 {} 10.0.0.9 4711 443\r\n"
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
REQUIRED = ["--proxy-protocol", "required"]
TRUSTING = [*REQUIRED, "--trust", "127.0.0.1"]


def v1(address: str) -> bytes:
    return V1.format(address).encode()


def v2(address: str) -> bytes:
    tlvs = b"\x04\x01\x00" + bytes(256)  # NOOP
    addresses = socket.inet_aton(address) + socket.inet_aton("10.0.0.9") + struct.pack(">HH", 4711, 443)
    return b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + struct.pack(">H", len(addresses + tlvs)) + addresses + tlvs


@pytest.fixture(scope="module")
def by_ip() -> Iterator[Limpet]:
    """A server whose clients are told apart by what the header says, and nothing is read of their requests."""
    flags = ["--by", "ip", "--workers", "3", "--head-timeout", "1", *TRUSTING]
    with Limpet("tests.apps:echo", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def by_user() -> Iterator[Limpet]:
    """A server whose connections move."""
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "3", *TRUSTING) as server:
        yield server


def tcp(server: Limpet, source: str | None = None) -> Wire:
    return Wire(("127.0.0.1", server.port), source)


def refused(server: Limpet, cell: str, data: bytes, source: str | None = None) -> None:
    """Send *data*; demand that the connection is closed without a byte, counted in *cell*, and served by nobody."""
    before = server.totals()
    with tcp(server, source) as wire, contextlib.suppress(ConnectionResetError):  # as for any bytes that nobody read
        assert wire.send(data).rest() == b""
    wait_until(lambda: server.totals()[cell] == before[cell] + 1, f"{cell} is counted")
    assert server.totals()["received"] == before["received"]


@pytest.mark.parametrize("header", [v1, v2])
def test_told_client_is_at_home_and_seen_by_the_application(by_ip: Limpet, header: Any) -> None:
    """All clients of a balancer in TCP mode have its address: without the header they would share one worker."""
    assert "backend dispatcher" in by_ip.log
    homes = {address: entry["slot"] for address, entry in zip(CLIENTS, by_ip.where(*CLIENTS), strict=True)}
    assert len(set(homes.values())) == 3
    for address in CLIENTS:
        with tcp(by_ip) as wire:
            wire.send(header(address) + request("/1"))
            for _ in range(2):
                told = wire.reply().json()
                assert (told["client"], told["slot"]) == ([address, 4711], homes[address])
                wire.send(request("/2"))


@pytest.mark.parametrize("server", ["by_ip", "by_user"])
@pytest.mark.parametrize("header", [v1, v2])
def test_header_in_any_pieces_is_taken_and_nothing_more(
    request_: pytest.FixtureRequest, server: str, header: Any
) -> None:
    """One byte too many would be missing in the request, one too few would stand before it."""
    limpet = request_.getfixturevalue(server)
    data = header("203.0.113.7") + request("/x", "POST", b"body", x_user="u")
    for cuts in (range(1, len(data)), [5], [len(data) - 4], [len(header("203.0.113.7"))]):
        with tcp(limpet) as wire:
            reply = wire.send(*portions(data, *cuts)).reply().json()
            assert (reply["client"], reply["path"], reply["size"]) == (["203.0.113.7", 4711], "/x", 4)


@pytest.fixture
def request_(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    """pytest's own `request`, whose name is taken here."""
    return request


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", LOCAL])
def test_proxy_that_speaks_for_itself_is_the_client(by_ip: Limpet, header: bytes) -> None:
    """A health check comes with such a header, and has nobody behind it."""
    with tcp(by_ip) as wire:
        assert wire.send(header + request()).reply().json()["client"] == ["127.0.0.1", wire.sock.getsockname()[1]]


def test_connection_takes_its_client_along_when_it_moves(by_user: Limpet) -> None:
    """The worker to which it moves, for the first time or again, has nobody else to ask: the header is gone."""
    users = [f"user-{number}" for number in range(12)]
    homes = {user: entry["slot"] for user, entry in zip(users, by_user.where(*users), strict=True)}
    with tcp(by_user) as wire:
        wire.send(v2("203.0.113.8"))
        for user in users * 2:
            told = wire.send(request("/", x_user=user)).reply().json()
            assert (told["client"], told["slot"]) == (["203.0.113.8", 4711], homes[user])
        before = by_user.totals()["returns"]
        assert before > 5
        assert wire.send(upgrade("/", x_user=users[0])).head()[0] == 101
        assert json.loads(wire.frame().payload)["client"] == ["203.0.113.8", 4711]


def test_idle_connection_keeps_its_client_over_a_reload(by_ip: Limpet) -> None:
    """A connection that a draining worker gives away comes to a process that never saw the header."""
    with tcp(by_ip) as wire:
        first = wire.send(v1("203.0.113.9") + request()).reply().json()
        by_ip.command("reload")
        second = wire.send(request()).reply().json()
    assert second["client"] == ["203.0.113.9", 4711]
    assert (first["slot"], first["pid"] != second["pid"]) == (second["slot"], True)


@pytest.mark.parametrize("data", [request(), b"\x16\x03\x01", b"PROXY TCP4 nobody\r\n" + request()])
def test_connection_without_a_header_is_closed_and_counted(by_ip: Limpet, data: bytes) -> None:
    """Whoever reaches the port past the proxy must not be served, and the operator must see it."""
    refused(by_ip, "proxy_headers_bad", data)
    assert "a connection from 127.0.0.1 was closed: " in by_ip.log


def test_untrusted_peer_is_closed_whatever_it_says(by_ip: Limpet) -> None:
    """A header of anybody would let every client choose its address, and so its worker."""
    refused(by_ip, "proxy_untrusted", v1("203.0.113.1") + request(), "127.0.0.2")
    assert "a connection from 127.0.0.2 was closed: the peer is not in `--trust`" in by_ip.log


@pytest.mark.parametrize("start", [b"", b"PROXY TCP4 203.0.113.1", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\xff"])
def test_header_has_an_absolute_deadline(by_ip: Limpet, start: bytes) -> None:
    """A byte now and then must not hold a connection for ever; nobody is there to read an answer."""
    refused(by_ip, "proxy_headers_bad", start)


def test_slow_request_behind_a_header_is_answered(by_user: Limpet) -> None:
    """Behind the header a client speaks HTTP, and is told in it what is wrong."""
    with tcp(by_user) as wire:
        assert wire.send(v1("203.0.113.1"), b"GET / HTTP/1.1\r\nbad header\r\n\r\n").reply().status == 400
    with tcp(by_user) as wire:
        assert wire.send(v1("203.0.113.1"), b"GET /", b" HTTP/1.1\r\n").half_close().reply().status == 400


def test_one_bind_may_require_it_and_another_not(tmp_path: Path) -> None:
    """A balancer on one address, and clients of the machine itself on another."""
    path = tmp_path / "sock"
    flags = ["--bind", f"unix:{path}?proxy-protocol=required", "--trust", "unix", "--by", "ip", "--workers", "2"]
    with Limpet("tests.apps:echo", *flags) as server:
        with Wire(str(path)) as wire:
            told = wire.send(write(Origin("2001:db8::7", 5, is_tls=True)) + request()).reply().json()
            assert (told["client"], told["scheme"]) == (["2001:db8::7", 5], "https")
            assert told["slot"] == server.where("2001:db8::7")[0]["slot"]
        with Wire(str(path)) as wire:
            assert wire.send(write(Origin(None, None)) + request()).reply().json()["client"] is None
        assert server.request().json()["client"][0] == "127.0.0.1"
        with server.connection() as connection:
            assert fetch(connection).json()["scheme"] == "http"


def refusal(given: dict[str, str]) -> str:
    """Return why a server with the settings *given* does not start."""
    try:
        settings = load({"app": "app:app", **given}, {})
        choose(settings, build_router(settings, b""))
    except LimpetError as error:
        return error.message
    return "it starts"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trust": ""}, "no client could connect"),
        ({"backend": "kernel"}, "the kernel backend is not available"),
        ({"server": "granian"}, "applications would see the proxy"),
        ({"server": "hypercorn", "loop": "trio"}, "applications would see the proxy"),
        ({"server": "stream", "loop": "uvloop"}, "applications would see the proxy"),
        ({"server": "gunicorn", "worker_class": "gevent"}, "applications would see the proxy"),
        ({"bind": "127.0.0.1:0?server=stream&proxy-protocol=required,127.0.0.1:1"}, "applications would see the proxy"),
        ({"bind": "127.0.0.1:0?proxy-protocol=maybe"}, "must be `off` or `required`"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(given: dict[str, str], says: str) -> None:
    """A server that shows its applications the proxy's address does so in silence."""
    assert says in refusal({"proxy_protocol": "required", "trust": "10.0.0.0/8", **given})


@pytest.mark.parametrize(
    ("front", "replaced"), [("haproxy tcp", {}), ("haproxy tcp", {"send_proxy_v2": "send-proxy"}), ("nginx stream", {})]
)
def test_behind_a_real_proxy_each_client_is_seen(by_ip: Limpet, front: str, replaced: dict[str, str]) -> None:
    """The proxies of the document, with its configuration."""
    homes = {f"127.0.0.{number}": 0 for number in range(2, 12)}
    homes = {address: entry["slot"] for address, entry in zip(homes, by_ip.where(*homes), strict=True)}
    with Front(front, by_ip.port, **replaced) as proxy:
        for address, slot in homes.items():
            with Wire(("127.0.0.1", proxy.port), address) as wire:
                told = wire.send(request()).reply().json()
                assert (told["client"], told["slot"]) == ([address, wire.sock.getsockname()[1]], slot)


UVLOOP = Variant("script", "tests.matrix.programs:uvicorn_on_uvloop")
QUICK = ("hypercorn", "gunicorn")
TOLD = [
    each
    for each in VARIANTS
    if KINDS[each.server].hears != "never"
    and not {"trio", "gevent", "asgi", "uvicorn-worker", UVLOOP.app} & {*each.arguments, each.app}
]


@pytest.mark.parametrize(
    "variant",
    [pytest.param(each, id=str(each), marks=[] if each.server in QUICK else [pytest.mark.slow]) for each in TOLD],
)
def test_server_shows_its_application_the_client(variant: Variant) -> None:
    """Each server learns the client's address in a way of its own."""
    flags = ["--server", variant.server, *variant.arguments, "--by", "ip", "--workers", "1", *TRUSTING]
    with Limpet(variant.app, *flags) as server, tcp(server) as wire:
        assert wire.send(v2("203.0.113.7") + request()).reply().json()["client"][0] == "203.0.113.7"


@pytest.mark.slow
def test_program_on_uvloop_is_refused() -> None:
    """uvloop asks the kernel, which knows the proxy alone; that it is uvloop shows when it accepts in vain."""
    with Limpet(UVLOOP.app, "--server", "script", "--by", "ip", "--workers", "1", *TRUSTING).launched() as server:
        assert server.wait_ended() == 4
        assert "if it runs on uvloop, `--loop asyncio`" in server.log
