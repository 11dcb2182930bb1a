"""An application for tests of single bytes: it answers within a request, streams, and tells all of its scope."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from typing import Any

from tests import apps

_feed: asyncio.Queue[bytes] = asyncio.Queue()
_left = asyncio.Event()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer as the path says; elsewhere as `tests.apps:echo` does."""
    routes = {
        "/mirror": mirror,
        "/feed": feed,
        "/early": early,
        "/wait": wait,
        "/socket": own_socket,
        "/view": view,
    }
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    else:
        path = scope["path"].removeprefix(scope["root_path"])
        await routes.get("/" + path.split("/")[1], apps.echo)(scope, receive, send)


async def seen(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer as `view` does, whatever the path."""
    await (lifespan if scope["type"] == "lifespan" else view)(scope, receive, send)


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Leave something in the state that each request gets."""
    await receive()
    scope["state"]["note"] = "made at start-up"
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def mirror(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send each piece of the body back as soon as it is there."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def feed(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """GET streams server-sent events; POST makes one of its body, the empty one ends the stream."""
    if scope["method"] == "POST":
        _feed.put_nowait((await receive())["body"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while event := await _feed.get():
        await send({"type": "http.response.body", "body": b"data: %b\n\n" % event, "more_body": True})
    await send({"type": "http.response.body"})


async def early(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Refuse the body without reading it."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"too large"})


async def wait(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """GET is a long poll that ends without an answer when its client has left; POST tells when one has."""
    if scope["method"] == "GET":
        while (await receive())["type"] != "http.disconnect":
            pass
        _left.set()
        return
    await _left.wait()
    _left.clear()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"left"})


async def own_socket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with how the connection's socket is set."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as sock:
                tcp = sock.family != socket.AF_UNIX
                if scope["client"] == sock.getpeername()[:2] if tcp else scope["server"][0] == sock.getsockname():
                    seen = {
                        "blocking": os.get_blocking(fd),
                        "inheritable": os.get_inheritable(fd),
                        "lowat": sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT),
                        "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) if tcp else None,
                    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


async def view(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with all of the scope, as `repr` shows it."""
    seen = json.dumps({key: repr(value) for key, value in scope.items()}).encode()
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        await send({"type": "websocket.send", "text": seen.decode()})
        await receive()
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": seen})


class Asgi2:
    """The same as `seen`, in the form of ASGI 2."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await seen(self.scope, receive, send)


class Made:
    """Holds an application."""

    app = staticmethod(seen)


def make() -> Any:
    """Return an application."""
    return seen


async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application with a bug."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    raise ZeroDivisionError("what a bug looks like")


async def ending(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Begin a response, at `/half` send a part of it, and raise."""
    if scope["type"] != "http":
        await lifespan(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 206, "headers": [(b"content-length", b"100")]})
    if scope["path"] == "/half":
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0)
    raise RuntimeError("midway")


async def polling(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Say so in the log when a request is here; end when its client has left."""
    if scope["type"] != "http":
        await lifespan(scope, receive, send)
        return
    logging.getLogger("limpet.test").info("it is polled")
    while (await receive())["type"] != "http.disconnect":
        pass


async def streaming(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stream at `/stream` for as long as the client stays, and ask again and again whether it has left."""
    if scope["type"] != "http":
        await lifespan(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"event\n", "more_body": True})
        with contextlib.suppress(TimeoutError):
            if (await asyncio.wait_for(receive(), 0.002))["type"] == "http.disconnect":
                return
    await send({"type": "http.response.body", "body": b""})
