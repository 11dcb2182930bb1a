"""The pages of the admin process as a small ASGI application: health checks, metrics, and the page for operators.

Owns the paths and what each one answers. A page is a coroutine function from a Call to a Page. asking.py asks the
server; serving.py runs the application.

1. A page that needs the server answers 503 with the reason if the server does not answer.
2. What a caller sends is neither logged nor trusted: guard.py decides who may act.
3. The page consists of three files beside this one and loads nothing else: its Content-Security-Policy forbids it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, NamedTuple

from limpet.errors import LimpetError
from limpet.operate.admin import metrics
from limpet.operate.admin.asking import Server
from limpet.operate.admin.guard import Guard
from limpet.operate.admin.live import MOST_WATCHERS, Live

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_MOST_BODY: Final = 65_536  # bytes that a caller may send
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEALTH: Final = ("/live", "/ready")  # these tell nothing that a stranger may not know
_COMMANDS: Final = ("reload", "scale", "drain", "undrain")
_HARDENED: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Call(NamedTuple):
    """One request. The names of its headers are in lower case; its body is complete."""

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

    def __init__(self, server: Server, guard: Guard, shared_fd: int = -1, directory: str = "") -> None:
        """*shared_fd* and *directory* are the place of the application's metrics, if there is one."""
        self._shared = (directory, shared_fd) if directory else None
        self._server = server
        self._guard = guard
        self.live = Live(server)
        self._pages: dict[tuple[str, str], Callable[[Call], Awaitable[Page]]] = {
            ("GET", "/live"): self._live,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/stream"): self._stream,
            ("POST", "/check"): self._check,
            ("POST", "/where"): self._where,
            ("POST", "/do"): self._do,
            **{("GET", path): self._file for path in _FILES},
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
        await _send(receive, send, await self._page(call))

    async def _page(self, call: Call) -> Page:
        page = self._pages.get((call.method, call.path))
        if page is None:
            allowed = [method for method, path in self._pages if path == call.path]
            paths = ", ".join(path for method, path in self._pages if method == "GET")
            return (
                Page(405, b"", headers={"allow": ", ".join(allowed)})
                if allowed
                else Page(404, f"not found; the pages are {paths}\n".encode())
            )
        if call.path not in _HEALTH and (refusal := self._guard.unreadable(call.headers)):
            return Page(refusal.status, f"{refusal.why}\n".encode())
        try:
            return await page(call)
        except LimpetError as error:
            return Page(503, f"{error.message}\n".encode())

    async def _live(self, call: Call) -> Page:
        """Answer 200 while the supervisor answers. 503 means that it hangs or has ended."""
        await self._server.figures()
        return Page(200, b"live\n")

    async def _ready(self, call: Call) -> Page:
        """Answer 200 while new clients may come, else 503 with one line for each reason."""
        reasons = why_not_ready(await self._server.figures())
        return Page(503, "".join(f"{line}\n" for line in reasons).encode()) if reasons else Page(200, b"ready\n")

    async def _metrics(self, call: Call) -> Page:
        try:
            by_slot = "by=slot" in call.query.split("&")
            own = await asyncio.to_thread(metrics.of_application, self._shared, by_slot=by_slot)
            body, kind = metrics.render(await self._server.figures(), call.headers.get("accept", ""), own)
        except ImportError:
            return Page(501, b"metrics need prometheus-client: pip install 'limpet[metrics]'\n")
        return Page(200, body, kind)

    async def _file(self, call: Call) -> Page:
        name, kind = _FILES[call.path]
        return Page(200, Path(__file__).with_name(name).read_bytes(), kind)

    async def _stream(self, call: Call) -> Page:
        if self.live.watchers >= MOST_WATCHERS:
            return Page(503, f"{MOST_WATCHERS} admin pages are open already: close one\n".encode())
        return Page(200, self.live.stream(self._guard.how), "text/event-stream")

    async def _check(self, call: Call) -> Page:
        """Say whether the caller may act."""
        return self._refused(call) or Page(200, b"{}", _JSON)

    async def _where(self, call: Call) -> Page:
        """Say where the key in the body is served. Keys are not sent in URLs, because histories and logs keep URLs."""
        return self._refused(call) or await self._asked({"command": "where", "keys": [_object(call).get("key")]})

    async def _do(self, call: Call) -> Page:
        """Have the server do what the body asks for."""
        if refused := self._refused(call):
            return refused
        asked = _object(call)
        if asked.get("command") not in _COMMANDS:
            return Page(400, f"unknown command; the commands are {', '.join(_COMMANDS)}\n".encode())
        return await self._asked({name: asked.get(name) for name in ("command", "slot", "slots")})

    def _refused(self, call: Call) -> Page | None:
        refusal = self._guard.refusal(call.headers)
        return refusal and Page(refusal.status, json.dumps({"error": refusal.why}).encode(), _JSON)

    async def _asked(self, request: dict[str, Any]) -> Page:
        try:
            return Page(200, json.dumps(await self._server.ask(**request)).encode(), _JSON)
        except LimpetError as error:
            return Page(409, json.dumps({"error": error.message, "hint": error.hint}).encode(), _JSON)


def why_not_ready(figures: Mapping[str, Any]) -> list[str]:
    """Return why no new client should come, one line for each reason; an empty list if all is well.

    A slot whose worker is just being replaced is not a reason. Its clients wait for about a second. A balancer that
    sent all clients elsewhere because of it would cost them their sessions. A slot that cannot get a worker is a
    reason.
    """
    if figures["server"]["stopping"]:
        return ["the server is stopping"]
    if not figures["server"]["serving"]:
        return ["the server is starting"]
    return [
        f"slot {slot['slot']} has no worker: {slot['state']}"
        for slot in figures["slots"]
        if slot["state"] in ("backoff", "stopped") and slot["slot"] < figures["server"]["slots"]
    ]


async def _body(receive: Any) -> bytes:
    """Return what the caller has sent, cut off at a length that no page needs."""
    body, more = b"", True
    while more and len(body) <= _MOST_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[:_MOST_BODY]


def _object(call: Call) -> dict[str, Any]:
    """Return the JSON object in the body, or an empty one if the body holds something else."""
    try:
        found = json.loads(call.body)
    except (ValueError, RecursionError):
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


async def _send(receive: Any, send: Any, page: Page) -> None:
    headers = {"content-type": page.kind, "cache-control": "no-store", **_HARDENED, **page.headers}
    if isinstance(page.body, bytes):
        headers["content-length"] = str(len(page.body))
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": page.status, "headers": encoded})
    if not isinstance(page.body, bytes):
        gone = asyncio.ensure_future(receive())  # the next message can only say that the caller has gone
        try:
            async with aclosing(page.body) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if gone.done():
                        break
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            gone.cancel()
    await send({"type": "http.response.body", "body": page.body if isinstance(page.body, bytes) else b""})
