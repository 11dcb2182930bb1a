"""Sticky per request: each request of a connection that carries everybody's is served at its user's home, in order.

Every test runs with both parsers, on both event loops, and each of uvicorn's websocket implementations has its turn.
How such a connection ends is in test_moving_ends.py, what it survives in test_moving_kills.py.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Limpet, wait_until
from tests.traffic import (
    USERS,
    Exchange,
    batches,
    events,
    expects,
    get,
    head,
    homes,
    huge,
    inhabitants,
    large,
    nothing,
    perform,
    post,
    post_large,
    serve,
    stopped,
    visit_all,
)
from tests.wire import BINARY, CLOSE, PING, PONG, TEXT, Frame, Wire, frame, request, upgrade

PLANS = [
    ("httptools", "uvloop", "websockets-sansio"),
    ("httptools", "asyncio", "websockets"),
    ("h11", "uvloop", "wsproto"),
    ("h11", "asyncio", "websockets-sansio"),
]
PIPE_BYTES = 1 << 20  # the kernel keeps that much of what the client sends to a worker that does not read


@pytest.fixture(scope="module", params=PLANS, ids="-".join)
def server(request: pytest.FixtureRequest) -> Iterator[Limpet]:
    """Four workers, users told apart by a header."""
    http, loop, ws = request.param
    with serve("--http", http, "--loop", loop, "--ws", ws, "--graceful-timeout", "1") as server:
        yield server


@pytest.fixture(scope="module")
def home(server: Limpet) -> dict[str, int]:
    """The slot of each user, as `limpet where` names it."""
    return homes(server)


@pytest.fixture
def wire(server: Limpet) -> Iterator[Wire]:
    """A new connection."""
    with Wire(("127.0.0.1", server.port)) as wire:
        yield wire


def test_every_one_of_1000_mixed_requests_is_served_at_home_and_in_order(
    server: Limpet, home: dict[str, int], wire: Wire
) -> None:
    """The case that no balancer of workers solves: the reference sends them all to the first user's worker."""
    assert set(home.values()) == {0, 1, 2, 3}
    before = server.totals()
    for batch in batches(1000, seed=1):
        perform(wire, batch, home)

    def grown(name: str) -> int:
        return server.totals()[name] - before[name]

    wait_until(lambda: grown("requests") == 1000, "the last one is counted")
    assert 600 < grown("returns") < 900  # three of four follow a request of another slot
    assert grown("batons") >= grown("returns") - 3  # only the first visit makes a transport
    assert grown("misrouted") == 0


def test_requests_written_byte_by_byte_are_served_at_home(home: dict[str, int], wire: Wire) -> None:
    """The end of a message, and so the place where the next one begins, may be in any segment."""
    for batch in batches(120, seed=2, heavy_every=1_000_000):
        perform(wire, batch, home, piece=1)


def test_requests_cut_at_any_size_are_served_at_home(home: dict[str, int], wire: Wire) -> None:
    """Segments that end inside the blank line, the last chunk or the next head, many requests at once."""
    for size in (2, 3, 5, 7, 61, 509):
        for batch in batches(60, seed=size, heavy_every=1_000_000):
            perform(wire, batch, home, piece=size)


def test_answer_that_has_not_left_is_not_overtaken(home: dict[str, int], wire: Wire) -> None:
    """A request that moves is answered by another process, into the same socket: first what comes first."""
    a, b, c, _ = inhabitants(home).values()
    for kind in (head, nothing, events, get, post, large):
        perform(
            wire, [kind(a, "/1"), get(b, "/2"), kind(b, "/3"), head(c, "/4"), kind(a, "/5"), nothing(b, "/6")], home
        )


def test_slow_reader_of_megabytes_delays_nobody_behind_it_into_disorder(home: dict[str, int], wire: Wire) -> None:
    """18 MB do not fit into the kernel's buffers, so the worker has the rest when the next request is another's."""
    a, b, *_ = inhabitants(home).values()
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    for _ in range(2):
        perform(wire, [huge(a, "/slow"), get(b, "/behind"), huge(a, "/slow"), events(b, "/last")], home)


def test_upload_is_refused_at_its_head_and_its_rest_belongs_to_nobody(home: dict[str, int], wire: Wire) -> None:
    """The answer is complete while the body still comes: no byte of that may be taken for the next request."""
    a, b, *_ = inhabitants(home).values()
    body = request("/", x_user=b) * 20_000
    for user, other in ((a, b), (b, a)):
        early = Exchange(user, "/early", request("/early", "POST", body, x_user=user), status=413, answer=b"too large")
        perform(wire, [early, get(other, "/next")], home)


@pytest.mark.parametrize("zeros", [0, 14, 17])
def test_chunk_size_with_zeros_before_it_hides_no_request_behind_the_body(
    home: dict[str, int], wire: Wire, zeros: int
) -> None:
    """A size of which a part is read would let what the client writes into the chunk say where the body ends."""
    a, b, *_ = inhabitants(home).values()
    content = b"\r\n\r\nfff\r\n" + b"x" * 300
    body = b"%b%x\r\n%b\r\n0\r\n\r\n" % (b"0" * zeros, len(content), content)
    sent = request("/odd", "POST", x_user=a, transfer_encoding="chunked") + body
    perform(wire, [Exchange(a, "/odd", sent, "POST", body=content), get(b, "/next"), get(a, "/last")], home)


def test_client_that_expects_100_hears_it_from_its_home(home: dict[str, int], wire: Wire) -> None:
    """The line comes before the body, so the connection must have moved by then."""
    a, b, *_ = inhabitants(home).values()
    for user in (a, b, a, a, b):
        perform(wire, [expects(user, f"/{user}")], home)


@pytest.mark.parametrize("what", ["behind", "head"])
def test_more_than_a_message_holds_moves_along(server: Limpet, home: dict[str, int], wire: Wire, what: str) -> None:
    """What was read of a connection goes with it, through a file in memory when it is more than 60 kB."""
    users = inhabitants(home)
    if what == "head":
        cookies = "; ".join(f"other{number}={'x' * 1000}" for number in range(62))
        batch = [Exchange(users[1], "/head", request("/head", cookie=cookies, x_user=users[1]))]
    else:
        chance = random.Random(4)
        batch = [post(chance.choice(USERS), f"/{number}", bytes([number]) * 3000) for number in range(120)]
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
    for slot in (0, 1):
        visit_all(wire, home, last=slot)
        with stopped(server, [slot]):  # it finds everything when it goes on
            wire.send(b"".join(exchange.data for exchange in batch))
        for exchange in batch:
            exchange.check(wire.reply(), home)


def test_websocket_after_100_mixed_requests_stays_and_ends_at_once(
    server: Limpet, home: dict[str, int], wire: Wire
) -> None:
    """An upgrade moves once. Then frames flow, and no worker's copy may hold back the end."""
    for batch in batches(100, seed=3):
        perform(wire, batch, home)
    visit_all(wire, home, last=0)
    user = inhabitants(home)[2]
    wire.send(upgrade("/frames", x_user=user) + frame(b"at once") + frame(b"?", PING))

    assert wire.head()[0] == 101
    seen = [wire.frame() for _ in range(3)]
    seen.remove(Frame(PONG, b"?"))  # it may overtake the others
    assert json.loads(seen[0].payload)["slot"] == home[user]
    assert seen[1] == Frame(TEXT, b"at once")
    with stopped(server, {0, 1, 3}):
        for number in range(100):
            assert wire.send(frame(b"%d" % number, BINARY)).frame() == Frame(BINARY, b"%d" % number)
        assert wire.send(frame((1000).to_bytes(2, "big"), CLOSE)).frame().opcode == CLOSE
        assert wire.rest() == b""
    wait_until(lambda: not any(slot["copies"] for slot in server.status()["slots"]), "its copies are gone")


def test_websocket_that_is_refused_ends_at_once(server: Limpet, home: dict[str, int], wire: Wire) -> None:
    """The application may close instead of accepting, when the connection has left the hands of HTTP already."""
    visit_all(wire, home, last=1)
    with stopped(server, {0, 2, 3}):
        assert wire.send(upgrade("/refused", x_user=inhabitants(home)[1])).head()[0] == 403
        wire.rest()


def odd_heads(user: str, other: str) -> dict[str, bytes]:
    """Return requests in which parsers might find different keys, or different ends."""
    u, o = user.encode(), other.encode()
    mine, theirs = b"X-User: " + u, b"X-User: " + o

    def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
        return b"\r\n".join([first, b"Host: h", *lines, b"", b""])

    def post(*lines: bytes, body: bytes) -> bytes:
        return get(*lines, mine, first=b"POST / HTTP/1.1") + body + get(theirs)

    return {
        "twice": get(mine, theirs),
        "twice, apart": get(mine, b"X-Other: 1", b"x-user: " + o),
        "first empty": get(b"X-User: ", mine),
        "upper case": get(mine.upper().replace(u.upper(), u)),
        "blanks": get(b"X-User: \t " + u + b" \t "),
        "no blank": get(b"X-User:" + u),
        "lookalikes": get(b"XX-User: " + o, b"X-User-Id: " + o, mine),
        "in a value": get(b"X-A: " + theirs, mine),
        "folded": get(mine, b" " + o),
        "folded by tab": get(b"X-A: 1", b"\t" + theirs, mine),
        "folded at once": b"GET / HTTP/1.1\r\n " + mine + b"\r\nHost: h\r\n\r\n",
        "bare LF": get(b"X-A: 1\n" + theirs, mine),
        "bare LF first": b"GET / HTTP/1.1\n" + theirs + b"\r\n" + mine + b"\r\n\r\n",
        "bare CR": get(b"X-A: 1\r" + theirs, mine),
        "CR CR LF": get(b"X-A: 1\r", mine),
        "NUL": get(mine + b"\0"),
        "blank before the colon": get(b"X-User : " + u),
        "no colon": get(b"X-User " + u),
        "cookies": get(b"Cookie: a=1; user=" + u + b"; user=" + o),
        "cookie lines": get(b"Cookie: xuser=" + o, b'cookie: user="' + u + b'"'),
        "cookie, percent": get(b"Cookie: user=%75" + u),
        "query": get(first=b"GET /?xuser=" + o + b"&user=" + u + b"&user=" + o + b" HTTP/1.1"),
        "query, percent": get(first=b"GET /?%75ser=%20" + u + b"+ HTTP/1.1"),
        "query behind a fragment": get(first=b"GET /#?user=" + o + b" HTTP/1.1"),
        "path": get(first=b"GET /u/%75" + u + b"/ HTTP/1.1"),
        "path, slashes": get(first=b"GET //u/" + o + b" HTTP/1.1"),
        "absolute": get(first=b"GET http://limpet.test/u/" + u + b"/?q HTTP/1.1"),
        "absolute, upper case": get(first=b"GET HTTP://H:80/u/" + u + b" HTTP/1.1"),
        "absolute, query": get(first=b"GET http://h?user=" + u + b" HTTP/1.1"),
        "authority": get(mine, first=b"CONNECT h:443 HTTP/1.1"),
        "asterisk": get(mine, first=b"OPTIONS * HTTP/1.1"),
        "blank in the target": get(mine, first=b"GET /a b HTTP/1.1"),
        "blanks before the target": get(mine, first=b"GET   / HTTP/1.1"),
        "lower case": get(mine, first=b"get / http/1.1"),
        "0.9": get(mine, first=b"GET / HTTP/0.9"),
        "2.0": get(mine, first=b"GET / HTTP/2.0"),
        "empty lines first": b"\r\n\r\n" + get(mine),
        "LF first": b"\n" + get(mine),
        "length twice": post(b"Content-Length: 2", b"Content-Length: 2", body=b"ab"),
        "lengths": post(b"Content-Length: 2, 2", body=b"ab"),
        "length, plus": post(b"Content-Length: +2", body=b"ab"),
        "length and chunks": post(b"Content-Length: 300", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        "gzip": post(b"Transfer-Encoding: gzip", body=b""),
        "chunked twice": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    }


ONLY_FIRST = {"0.9", "2.0", "LF first"}  # refused by the dispatcher, while a worker takes them, at home


def outcome(wire: Wire, data: bytes) -> tuple[int, Any]:
    """Return status and slot of the first response to *data*; a slot of None when limpet itself answered."""
    reply = wire.send(data).half_close().reply()
    return reply.status, reply.headers.get("x-limpet-slot") if reply.status != 400 else None


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_later_request_has_the_home_that_it_would_have_as_the_first(http: str) -> None:
    """The dispatcher reads the first head of a connection, workers read the others: they must find the same key."""
    by = r"header:x-user,cookie:user,query:user,path:^/u/([^/]+)"
    with serve("--by", by, "--http", http, "--place", "hash", workers=8) as server:
        home = homes(server)
        address = "127.0.0.1", server.port
        user, other, *_ = inhabitants(home).values()
        third = next(u for u in USERS if home[u] not in (home[user], home[other]))
        served: list[bool] = []
        for name, data in odd_heads(user, other).items():
            with Wire(address) as wire:
                first = outcome(wire, data)
            for before in (user, other, third):
                with Wire(address) as wire:
                    perform(wire, [get(before, "/before")], home)
                    later = outcome(wire, data)
                assert later == first or name in ONLY_FIRST, f"{name}, behind a request of {before}"
                assert later[1] in (None, first[1] or str(home[user]))
            served.append(first[0] == 200)
        assert sum(served) > 15
        assert len(served) - sum(served) > 15


@pytest.mark.parametrize("place", ["hash", "random", "least"])
def test_request_without_a_key_stays_unless_its_connection_carries_many(place: str) -> None:
    """On a pooled connection it is somebody new, who may go anywhere; on a client's own it is that client."""
    with serve("--place", place) as server:
        home = homes(server)
        address = "127.0.0.1", server.port
        ask = partial(request, "/")
        with Wire(address) as wire:
            own = {wire.send(ask()).reply().json()["slot"] for _ in range(40)}
        with Wire(address) as wire:
            visit_all(wire, home, last=1)
            pooled = [wire.send(ask()).reply().json()["slot"] for _ in range(40)]
            visit_all(wire, home, last=2)
        assert len(own) == 1
        assert len(set(pooled)) == 1 if place == "hash" else len(set(pooled)) > 1
        assert place != "hash" or set(pooled) == own


def test_key_function_that_answers_at_random_makes_no_request_bounce() -> None:
    """The reference's manual proposes such a function for the anonymous: each request moves at most once."""
    with serve("--by", "python:tests.moving_app:whim") as server, Wire(("127.0.0.1", server.port)) as wire:
        for number in range(100):
            size = 1 + number % 5
            wire.send(b"".join(request(f"/{number}/{place}") for place in range(size)))
            replies = [wire.reply() for _ in range(size)]
            assert [reply.headers["x-path"] for reply in replies] == [f"/{number}/{place}" for place in range(size)]
        wait_until(lambda: server.totals()["requests"] == 300, "the last one is counted")
        totals = server.totals()
        assert 150 < totals["returns"] <= 299
        assert totals["returns"] / 2 < totals["misrouted"] < totals["returns"]  # at home here by chance: one of four


@pytest.mark.parametrize("far", [False, True], ids=["at home", "elsewhere"])
def test_later_head_that_is_too_large_gets_431_like_a_first_one(home: dict[str, int], wire: Wire, far: bool) -> None:
    """However it is cut: in one read or in many, at home here or elsewhere."""
    user, other, *_ = inhabitants(home).values()
    perform(wire, [get(user, "/1")], home)
    reply = wire.send(request("/2", x_user=other if far else user, x_more="m" * 70_000)).reply()
    assert (reply.status, wire.rest()) == (431, b"")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("piece", [0, 1])
def test_ten_thousand_mixed_requests(
    home: dict[str, int], wire: Wire, piece: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for longer; `make soak`."""
    number = 1000 if piece else 10_000
    for batch in batches(number, seed=9, heavy_every=1_000_000 if piece else 20):
        perform(wire, batch, home, piece=piece)
    with capsys.disabled():
        print(f"\n{number} requests of {len(USERS)} users on one connection: all at home, in order")


def test_client_of_a_unix_socket_is_moved_like_any_other(tmp_path: Path) -> None:
    """A proxy on the same machine may prefer one."""
    path = str(tmp_path / "limpet.sock")
    with serve("--bind", f"unix:{path}") as server, Wire(path) as wire:
        for batch in batches(200, seed=6):
            perform(wire, batch, homes(server))


def test_large_upload_right_behind_anothers_request_is_whole(home: dict[str, int], wire: Wire) -> None:
    """The first read ends in the middle of a body: what was read moves, what was not is read by the next."""
    a, b, *_ = inhabitants(home).values()
    for _ in range(3):
        perform(wire, [get(a, "/1"), post_large(b, "/2")], home)
        perform(wire, [get(b, "/3"), *(post(user, "/4", b"x" * 70_000) for user in (a, b, a))], home)
