"""A Socket.IO application that uses all that goes through a client manager; `ROOM_MANAGER` says which one it has."""

from __future__ import annotations

import os
from typing import Any

import socketio

kind = os.environ["ROOM_MANAGER"]
manager: Any = None  # limpet's own, from `--for socketio`
writer: Any
if kind.startswith("redis:"):
    manager = socketio.AsyncRedisManager(kind)
    writer = socketio.AsyncRedisManager(kind, write_only=True)
else:
    from limpet.integrations.socketio import AsyncManager

    writer = AsyncManager(write_only=True)
sio = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
socket_app = socketio.ASGIApp(sio)


async def slot(sid: str) -> int:
    """Return which worker has the client."""
    return int(os.environ["LIMPET_SLOT"])


async def join(sid: str, room: str) -> None:
    """Enter a room oneself."""
    await sio.enter_room(sid, room)


async def pull(sid: str, other: str, room: str) -> None:
    """Put another client into a room."""
    await sio.enter_room(other, room)


async def push(sid: str, other: str, room: str) -> None:
    """Take another client out of a room."""
    await sio.leave_room(other, room)


async def clear(sid: str, room: str) -> None:
    """Take everybody out of a room."""
    await sio.close_room(room)


async def tell(sid: str, room: str | None, data: Any, but: str | None) -> None:
    """Tell everybody in a room something, or everybody there is."""
    await sio.emit("told", data, room=room, skip_sid=but)


async def ask(sid: str, other: str, question: Any) -> Any:
    """Return what another client answers."""
    return await sio.call("question", question, to=other, timeout=10)


async def kick(sid: str, other: str) -> None:
    """Disconnect another client."""
    await sio.disconnect(other)


for handler in (slot, join, pull, push, clear, tell, ask, kick):
    sio.on(handler.__name__, handler)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve Socket.IO; `/announce` tells everybody something by a manager that belongs to no server."""
    if scope["type"] == "http" and scope["path"] == "/announce":
        await writer.emit("told", "announced")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await socket_app(scope, receive, send)
