"""A Socket.IO chat in several workers: who is here and what was said, in the memory of each of them.

Each person comes home to the same worker, so all polls and the websocket meet the memory that knows them. What one
worker must tell the others goes over limpet's bus; there is no Redis.

    limpet run app:app --workers 4 --by query:user,cookie:user

1. The name is looked up in the order of `--by`: what decides the worker also decides who you are.
2. What is said goes to all workers on the topic `chat`. Each adds it to its history and tells its own people.
3. Who is here: each worker tells the others its people when they change, and every few seconds. What it has not
   repeated for a while is forgotten, as its worker was killed. A new worker asks the others, and gets the history, too.
4. Private messages go to the room of a person. The client manager finds it in whatever worker it is.

Under plain uvicorn the file runs in one process: the bus then works inside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import deque
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import parse_qs

import socketio  # type: ignore[import-untyped]  # python-socketio ships no types

import limpet
from limpet.integrations.socketio import Manager

HERE = Path(__file__).parent
HISTORY = 100  # messages kept for people who arrive later
TEXT = 500  # characters of one message
REPEAT_S = 3.0  # how often a worker says who is with it
FORGET_S = 10.0  # after which the people of a worker that says nothing more are gone
ANSWER_S = 0.5  # how long a new worker waits for the history

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
elsewhere: dict[str, tuple[list[str], float]] = {}  # worker -> the names that it has, and when it said so
history: deque[Message] = deque(maxlen=HISTORY)
tasks: list[asyncio.Task[None]] = []  # the first one makes this worker known to the others
known = asyncio.Event()  # another worker has answered

sio = socketio.AsyncServer(async_mode="asgi", client_manager=Manager())
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
    """Let a person in: they get the history, everybody gets the new list of people."""
    name = name_of(environ)
    if name is None:
        raise socketio.exceptions.ConnectionRefusedError("a name is 1 to 24 of A-Z, a-z, 0-9, _ and -")
    if not tasks:
        tasks.append(asyncio.create_task(begin()))
    await asyncio.shield(tasks[0])
    people[sid] = name
    await sio.enter_room(sid, f"person:{name}")
    await sio.emit("welcome", {"you": name, "worker": worker(), "history": list(history)}, to=sid)
    await tell_workers()
    await tell_people()


async def say(sid: str, text: object = None) -> Worker:
    """Pass a message on to everybody; the answer tells the sender which worker that was."""
    if (message := message_of(sid, text)) is not None:
        await limpet.publish("chat", {"worker": os.getpid(), "said": message})
        await pass_on(message)
    return worker()


async def whisper(sid: str, name: object = None, text: object = None) -> None:
    """Pass a message on to one person, in whatever worker they are, and show it to the sender."""
    if isinstance(name, str) and NAME.fullmatch(name) and (message := message_of(sid, text)) is not None:
        for room in {f"person:{name}", f"person:{people[sid]}"}:
            await sio.emit("whisper", {**message, "to": name}, room=room)


async def disconnect(sid: str, reason: str) -> None:
    """Forget a person who left."""
    if people.pop(sid, None):
        await tell_workers()
        await tell_people()


async def pass_on(message: Message) -> None:
    """Tell the people of this worker what somebody said."""
    history.append(message)
    await sio.emit("message", message, ignore_queue=True)


def message_of(sid: str, text: object) -> Message | None:
    """Return what a person said, or None if that is nothing."""
    sender = people.get(sid)
    if sender and isinstance(text, str) and text.strip():
        return Message(sender=sender, text=text.strip()[:TEXT], at=time.time())
    return None


async def begin() -> None:
    """Hear the other workers from now on, and ask them who is here and what was said."""
    heard = limpet.subscribe("chat")
    await heard.__aenter__()
    tasks.extend(asyncio.create_task(each) for each in (hear(heard), repeat()))
    await limpet.publish("chat", {"worker": os.getpid(), "asked": "history"})
    with contextlib.suppress(TimeoutError):  # there is no other worker with people
        await asyncio.wait_for(known.wait(), ANSWER_S)


async def hear(heard: limpet.Subscription) -> None:
    """Act on what the other workers say."""
    async for message in heard:
        said = message.data
        if said["worker"] == os.getpid():
            continue
        if "said" in said:
            await pass_on(said["said"])
        elif "asked" in said:
            await tell_workers(with_history=True)
        else:
            elsewhere[str(said["worker"])] = said["people"], time.monotonic()
            if said["history"] and not history:
                history.extend(said["history"])
            if said["history"] is not None:
                known.set()
            await tell_people()


async def repeat() -> None:
    """Say now and then who is here, and forget workers that no longer do."""
    while True:
        await asyncio.sleep(REPEAT_S)
        await tell_workers()
        gone = [each for each, (_, at) in elsewhere.items() if time.monotonic() - at > FORGET_S]
        for each in gone:
            del elsewhere[each]
        if gone:
            await tell_people()


async def tell_workers(*, with_history: bool = False) -> None:
    """Tell the other workers who is here."""
    names = sorted(set(people.values()))
    said = list(history) if with_history else None
    await limpet.publish("chat", {"worker": os.getpid(), "people": names, "history": said})


async def tell_people() -> None:
    """Send the names of everybody to the people of this worker."""
    names = set(people.values()).union(*(names for names, _ in elsewhere.values()))
    await sio.emit("people", sorted(names), ignore_queue=True)


for handler in (connect, say, whisper, disconnect):
    sio.on(handler.__name__, handler)
