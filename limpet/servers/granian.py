"""The adapter for granian: its native code accepts from the slot's listeners.

Owns the event loop that runs the application, and granian's embedded server for each bind. granian takes no socket but
one to accept from, so there is no dispatcher here, and it shows nothing of connections: `received` and `connections`
stay 0.

1. granian accepts as soon as it runs, so it is started by the order to accept.
2. It gets duplicates of the listeners, which it closes, and which it never shuts down.
3. On the last stop it goes on to accept until nobody waits. Nobody new can come: the door is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import Any, Final

from granian._granian import SocketHolder
from granian._loops import loops
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from limpet.logs import take_over
from limpet.net.accept_queue import backlog
from limpet.net.reuseport_group import close_behind, open_door
from limpet.servers.asgi import framed
from limpet.servers.asyncio_worker import Worker
from limpet.servers.lifespan import Lifespan
from limpet.worker.seat import Seat

_IDLE_S: Final = 1.0  # how long a draining worker leaves idle connections open: longer than a round trip
_CHECK_S: Final = 0.02  # how often it looks whether somebody waits in a listener
_LOG: Final = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {
        "_granian": {"level": "ERROR"},  # it warns that embedding is experimental
        "granian.access": {"level": "INFO"},
    },
}


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails."""
    name = seat.settings.loop
    with asyncio.Runner(loop_factory=lambda: loops.get(name)) as runner:
        runner.run(_Worker(app, seat).run())


class _Embedded(Server):
    """granian's server for one listener of the slot."""

    def __init__(self, app: Callable[..., Any], seat: Seat, listener: socket.socket) -> None:
        settings = seat.settings
        super().__init__(
            app,
            interface=Interfaces.ASGINL,  # there is one application for all listeners: see lifespan.py
            backlog=settings.backlog,
            http=HTTPModes.http1,  # while it does not know which version is spoken, it waits without a deadline
            websockets=settings.ws != "none",
            http1_settings=HTTP1Settings(header_read_timeout=int(settings.head_timeout_s * 1000)),
            log_level=LogLevels.error,
            log_dictconfig=_LOG,
            url_path_prefix=settings.root_path or None,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        fd = os.dup(self._listener.fileno())
        self._shd = SocketHolder(fd, False, self.backlog)  # type: ignore[call-arg, assignment]  # its stub has neither
        self._ssp = None


def _as_specified(app: Callable[..., Any]) -> Callable[..., Any]:
    """Return *app* with scopes and messages as ASGI has them: ports are numbers, a response need not have headers."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        async def send_whole(message: Any) -> None:
            await send({"headers": [], **message} if message["type"] == "http.response.start" else message)

        for name in ("client", "server"):
            if scope.get(name):
                scope[name] = (scope[name][0], int(scope[name][1]))
        await app(scope, receive, send_whole)

    return called


class _Worker(Worker):
    """A worker's servers."""

    def __init__(self, app: Callable[..., Any], seat: Seat) -> None:
        super().__init__(seat, Lifespan((app, seat.settings.app)))
        self._is_draining = False
        framed_app = framed(app, seat, self._lifespan.states[0], lambda: self._is_draining)
        self._servers = [_Embedded(_as_specified(framed_app), seat, listener) for listener in seat.listeners]
        take_over("_granian", "granian.access")
        self._running: list[asyncio.Task[None]] = []

    def accept(self) -> None:
        """Start the servers, which accept as soon as they run."""
        if not self._running:
            self._running = [self._loop.create_task(server.serve()) for server in self._servers]

    def close_doors(self) -> None:
        """Let no more clients connect."""
        for listener in self._seat.listeners:
            close_behind(listener)

    async def drain(self) -> None:
        """Serve who waits, let idle clients speak once more, finish what is in flight."""
        self._is_draining = True
        until = self._loop.time() + (float("inf") if self._timeout_s is None else self._timeout_s)
        while self._running and self._is_last and self._loop.time() < until and self._waiting():
            await asyncio.sleep(_CHECK_S)
        if self._is_last:
            _open_doors(self._seat.listeners)
        await asyncio.sleep(max(0.0, min(_IDLE_S, until - self._loop.time())))  # who is idle may speak once more
        for server in self._servers:
            server.stop()  # type: ignore[no-untyped-call]
        if self._running:
            wait_s = None if self._timeout_s is None else max(0.0, until - self._loop.time())
            await asyncio.wait(self._running, timeout=wait_s)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _waiting(self) -> int:
        return sum(backlog(listener).waiting for listener in self._seat.listeners)


def _open_doors(listeners: tuple[socket.socket, ...]) -> None:
    """Open the doors of connections that came through one that was being closed; native code does not show them."""
    names = {listener.getsockname() for listener in listeners}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                with socket.socket(fileno=os.dup(int(number))) as sock:
                    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if not listens and sock.family != socket.AF_UNIX and sock.getsockname()[1] in {n[1] for n in names}:
                        open_door(sock)
