"""A Socket.IO room across workers and machines: what one says, all hear.

limpet keeps each client with its worker, and a front keeps it on its machine (docs/fronts.md). What has to reach the
clients of other workers goes over limpet's bus, and over Redis to other machines:

    limpet run app:app --workers 2 --for socketio --bus redis://10.0.0.9:6379

Nothing here imports limpet or Redis. With `--for socketio`, a server without a client manager gets limpet's.
"""

from __future__ import annotations

import os

import socketio  # type: ignore[import-untyped]  # python-socketio ships no types

sio = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(sio)


async def say(sid: str, text: object = None) -> dict[str, object]:
    """Pass *text* on to everybody, wherever they are; the answer tells who did."""
    await sio.emit("message", {"from": sid, "text": str(text)[:500]})
    return {"slot": os.environ.get("LIMPET_SLOT"), "pid": os.getpid()}


sio.on("say", say)
