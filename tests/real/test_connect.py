"""CONNECT is for proxies: 400, whoever reads the head first and whichever parser reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.harness import Limpet
from tests.wire import Wire, request

WAYS = {
    "kernel": ("--backend", "kernel", "--by", "ip"),
    "dispatcher": ("--backend", "dispatcher", "--by", "ip"),
    "moving": ("--backend", "dispatcher", "--by", "header:x-user"),
}
HEADS = [
    b"CONNECT %b HTTP/1.1\r\nhost: h\r\nx-user: u\r\n\r\n" % target for target in (b"h:80", b"/a", b"*", b"[::1]:1")
]


@pytest.fixture(scope="module", params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=WAYS)
def server(request: pytest.FixtureRequest, http: str) -> Iterator[Limpet]:
    with Limpet("tests.pipeline_app:app", "--workers", "1", "--http", http, *WAYS[request.param]) as server:
        yield server


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("before", [0, 1])
def test_connect_is_refused(server: Limpet, head: bytes, before: int) -> None:
    """An application would take what follows for a request like any other; two readers would not agree on its end."""
    with Wire(("127.0.0.1", server.port)) as wire:
        for number in range(before):
            wire.send(request(f"/echo/{number}", x_user="u"))
            assert wire.reply().status == 200
        wire.send(head)
        seen = b"".join(iter(lambda: wire.sock.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", seen) == [b"400"]
