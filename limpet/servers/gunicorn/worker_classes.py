"""gunicorn's other worker classes in a slot: sync and gevent for WSGI, asgi and uvicorn-worker for ASGI.

Owns what makes such a worker one of limpet's: its listeners, its application, its end. They come through the door; the
threaded class has an adapter of its own (server.py), which moves in step with its loop.

1. gevent is patched in before the application is imported, and before any lock or thread of ours is made.
2. Where keys are per request no connection is kept alive.
3. uvicorn in uvicorn-worker takes trailers for headers where httptools parses: its protocol is replaced by one that
   does not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Final

from limpet.config.server_kinds import ASGI_CLASSES
from limpet.config.settings import Settings
from limpet.errors import AppError
from limpet.servers import asyncio_loops
from limpet.servers.asgi import framed, framed_wsgi
from limpet.servers.gunicorn import config_file
from limpet.system import signals
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat

NAMES: Final = {"uvicorn-worker": "uvicorn_worker.UvicornWorker"}
_PACKAGES: Final = {"gevent": "gevent", "uvicorn-worker": "uvicorn_worker"}


def prepare(settings: Settings) -> None:
    """Get ready what has to be there before the application. Raises AppError for a class that is not installed."""
    name = settings.worker_class
    try:
        if name == "gevent":
            from gevent import monkey

            monkey.patch_all()
        elif name == "uvicorn-worker":
            import uvicorn_worker  # noqa: F401
    except ImportError as error:
        raise AppError(
            f"`--worker-class {name}` needs the package `{_PACKAGES[name]}`: {error}",
            hint=f"`pip install 'limpet[{'gevent' if name == 'gevent' else 'gunicorn'}]'`",
        ) from None


def serve(app: Callable[..., Any], seat: Seat, config: Any, loaded: Callable[[Any], Any]) -> None:
    """Serve *app* by a worker with gunicorn's *config* until the order to drain has been carried out."""
    asyncio_loops.install()
    door = Door(seat)
    name = seat.settings.worker_class
    config.set("threads", 1)  # with more of them, gunicorn takes its threaded class for sync
    if name == "asgi" and config.asgi_loop == "auto":
        config.set("asgi_loop", "uvloop" if seat.settings.loop == "uvloop" else "asyncio")
    if name in ASGI_CLASSES:  # which do the lifespan, so its state is theirs
        app = framed(app, seat, None, lambda: seat.home.router.chain.needs_head or door.draining)
    else:
        app = framed_wsgi(app, seat, door.tally.requested)
    listeners = door.listeners()
    for each in listeners if name == "gevent" else ():
        each.listen()  # what would wait for this later runs where gevent may not wait
    worker_class = _in_slot(config.worker_class, door)
    if name == "gevent":
        worker_class = _counting(worker_class, door)
    if name == "uvicorn-worker":
        worker_class.CONFIG_KWARGS = _without_trailers(worker_class.CONFIG_KWARGS)
    worker = worker_class(0, os.getppid(), listeners, loaded(app), 0, config, config.logger_class(config))

    def stop() -> None:
        config.settings["graceful_timeout"].value = min(door.left_s, 1e9)
        os.kill(os.getpid(), signal.SIGTERM)

    door.on_stop(stop)
    config_file.run(worker)


def _without_trailers(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the *arguments* of uvicorn's configuration with a protocol that drops trailers, where httptools parses."""
    try:
        from limpet.servers.uvicorn.trailers import WithoutTrailers
    except ImportError:  # there is no httptools, and h11 drops them
        return arguments
    return {**arguments, "http": WithoutTrailers} if arguments.get("http") in ("auto", "httptools") else arguments


def _in_slot(base: Any, door: Door) -> Any:
    """Return the worker class *base* without what it owes a master of gunicorn."""

    class InSlot(base):  # type: ignore[misc]
        def patch(self) -> None:
            """Leave limpet's listeners as they are: gevent is patched in already."""

        def init_signals(self) -> None:
            """Leave none to the kernel: uvicorn sends itself once more what has ended it, and hooks come after that."""
            super().init_signals()
            signals.leave_to_the_supervisor()
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, door.signalled)

        def notify(self) -> None:
            """Tell nobody: there is no master."""

        def is_parent_alive(self) -> bool:
            """Leave that to the door."""
            return True

    return InSlot


def _counting(base: Any, door: Door) -> Any:
    """Return the worker class *base*, which gets descriptors in place of connections that count themselves."""

    class Counting(base):  # type: ignore[misc]
        def handle(self, listener: Any, client: Any, address: Any) -> Any:
            """Serve one connection."""
            door.tally.took()
            try:
                return super().handle(listener, client, address)
            finally:
                door.tally.ended()

    return Counting
