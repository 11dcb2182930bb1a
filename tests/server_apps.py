"""One application twice, for servers that call ASGI and for those that call WSGI: they answer the same."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests import apps


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the facts; at `/gated` end the response when the file `TEST_GATE` exists; at `/raise` raise."""
    if scope.get("path") == "/raise":
        raise RuntimeError("as asked")
    await (apps.gated if scope.get("path") == "/gated" else apps.echo)(scope, receive, send)


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The same; at `/taken` answer on gunicorn's socket and close it, as libraries for websockets do."""
    if environ["PATH_INFO"] == "/raise":
        raise RuntimeError("as asked")
    if environ["PATH_INFO"] == "/taken":
        taken = environ["gunicorn.socket"]
        taken.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ntaken")
        taken.close()
        raise StopIteration
    body = environ["wsgi.input"].read()
    facts = {
        "slot": int(os.environ["LIMPET_SLOT"]),
        "pid": os.getpid(),
        "client": [environ.get("REMOTE_ADDR", ""), _number(environ.get("REMOTE_PORT"))],
        "scheme": environ["wsgi.url_scheme"],
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    reply = json.dumps(facts).encode()
    if environ["PATH_INFO"] == "/gated":
        start_response("200 OK", [("Content-Type", "application/json")])
        return gated(reply)
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(reply)))])
    return [reply]


def _number(port: str | None) -> int:
    """Return the number of a port; servers say in several ways that there is none, as of unix sockets."""
    return int(port) if port and port.isdigit() else 0


def gated(reply: bytes) -> Iterator[bytes]:
    """Yield *reply* at once and end when the file `TEST_GATE` exists."""
    yield reply
    pause = threading.Event()
    while not Path(os.environ["TEST_GATE"]).exists():
        pause.wait(0.01)
