"""python-socketio and Flask-SocketIO: the `sid` of Engine.IO routes to the worker that made it.

Owns the hook where python-engineio makes the id. Every later request of a client carries the id in its query, where
`--by query:sid` finds it. `--mint socketio` calls `install` in each worker. `sticky` does the same for a single server
object, in the application's own code.
"""

from __future__ import annotations

from typing import Any

from limpet.errors import AppError
from limpet.sessions.sessions import mint


def sticky(server: Any) -> Any:
    """Return *server*, a `socketio.Server` or `AsyncServer` (or Engine.IO's).

    Its ids then route clients back to this worker.
    """
    engine = getattr(server, "eio", server)
    make = engine.generate_id
    engine.generate_id = lambda: mint(make)
    return server


def install() -> None:
    """Make the ids of all servers in this process route back to this worker.

    Raises AppError if engineio is not installed.
    """
    try:
        from engineio.base_server import BaseServer
    except ImportError as error:
        raise AppError(
            f"`--mint socketio` needs python-socketio: {error}", hint="`pip install python-socketio`"
        ) from None
    make = BaseServer.generate_id
    BaseServer.generate_id = lambda self: mint(lambda: make(self))
