"""The application of the matrix in Sanic."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import HTTPResponse, Request, Sanic, Websocket

from tests.matrix.facts import facts, is_open

app = Sanic("matrix", configure_logging=False)


def _client(request: Request) -> tuple[str, int]:
    return request.ip, request.port


@app.route("/", methods=["GET", "POST"])
async def _facts(request: Request) -> HTTPResponse:
    return HTTPResponse(facts(_client(request), request.body), content_type="application/json")


@app.get("/gated")
async def _gated(request: Request) -> None:
    response: Any = await request.respond(content_type="application/json")
    await response.send(facts(_client(request)))
    while not is_open():
        await asyncio.sleep(0.01)
    await response.eof()


@app.websocket("/ws")  # type: ignore[untyped-decorator]
async def _websocket(request: Request, websocket: Websocket) -> None:
    await websocket.send(facts(_client(request)).decode())
    async for message in websocket:
        await websocket.send(message)
