"""python-socketio and Flask-SocketIO: the `sid` of Engine.IO routes to the worker that made it, and rooms span workers.

Owns two places of these libraries.

1. The hook where python-engineio makes the id. Every later request of a client carries the id in its query, where
   `--by query:sid` finds it. `--mint socketio` calls `install` in each worker. `sticky` does the same for a single
   server object, in the application's own code.
2. The client manager, through which servers in several processes act as one: rooms, `call`, `disconnect`. `Manager`
   does over the bus what python-socketio's `RedisManager` does over Redis. `--mint socketio` calls `share`, by which
   each server that is given no manager of its own gets this one.

socketio_manager.py has `Manager` and `AsyncManager`, which are imported at their first use: they need python-socketio.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from limpet.errors import AppError
from limpet.sessions.sessions import mint

if TYPE_CHECKING:
    from limpet.integrations.socketio_manager import AsyncManager, Manager

__all__ = ["AsyncManager", "Manager", "install", "share", "sticky"]


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


def share() -> None:
    """Give each server of this process that has no client manager one by which it shares rooms with other workers.

    Imports python-socketio, if it is installed; an application may use Engine.IO alone.
    """
    try:
        import socketio
    except ImportError:
        return
    for server in (socketio.Server, socketio.AsyncServer):
        server.__init__ = _with_manager(server.__init__)


def _with_manager(begin: Any) -> Any:
    from limpet.integrations.socketio_manager import Manager

    @functools.wraps(begin)
    def begun(self: Any, client_manager: Any = None, *arguments: Any, **named: Any) -> None:
        begin(self, Manager() if client_manager is None else client_manager, *arguments, **named)

    return begun


def __getattr__(name: str) -> Any:
    if name not in ("Manager", "AsyncManager"):
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from limpet.integrations import socketio_manager

    return getattr(socketio_manager, name)
