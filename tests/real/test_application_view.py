"""What an application sees of a client and of its own place: what uvicorn alone would show it, and where it runs.

The comparison runs uvicorn itself, in a thread, on sockets like those of the server under test.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import random
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from limpet.config import bind
from limpet.net import listener
from tests.harness import Limpet, wait_until
from tests.wire import Address, Wire, chunked, request, upgrade
from tests.wire_app import seen

PLANS = [
    ("httptools", "websockets-sansio", "header:x-user"),
    ("httptools", "wsproto", "ip"),
    ("h11", "wsproto", "header:x-user"),
    ("h11", "websockets-sansio", "ip"),
]
BINDS = ["127.0.0.1:0", "[::1]:0", ":0", "unix"]
BODY = random.Random(3).randbytes(300_000)
HEAD = b"GET / HTTP/1.1\r\nHost: limpet.test\r\n"
REQUESTS = {
    "plain": HEAD + b"\r\n",
    "path": HEAD.replace(b"/ ", b"/a%20b%2Fc/%C3%A9/;x=1/../?q=%20+&q=2&&=%00? ", 1) + b"\r\n",
    "slashes": HEAD.replace(b"/ ", b"//other.test//x ", 1) + b"\r\n",
    "absolute": HEAD.replace(b"/ ", b"http://other.test:81/view?x=y ", 1) + b"\r\n",
    "headers": HEAD + b"X-A: 1\r\nx-a:\t 2 \r\nX-Empty:\r\nX-Latin: \xe9\r\nCookie: a=1; b\r\ncookie: c\r\n\r\n",
    "body": HEAD.replace(b"GET", b"PATCH") + b"Content-Length: 4\r\nContent-Type: text/x\r\n\r\nbody",
    "old": b"GET /old HTTP/1.0\r\n\r\n",
    "forwarded": HEAD + b"X-Forwarded-For: 198.51.100.7, 203.0.113.9:81, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n\r\n",
    "websocket": upgrade("/a%20b?q=%20", sec_websocket_protocol="b, a", cookie="a=1", x_forwarded_for="203.0.113.9"),
}


class View:
    """What the application of one server saw of a client; without the addresses, and these in `ends`."""

    def __init__(self, address: Address, asked: bytes) -> None:
        with Wire(address) as wire:
            self.own_ends = wire.sock.getsockname(), wire.sock.getpeername()
            wire.send(asked)
            if b"websocket" in asked:
                self.status, self.headers = wire.head()
                text = wire.frame().payload
            else:
                reply = wire.reply()
                self.status, self.headers, text = reply.status, reply.headers, reply.body
        self.scope: dict[str, str] = json.loads(text)
        self.ends = tuple(ast.literal_eval(self.scope.pop(name)) for name in ("client", "server"))


def sockets(folder: Path) -> list[socket.socket]:
    """Return sockets bound as `BINDS` are."""
    texts = [bind.replace("unix", f"unix:{folder}/uvicorn.sock") for bind in BINDS]
    return [listener.open(bind.Bind.parse(text), 100).sock for text in texts]


@contextlib.contextmanager
def alone(config: uvicorn.Config, folder: Path) -> Iterator[list[Address]]:
    """Run uvicorn by itself; yield its addresses in the order of `BINDS`."""
    with contextlib.ExitStack() as stack:
        server = uvicorn.Server(config)
        listening = [stack.enter_context(sock) for sock in sockets(folder)]
        thread = threading.Thread(target=server.run, args=(listening,))
        thread.start()
        try:
            wait_until(lambda: server.started, "uvicorn serves")
            yield [reach(sock.getsockname()) for sock in listening]
        finally:
            server.should_exit = True
            thread.join()


def reach(name: Any) -> Address:
    """Return where to connect to reach a listener with the name *name*."""
    return name if isinstance(name, str) else ("127.0.0.1" if name[0] == "::" else name[0], name[1])


def addresses(server: Limpet) -> list[Address]:
    """Return where to connect to reach the listeners of *server*, which are bound as `BINDS` are."""
    *urls, path = server.status()["binds"]
    ports = [int(url.rpartition(":")[2]) for url in urls]
    return [*zip(("127.0.0.1", "::1", "127.0.0.1"), ports, strict=True), path.removeprefix("unix:")]


@pytest.fixture(scope="module", params=PLANS, ids="-".join)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[Address], list[Address]]]:
    """The addresses of uvicorn alone and of limpet, of one application with the same options."""
    http, ws, chain = request.param
    folder = tmp_path_factory.mktemp("view")
    config = uvicorn.Config(
        seen, http=http, ws=ws, root_path="/under", proxy_headers=False, log_config=None, access_log=False
    )
    flags = ["--http", http, "--ws", ws, "--root-path", "/under", "--workers", "2", "--by", chain]
    for address in BINDS:
        flags += ["--bind", address.replace("unix", f"unix:{folder}/limpet.sock")]
    with alone(config, folder) as plain, Limpet("tests.wire_app:seen", *flags, bind="") as server:
        yield plain, addresses(server)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("bind", range(len(BINDS)), ids=BINDS)
def test_scope_is_what_uvicorn_alone_would_give(
    both: tuple[list[Address], list[Address]], name: str, bind: int
) -> None:
    """The worker owns the client's own socket: nothing is in between that could change what the application sees."""
    plain, ours = (View(addresses[bind], REQUESTS[name]) for addresses in both)
    assert ours.scope == plain.scope
    assert (ours.status, ours.headers.keys()) == (plain.status, plain.headers.keys())
    for view in (plain, ours):
        client, server = view.own_ends
        match BINDS[bind]:
            case "unix":
                assert view.ends == (None, (server, None))
            case ":0":
                assert view.ends == tuple((f"::ffff:{host}", port) for host, port in (client, server))
            case _:
                assert view.ends == (client[:2], server[:2])


@pytest.mark.parametrize("trust", [[], ["--trust", "127.0.0.1,10.0.0.0/8"]], ids=["nobody", "proxy"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_forwarded_client_is_shown_if_its_proxy_is_trusted(trust: list[str], kind: str) -> None:
    """`--trust` is the one word on who is believed, for the key and for the application; by default that is nobody."""
    forwarded = {"x_forwarded_for": "198.51.100.7, 203.0.113.9, 10.1.2.3", "x_forwarded_proto": "https"}
    asked = upgrade(**forwarded) if kind == "websocket" else request(**forwarded)
    with Limpet("tests.wire_app:seen", "--workers", "1", "--by", "forwarded", *trust) as server:
        view = View(("127.0.0.1", server.port), asked)
    schemes = {"http": "http", "websocket": "ws"}, {"http": "https", "websocket": "wss"}
    assert view.ends[0] == (("203.0.113.9", 0) if trust else view.own_ends[0])
    assert view.scope["scheme"] == repr(schemes[bool(trust)][kind])


def test_variable_that_uvicorn_reads_makes_nobody_trusted() -> None:
    """A setting has one name: what `FORWARDED_ALLOW_IPS` says would differ from what the key chain believes."""
    environment = {"FORWARDED_ALLOW_IPS": "*"}
    with Limpet("tests.wire_app:seen", "--workers", "1", env=environment) as server:
        view = View(("127.0.0.1", server.port), REQUESTS["forwarded"])
    assert view.ends[0] == view.own_ends[0]


@pytest.mark.parametrize("app", ["raw", "flask"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_wsgi_application_sees_its_client(app: str, http: str) -> None:
    """Host, address, path and body of any size and coding arrive as a WSGI application expects them."""
    flags = ["--factory", "--interface", "wsgi"] if app == "flask" else []
    digest = hashlib.sha256(BODY).hexdigest()
    with Limpet(f"tests.wsgi_app:{app}", "--by", "header:x-user", "--workers", "2", "--http", http, *flags) as server:
        headers = {"content_type": "text/x", "x_two_words": "1", "host": "limpet.test:81"}
        with Wire(("127.0.0.1", server.port), source="127.0.0.3") as wire:
            plain = wire.send(request("/a%20b/%C3%A9?q=%20", "POST", BODY, **headers)).reply().json()
            coded = request("/", "POST", transfer_encoding="chunked") + chunked([BODY[:100_000], BODY[100_000:]])
            assert wire.send(coded).reply().json()["sha256"] == digest
            client = wire.sock.getsockname()
    assert (plain["size"], plain["sha256"]) == (len(BODY), digest)
    expected = {
        "REMOTE_ADDR": client[0],
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/a b/é".encode().decode("latin-1"),
        "QUERY_STRING": "q=%20",
        "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": str(len(BODY)),
        "HTTP_HOST": "limpet.test:81",
        "HTTP_X_TWO_WORDS": "1",
        "scheme": "http",
    }
    assert {name: plain.get(name) for name in expected} == expected


@pytest.mark.parametrize("app", ["raw", "flask"])
def test_wsgi_application_streams(app: str) -> None:
    """What a generator yields leaves at once, not when the next piece or the end is there."""
    flags = ["--factory"] if app == "flask" else []
    with (
        Limpet(f"tests.wsgi_app:{app}", "--workers", "1", *flags) as server,
        Wire(("127.0.0.1", server.port)) as stream,
        Wire(("127.0.0.1", server.port)) as other,
    ):
        stream.send(request("/feed"))
        for event in (b"one", b"two", b"three"):
            assert other.send(request("/feed", "POST", event)).reply().body == b"sent"
            if event == b"one":
                assert stream.head()[0] == 200
            assert stream.chunk() == event
        other.send(request("/feed", "POST", b"")).reply()
        assert stream.chunk() == b""


@pytest.mark.parametrize("app", ["raw", "flask"])
def test_wsgi_application_never_takes_half_a_body_for_a_whole_one(app: str) -> None:
    """An upload that breaks off must not be stored as if it were complete."""
    flags = ["--factory"] if app == "flask" else []
    with Limpet(f"tests.wsgi_app:{app}", "--workers", "1", *flags) as server:
        for head in (
            request("/feed", "POST", transfer_encoding="chunked"),
            request("/feed", "POST", content_length="9"),
        ):
            with Wire(("127.0.0.1", server.port)) as wire:
                wire.send(head + b"5\r\nhello\r\n"[: 10 if b"chunked" in head else 5])
        wait_until(lambda: server.worker(0)["connections"] == 0, "the worker knows that they have gone")
        assert server.request("/feed", "POST", b"whole").status == 200
        with Wire(("127.0.0.1", server.port)) as wire:
            wire.send(request("/feed")).head()
            assert wire.chunk() == b"whole"
            server.request("/feed", "POST", b"")


@pytest.mark.parametrize(
    ("app", "flags"),
    [
        ("tests.wire_app:Asgi2", []),
        ("tests.wire_app:Asgi2", ["--interface", "asgi"]),
        ("tests.wire_app:seen", ["--interface", "asgi"]),
        ("tests.wire_app:make", ["--factory"]),
        ("tests.wire_app:Made.app", []),
    ],
)
def test_asgi_application_in_any_form_is_served(app: str, flags: list[str]) -> None:
    """A class of ASGI 2, what a factory returns, and an attribute of an attribute are applications, too."""
    with Limpet(app, "--workers", "1", *flags) as server:
        assert View(("127.0.0.1", server.port), REQUESTS["plain"]).scope["path"] == "'/'"


def test_application_knows_its_slot() -> None:
    """`limpet.current_worker()` and `LIMPET_SLOT` say the same, and count how many workers the slot has had."""
    with Limpet("tests.apps:who", "--by", "header:x-user", "--workers", "2") as server:
        for user in ("alice", "bob", "carol"):
            slot = server.where(user)[0]["slot"]
            status = server.worker(slot)
            seen = server.request(x_user=user).json()
            assert seen == {"slot": slot, "pid": status["pid"], "generation": status["generation"]}
        server.kill_worker(slot)
        assert server.request(x_user=user).json()["generation"] == seen["generation"] + 1


@pytest.mark.parametrize("ws", ["websockets", "websockets-sansio", "wsproto"])
def test_debug_header_names_the_worker(ws: str) -> None:
    """Who looks for a misrouted request sees with curl which worker answered, a websocket's 101 included."""
    with Limpet("tests.apps:echo", "--workers", "1", "--debug-header", "--ws", ws) as server:
        expected = {"x-limpet-slot": "0", "x-limpet-pid": str(server.worker(0)["pid"])}
        for asked in (request(), upgrade()):
            with Wire(("127.0.0.1", server.port)) as wire:
                _, headers = wire.send(asked).head()
                assert {name: headers.get(name) for name in expected} == expected


def test_debug_header_is_off_by_default() -> None:
    """How many workers there are, and where one is, is nobody's business."""
    with Limpet("tests.apps:echo", "--workers", "1") as server:
        assert not {name for name in server.request().headers if name.startswith("x-limpet")}


@pytest.mark.parametrize("flag", ["--access-log", "--no-access-log"])
def test_access_log_has_a_line_for_each_request(flag: str) -> None:
    """On demand only, and then each request, though the rest of uvicorn is quieter than that."""
    with Limpet("tests.apps:echo", "--workers", "1", flag) as server:
        assert server.request("/logged?q=1").status == 200
        server.stop()
        lines = re.findall(r"INFO    GET /logged 200 ", server.log)
    assert len(lines) == (flag == "--access-log")


def test_bug_in_the_application_is_a_500_with_a_traceback_in_the_log() -> None:
    """The next request is served by the same worker."""
    with Limpet("tests.wire_app:broken", "--workers", "1") as server:
        assert server.request("/").status == 500
        assert server.worker(0)["generation"] == 1
        wait_until(lambda: "ZeroDivisionError" in server.log, "the log shows the traceback")
        assert "Traceback" in server.log
