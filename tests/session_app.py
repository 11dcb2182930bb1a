"""An application that makes sessions, and knows those that this very worker has made: any other answer is a miss."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import limpet

KNOWN: set[str] = set()
CACHEABLE = {
    "/public": "public, max-age=60",
    "/shared": "max-age=0, S-MaxAge=60",
    "/private": "private, max-age=60",
    "/not-public": 'no-cache="x-public"',
}


def made() -> str:
    """Return the id of a new session."""
    session = uuid.uuid4().hex
    KNOWN.add(session)
    return session


def answer(path: str, headers: dict[str, str], query: str) -> tuple[int, list[tuple[str, str]], dict[str, Any]]:
    """Return status, headers and facts."""
    facts: dict[str, Any] = {"slot": int(os.environ["LIMPET_SLOT"]), "pid": os.getpid()}
    if path == "/new":
        session = made()
        more = {
            "header": ("Mcp-Session-Id", session),
            "cookie": ("Set-Cookie", f"sid={session}; Path=/"),
            "quoted": ("Set-Cookie", f'sid="{session} of mine"; Path=/'),
            "location": ("Location", f"http://elsewhere.test/files/{session}?x=1"),
        }.get(query)
        if query == "call":
            limpet.learn(session)
        elif query == "mint":
            session = limpet.mint(made)
        return 201, [more] if more else [], facts | {"id": session}
    if path == "/forget":
        limpet.forget(query)
        return 200, [], facts
    if path in CACHEABLE:
        return 200, [("Cache-Control", CACHEABLE[path])], facts
    if path == "/error":
        return 503, [], facts
    cookies = dict(pair.strip().partition("=")[::2] for pair in headers.get("cookie", "").split(";"))
    session = headers.get("mcp-session-id") or cookies.get("sid") or query or path.rpartition("/")[2]
    return (200 if session in KNOWN else 404), [], facts | {"id": session}


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The application for ASGI servers; on a websocket it says where it runs."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode().removeprefix("sid=")
    if scope["type"] == "websocket":
        await receive()
        if scope["path"] == "/error":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept", "headers": [(b"x-from-app", b"1")]})
        await send({"type": "websocket.send", "text": json.dumps(answer("/", headers, query)[2])})
        await receive()
        return
    if scope["path"] == "/raise":
        raise RuntimeError("as asked for")
    status, more, facts = answer(scope["path"], headers, query)
    body = json.dumps(facts).encode()
    raw = [(name.lower().encode(), value.encode()) for name, value in more]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """The application for WSGI servers."""
    headers = {name[5:].replace("_", "-").lower(): environ[name] for name in environ if name.startswith("HTTP_")}
    query = environ["QUERY_STRING"].removeprefix("sid=")
    status, more, facts = answer(environ["PATH_INFO"], headers, query)
    start_response(f"{status} Something", [*more, ("Content-Type", "application/json")])
    return [json.dumps(facts).encode()]


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return
