"""The application of the matrix in Tornado."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado import web, websocket
from tornado.httputil import HTTPServerRequest

from tests.matrix.facts import facts, is_open


def _client(request: HTTPServerRequest) -> Any:
    return request.connection.context.address  # type: ignore[union-attr]


class _Facts(web.RequestHandler):
    def get(self) -> None:
        self.write(facts(_client(self.request), self.request.body))

    post = get


class _Gated(web.RequestHandler):
    async def get(self) -> None:
        self.write(facts(_client(self.request)))
        await self.flush()
        while not is_open():
            await asyncio.sleep(0.01)


class _Websocket(websocket.WebSocketHandler):
    def open(self) -> None:
        self.write_message(facts(_client(self.request)).decode())

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


app = web.Application([("/", _Facts), ("/gated", _Gated), ("/ws", _Websocket)])
