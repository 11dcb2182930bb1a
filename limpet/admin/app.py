"""The pages of the admin process, as a small ASGI application: health and metrics.

Owns the paths and what each answers. A page is a coroutine function from a Call to a Page; whom to ask is asking.py's.

1. A page that needs the server answers 503 with the reason when that does not answer.
2. What a caller sends is neither logged nor believed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from limpet.admin import metrics
from limpet.admin.asking import Server
from limpet.errors import LimpetError

_TEXT: Final = "text/plain; charset=utf-8"
_MOST_BODY: Final = 65_536  # bytes that a caller may send


class Call(NamedTuple):
    """One request: its headers by their names in lower case, its body whole."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Page(NamedTuple):
    """One response. A body that is an iterator is sent piece by piece, until the caller has gone."""

    status: int
    body: bytes | AsyncIterator[bytes]
    kind: str = _TEXT
    headers: Mapping[str, str] = {}


class App:
    """The application: a path and a method lead to a page."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pages: dict[tuple[str, str], Callable[[Call], Awaitable[Page]]] = {
            ("GET", "/live"): self._live,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        call = Call(
            "GET" if scope["method"] == "HEAD" else scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            await _body(receive),
        )
        await _send(send, await self._page(call))

    async def _page(self, call: Call) -> Page:
        page = self._pages.get((call.method, call.path))
        if page is None:
            allowed = [method for method, path in self._pages if path == call.path]
            paths = ", ".join(path for method, path in self._pages if method == "GET")
            return (
                Page(405, b"", headers={"allow": ", ".join(allowed)})
                if allowed
                else Page(404, f"there are {paths}\n".encode())
            )
        try:
            return await page(call)
        except LimpetError as error:
            return Page(503, f"{error.message}\n".encode())

    async def _live(self, call: Call) -> Page:
        """200 while the supervisor answers: 503 means that it hangs, or has ended."""
        await self._server.figures()
        return Page(200, b"live\n")

    async def _ready(self, call: Call) -> Page:
        """200 while clients may come, else 503 with a line for each reason."""
        reasons = why_not_ready(await self._server.figures())
        return Page(503, "".join(f"{line}\n" for line in reasons).encode()) if reasons else Page(200, b"ready\n")

    async def _metrics(self, call: Call) -> Page:
        try:
            body, kind = metrics.render(await self._server.figures(), call.headers.get("accept", ""))
        except ImportError:
            return Page(501, b"metrics need prometheus-client: pip install 'limpet[metrics]'\n")
        return Page(200, body, kind)


def why_not_ready(figures: Mapping[str, Any]) -> list[str]:
    """Return why no new client should come, a line for each reason; nothing when all is well.

    A slot whose worker is just being replaced is no reason: its clients wait for a second, and a balancer that sent
    everybody elsewhere meanwhile would cost all of them their sessions. One that cannot get a worker is.
    """
    if figures["server"]["stopping"]:
        return ["the server stops"]
    if not figures["server"]["serving"]:
        return ["the server is starting"]
    return [
        f"slot {slot['slot']} has no worker: {slot['state']}"
        for slot in figures["slots"]
        if slot["state"] in ("backoff", "stopped") and slot["slot"] < figures["server"]["slots"]
    ]


async def _body(receive: Any) -> bytes:
    """Return what the caller has sent, cut off where it is too long for any page."""
    body, more = b"", True
    while more and len(body) <= _MOST_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[:_MOST_BODY]


async def _send(send: Any, page: Page) -> None:
    headers = {"content-type": page.kind, "cache-control": "no-store", **page.headers}
    if isinstance(page.body, bytes):
        headers["content-length"] = str(len(page.body))
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": page.status, "headers": encoded})
    if not isinstance(page.body, bytes):
        async for piece in page.body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": page.body if isinstance(page.body, bytes) else b""})
