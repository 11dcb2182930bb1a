"""A python-socketio application with nothing in it: a worker knows the clients that reached it, and no others."""

from __future__ import annotations

import socketio

asgi = socketio.ASGIApp(socketio.AsyncServer(async_mode="asgi", cors_allowed_origins=[]))
