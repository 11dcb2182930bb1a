"""A Socket.IO chat that keeps everything in the memory of its process: who is here, and what was said.

Many real-time applications begin like this, and are right only as long as there is one process. Limpet keeps
them right in several: each person comes home to the same worker, so all polls and the websocket meet the
memory that knows them.

    limpet run app:app --workers 4 --by query:user,cookie:user

1. The name is looked up in the order of `--by`: what decides the worker also decides who you are.
2. Nothing here imports limpet; the slot comes from the environment, so the file runs under plain uvicorn too.
3. A room lives in one worker. Rooms that span workers need the application's own bus (see README.md).
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import parse_qs

import socketio  # type: ignore[import-untyped]  # python-socketio ships no types

HERE = Path(__file__).parent
HISTORY = 100  # messages kept for people who arrive later
TEXT = 500  # characters of one message

# Nothing in a name needs percent-encoding, so it is the same key in a query and in a cookie.
NAME = re.compile(r"[A-Za-z0-9_-]{1,24}")


class Worker(TypedDict):
    """The process that answers; `slot` is None when no limpet started it."""

    slot: int | None
    pid: int


class Message(TypedDict):
    """One line of the room; `at` is in seconds since 1970."""

    sender: str
    text: str
    at: float


people: dict[str, str] = {}  # Socket.IO session id -> name; one person may have several tabs open
history: deque[Message] = deque(maxlen=HISTORY)

sio = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(
    sio,
    static_files={
        "/": str(HERE / "index.html"),
        "/socket.io.min.js": str(HERE / "static" / "socket.io.min.js"),
    },
)


def worker() -> Worker:
    """Return who answers, asked anew each time: workers that are forked share what was read at import."""
    slot = os.environ.get("LIMPET_SLOT")
    return Worker(slot=None if slot is None else int(slot), pid=os.getpid())


def name_of(environ: dict[str, Any]) -> str | None:
    """Return the name that a connection carries in its query, else in its cookie; None for an invalid one."""
    cookies = (pair.strip().partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
    in_cookie = next((value for name, _, value in cookies if name == "user"), "")
    in_query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True).get("user", [""])[0]
    name = in_query or in_cookie
    return name if NAME.fullmatch(name) else None


async def connect(sid: str, environ: dict[str, Any], auth: object) -> None:
    """Let a person in: they get the history of this worker, everybody on it gets the new list of people."""
    name = name_of(environ)
    if name is None:
        raise socketio.exceptions.ConnectionRefusedError("a name is 1 to 24 of A-Z, a-z, 0-9, _ and -")
    people[sid] = name
    await sio.emit("welcome", {"you": name, "worker": worker(), "history": list(history)}, to=sid)
    await tell_people()


async def say(sid: str, text: object = None) -> Worker:
    """Pass a message on to everybody on this worker; the answer tells the sender which worker that was."""
    sender = people.get(sid)
    if sender and isinstance(text, str) and text.strip():
        message = Message(sender=sender, text=text.strip()[:TEXT], at=time.time())
        history.append(message)
        await sio.emit("message", message)
    return worker()


async def disconnect(sid: str, reason: str) -> None:
    """Forget a person who left."""
    if people.pop(sid, None):
        await tell_people()


async def tell_people() -> None:
    """Send the names on this worker to everybody on it."""
    await sio.emit("people", sorted(set(people.values())))


for handler in (connect, say, disconnect):
    sio.on(handler.__name__, handler)
