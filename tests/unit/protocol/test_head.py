"""Reading a head: as the worker reads it, however it is divided, and nothing that a worker should not see."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from limpet.protocol.head import _PLAIN, BadHead, HeadParser, plain
from limpet.protocol.request import Peer, Request, UnparsedRequest

PEER = Peer("192.0.2.1", 4711, "127.0.0.1:8000")
HEAD = (
    b"GET /socket.io/?EIO=4&sid=lv_VI97HAXpY6yYWAAAC HTTP/1.1\r\n"
    b"Host: example.com\r\nX-User:  alice \r\nCookie: a=1; sid=2\r\ncookie: b=3\r\nEmpty:\r\n\r\n"
)

Outcome = tuple[str, str, list[tuple[bytes, bytes]], int] | int


def read(data: bytes, cuts: Iterable[int] = (), max_head: int = 65536, max_headers: int = 256) -> Outcome:
    """Return what the parser makes of *data* divided at *cuts*: the request and its length, or a status, or 0."""
    parser = HeadParser(max_head, max_headers)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, stop in pairwise(edges):
            if parser.feed(data[start:stop]):
                request = parser.request(PEER)
                return request.method, request.target, request.raw_headers, parser.head_length
    except BadHead as bad:
        return bad.status
    return 0


def accept(data: bytes) -> Request:
    """Return the request whose head is *data*."""
    parser = HeadParser()
    assert parser.feed(data)
    return parser.request(PEER)


def refusal(data: bytes) -> str:
    """Return why *data* is refused, nothing if it is not."""
    try:
        HeadParser().feed(data)
    except BadHead as bad:
        return bad.reason
    return ""


class Transport(asyncio.Transport):
    """The far side of a uvicorn protocol: nobody."""

    def pause_reading(self) -> None:
        pass


class Worker(HttpToolsProtocol):
    """uvicorn's own protocol, up to the moment when it would call the application."""

    config = Config("nothing:nothing", interface="asgi3", log_config=None, lifespan="off")
    config.loaded = True
    config.loaded_app = None
    config.ws_protocol_class = asyncio.Protocol

    def __init__(self, data: bytes) -> None:
        super().__init__(self.config, ServerState(), {}, object())  # type: ignore[arg-type]  # it uses no loop
        self.refused = self.upgraded = False
        self.served: list[RequestResponseCycle] = []
        self.connection_made(Transport())
        self.data_received(data)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: object) -> None:
        self.served.append(cycle)

    def handle_websocket_upgrade(self) -> None:
        self.upgraded = True

    def send_400_response(self, msg: str) -> None:
        self.refused = True


METHODS = [b"GET", b"POST", b"OPTIONS", b"M-SEARCH"]
TARGETS = [b"/", b"/a%20b/%ff?q=1&sid=%41", b"/a?b?c#d?e", b"/a#b?sid=1", b"//a//b", b"*", b"http://u@h:80/p?q"]
LINES = [
    *(b"Host: example.com", b"X-User: alice", b"x-user:\tbob \t", b"Empty:", b"Cookie: a=1; sid=2", b"X: \xff\xe9"),
    *(b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: Upgrade", b"Upgrade: websocket"),
    *(b"Connection: close", b"Upgrade: h2c", b"Expect: 100-continue"),
]
ODD = [
    *(b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b" ", b"\t", b":", b"?"),
    *(b"\x00", b"\x16", b"\x7f", b"\xff"),
    *(b"CONNECT", b"PRI", b"QUERY", b"get", b"BREW", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"http://h", b"http://h?q", b"http://h#f/g", b"ws://[::1]/p", b"h:443", b"a/b", b"*x?q", b"*://h/p", b"/a b"),
    *(b" HTTP/1.0", b" HTTP/0.9", b" HTTP/2.0", b" HTTP/1.2", b" RTSP/1.0", b" ICE/1.0", b" HTTP/1.1 "),
    *(b"Content-Length: 4", b"content-length: 3, 3", b"Content-Length: +3", b"Content-Length:", b"Content-Length: 3 "),
    *(b"Transfer-Encoding: gzip", b"transfer-encoding: chunked, gzip", b"Transfer-Encoding: identity, chunked"),
    *(b"X : blank", b" folded", b"\tfolded", b": nameless", b"no colon", b"X(: odd"),
    *(b"X: \x00", b"X: a\rb", b"X: a\nb"),
]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Draw a head, or bytes that are nearly one."""
    parts = [b"", draw(st.sampled_from(METHODS)), b" ", draw(st.sampled_from(TARGETS)), b" HTTP/1.1", b"\r\n"]
    for line in draw(st.lists(st.sampled_from(LINES), max_size=6)):
        parts += [line, b"\r\n"]
    parts += [b"\r\n", draw(st.sampled_from([b"", b"abc", b"GET / HTTP/1.1\r\n\r\n", b"\x00\r\n\r\n"]))]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        parts[draw(st.integers(0, len(parts) - 1))] = draw(st.sampled_from(ODD))
    data = b"".join(parts)
    if draw(st.booleans()):
        return data
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.sampled_from(ODD)) + data[at + draw(st.integers(0, 2)) :]


@settings(max_examples=1000, deadline=None)
@given(heads())
def test_unparsed_request_says_what_the_parsed_one_says(data: bytes) -> None:
    """The dispatcher looks for a key in the one, a worker in the other, for the later requests of a connection."""
    parser = HeadParser()
    with suppress(BadHead):
        parser.feed(data)
    if not parser.head_length:
        return
    parsed, unparsed = parser.request(PEER), UnparsedRequest(data[: parser.head_length], PEER)
    for name in (b"x-user", b"cookie", b"x", b"host", b"absent"):
        assert unparsed.header_bytes(name) == parsed.header_bytes(name)
    for name in (b"a", b"sid", b"q"):
        assert unparsed.cookie_bytes(name) == parsed.cookie_bytes(name)
        assert unparsed.query_bytes(name) == parsed.query_bytes(name)
    assert (unparsed.method, unparsed.target, unparsed.path) == (parsed.method, parsed.target, parsed.path)
    assert unparsed.raw_headers == parsed.raw_headers


@settings(max_examples=1000, deadline=None)
@given(heads() | st.from_regex(_PLAIN % 3), st.integers(0, 4))
@example(HEAD, 5)
@example(HEAD, 4)
def test_what_is_plain_the_parser_takes_as_well(data: bytes, max_headers: int) -> None:
    """And the head is as long; what is in it the test before this one compares."""
    length = plain(data, max_headers)
    if length:
        outcome = read(data, max_headers=max_headers)
        assert isinstance(outcome, tuple)
        assert outcome[3] == length


@pytest.mark.parametrize("behind", [b"", b"\r\n", b"\x00", HEAD])
def test_usual_head_is_plain(behind: bytes) -> None:
    """Or the parser would be asked each time, for nothing."""
    assert plain(HEAD + behind, 256) == len(HEAD)


@pytest.mark.parametrize("cut", range(len(HEAD)))
def test_part_of_a_head_is_not_plain(cut: int) -> None:
    """Its end may make it a different one."""
    assert plain(HEAD[:cut], 256) == 0


@pytest.mark.timeout(20)  # takes milliseconds; what tries each division of the lines would take years
def test_what_looks_plain_for_long_is_found_out_in_time() -> None:
    """A pattern is no way to make the dispatcher busy."""
    for line in (b"a:" + b" " * 60, b"a:", b"a" * 60_000, b"a:" + b"b" * 60_000):
        assert plain(b"GET / HTTP/1.1\r\n" + (line + b"\r\n") * (65536 // len(line)), 65536) == 0


@settings(max_examples=500, deadline=None)
@given(heads())
def test_what_is_accepted_the_worker_reads_alike(data: bytes) -> None:
    """A request that the dispatcher and the worker understand differently has two keys."""
    parser = HeadParser()
    with suppress(BadHead):
        parser.feed(data)
    if not parser.head_length:
        return
    request = parser.request(PEER)
    head = Worker(data[: parser.head_length])
    assert not head.refused
    assert head.url == request.target.encode()
    for worker in head, Worker(data):  # and with a body, or garbage, behind
        assert worker.upgraded or worker.served
        scope = worker.served[0].scope if worker.served else worker.scope
        assert (request.method, request.raw_headers) == (scope["method"], scope["headers"])
        if worker.served:
            assert (request.path, request._query()) == (scope["path"], scope["query_string"].decode())


@settings(max_examples=500, deadline=None)
@given(heads())
@example(b"\nGET / HTTP/1.1\r\n\r\n")
@example(b"CONNECT / HTTP/1.1\r\n\r\n")
def test_what_is_refused_the_worker_refuses_but_for_what_is_documented(data: bytes) -> None:
    """A server that answers 400 to what works without it cannot be put in front of anything."""
    reason = refusal(data)
    if not reason or reason.startswith(("a bare CR or LF before", "HTTP version", "an HTTP/2 preface", "CONNECT")):
        return
    worker = Worker(data)
    assert worker.refused or (worker.upgraded and reason == "malformed request target")


@settings(max_examples=500, deadline=None)
@given(heads(), st.lists(st.integers(0, 400), max_size=12), st.integers(1, 300), st.integers(0, 6))
@example(b"\r\r\n\nGET / HTTP/1.1\r\n\r\n", [3], 300, 6)
def test_outcome_does_not_depend_on_how_the_bytes_were_divided(
    data: bytes, cuts: list[int], max_head: int, max_headers: int
) -> None:
    """The network divides as it likes, and one client must not be served today and refused tomorrow."""
    assert read(data, cuts) == read(data)
    assert read(data, cuts, max_head, max_headers) == read(data, (), max_head, max_headers)
    assert read(data, range(len(data)), max_head, max_headers) == read(data, (), max_head, max_headers)


@pytest.mark.parametrize("at", range(len(HEAD) + 1))
def test_head_split_at_any_byte_is_read_whole(at: int) -> None:
    """A key that two packets share is the key that users report as "sometimes logged out"."""
    parser = HeadParser()
    assert parser.feed(HEAD[:at]) == (at == len(HEAD))
    assert parser.feed(HEAD[at:])
    request = parser.request(PEER)
    assert (request.method, request.target) == ("GET", "/socket.io/?EIO=4&sid=lv_VI97HAXpY6yYWAAAC")
    assert request.raw_headers == [
        *((b"host", b"example.com"), (b"x-user", b"alice "), (b"cookie", b"a=1; sid=2"), (b"cookie", b"b=3")),
        (b"empty", b""),
    ]
    assert parser.head_length == len(HEAD)


@pytest.mark.parametrize("behind", [b"body", b"\x00garbage\r\n\r\n", HEAD, b"\r\n\r\n"])
def test_bytes_behind_the_blank_line_are_not_looked_at(behind: bytes) -> None:
    """A body is the worker's: to mistake it for a head would refuse uploads by what is in them."""
    parser = HeadParser()
    assert parser.feed(HEAD + behind)
    assert parser.feed(behind)
    assert parser.head_length == len(HEAD)


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 1000000\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nExpect: 100-continue\r\n",
        b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    ],
)
def test_head_is_complete_without_its_body(headers: bytes) -> None:
    """A client that sent Expect: 100-continue sends no body until a worker has answered."""
    assert accept(b"POST /chat HTTP/1.1\r\n" + headers + b"\r\n").path == "/chat"


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n\r\n"])
def test_empty_lines_before_the_request_line_are_skipped(empty: bytes) -> None:
    """Old clients send one behind the body of the request before."""
    parser = HeadParser()
    assert parser.feed(empty + HEAD)
    assert parser.head_length == len(empty + HEAD)


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n\n",
        b"\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET / HTTP/3.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET \r\n\r\n",
        b"/ HTTP/1.1\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http://h HTTP/1.1\r\n\r\n",
        b"CONNECT h:443 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\x00",
    ],
)
def test_hostile_or_malformed_head_is_refused(bad: bytes) -> None:
    """Each of these is read in two ways by two servers somewhere: none may reach a worker."""
    assert read(bad) == 400
    assert read(bad, range(len(bad))) == 400


@pytest.mark.parametrize("start", [b"\x16", b"\x00", b"\xff", b"{", b"HI", b"GET /\x00", b"GET / F", b"\r\n\x16"])
def test_what_is_no_http_is_refused_at_its_first_wrong_byte(start: bytes) -> None:
    """A client of another protocol waits for an answer: without one it hangs until the deadline."""
    parser = HeadParser()
    assert not parser.feed(start[:-1])
    with pytest.raises(BadHead):
        parser.feed(start[-1:])


def test_tls_on_a_plain_port_is_named() -> None:
    """The commonest misconfiguration of all deserves its name in the log."""
    assert refusal(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") == "TLS on a plain port"


def test_http2_preface_is_named() -> None:
    """A proxy that was told to speak HTTP/2 to us needs another setting, not another request."""
    assert refusal(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == "an HTTP/2 preface on an HTTP/1 port"


@pytest.mark.parametrize("cuts", [(), range(1000)])
def test_head_may_be_exactly_as_large_as_the_limit(cuts: Iterable[int]) -> None:
    """An operator who measures the largest head sets the limit to that."""
    assert read(HEAD + b"body", cuts, max_head=len(HEAD)) == read(HEAD)
    assert read(HEAD + b"body", cuts, max_head=len(HEAD) - 1) == 431


def test_head_without_end_is_refused_at_the_limit() -> None:
    """A client that sends header bytes for ever must not take memory for ever."""
    parser = HeadParser(max_head=100)
    assert not parser.feed(b"GET / HTTP/1.1\r\nA: ".ljust(99, b"a"))
    with pytest.raises(BadHead) as caught:
        parser.feed(b"a" * 10_000_000)
    assert caught.value.status == 431


def test_endless_empty_lines_are_refused_at_the_limit() -> None:
    """What is skipped is bounded as well."""
    assert read(b"\r\n" * 50, range(100), max_head=100) == 431


def test_too_many_headers_are_refused() -> None:
    """Each header is two objects in the dispatcher, so their number is bounded apart from their size."""
    head = b"GET / HTTP/1.1\r\n%s\r\n"
    assert read(head % (b"A:\r\n" * 3), max_headers=3) != 431
    assert read(head % (b"A:\r\n" * 4), max_headers=3) == 431


@pytest.mark.timeout(20)  # takes half a second; copying what is there for each byte would take a minute
def test_bytes_one_by_one_cost_no_more_the_later_they_come() -> None:
    """The attacker pays one packet per byte: we must not pay all the bytes before it."""
    parser = HeadParser(max_head=2**21)
    parser.feed(b"GET / HTTP/1.1\r\nA: ")
    for _ in range(2**20):
        parser.feed(b"a")
    assert parser.feed(b"\r\n\r\n")
    assert len(parser.request(PEER).raw_headers[0][1]) == 2**20


def test_request_of_half_a_head_is_a_bug() -> None:
    """A key taken from half a head would be another key."""
    parser = HeadParser()
    parser.feed(HEAD[:-1])
    with pytest.raises(RuntimeError):
        parser.request(PEER)


def test_parser_is_freed_with_its_connection() -> None:
    """Cycles would leave the heads of ten thousand closed connections to the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        accept(HEAD)
        read(HEAD[:-1])
        read(b"BREW")
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("inside", [b"\n", b"\nx-user: other", b"\x00", b"\x7f", b"\xe9", b"\r"])
def test_value_with_anything_but_text_is_not_plain(inside: bytes) -> None:
    """The worker's parser refuses it or reads another header in it, so the parser has to decide here as well."""
    assert plain(HEAD[:-2] + b"x-more: a%bb\r\n\r\n" % inside, 256) == 0
