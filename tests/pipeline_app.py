"""An application for random pipelines: each response says what the application has seen of its request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from typing import Any

from tests import apps

_begun: set[str] = set()  # long polls that have asked for their body
_waiting: set[str] = set()  # long polls that have their body
_left: set[str] = set()  # long polls whose client has left
_released: set[str] = set()  # requests of kind `hold` that may have their answer


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Do with the request what the first part of its path says."""
    if scope["type"] != "http":
        await apps.echo(scope, receive, send)
        return
    kind, _, number = scope["path"][1:].partition("/")
    digest, size = hashlib.sha256(), 0
    if kind == "late":
        await asyncio.sleep(0.003)  # the whole request is here before it is looked at
    if kind == "leave":
        _begun.add(number)
    more = kind != "early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        digest.update(message["body"])
        size, more = size + len(message["body"]), message["more_body"]
    if kind == "leave":
        _waiting.add(number)
        while (await receive())["type"] != "http.disconnect":
            pass
        _left.add(number)
        return
    if kind == "release":
        _released.add(number)
    while kind == "hold" and number not in _released:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(receive(), 0.001)
    if kind == "poll":
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(receive(), 0.001)
    seen = {
        "method": scope["method"],
        "target": (scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")).decode(),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "size": size,
        "sha256": digest.hexdigest(),
        "slot": int(os.environ["LIMPET_SLOT"]),
        "left": number in _left,
        "begun": number in _begun,
        "waiting": number in _waiting,
    }
    await _answer(kind, json.dumps(seen).encode(), send)


async def _answer(kind: str, body: bytes, send: Any) -> None:
    status = 413 if kind == "early" else 200
    length = [] if kind in ("stream", "poll") else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": length})
    if kind == "stream":
        half = len(body) // 2
        await send({"type": "http.response.body", "body": body[:half], "more_body": True})
        await asyncio.sleep(0.001)
        body = body[half:]
    await send({"type": "http.response.body", "body": body})
