"""What a client sends behind the request that is being answered stays in the kernel, however the application asks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from limpet.system.proc import memory
from tests.harness import Limpet, wait_until
from tests.wire import Wire, request

SENT_MIB = 5
MOST_MIB = 4  # that the worker may grow by: httptools makes requests of all that one read brings: up to 256 KiB
WATCHED_S = 1.5  # the application asks some hundred times
MIB = 1 << 20


@pytest.fixture(scope="module", params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["kernel", "ip", "header:x-user"])
def server(request: pytest.FixtureRequest, http: str) -> Iterator[Limpet]:
    by, backend = (request.param, "dispatcher") if request.param != "kernel" else ("ip", "kernel")
    flags = ("--workers", "1", "--by", by, "--backend", backend, "--http", http)
    with Limpet("tests.wire_app:streaming", *flags) as server:
        yield server


@pytest.mark.parametrize("behind", ["requests", "body", "junk"])
def test_bytes_behind_a_streaming_response_take_no_memory(server: Limpet, behind: str) -> None:
    """uvicorn reads on as often as the application asks whether its client has left: +43 MB in 5 s."""
    pid = server.worker(0)["pid"]
    pieces = {
        "requests": request("/end", x_user="u", x_long="l" * 1000),
        "body": request("/end", "POST", b"b" * 60_000, x_user="u"),
        "junk": b"j" * 1000,
    }
    data = pieces[behind] * (SENT_MIB * MIB // len(pieces[behind]) + 1)
    with Wire(("127.0.0.1", server.port)) as wire:
        wire.send(request("/stream", x_user="u"))
        wire.head()
        before, most, left = memory(pid), 0, memoryview(data)
        wire.sock.settimeout(0.05)
        until = time.monotonic() + WATCHED_S
        while time.monotonic() < until:
            try:  # what the worker does not read stays in the kernel, and some of it here
                left = left[wire.sock.send(left) if left else len(wire.sock.recv(1)) :]
            except TimeoutError:
                pass
            except OSError:  # it has refused junk
                break
            most = max(most, memory(pid) - before)
        assert most < MOST_MIB * MIB, f"{most >> 10} KiB"
    wait_until(lambda: server.worker(0)["connections"] == 0, "the connection has ended")
