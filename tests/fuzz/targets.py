"""The functions that are fuzzed. Each takes any bytes, and raises if they make limpet do what it must not do."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import h11
import httptools

from limpet.config.router import Clocks
from limpet.errors import ControlError, SettingsError
from limpet.ipc import news
from limpet.ipc.baton import Batons, Verdict
from limpet.ipc.channel import SIZE, Channel, Handoff, Receiver
from limpet.ipc.scoreboard import WORKER_CELLS, Row
from limpet.moving.messages import Arrived
from limpet.moving.mover import Mover
from limpet.operate import requests
from limpet.protocol import client_hello
from limpet.protocol.head import BadHead, HeadParser, plain
from limpet.protocol.proxy_protocol import BadHeaderError, Header, Origin, parse, write
from limpet.protocol.request import Peer, Request, UnparsedRequest
from limpet.routing.affinity_cookie import Attributes, Jar
from limpet.routing.forwarded import Trust
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain
from limpet.routing.router import Router

MAX_HEAD: Final = 4096
MAX_HEADERS: Final = 32
_PEERS: Final = (
    Peer("192.0.2.1", 4711, "127.0.0.1:8000"),
    Peer("10.0.0.1", 4711, "127.0.0.1:8000"),
    Peer("2001:db8::1", 4711, "[::1]:8000"),
    Peer(None, None, "unix:/run/limpet.sock"),
)
_TRUST: Final = Trust.parse("10.0.0.0/8,unix,2001:db8::/32")


class Head(NamedTuple):
    """What a parser makes of a head."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]


class _Sink:
    """What llhttp reports of one message."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def _by_llhttp(head: bytes) -> Head | None:
    sink = _Sink()
    parser = httptools.HttpRequestParser(sink)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(head)
    return Head(parser.get_method().decode(), sink.target, sink.headers) if sink.complete else None


def _by_h11(head: bytes) -> Head | None:
    """Return what h11 makes of *head*, None if it answers 400."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    assert isinstance(event, h11.Request), f"h11 sees no end of the head: {event!r}"
    headers = [(name, value.strip(b" \t")) for name, value in event.headers]
    return Head(event.method.decode(), event.target, headers)


def head(data: bytes) -> None:
    """Dispatcher and worker read the same in a head, with either parser, or it is 400; however it is divided."""
    where, data = data[:2], data[2:]
    whole, divided = _outcome([data]), _outcome(_divided(data, where))
    assert whole == divided, f"{whole} in one piece, {divided} in several"
    length = plain(data[:MAX_HEAD], MAX_HEADERS)
    assert not length or (isinstance(whole, tuple) and whole[3] == length), f"{whole}, but plain"
    if not isinstance(whole, tuple):
        assert whole in (0, 400, 431)
        return
    method, target, headers, length = whole
    seen = Head(method, target.encode("latin-1"), [(name, value.strip(b" \t")) for name, value in headers])
    text = data[:length].lstrip(b"\r\n")
    assert seen == _by_llhttp(text)
    other = _by_h11(text)
    assert other is None or other == seen, f"{seen}, and h11 reads {other}"
    _compare(Request(method, target, _PEERS[1], headers), UnparsedRequest(data[:length], _PEERS[1]))


def _divided(data: bytes, where: bytes) -> list[bytes]:
    """Return *data* in pieces of a size that *where* says."""
    size = 1 + (where[0] if where else 0)
    first = where[1] if len(where) > 1 else 0
    return [data[:first], *(data[at : at + size] for at in range(first, len(data), size))]


def _outcome(pieces: Sequence[bytes]) -> tuple[str, str, list[tuple[bytes, bytes]], int] | int:
    parser = HeadParser(MAX_HEAD, MAX_HEADERS)
    try:
        for piece in pieces:
            if parser.feed(piece):
                request = parser.request(_PEERS[0])
                return request.method, request.target, request.raw_headers, parser.head_length
    except BadHead as bad:
        return bad.status
    return 0


def _compare(parsed: Request, unparsed: Request) -> None:
    """Demand that both say the same of what a key can be made of."""
    names = {name for name, _ in parsed.raw_headers} | {b"cookie", b"x-forwarded-for", b"absent"}
    for name in names:
        assert unparsed.header_bytes(name) == parsed.header_bytes(name), name
    for name in (b"a", b"sid", b"q"):
        assert unparsed.cookie_bytes(name) == parsed.cookie_bytes(name)
        assert unparsed.cookie_values(name) == parsed.cookie_values(name)
        assert unparsed.query_bytes(name) == parsed.query_bytes(name)
    assert unparsed.path == parsed.path


_CHAINS: Final = (
    "header:x-user,cookie:sid,query:sid,ip",
    "forwarded",
    "forwarded/8/16,query:a",
    "path:^/s/([^/]+),affinity",
    "query:q,header:authorization",
    "affinity,cookie:a",
    "bearer,cookie:a",
)
_SECRET: Final = b"5a" * 32


def _router(by: str) -> Router:
    clocks = Clocks(lambda: 1e9, lambda: 1e3)
    jar = Jar([_SECRET], "fuzz", Attributes.parse(""), clocks.wall)
    return Router(KeyChain.parse(by, _TRUST, None, None, jar), Hasher(_SECRET), 4)


_ROUTERS: Final = [_router(by) for by in _CHAINS]


def keys(data: bytes) -> None:
    """No request makes a chain raise; worker and dispatcher find the same key; no text makes parsing a chain fail."""
    kind, data = (data[0], data[1:]) if data else (0, b"")
    if kind & 0x80:
        _read_chain(data)
        return
    router, peer = _ROUTERS[kind % len(_ROUTERS)], _PEERS[(kind >> 4) % len(_PEERS)]
    parser = HeadParser()
    lines = b"GET /" + data + b"\r\n\r\n"
    with contextlib.suppress(BadHead):
        if parser.feed(lines):
            request = parser.request(peer)
            found = router.chain.find(peer, request)
            assert found == router.chain.find(peer, UnparsedRequest(lines[: parser.head_length], peer))
            if found is not None:
                assert found.value
                assert 0 <= router.where(found).slot < 4
    router.chain.find(peer, UnparsedRequest(lines, peer))  # any answer will do, but it has to be one


def _read_chain(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(SettingsError):
        chain = KeyChain.parse(text, _TRUST)
        assert KeyChain.parse(chain.spec, _TRUST).spec == chain.spec
        with contextlib.suppress(SettingsError):
            chain.from_text(text)
    with contextlib.suppress(SettingsError):
        Trust.parse(text)


def _jar() -> tuple[Jar, bytes]:
    jar = Jar([_SECRET], "fuzz", Attributes.parse(""), lambda: 1e9)
    value, _ = jar.mint(lambda digest: True, bytes)
    return jar, value.encode()


_JAR, _GOOD = _jar()


def cookie(data: bytes) -> None:
    """Nobody makes up a cookie that counts, and no attributes make reading them fail."""
    lines = data.split(b"\n")
    values = [line.strip(b" \t\r") for line in lines]
    for value in values:
        opened = _JAR.open(value)
        assert (opened is not None) == (value == _GOOD), value
    request = Request("GET", "/", _PEERS[0], [(b"cookie", line) for line in lines])
    found = _JAR.find(request)
    assert found is None or _GOOD in data
    assert not _JAR.is_good(lines) or found is not None
    with contextlib.suppress(SettingsError):
        attributes = Attributes.parse(data.decode("latin-1"))
        text = Jar([_SECRET], "fuzz", attributes, lambda: 1e9).header("value", 10**9, is_https=False)
        assert "\r" not in text
        assert "\n" not in text


def channels(data: bytes) -> None:
    """A message that is none is refused by name, and no descriptor is lost or left open, whatever it holds."""
    kind, body = (data[0], data[1:]) if data else (0, b"")
    numbers = kind % 4  # of descriptors that come along
    if kind & 0x80:
        body += bytes(max(0, SIZE - len(body)))  # the length itself is hard to guess
    before = len(os.listdir("/proc/self/fd"))
    _hand_over(body, numbers)
    _move(body, numbers)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stayed open, or one too many was closed"


def _put(channel: Channel, body: bytes, numbers: int) -> None:
    if not numbers:
        channel.sending.send(body or b"\0")
        return
    with socket.socket() as connection, tempfile.TemporaryFile() as file:
        fds = array.array("i", [connection.fileno(), file.fileno(), file.fileno()][:numbers])
        channel.sending.sendmsg([body or b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def _hand_over(body: bytes, numbers: int) -> None:
    channel = Channel.create()
    with channel.sending, channel.receiving:
        _put(channel, body, numbers)
        try:
            connection, handoff = Receiver(channel.receiving).receive()
        except RuntimeError:
            assert len(body) != SIZE or numbers != 1
        except BlockingIOError:  # what a worker sends to itself
            assert len(body) == SIZE
        else:
            connection.close()
            assert isinstance(handoff, Handoff)


class _Copy:
    """A paused copy."""

    listener = 0
    had_by = 0
    digest = 0
    light_head = b""
    origin: Origin | None = None

    def __init__(self, connection: socket.socket) -> None:
        self.fd = connection.fileno()

    def resume(self, leftover: bytes) -> None:
        pass

    def drop(self, verdict: Verdict) -> None:
        pass


def _move(body: bytes, numbers: int) -> None:
    channels = [Channel.create(), Channel.create()]
    with contextlib.ExitStack() as stack:
        for channel in channels:
            stack.enter_context(channel.sending)
            stack.enter_context(channel.receiving)
        batons = Batons([0] * 16, range(8), 1, 30.0)
        batons.alive([1, 2], 2)
        row = Row(memoryview(bytearray(8 * len(WORKER_CELLS))).cast("Q"), WORKER_CELLS)
        mover = Mover(0, batons, [each.sending for each in channels], channels[0].receiving, row, 3)
        own = stack.enter_context(socket.socket())
        done, _ = mover.pass_on(_Copy(own), None, 1, b"GET", 0.0)
        assert done
        _put(channels[0], body, numbers)
        with contextlib.suppress(RuntimeError):
            mover.receive(_adopt)
        mover.sweep(1.0)
        mover.leave()
        for kept in mover._kept.values():
            os.close(kept.fd)


def _adopt(arrived: Arrived) -> None:
    arrived.connection.close()


def proxy_header(data: bytes) -> None:
    """A PROXY header is one or it is refused, however it is divided; what is told of a client can be told again."""
    outcomes = [_read_header(data[:size]) for size in range(min(len(data), 300))] + [_read_header(data)]
    first = next((each for each in outcomes if each is not None), None)
    assert all(each == first for each in outcomes[outcomes.index(first) :]), f"{first}, and later something else"
    if isinstance(first, Header) and first.origin is not None:
        again = parse(write(first.origin))
        assert again is not None
        assert again.origin == first.origin


def _read_header(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except BadHeaderError:
        return "bad"


def hello(data: bytes) -> None:
    """A ClientHello is one or it is refused, however it is divided, and the name in it is one of a host."""
    outcomes = [_read_hello(data[:size]) for size in range(0, len(data), 1 + len(data) // 50)] + [_read_hello(data)]
    first = next((each for each in outcomes if each is not None), None)
    assert all(each == first for each in outcomes[outcomes.index(first) :]), f"{first}, and later something else"
    if isinstance(first, client_hello.Hello) and first.server_name is not None:
        assert 0 < len(first.server_name) < 255
        assert first.server_name.isascii()
        assert first.server_name == first.server_name.lower()


def _read_hello(data: bytes) -> client_hello.Hello | str | None:
    try:
        return client_hello.parse(data)
    except client_hello.BadHelloError:
        return "bad"


def said(data: bytes) -> None:
    """What a child says is news or is refused, in words that are safe in a log."""
    for line in data.split(b"\n"):
        refusal = ""
        try:
            news.parse(line)
        except news.BadNewsError as bad:
            refusal = str(bad)
        assert not refusal or (refusal.isprintable() and len(refusal) < 1000)


def command(data: bytes) -> None:
    """What a caller of the control socket asks for has the fields of its command, or is refused."""
    try:
        asked = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(asked, dict):
        with contextlib.suppress(ControlError):
            assert type(requests.checked(asked).get("slots", 0)) is int


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "head": head,
    "keys": keys,
    "cookie": cookie,
    "channels": channels,
    "proxy_header": proxy_header,
    "hello": hello,
    "news": said,
    "command": command,
}
