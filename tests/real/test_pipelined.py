"""Responses to pipelined requests: each has its own head, once, and nothing of it gets into a body.

Where keys are addresses, uvicorn's parser has requests while an earlier one is still being answered; where they are in
requests, limpet keeps them from it. Heads are held until the body comes, and get what all responses have.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Limpet
from tests.wire import Wire, chunked, request

PIECES = [b"one\n", b"HTTP/1.1 200 OK\r\n\r\n", b"three\n" * 5000, b"\n"]


@pytest.fixture(scope="module", params=["ip", "header:x-user"])
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest, by: str) -> Iterator[Limpet]:
    flags = ("--workers", "2", "--by", by, "--http", request.param, "--backend", "dispatcher")
    with Limpet("tests.wire_app:app", *flags) as server:
        yield server


def test_each_response_has_its_own_head_and_body(server: Limpet) -> None:
    """In all orders of what is streamed, what has no body, and what is told to continue."""
    body = b"".join(PIECES)
    kinds = {
        "plain": request("/", x_user="u"),
        "head": request("/", "HEAD", x_user="u"),
        "stream": request("/mirror", "POST", transfer_encoding="chunked", x_user="u") + chunked(PIECES),
        "expect": request("/", "POST", body, expect="100-continue", x_user="u"),
        "early": request("/early", "POST", body, x_user="u"),
    }
    order = [kind for first in kinds for second in kinds for kind in (first, second)]
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(b"".join(kinds[kind] for kind in order))
        for kind in order:
            status, headers = wire.head()
            while status == 100:
                assert not headers
                status, headers = wire.head()
            assert (status, headers["server"]) == (413 if kind == "early" else 200, "uvicorn"), kind
            assert headers["date"].endswith(" GMT")
            if kind == "stream":
                assert b"".join(iter(wire.chunk, b"")) == body
            elif kind != "head":
                said = wire._exactly(int(headers["content-length"]))
                assert said == b"too large" or said.startswith(b'{"'), kind
        wire.send(request("/", x_user="u"))
        assert wire.reply().status == 200


def test_request_that_comes_amid_a_response_leaves_that_alone(server: Limpet) -> None:
    """The next head that is due is that of the earlier one's successor; what is written before belongs to a body."""
    stream = request("/mirror", "POST", transfer_encoding="chunked", x_user="u")
    with Wire(("127.0.0.1", server.port)) as wire:
        for _ in range(3):
            wire.send(stream + b"%x\r\n%b\r\n" % (len(PIECES[0]), PIECES[0]))
            assert wire.head()[0] == 200
            assert wire.chunk() == PIECES[0]
            wire.send(chunked(PIECES[1:]) + request("/", x_user="u"))
            assert b"".join(iter(wire.chunk, b"")) == b"".join(PIECES[1:])
            reply = wire.reply()
            assert (reply.status, reply.headers["server"]) == (200, "uvicorn")
