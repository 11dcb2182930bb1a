"""The application of all benchmarks: what a request needs that has nothing to do, so that the rest is the server's.

`GET /` says which process answers, `GET /big` sends 1 MB, `GET /events` sends a message of 200 bytes each 10 ms, any
other method takes the body and says so. `/size...` says how large the body was, `/refused` sends 401 without reading
it. A websocket sends back what it gets.
"""

import asyncio
import json
import os

BODY = json.dumps({"pid": os.getpid()}).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
BIG = b"x" * 1_000_000
BIG_HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(BIG)).encode())]
EVENT = b"data: " + b"x" * 192 + b"\n\n"


async def app(scope, receive, send):
    """Answer."""
    if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/":
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})
    elif scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    else:
        await lifespan(receive, send)


async def http(scope, receive, send):
    """Send or take what is large."""
    if scope["path"] == "/events":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        gone = asyncio.ensure_future(wait_gone(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            await asyncio.sleep(0.01)
        return
    if scope["path"].startswith("/size"):
        await size(receive, send)
        return
    if scope["path"] == "/refused":
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    if scope["method"] != "GET":
        while (await receive()).get("more_body"):
            pass
    headers, body = (BIG_HEADERS, BIG) if scope["path"] == "/big" else (HEADERS, BODY)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def size(receive, send):
    """Take the body and say how large it was."""
    total, more = 0, True
    while more:
        message = await receive()
        total, more = total + len(message.get("body", b"")), message.get("more_body", False)
    body = b"%d" % total
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def wait_gone(receive):
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def echo(receive, send):
    """Send back each message until the client has gone."""
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message.get("bytes") is not None:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        else:
            await send({"type": "websocket.send", "text": message["text"]})


async def lifespan(receive, send):
    """Start and stop with nothing to do."""
    while (kind := (await receive())["type"]) != "lifespan.shutdown":
        await send({"type": f"{kind}.complete"})
    await send({"type": f"{kind}.complete"})
