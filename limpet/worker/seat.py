"""The worker process: one application in one slot, behind a server adapter.

Owns what every worker has in common, whatever its server: the seat (its slot's channel, its line to the supervisor,
its row of counters) and the name by which applications know where they are. The adapter in `servers/` owns the event
loop and the connections. Runs nothing of other slots and never decides where a client belongs.

1. READY is said by the adapter, last: after the application's start-up and after signal handlers are in place.
2. Before READY nothing is read from the channel; after a command to drain, only what was in it.
3. The slot's listeners, if it has any, are the server's, not this worker's: it may close its copies, never shut them
   down. It accepts after the command to do so, since the supervisor has to listen first, and stops when it drains. What
   waits then is for its successor; if there is none (`last`), it is taken first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from limpet import current
from limpet.config import conflicts, server_kinds
from limpet.config.router import Clocks, build_router
from limpet.config.settings import Settings
from limpet.dispatch.address_limit import PerAddress
from limpet.ipc.baton import CELLS_PER_WORKER, Batons
from limpet.ipc.boot import Boot
from limpet.ipc.channel import Receiver
from limpet.ipc.control_link import Link
from limpet.ipc.scoreboard import BEAT_S, Row, Scoreboard
from limpet.moving.mover import Mover
from limpet.net import tls
from limpet.routing.placement import Placement
from limpet.servers import registry
from limpet.servers.accessed import accessed
from limpet.sessions import sessions
from limpet.sessions.middleware import in_session
from limpet.system import stack
from limpet.worker import hooks, user_code
from limpet.worker.ownership import Home


@dataclass(frozen=True, slots=True)
class Seat:
    """What a server adapter gets to work with."""

    settings: Settings
    info: current.WorkerInfo
    receiver: Receiver
    link: Link
    row: Row
    home: Home
    mover: Mover
    tls: ssl.SSLContext | None  # what connections are to be, None for plain
    listeners: tuple[socket.socket, ...]  # of the slot, one for each bind; none when a dispatcher accepts
    per_address: PerAddress

    def ready(self) -> None:
        """Tell the supervisor that this worker serves now."""
        self.link.send({"news": "ready", "stack": stack.offer()})
        with contextlib.suppress(RuntimeError):  # without an event loop the server has to see to the heartbeat itself
            self._beat(asyncio.get_running_loop(), time.monotonic_ns())

    def _beat(self, loop: asyncio.AbstractEventLoop, due_ns: int) -> None:
        now_ns = time.monotonic_ns()
        late_ns = max(0, now_ns - due_ns)
        self.row.set("beat_ns", now_ns)
        self.row.set("lag_ns", late_ns)
        self.row.add("late_ns", late_ns)
        loop.call_later(BEAT_S, self._beat, loop, now_ns + int(BEAT_S * 1e9))


def work(place: Boot, link: Link) -> None:
    """Be the worker that *place* describes until it has drained. Raises AppError when the application cannot start."""
    info = current.WorkerInfo(place.index, os.getpid(), place.generation)
    current.become(info, lambda wait: link.send({"news": "stop", "wait_for_connections": wait}))
    settings = registry.told(place.settings)
    board = Scoreboard(place.scoreboard_fd)
    row = board.worker(place.row)
    router = build_router(
        settings,
        bytes.fromhex(place.secret),
        load=_watched(row),
        on_error=user_code.Complaints(row),
        on_found=functools.partial(row.set, "elements"),
        clocks=Clocks(time.time, time.monotonic),
        learned=board.learned(),
    )
    here = sessions.Sessions(settings, info, router, row)
    sessions.become(here)
    placement = Placement(settings.place, router, board, lambda slot: 0, settings.max_connections_per_worker)
    segment = range(place.row * CELLS_PER_WORKER, (place.row + 1) * CELLS_PER_WORKER)
    batons = Batons(board.batons(), segment, place.serial, settings.wait_timeout_s)
    *sending, receiving = (socket.socket(fileno=fd) for fd in place.move_fds)
    putting, taking = (socket.socket(fileno=fd) for fd in place.channel_fds[0])
    seat = Seat(
        settings=settings,
        info=info,
        receiver=Receiver(taking, putting, row),
        link=link,
        row=row,
        home=Home(place.index, router, placement, [text for _, text in place.listeners]),
        mover=Mover(place.index, batons, sending, receiving, row, settings.max_copies),
        tls=tls.context(place.pem) if place.pem else None,
        listeners=tuple(socket.socket(fileno=fd) for fd, _ in place.listeners if fd >= 0),
        per_address=PerAddress(settings.max_connections_per_address),
    )
    if place.pem:
        tls.ignore_names_that_are_no_text()
    conflicts.refuse(settings, router.chain, is_loaded=True)
    serve = user_code.adapter(settings)  # first: gevent has to be there before the application
    app = user_code.load(settings)
    if isinstance(app, user_code.PerBind):
        app = user_code.PerBind(in_session(each, here, settings, bind) for bind, each in enumerate(app))
    else:
        app = accessed(in_session(app, here, settings), settings, info.slot, router)
    with contextlib.nullcontext() if server_kinds.kind(settings.server).runs_hooks else hooks.around_worker():
        serve(app, seat)


def _watched(row: Row) -> Callable[[str], Callable[..., object]]:
    """Return what loads key functions, so that the supervisor sees in *row* when one of them hangs."""

    def load(name: str) -> Callable[..., object]:
        function = user_code.load_function(name)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            return function  # for the chain to refuse: wrapped it would not look async

        @functools.wraps(function)
        def ask(subject: object) -> object:
            row.set("asking_since_ns", time.monotonic_ns())
            try:
                return function(subject)
            finally:
                row.set("asking_since_ns", 0)

        return ask

    return load
