"""The worker process: one application in one slot, behind a server adapter.

Owns what every worker has in common, whatever its server: the seat (its slot's channel, its line to the supervisor,
its row of counters) and the name by which applications know where they are. The adapter in `servers/` owns the event
loop and the connections. Runs nothing of other slots and never decides where a client belongs.

1. READY is said by the adapter, last: after the application's start-up and after signal handlers are in place.
2. Before READY nothing is read from the channel; after a command to drain, only what was in it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from limpet import apps, current, servers
from limpet.baton import CELLS_PER_WORKER, Batons
from limpet.boot import Boot
from limpet.handoff import Receiver
from limpet.home import Home
from limpet.link import Link
from limpet.moving import Mover
from limpet.placement import Placement
from limpet.router import Router
from limpet.scoreboard import Row, Scoreboard
from limpet.settings import Settings


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

    def ready(self) -> None:
        """Tell the supervisor that this worker serves now."""
        self.link.send({"news": "ready"})


def work(place: Boot, link: Link) -> None:
    """Be the worker that *place* describes until it has drained. Raises AppError when the application cannot start."""
    settings = place.settings
    info = current.WorkerInfo(place.index, os.getpid(), place.generation)
    current.become(info)
    board = Scoreboard(place.scoreboard_fd)
    row = board.worker(place.row)
    router = Router.from_settings(settings, bytes.fromhex(place.secret), apps.load_function)
    placement = Placement(settings.place, router, board, queued=lambda slot: 0)
    segment = range(place.row * CELLS_PER_WORKER, (place.row + 1) * CELLS_PER_WORKER)
    batons = Batons(board.batons(), segment, place.serial, settings.wait_timeout_s)
    *sending, receiving = (socket.socket(fileno=fd) for fd in place.move_fds)
    seat = Seat(
        settings=settings,
        info=info,
        receiver=Receiver(socket.socket(fileno=place.channel_fds[0][1])),
        link=link,
        row=row,
        home=Home(place.index, router, placement, [text for _, text in place.listeners]),
        mover=Mover(batons, sending, receiving, row, settings.max_copies),
    )
    serve: Callable[[apps.Application, Seat], None] = servers.adapter(settings.server)
    serve(apps.load(settings), seat)
