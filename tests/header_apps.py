"""One application for each kind of server: it says which headers and which client it sees, before and after the body.

They are made when they are asked for, since not every library is there, and some choose an event loop when imported.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests import apps


def _began(path: str) -> None:
    """Note that the application serves a request for *path*."""
    if "TEST_BEGAN" in os.environ:
        (Path(os.environ["TEST_BEGAN"]) / path.strip("/")).touch()


def _answer(before: object, after: object, size: int) -> bytes:
    return json.dumps({"before": str(before), "after": str(after), "size": size}).encode()


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """For servers that call ASGI."""
    if scope["type"] != "http":
        await apps.echo(scope, receive, send)
        return
    _began(scope["path"])
    before, size, more = str((scope["client"], scope["headers"])), 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = _answer(before, (scope["client"], scope["headers"]), size)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For servers that call WSGI."""
    _began(environ["PATH_INFO"])
    before = str(environ)
    size = len(environ["wsgi.input"].read())
    body = _answer(before, environ, size)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _aiohttp() -> Any:
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        _began(request.path)
        before = str((request.remote, request.raw_headers, list(request.headers.items())))
        size = len(await request.read())
        return web.Response(
            body=_answer(before, (request.remote, request.raw_headers, list(request.headers.items())), size)
        )

    app = web.Application()
    app.add_routes([web.route("*", "/{path}", answer)])
    return app


def _tornado() -> Any:
    from tornado import web

    @web.stream_request_body
    class Answer(web.RequestHandler):
        def prepare(self) -> None:
            _began(self.request.path)
            self.before, self.size = str((self.request.remote_ip, list(self.request.headers.get_all()))), 0

        def data_received(self, chunk: bytes) -> None:
            self.size += len(chunk)

        def get(self) -> None:
            after = self.request.remote_ip, list(self.request.headers.get_all())
            self.write(_answer(self.before, after, self.size))

        post = get

    return web.Application([("/.*", Answer)])


def _sanic() -> Any:
    from sanic import HTTPResponse, Request, Sanic

    app = Sanic("headers", configure_logging=False)

    @app.route("/<path>", methods=["GET", "POST"], stream=True)
    async def answer(request: Request, path: str) -> HTTPResponse:
        _began(path)
        before, size = str((request.ip, list(request.headers.items()))), 0
        while (piece := await request.stream.read()) is not None:  # type: ignore[union-attr]
            size += len(piece)
        return HTTPResponse(_answer(before, (request.ip, list(request.headers.items())), size))

    return app


def _twisted() -> Any:
    from twisted.web import resource

    class Answer(resource.Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            _began(request.path.decode())
            before = str(list(request.requestHeaders.getAllRawHeaders()))
            size = len(request.content.read())
            return _answer(before, list(request.requestHeaders.getAllRawHeaders()), size)

        render_POST = render_GET

    return Answer()  # type: ignore[no-untyped-call]


@functools.cache
def __getattr__(name: str) -> Any:
    made = {"aiohttp": _aiohttp, "tornado": _tornado, "sanic": _sanic, "twisted": _twisted}.get(name)
    if made is None:
        raise AttributeError(name)
    return made()
