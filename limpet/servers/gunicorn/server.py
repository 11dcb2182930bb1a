"""The adapter for gunicorn: one of its threaded workers serves a WSGI application in this process.

Owns that worker: what it accepts from, how it hears orders, and its end. There is no master of gunicorn; the
supervisor does its part. Connections are accepted in the main thread and wait there between requests; a thread has one
from the first byte of a request to the end of the response. A user's `gunicorn.conf.py` is read by config_file.py.

1. READY is said when the worker's loop begins. It accepts after the order to accept; from the channel at once.
2. Where keys are per request it keeps no connection alive: it cannot move them.
3. gunicorn stops accepting at a number of connections, which follows from the limit of descriptor numbers.
4. `requests` counts what threads have begun, so it may be one ahead.
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from gunicorn.config import Config
from gunicorn.workers.gthread import TConn, ThreadWorker

from limpet import current
from limpet.config.settings import Settings
from limpet.ipc import orders
from limpet.ipc.control_link import LinkClosedError
from limpet.ipc.orders import Accept, Drain, Workers
from limpet.logs import take_over
from limpet.net.reuseport_group import close_behind
from limpet.servers.asgi import framed_wsgi
from limpet.servers.gunicorn import config_file, worker_classes
from limpet.system import signals
from limpet.worker import shortage
from limpet.worker.channel_listener import FdListener, SlotListener
from limpet.worker.seat import Seat

_SPARE: Final = 64  # descriptor numbers: what an application may need
_FOREVER_S: Final = 1e9  # for an end without a deadline
log = logging.getLogger("limpet.worker")


def told(settings: Settings) -> Settings:
    """Return *settings* with what gunicorn's own file says of the worker. Raises AppError."""
    return config_file.told(settings)


def prepare(settings: Settings) -> None:
    """Get ready what has to be there before the application. Raises AppError for a class that is not installed."""
    if settings.worker_class != "gthread":
        worker_classes.prepare(settings)


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out."""
    config, is_told = _config(seat)
    if seat.info.slot == 0:  # once is enough
        config_file.tell(seat.settings)
    if seat.settings.worker_class != "gthread":
        worker_classes.serve(app, seat, config, _Loaded)
        return
    logger = config.logger_class(config)
    if not is_told & config_file.LOGS:
        take_over("gunicorn.error", "gunicorn.access")
    config_file.run(_Worker(seat, _Loaded(framed_wsgi(app, seat)), config, logger))


def _config(seat: Seat) -> tuple[Config, frozenset[str]]:
    """Return gunicorn's settings, and the names of those that a file of the user's has set."""
    settings = seat.settings
    config, is_told = config_file.config(settings)
    values = {
        "worker_class": worker_classes.NAMES.get(settings.worker_class, settings.worker_class),
        "threads": settings.threads,
        "keepalive": max(1, round(settings.keep_alive_timeout_s)),
        "loglevel": "warning",
        "worker_connections": sys.maxsize,
    }
    for name in values.keys() - is_told:
        config.set(name, values[name])
    config.set("worker_connections", min(config.worker_connections, _connections(config.threads)))
    config.set("forwarded_allow_ips", "")  # see framed_wsgi; gunicorn would believe this machine
    if seat.home.router.chain.needs_head:
        config.set("keepalive", 0)
    return config, is_told


def _connections(threads: int) -> int:
    """Return how many connections a worker may have: a thread without a descriptor for its selector drops one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - len(os.listdir("/proc/self/fd")) - 2 * threads - _SPARE)


class _Loaded:
    """What gunicorn asks for the application."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    def wsgi(self) -> Callable[..., Any]:
        """Return the application."""
        return self._app


class _Worker(ThreadWorker):  # type: ignore[misc]  # it has no types
    """gunicorn's threaded worker in a slot."""

    nr_conns: int

    def __init__(self, seat: Seat, app: _Loaded, config: Config, logger: Any) -> None:
        self._channel = FdListener(seat.receiver)
        listeners: list[socket.socket] = [SlotListener(listener) for listener in seat.listeners]
        super().__init__(0, os.getppid(), [self._channel, *listeners], app, 0, config, logger)
        self._seat = seat
        self._accepting = False
        self._may_accept = False
        self._accept_after = 0.0  # monotonic
        self._is_last = False

    def init_signals(self) -> None:
        """Drain on a signal that somebody sent to this very process."""
        super().init_signals()
        signals.leave_to_the_supervisor()  # gunicorn has set all to their default
        signal.signal(signal.SIGINT, self.handle_exit)

    def run(self) -> None:
        """Serve until told to drain, then drain."""
        self.poller.register(self._seat.link.fileno(), selectors.EVENT_READ, self._obey)
        self._seat.ready()
        super().run()
        if self.nr_conns:
            log.warning(
                "worker %d ends with %d connections open",
                self._seat.info.slot,
                self.nr_conns,
                extra={"event": "connections_left_open", "slot": self._seat.info.slot},
            )

    def notify(self) -> None:
        """Count, where gunicorn tells its master that it lives. Runs in each turn of the loop."""
        self._seat.row.set("connections", self.nr_conns)
        self._seat.row.set("requests", self.nr)

    def is_parent_alive(self) -> bool:
        """Leave that to the end of the line, which is the order to drain."""
        return True

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept or no longer do so: gunicorn's word, when this worker may at all. At its end take who waits first."""
        if enabled and time.monotonic() < self._accept_after:
            return
        for listener in self._open_listeners() if enabled != self._accepting else ():
            if enabled:
                self.poller.register(listener, selectors.EVENT_READ, self.accept)
            else:
                self.poller.unregister(listener)
        self._accepting = enabled
        if not self.alive:
            current.leave()
            self._take_rest()

    def _open_listeners(self) -> list[socket.socket]:
        return list(self.sockets) if self._may_accept else [self._channel]

    def _take_rest(self) -> None:
        for listener in self._open_listeners() if self._is_last else [self._channel]:
            before = -1
            while self.nr_conns != before:
                before = self.nr_conns
                self.accept(listener)

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection; without a free descriptor number leave those that wait for a while, and live on."""
        before = self.nr_conns
        try:
            super().accept(listener)
        except OSError as error:
            shortage.say(error)
            if self._accepting:
                self.set_accept_enabled(False)
            self._accept_after = time.monotonic() + shortage.PAUSE_S
        self._seat.row.add("received", self.nr_conns - before)
        self.notify()

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Put a connection that a thread is done with back, and count."""
        before = self.nr_conns
        super().finish_request(conn, fs)
        # gunicorn takes one off twice when the application has closed the socket itself, as simple-websocket does.
        self.nr_conns = max(self.nr_conns, before - 1)
        self.notify()

    def _obey(self, _: object) -> None:
        try:
            arrived = orders.receive(self._seat.link)
        except LinkClosedError:  # the supervisor is gone: finish what is here, then end
            self.poller.unregister(self._seat.link.fileno())
            arrived = [Drain(self._seat.settings.graceful_timeout_s, last=True)]
            for listener in self._seat.listeners:
                close_behind(listener)
        for order in arrived:
            match order:
                case Drain(timeout, last):
                    self._is_last = last
                    self.cfg.settings["graceful_timeout"].value = _FOREVER_S if timeout is None else timeout
                    self.alive = False
                case Accept() if not self._may_accept:
                    self._begin_to_accept()
                case Workers():
                    self._seat.home.follow(order)

    def _begin_to_accept(self) -> None:
        was_accepting = self._accepting
        if was_accepting:
            self.set_accept_enabled(False)
        self._may_accept = True
        if was_accepting:
            self.set_accept_enabled(True)
