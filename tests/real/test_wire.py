"""What is on the wire reaches the application, and what it answers reaches the client, however the bytes are divided.

Every test runs with both parsers, on both event loops, and each of uvicorn's websocket implementations has its turn.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.harness import Limpet, Reply, wait_until
from tests.wire import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Address,
    Frame,
    Wire,
    chunked,
    frame,
    portions,
    request,
    upgrade,
    wires,
)

SID = "lv_VI97HAXpY6yYWAAAC"
LARGE = random.Random(5).randbytes(5_000_000)
PLANS = [
    ("httptools", "uvloop", "websockets-sansio"),
    ("httptools", "asyncio", "websockets"),
    ("h11", "uvloop", "wsproto"),
    ("h11", "asyncio", "websockets-sansio"),
]
get = partial(request, cookie=f"sid={SID}")


@pytest.fixture(scope="module", params=PLANS, ids="-".join)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limpet]:
    """Two workers behind a TCP port and a unix socket, clients told apart by a cookie."""
    http, loop, ws = request.param
    path = tmp_path_factory.mktemp("wire") / "limpet.sock"
    flags = [
        "--by",
        "cookie:sid",
        "--workers",
        "2",
        "--http",
        http,
        "--loop",
        loop,
        "--ws",
        ws,
        "--graceful-timeout",
        "1",
    ]
    with Limpet("tests.wire_app:app", *flags, "--bind", f"unix:{path}") as server:
        yield server


@pytest.fixture
def wire(server: Limpet) -> Iterator[Wire]:
    """A new connection."""
    with Wire(tcp(server)) as wire:
        yield wire


def tcp(server: Limpet) -> Address:
    return "127.0.0.1", server.port


def unix(server: Limpet) -> Address:
    [path] = [url.removeprefix("unix:") for url in server.status()["binds"] if url.startswith("unix:")]
    return str(path)


def pending(server: Limpet) -> int:
    """Return how many connections the dispatcher has whose head is not complete."""
    number: int = server.status()["dispatchers"][0]["pending"]
    return number


def is_home(server: Limpet, reply: Reply | Frame) -> bool:
    """Tell whether the worker that wrote *reply* is the one of the client with the cookie."""
    said: dict[str, Any] = json.loads(reply.body if isinstance(reply, Reply) else reply.payload)
    [home] = server.where(SID)
    return (said["slot"], said["pid"]) == (home["slot"], home["pid"])


@pytest.mark.parametrize("bind", [tcp, unix])
def test_head_cut_at_any_byte_reaches_the_home_of_its_key(server: Limpet, bind: Any) -> None:
    """A segment may end anywhere, in the middle of the key too: the reference sent 24 of 24 such requests astray."""
    head = get("/cut")
    with wires(bind(server), len(head) - 1) as clients:
        for cut, client in enumerate(clients, 1):
            client.send(head[:cut])
        wait_until(lambda: pending(server) == len(clients), "the dispatcher has seen all the beginnings")
        for cut, client in enumerate(clients, 1):
            client.send(head[cut:])
        replies = [client.reply() for client in clients]

    assert {(reply.status, reply.json()["path"], is_home(server, reply)) for reply in replies} == {(200, "/cut", True)}


def test_request_written_byte_by_byte_is_served(server: Limpet, wire: Wire) -> None:
    """Clients without a buffer exist; each byte is a segment here, in head and body."""
    data = get("/", "POST", b"as slowly as it gets")
    reply = wire.send(*portions(data, *range(1, len(data)))).reply()

    assert is_home(server, reply)
    assert reply.json()["sha256"] == hashlib.sha256(b"as slowly as it gets").hexdigest()


def test_thirty_kilobytes_of_cookies_are_read(server: Limpet, wire: Wire) -> None:
    """Cookies of all that runs on a host come together, and the one that counts may be the last."""
    cookies = "; ".join(f"other{number}={'x' * 1000}" for number in range(30))
    head = request(cookie=f"{cookies}; sid={SID}")
    wire.send(head[:20_000])
    wait_until(lambda: pending(server) == 1, "the dispatcher has seen the first part")

    assert is_home(server, wire.send(head[20_000:]).reply())


@pytest.mark.parametrize("chunks", [0, 1, 999])
def test_large_body_right_behind_its_head_arrives_whole(server: Limpet, wire: Wire, chunks: int) -> None:
    """In the reference two processes read one stream, and of bodies beyond 60 KB hardly one arrived."""
    if chunks:
        size = len(LARGE) // chunks + 1
        parts = [LARGE[start : start + size] for start in range(0, len(LARGE), size)]
        wire.send(get("/", "POST", transfer_encoding="chunked") + chunked(parts))
    else:
        wire.send(get("/", "POST", LARGE))
    reply = wire.reply()

    assert is_home(server, reply)
    assert (reply.json()["size"], reply.json()["sha256"]) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())


def test_client_that_expects_100_is_told_to_continue(wire: Wire) -> None:
    """curl waits a second for this line before it sends a body of a megabyte."""
    head = get("/", "POST", expect="100-continue", content_length="4")
    assert wire.send(head).reply().status == 100
    assert wire.send(b"body").reply().json()["size"] == 4


def test_pipelined_requests_are_answered_in_their_order(server: Limpet, wire: Wire) -> None:
    """The dispatcher peeks at the first head only; what follows it is the worker's."""
    bodies = [b"x" * number for number in range(40)]
    wire.send(b"".join(get(f"/{len(body)}", "POST", body) for body in bodies))
    replies = [wire.reply() for _ in bodies]

    assert [(reply.json()["path"], reply.json()["size"]) for reply in replies] == [(f"/{n}", n) for n in range(40)]
    assert all(is_home(server, reply) for reply in replies)


def test_one_connection_carries_many_requests(server: Limpet, wire: Wire) -> None:
    """Bodies of all kinds leave the connection where the next request begins."""
    for number in range(100):
        body = LARGE[:number]
        coded = get("/", "POST", transfer_encoding="chunked") + chunked([body[:9], body[9:]] if number > 9 else [])
        reply = wire.send(*[get(), get("/", "POST", body), coded][number % 3 :][:1]).reply()
        assert is_home(server, reply)


@pytest.mark.parametrize("bind", [tcp, unix])
def test_single_bytes_of_a_body_are_delivered_at_once(server: Limpet, bind: Any) -> None:
    """The dispatcher tells the kernel how many bytes it waits for; were that left so, the worker would wait as well."""
    head = get("/mirror", "POST", content_length="50")
    with Wire(bind(server)) as wire:
        wire.send(head[:-1])
        wait_until(lambda: pending(server) == 1, "the dispatcher waits for the last byte")
        wire.send(head[-1:])

        assert wire.head()[0] == 200
        for byte in b"x" * 50:
            assert wire.send(bytes([byte])).chunk() == bytes([byte])
        assert wire.chunk() == b""


@pytest.mark.parametrize("bind", [tcp, unix])
def test_nothing_of_the_dispatcher_is_left_on_the_socket(server: Limpet, bind: Any) -> None:
    """Options and flags live on the connection, not on a process's descriptor: they travel with it."""
    head = get("/socket")
    with Wire(bind(server)) as wire:
        wire.send(head[:-1])
        wait_until(lambda: pending(server) == 1, "the dispatcher waits for the last byte")
        seen = wire.send(head[-1:]).reply().json()

    assert seen == {"blocking": False, "lowat": 1, "inheritable": False, "nodelay": None if bind is unix else 1}


def test_events_of_a_stream_are_flushed_one_by_one(server: Limpet, wire: Wire) -> None:
    """An event that waits for the next one to push it out is late by as long as nothing happens."""
    assert wire.send(get("/feed")).head()[1]["content-type"] == "text/event-stream"
    with Wire(tcp(server)) as other:
        for number in range(20):
            event = f"event {number}".encode()
            assert other.send(get("/feed", "POST", event)).reply().status == 204
            assert wire.chunk() == b"data: " + event + b"\n\n"
        other.send(get("/feed", "POST", b"")).reply()
    assert wire.chunk() == b""


def test_answer_in_the_middle_of_a_body_is_read_before_its_end(server: Limpet, wire: Wire) -> None:
    """An upload that is too large is refused at its head, and the connection serves the next request all the same."""
    data = get("/early", "POST", LARGE)
    assert wire.send(data[:100_000]).reply().status == 413
    assert is_home(server, wire.send(data[100_000:] + get()).reply())


def test_answer_to_a_body_that_nobody_reads_waits_for_the_client(wire: Wire) -> None:
    """A client that writes all before it reads finds its answer, not a reset."""
    assert wire.send(get("/early", "POST", LARGE)).reply().status == 413


def test_half_closed_client_has_its_answer(server: Limpet, wire: Wire) -> None:
    """Whoever has said all may say so: FIN ends what the client sends, not what it wants to read."""
    reply = wire.send(get("/", "POST", b"all")).half_close().reply()
    assert is_home(server, reply)
    assert wire.rest() == b""


def test_half_closed_client_has_an_answer_that_takes_its_time(server: Limpet, wire: Wire) -> None:
    """The application is still busy when the FIN comes."""
    wire.send(get("/feed")).half_close().head()
    with Wire(tcp(server)) as other:
        for event in (b"one", b"two"):
            other.send(get("/feed", "POST", event)).reply()
            assert wire.chunk() == b"data: " + event + b"\n\n"
        other.send(get("/feed", "POST", b"")).reply()
    assert wire.chunk() == b""
    assert wire.rest() == b""


@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
def test_application_that_asks_hears_that_its_client_has_left(server: Limpet, half: bool) -> None:
    """A long poll that nobody waits for any more has to end, or memory fills with them. That it does is no error."""
    with Wire(tcp(server)) as client, Wire(tcp(server)) as other:
        client.send(get("/wait"))
        if half:
            assert client.half_close().rest() == b""
        else:
            client.close()
        assert other.send(get("/wait", "POST", b"")).reply().body == b"left"
    assert "ASGI callable returned" not in server.log


def test_http_1_0_is_answered_and_closed(server: Limpet, wire: Wire) -> None:
    """Health checks of load balancers speak it."""
    reply = wire.send(get().replace(b"HTTP/1.1", b"HTTP/1.0")).reply()
    assert is_home(server, reply)
    assert wire.rest() == b""


def test_head_request_has_no_body_and_the_connection_goes_on(server: Limpet, wire: Wire) -> None:
    """A length without a body: whoever counts wrongly takes the next response for it."""
    reply = wire.send(get("/", "HEAD")).reply(to="HEAD")
    assert int(reply.headers["content-length"]) > 0
    assert is_home(server, wire.send(get()).reply())


def test_upgrade_that_nobody_knows_leaves_the_next_request_alone(server: Limpet, wire: Wire) -> None:
    """Java's client asks each server for h2c; what it sends behind that is no HTTP/2 unless the server agrees."""
    offer = get(connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AAEAAEAAAAIAAAAB")
    wire.send(offer + offer + get("/last"))
    replies = [wire.reply() for _ in range(3)]

    assert [reply.json()["path"] for reply in replies] == ["/", "/", "/last"]
    assert all(is_home(server, reply) for reply in replies)


@pytest.mark.parametrize("bytewise", [False, True], ids=["together", "bytewise"])
def test_body_behind_an_upgrade_that_nobody_knows_is_a_body(server: Limpet, wire: Wire, bytewise: bool) -> None:
    """uvicorn with httptools drops it, or takes it for the next request: what a client posts could be a forged one."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAAB"}
    forged = get("/forged")
    coded = get("/coded", "POST", transfer_encoding="chunked", **offer) + chunked([forged])
    data = get("/length", "POST", forged, **offer) + coded + get("/empty", "POST", b"", **offer) + get("/last")
    wire.send(*portions(data, *range(1, len(data) if bytewise else 1)))
    replies = [wire.reply() for _ in range(4)]

    seen = [(reply.json()["path"], reply.json()["size"]) for reply in replies]
    assert seen == [("/length", len(forged)), ("/coded", len(forged)), ("/empty", 0), ("/last", 0)]
    assert all(is_home(server, reply) for reply in replies)


@pytest.mark.parametrize("reused", [False, True], ids=["new", "reused"])
def test_frames_right_behind_a_websocket_upgrade_are_delivered(server: Limpet, wire: Wire, reused: bool) -> None:
    """A client that knows what it wants does not wait for 101; uvicorn alone drops what comes in the same segment."""
    if reused:
        wire.send(get()).reply()
    frames = [(TEXT, b"at once"), (BINARY, LARGE[:30_000]), (PING, b"there?"), (TEXT, b"")]
    opening = upgrade(cookie=f"sid={SID}")
    wire.send(opening + b"".join(frame(payload, opcode) for opcode, payload in frames))

    assert wire.head()[0] == 101
    seen = [wire.frame() for _ in range(5)]
    seen.remove(Frame(PONG, b"there?"))  # it may overtake the others
    assert is_home(server, seen[0])
    assert seen[1:] == [Frame(opcode, payload) for opcode, payload in frames if opcode != PING]


def test_websocket_echoes_and_says_goodbye(wire: Wire) -> None:
    """The socket that the dispatcher passed on carries frames in both directions until the closing handshake."""
    wire.send(upgrade(cookie=f"sid={SID}")).head()
    wire.frame()
    for number in range(100):
        payload = str(number).encode()
        assert wire.send(frame(payload)).frame() == Frame(TEXT, payload)
    assert wire.send(frame((1000).to_bytes(2, "big"), CLOSE)).frame().opcode == CLOSE
    assert wire.rest() == b""


@pytest.mark.parametrize("offered", ["bokeh, eyJzZXNzaW9uX2lkIjoi.Z-8_", "eyJzZXNzaW9uX2lkIjoi.Z-8_, bokeh"])
def test_websocket_protocols_are_offered_untouched(wire: Wire, offered: str) -> None:
    """Bokeh and Panel send their session's token as the name of a protocol."""
    wire.send(upgrade("/view", sec_websocket_protocol=offered, cookie=f"sid={SID}"))
    status, headers = wire.head()
    scope = json.loads(wire.frame().payload)

    assert (status, headers["sec-websocket-protocol"]) == (101, offered.split(", ")[0])
    assert scope["subprotocols"] == repr(offered.split(", "))
