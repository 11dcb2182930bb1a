"""CPU time of the WSGI adapter for each request, beside that of a2wsgi (`pip install a2wsgi`), in alternating runs.

Both are called as a server calls an ASGI application, without sockets, so what is compared is the adapter alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import uvloop
from a2wsgi import WSGIMiddleware

from limpet.servers.wsgi import Threaded

RUNS, REQUESTS = 6, 1_500
SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "headers": [(b"host", b"limpet.test"), (b"user-agent", b"benchmark"), (b"accept", b"*/*")],
    "server": ("127.0.0.1", 80),
    "client": ("127.0.0.1", 9),
    "scheme": "http",
}


def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Read the body and answer."""
    environ["wsgi.input"].read()
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


async def receive() -> dict[str, Any]:
    """Be a client without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    """Be a client that reads."""


async def cost_us(served: Callable[..., Awaitable[None]]) -> float:
    """Return the CPU time of one request."""
    began = time.process_time()
    for _ in range(REQUESTS):
        await served(SCOPE, receive, send)
    return (time.process_time() - began) / REQUESTS * 1e6


async def main() -> None:
    """Measure and print."""
    adapters: dict[str, Any] = {"a2wsgi": WSGIMiddleware(app), "limpet": Threaded(app, 32)}
    costs: dict[str, list[float]] = {name: [] for name in adapters}
    for _ in range(RUNS):
        for name, served in adapters.items():
            costs[name].append(await cost_us(served))
    theirs, ours = (statistics.median(costs[name]) for name in ("a2wsgi", "limpet"))
    print(f"a2wsgi {theirs:.0f} us, limpet {ours:.0f} us: {ours / theirs:.2f}")


if __name__ == "__main__":
    uvloop.run(main())
