"""The applications that the tests serve. They only say what they see: which worker, which client, which bytes."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import limpet


def facts(scope: dict[str, Any]) -> dict[str, Any]:
    """Return what the application is told about the client and where it runs."""
    slot = os.environ.get("LIMPET_SLOT")
    return {
        "slot": None if slot is None else int(slot),
        "pid": os.getpid(),
        "client": scope.get("client"),
        "server": scope.get("server"),
        "scheme": scope.get("scheme"),
        "path": scope.get("path"),
        "host": dict(scope["headers"]).get(b"host", b"").decode(),
    }


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """HTTP: the facts, with size and hash of the body. Websocket: the facts first, then each frame back."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _echo_frames(scope, receive, send)
    else:
        size, digest = 0, hashlib.sha256()
        more = True
        while more:
            message = await receive()
            body = message.get("body", b"")
            size, more = size + len(body), message.get("more_body", False)
            digest.update(body)
        reply = facts(scope) | {"size": size, "sha256": digest.hexdigest()}
        await _answer(send, reply)


async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer after as many seconds as the query says: `/?0.5`."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    await asyncio.sleep(float(scope["query_string"] or b"0"))
    await _answer(send, facts(scope))


async def busy(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Compute for as many seconds as the query says, without ever letting the event loop turn."""
    until = time.process_time() + float(scope.get("query_string") or b"0")
    while scope["type"] == "http" and time.process_time() < until:
        hashlib.sha256(bytes(1000)).digest()
    await echo(scope, receive, send)


async def gated(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send the facts at once and end the response when the file `TEST_GATE` exists: until then it is in flight."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": json.dumps(facts(scope)).encode(), "more_body": True})
    await _gate()
    await send({"type": "http.response.body"})


async def gated_start(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, but the worker in slot 3 becomes ready when the file `TEST_GATE` exists."""
    if scope["type"] == "lifespan" and os.environ["LIMPET_SLOT"] == "3":
        await _gate()
    await echo(scope, receive, send)


async def gated_next(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `gated`, but also a worker that follows another becomes ready when the file `TEST_GATE` exists."""
    if scope["type"] == "lifespan" and limpet.current_worker().generation > 1:
        await _gate()
    await gated(scope, receive, send)


async def fragile(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, but it does not start while the file `TEST_FAULT` exists."""
    if scope["type"] == "lifespan" and Path(os.environ["TEST_FAULT"]).exists():
        await fails_to_start(scope, receive, send)
    else:
        await echo(scope, receive, send)


async def forking(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, but with a forked process that outlives the worker, as multiprocessing's may."""
    if scope["type"] == "lifespan" and os.fork() == 0:
        os.closerange(0, 3)  # else whoever reads the server's log would wait for this process
        signal.pause()
    await echo(scope, receive, send)


_kept: list[bytes] = []


async def growing(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, and keeps 8 MB of each request."""
    if scope["type"] == "http":
        _kept.append(os.urandom(8 << 20))
    await echo(scope, receive, send)


async def lingering(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, but at its end a worker hangs up on the supervisor and stays until the file `TEST_GATE` exists."""

    async def receive_late() -> Any:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            from limpet.ipc.control_link import Link  # older versions, which run this too, have it elsewhere

            [line] = [each for each in gc.get_objects() if isinstance(each, Link)]
            with socket.socket(fileno=os.dup(line.fileno())) as end:
                end.shutdown(socket.SHUT_WR)
            Path(f"{os.environ['TEST_GATE']}.asked").touch()
            await _gate()
        return message

    await echo(scope, receive_late if scope["type"] == "lifespan" else receive, send)


async def orphaning(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, but each request leaves a process behind whose parent has ended."""
    if scope["type"] == "http":
        subprocess.run(["sh", "-c", "exec >/dev/null 2>&1; sleep 1000 &"], check=True)
    await echo(scope, receive, send)


async def spawning(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Like `echo`, but each worker starts two programs that inherit all that can be inherited, and outlive it."""
    if scope["type"] == "lifespan":
        command = ["sh", "-c", "exec sleep 1000 >/dev/null 2>&1"]
        subprocess.Popen(command, close_fds=False)
        os.posix_spawn("/bin/sh", command, os.environ)
    await echo(scope, receive, send)


async def who(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with `limpet.current_worker()`, which only works in a worker."""
    if scope["type"] == "http":
        await _answer(send, limpet.current_worker()._asdict())


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """A WSGI application that says what it sees."""
    size = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(size)
    start_response("200 OK", [("Content-Type", "application/json")])
    reply = {
        "slot": int(os.environ["LIMPET_SLOT"]),
        "pid": os.getpid(),
        "client": environ["REMOTE_ADDR"],
        "host": environ["HTTP_HOST"],
        "path": environ["PATH_INFO"],
        "size": len(body),
    }
    return [json.dumps(reply).encode()]


def key(request: limpet.Request) -> str | None:
    """A key function: what `x-python` says, and the faults that a client can ask for."""
    if "x-hang" in request.headers:
        threading.Event().wait()
    if "x-slow" in request.headers:
        threading.Event().wait(float(request.headers["x-slow"]))
    if "x-raise" in request.headers:
        raise ValueError("not a key")
    if "x-exit" in request.headers:
        os._exit(1)
    return request.headers.get("x-python")


not_an_application = {"app": "elsewhere"}


async def fails_to_start(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application whose start-up fails, in the words of Starlette."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "RuntimeError: the database is not there"})


async def _gate() -> None:
    while not Path(os.environ["TEST_GATE"]).exists():
        await asyncio.sleep(0.01)


async def _lifespan(receive: Any, send: Any) -> None:
    note = os.environ.get("TEST_LIFESPAN_NOTE")  # a file that gets a line at each start and each end
    while True:
        message = await receive()
        kind = message["type"].removeprefix("lifespan.")
        if note:
            with open(note, "a") as file:
                file.write(f"{kind} {os.environ.get('LIMPET_SLOT')}\n")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return


async def _echo_frames(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps(facts(scope))})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def _answer(send: Any, reply: dict[str, Any]) -> None:
    body = json.dumps(reply).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
