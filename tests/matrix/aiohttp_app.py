"""The application of the matrix in aiohttp."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from tests.matrix.facts import facts, is_open


def _client(request: web.Request) -> Any:
    assert request.transport is not None
    return request.transport.get_extra_info("peername")


async def _facts(request: web.Request) -> web.Response:
    body = await request.read()
    return web.Response(body=facts(_client(request), body), content_type="application/json")


async def _gated(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(facts(_client(request)))
    while not is_open():
        await asyncio.sleep(0.01)
    return response


async def _websocket(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    await websocket.send_str(facts(_client(request)).decode())
    async for message in websocket:
        await websocket.send_str(message.data)
    return websocket


app = web.Application(client_max_size=1 << 20)
app.add_routes([web.get("/gated", _gated), web.get("/ws", _websocket), web.route("*", "/", _facts)])
