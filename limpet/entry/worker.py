"""The start of a worker process: one application in one slot, behind a server adapter.

Owns the order of the start: the identity of the worker, its router and sessions, its seat, then the user's code, and
the server last. The adapter in servers/ owns the event loop and the connections. A worker runs nothing for other slots
and never decides where a new client belongs. entry/child.py calls it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import socket
import time
from collections.abc import Callable

from limpet import current, logs
from limpet.config import conflicts, server_kinds
from limpet.config.router import Clocks, build_router
from limpet.config.settings import Settings
from limpet.coordination import bus, metrics
from limpet.coordination import place as shared
from limpet.dispatch.address_limit import PerAddress
from limpet.ipc import news
from limpet.ipc.baton import CELLS_PER_WORKER, Batons
from limpet.ipc.boot import Boot
from limpet.ipc.channel import Receiver
from limpet.ipc.control_link import Link
from limpet.ipc.scoreboard import Row, Scoreboard
from limpet.moving.mover import Mover
from limpet.net import tls
from limpet.routing.placement import Placement
from limpet.servers import application, registry
from limpet.servers.asgi import accessed
from limpet.sessions import sessions
from limpet.sessions.middleware import in_session
from limpet.worker import hooks, user_code
from limpet.worker.ownership import Home
from limpet.worker.seat import Seat


def work(place: Boot, link: Link) -> None:
    """Run the worker that *place* describes until it has drained. Raises AppError if the application cannot start."""
    info = current.WorkerInfo(place.index, os.getpid(), place.generation)
    current.become(info, lambda wait: link.send(news.message(news.Stop(wait))))
    most_bytes = place.settings.stash_size_mib << 20
    shared.become(place.shared_fd, place.shared_directory, place.shared_stash, most_bytes)
    if place.settings.admin:
        metrics.prepare(place.shared_directory, place.index)
    settings = registry.told(place.settings)
    board = Scoreboard(place.scoreboard_fd)
    row = board.worker(place.row)
    logs.count_lost(functools.partial(row.add, "log_lines_lost"))
    link.on_read = bus.become(place.bus, row)
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
    _make_ids_live_here(settings, bytes.fromhex(place.secret))
    most = settings.max_connections_per_worker
    placement = Placement(settings.place, router, board, lambda slot: 0, random.Random(), most)
    segment = range(place.row * CELLS_PER_WORKER, (place.row + 1) * CELLS_PER_WORKER)
    batons = Batons(board.batons(), segment, place.serial, settings.wait_timeout_s)
    *sending, receiving = (socket.socket(fileno=fd) for fd in place.move_fds)
    putting, taking = (socket.socket(fileno=fd) for fd in place.channel_fds[0])
    seat = Seat(
        settings=settings,
        info=info,
        receiver=Receiver(taking, putting, row),
        link=link,
        stack_fd=place.stack_fd,
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
    serve = application.adapter(settings)  # first: gevent must patch before the application is imported
    if settings.mint == "socketio":
        from limpet.integrations import socketio

        socketio.share()
    app = application.load(settings)
    if isinstance(app, application.PerBind):
        app = application.PerBind(in_session(each, here, settings, bind) for bind, each in enumerate(app))
    else:
        app = accessed(in_session(app, here, settings), settings, info.slot, router)
    user_code.end_copy(info.pid)
    with contextlib.nullcontext() if server_kinds.kind(settings.server).runs_hooks else hooks.around_worker():
        serve(app, seat)


def _make_ids_live_here(settings: Settings, secret: bytes) -> None:
    """Prepare the library that `--mint` names, before the application imports it. Raises AppError."""
    if settings.mint == "socketio":
        from limpet.integrations import socketio

        socketio.install()
    elif settings.mint == "gradio":
        from limpet.integrations import gradio

        gradio.install()
    elif settings.mint == "mcp":
        from limpet.integrations import mcp

        mcp.install(mcp.keys(secret, settings.cluster))


def _watched(row: Row) -> Callable[[str], Callable[..., object]]:
    """Return a loader of key functions.

    Calls of the functions are recorded in *row*, so that the supervisor notices one that hangs.
    """

    def load(name: str) -> Callable[..., object]:
        function = user_code.load_function(name)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            return function  # the key chain refuses it: wrapped, it would not look async

        @functools.wraps(function)
        def ask(subject: object) -> object:
            row.set("asking_since_ns", time.monotonic_ns())
            try:
                return function(subject)
            finally:
                row.set("asking_since_ns", 0)

        return ask

    return load
