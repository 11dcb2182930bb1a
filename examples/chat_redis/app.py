"""A Socket.IO room across workers and machines: what one says, all hear, by Redis.

limpet keeps each client with its worker, on its machine a front does (docs/fronts.md). What has to reach the clients of
other workers goes over the application's own bus: python-socketio's Redis manager publishes each `emit`, and every
worker passes it on to its own clients.

    REDIS_URL=redis://10.0.0.9:6379/0 limpet run app:app --workers 2 --for socketio

Nothing here imports limpet, and nothing but the URL is told to the workers.
"""

from __future__ import annotations

import os

import socketio  # type: ignore[import-untyped]  # python-socketio ships no types

sio = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")),
)
app = socketio.ASGIApp(sio)


async def say(sid: str, text: object = None) -> dict[str, object]:
    """Pass *text* on to everybody, wherever they are; the answer tells who did."""
    await sio.emit("message", {"from": sid, "text": str(text)[:500]})
    return {"slot": os.environ.get("LIMPET_SLOT"), "pid": os.getpid()}


sio.on("say", say)
