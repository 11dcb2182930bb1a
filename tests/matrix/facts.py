"""What every application of the matrix answers, and the gate that keeps a response in flight."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path


def facts(client: Sequence[object] | None, body: bytes = b"") -> bytes:
    """Return where this runs, whom the application sees, and what it was sent, as JSON."""
    address, port = (os.fsdecode(client), 0) if isinstance(client, (str, bytes)) else [*(client or ("", 0))][:2]
    found = {
        "slot": int(os.environ["LIMPET_SLOT"]),
        "pid": os.getpid(),
        "client": [address, int(str(port))],
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return json.dumps(found).encode()


def is_open() -> bool:
    """Return whether a response at `/gated` may end."""
    return Path(os.environ["TEST_GATE"]).exists()


def wait_open(pause: float = 0.01) -> None:
    """Block until it may."""
    while not is_open():
        time.sleep(pause)  # in an application, not in a test: it stands for work


def request_in(data: bytes) -> tuple[str, bytes, bytes] | None:
    """Return path and body of the first HTTP request in *data* and what follows it, None while it is not whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    sizes = [int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")]
    size = sum(sizes)
    return (lines[0].split()[1], rest[:size], rest[size:]) if end and len(rest) >= size else None


def response(client: Sequence[object] | None, body: bytes) -> bytes:
    """Return the facts as a response of HTTP."""
    reply = facts(client, body)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(reply), reply)
