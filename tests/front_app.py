"""What the hosts behind a front serve: where a client came to, by a response, a stream, a websocket and Socket.IO."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from pathlib import Path
from typing import Any

import socketio

sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins=[])


def home() -> dict[str, Any]:
    """Return the machine, slot and process that answer."""
    return {"host": os.environ["TEST_HOST"], "slot": int(os.environ["LIMPET_SLOT"]), "pid": os.getpid()}


@sio.event  # type: ignore[untyped-decorator]
async def where(sid: str) -> dict[str, Any]:
    return home()


async def _other(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await _websocket(receive, send)
    elif scope["path"] == "/held":
        await _held(send)
    elif scope["path"] == "/events":
        await _events(receive, send)
    else:
        await _answer(send)


async def _answer(send: Any) -> None:
    body = json.dumps(home()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _held(send: Any) -> None:
    """Answer after 2 s, and leave a file when the request has come."""
    Path(os.environ["TEST_HELD"], uuid.uuid4().hex).touch()
    await asyncio.sleep(2)
    await _answer(send)


async def _websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": json.dumps(home())})


async def _events(receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(5):
        event = b"data: %b\n\n" % json.dumps(home()).encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b""})


asgi = socketio.ASGIApp(sio, _other)
