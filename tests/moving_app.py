"""An application whose responses all say which request they answer: for connections that move between workers."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import limpet
from tests import apps, wire_app

LARGE = random.Random(7).randbytes(3_000_000)
EVENTS = b"".join(b"data: %d\n\n" % number for number in range(5))


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer as the path says; elsewhere as `tests.wire_app:app` does. HTTP responses repeat the path: `x-path`."""

    async def signed(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-path", scope["raw_path"])]
        await send(message)

    if scope["type"] == "websocket" and scope["path"] == "/refused":
        await send({"type": "websocket.close"})
    elif scope["type"] != "http":
        await wire_app.app(scope, receive, send)
    else:
        other = wire_app.app if scope["path"].startswith("/") else apps.echo
        routes = {"large": large, "events": events, "nothing": nothing, "held": held, "fails": fails, "breaks": breaks}
        await routes.get(scope["path"].partition("/")[2].partition("/")[0], other)(scope, receive, signed)


async def large(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with 3 MB, or with as many times that as the query says, in one piece."""
    body = LARGE * int(scope["query_string"] or 1)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def events(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stream server-sent events, each in a turn of the loop of its own."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for event in EVENTS.splitlines(keepends=True):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body"})


async def nothing(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer without a body, in two turns of the loop."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await asyncio.sleep(0)
    await send({"type": "http.response.body"})


async def held(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the body, and answer when the gate that the query names is open."""
    while (await receive())["more_body"]:
        pass
    await _gate(scope)
    await apps.echo(scope, _no_body, send)


async def fails(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer in full, and fail when the gate that the query names is open, as a background task may."""
    await apps.echo(scope, receive, send)
    await _gate(scope)
    raise RuntimeError("in the background")


async def breaks(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Fail in the middle of a response."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("in the middle")


async def _gate(scope: dict[str, Any]) -> None:
    path = Path(os.environ["TEST_GATES"], scope["query_string"].decode())
    while not path.exists():
        await asyncio.sleep(0.01)


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def whim(request: limpet.Request) -> str:
    """A key function that answers differently each time, as one does that makes up ids for the anonymous."""
    return str(random.random())
