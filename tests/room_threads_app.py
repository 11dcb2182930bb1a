"""A Socket.IO server in threads, as Flask-SocketIO has one; its client manager is limpet's, from the preset."""

from __future__ import annotations

import os
from typing import Any

import socketio

sio = socketio.Server(async_mode="threading")
app = socketio.WSGIApp(sio)


def slot(sid: str) -> int:
    """Return which worker has the client."""
    return int(os.environ["LIMPET_SLOT"])


def join(sid: str, room: str) -> None:
    """Enter a room."""
    sio.enter_room(sid, room)


def tell(sid: str, room: str | None, data: Any, but: str | None) -> None:
    """Tell everybody in a room something, or everybody there is."""
    sio.emit("told", data, room=room, skip_sid=but)


def ask(sid: str, other: str, question: Any) -> Any:
    """Return what another client answers."""
    return sio.call("question", question, to=other, timeout=10)


for handler in (slot, join, tell, ask):
    sio.on(handler.__name__, handler)
