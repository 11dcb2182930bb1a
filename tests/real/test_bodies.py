"""What comes in and behind the body of a request: trailers, blank lines, the rest of a body nobody wants, the end."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.harness import Limpet, wait_until
from tests.wire import Wire, chunked, frame, request, upgrade

CHUNKED = {"transfer_encoding": "chunked", "x_user": "u"}


@pytest.fixture(scope="module", params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["ip", "header:x-user"])
def server(request: pytest.FixtureRequest, http: str) -> Iterator[Limpet]:
    flags = ("--workers", "2", "--by", request.param, "--http", http, "--backend", "dispatcher", "--head-timeout", "1")
    with Limpet("tests.pipeline_app:app", *flags) as server:
        yield server


@pytest.fixture
def wire(server: Limpet) -> Iterator[Wire]:
    with Wire(("127.0.0.1", server.port)) as wire:
        yield wire


def test_trailers_are_no_headers(wire: Wire) -> None:
    """A proxy sets `x-verified`; who can add a second one behind the body would be believed."""
    head = request("/late/1", "POST", **CHUNKED)
    wire.send(head + b"1\r\na\r\n0\r\nx-verified: evil\r\nx-forwarded-for: 6.6.6.6\r\n\r\n")
    names = [name for name, _ in json.loads(wire.reply().body)["headers"]]
    assert names == ["host", "transfer-encoding", "x-user"]


@pytest.mark.parametrize("trailers", [b"a:\r\n" * 300 + b"\r\n", b"a: " + b"b" * 600_000], ids=["many", "long"])
def test_trailers_count_towards_the_limits_of_a_head(wire: Wire, trailers: bytes) -> None:
    """They are kept in memory as headers are."""
    wire.send(request("/echo/1", "POST", **CHUNKED) + b"1\r\na\r\n0\r\n" + trailers)
    assert wire.reply().status in (400, 431)  # h11 refuses a line without an end by itself


def test_body_of_blank_lines_costs_no_more_than_another(server: Limpet, wire: Wire) -> None:
    """At each blank line the message might end: a parser that is asked at each is 200 times slower."""
    took = []
    for body in (b"abcd" * 1_000_000, b"\r\n\r\n" * 1_000_000):
        began = time.monotonic()
        for _ in range(2):
            wire.send(request("/echo/1", "POST", **CHUNKED) + chunked([body]))
            assert json.loads(wire.reply().body)["size"] == len(body)
        took.append(time.monotonic() - began)
    assert took[1] < 10 * took[0] + 0.2


def test_body_that_comes_after_its_answer_leads_to_no_timeout(wire: Wire) -> None:
    """A 408 that nobody asked for would be taken for the answer to the client's next request."""
    head = request("/early/1", "POST", x_user="u", content_length="6")
    wire.send(head)
    assert wire.reply().status == 413
    wire.send(b"abc", b"def")
    wire.sock.settimeout(2.5)  # the deadline for heads is 1 s
    with pytest.raises(TimeoutError):
        wire.sock.recv(1)
    wire.sock.settimeout(10)
    wire.send(request("/echo/2", x_user="u"))
    assert wire.sock.recv(20).startswith(b"HTTP/1.1 200 ")


def wait_until_seen(server: Limpet, number: str, what: str) -> None:
    """Wait until the long poll *number* is as *what* says."""
    with Wire(("127.0.0.1", server.port)) as other:
        wait_until(lambda: json.loads(other.send(request(f"/echo/{number}", x_user="u")).reply().body)[what], what, 10)


def test_application_hears_of_a_client_that_left_behind_an_empty_line(server: Limpet) -> None:
    """Some clients send one behind the body of a POST; the long poll would last for ever."""
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/leave/empty", "POST", b"abc", x_user="u") + b"\r\n")
    wait_until_seen(server, "empty", "left")


def test_application_hears_of_a_client_that_left_after_a_late_empty_line(server: Limpet) -> None:
    """The line comes when the application waits already, and must not be taken for a request that waits."""
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/leave/late", "POST", b"abc", x_user="u"))
        wait_until_seen(server, "late", "waiting")
        wire.send(b"\r\n")
    wait_until_seen(server, "late", "left")


def test_application_hears_of_a_client_that_left_behind_a_late_body_and_an_empty_line(server: Limpet) -> None:
    """It waits for the body when both come, and asks for more at once."""
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/leave/both", "POST", x_user="u", content_length="3"))
        wait_until_seen(server, "both", "begun")
        wire.send(b"abc\r\n")
        wait_until_seen(server, "both", "waiting")
    wait_until_seen(server, "both", "left")


def test_frames_behind_a_handshake_are_no_head_that_is_too_large(wire: Wire) -> None:
    """A 431 would be written onto the websocket."""
    payload = b"x" * 100_000
    data = frame(payload) if len(payload) < 65_536 else _large_frame(payload)
    wire.send(upgrade("/ws/1", x_user="u") + data)
    assert wire.head()[0] == 101
    wire.frame()
    assert wire.frame().payload == payload


def test_head_that_is_too_large_waits_for_the_response_before_it(wire: Wire) -> None:
    """In the midst of a response a 431 would be a part of that."""
    wire.send(request("/late/1", x_user="u") + request("/echo/2", x_user="u", x_large="l" * 70_000))
    assert wire.reply().status == 200
    assert wire.reply().status == 431


def test_body_that_is_refused_waits_for_the_response_before_it(wire: Wire) -> None:
    """A 400 in front of that would be taken for the answer to the first request."""
    wire.send(request("/late/1", x_user="u") + request("/echo/2", "POST", **CHUNKED) + b"zz\r\n")
    assert wire.reply().status == 200
    assert wire.reply().status == 400


def test_bytes_behind_a_request_wait_in_the_kernel_though_its_application_asks_for_more(
    server: Limpet, wire: Wire
) -> None:
    """An application that watches for the end of its client would otherwise have all that the client sends read."""
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    wire.send(request("/hold/1", x_user="u"))
    wire.send(request("/echo/2", "POST", x_user="u", content_length=str(1 << 30)))
    wire.sock.settimeout(1)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:
            sent += wire.sock.send(bytes(1 << 20))
    with Wire(("127.0.0.1", server.port)) as other:
        assert other.send(request("/release/1", x_user="u")).reply().status == 200
    assert sent < 16 << 20  # the kernel's own buffers


def _large_frame(payload: bytes) -> bytes:
    return b"\x81\xff" + len(payload).to_bytes(8, "big") + bytes(4) + payload
