"""The adapter for uvicorn: its protocols serve connections that arrive through the slot's channel.

Owns the event loop of a worker that runs uvicorn: its start, its commands, its clock and its end. An application sees
what it would see had uvicorn accepted the connection itself.

1. A connection is in `_adopting` or in uvicorn's set of connections; both count as the worker's.
2. READY is said when the channel is being read and signal handlers are in place, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import uvicorn

from limpet.errors import AppError
from limpet.link import LinkClosedError
from limpet.servers.uvicorn_protocols import Seated, http_protocols, websocket_protocol
from limpet.worker import Seat

_TAKES_PER_TURN: Final = 32  # connections from the channel, so that those already served do not wait behind a storm
_TICK_S: Final = 1.0  # date header, head deadlines
_NO_DESCRIPTOR_PAUSE_S: Final = 0.5  # before the channel is read again after EMFILE
log = logging.getLogger("limpet.worker")


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the command to drain has been carried out. Raises AppError when its start-up fails."""
    settings = seat.settings
    debug_headers = [("X-Limpet-Slot", str(seat.info.slot)), ("X-Limpet-Pid", str(seat.info.pid))]
    trusted = [entry for entry in settings.trust if entry != "unix"]
    config = uvicorn.Config(
        app,
        interface="asgi3",
        loop=settings.loop,
        http=http_protocols(seat)[settings.http],
        ws=settings.ws,
        workers=1,  # WEB_CONCURRENCY has had its say in the supervisor
        log_config=None,
        log_level=None,
        access_log=settings.access_log,
        forwarded_allow_ips=trusted or None,
        root_path=settings.root_path,
        timeout_keep_alive=settings.keep_alive_timeout_s,  # type: ignore[arg-type]  # passed on to call_later
        headers=debug_headers if settings.debug_header else None,
    )
    SeatedServer(config, seat).run()


class SeatedServer(uvicorn.Server):
    """uvicorn's server with the slot's channel in place of a listening socket."""

    def __init__(self, config: uvicorn.Config, seat: Seat) -> None:
        super().__init__(config)
        self._seat = seat
        self._wake = asyncio.Event()
        self._adopting: set[asyncio.Task[Any]] = set()
        self.servers = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then read the channel, then say READY."""
        with _errors_of_startup() as errors:
            await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise AppError(f"the start-up of `{self._seat.settings.app}` failed") from _Reported("\n".join(errors))
        self.config.ws_protocol_class = websocket_protocol(self._seat, self.config.ws_protocol_class)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._seat.receiver.fileno(), self._take)
        self._loop.add_reader(self._seat.link.fileno(), self._obey)
        self.started = True
        self._seat.ready()

    async def main_loop(self) -> None:
        """Keep time until the command to drain comes."""
        while not self.should_exit:
            await self.on_tick(0)
            before = self._loop.time() - self._seat.settings.head_timeout_s
            for connection in list(self.server_state.connections):
                if isinstance(connection, Seated):
                    connection.refuse_late_head(before)
            self._count()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what is in the channel still, let the requests finish, then end the application."""
        self.config.http_protocol_class.draining = True  # type: ignore[attr-defined]
        while self._take():
            pass
        self._loop.remove_reader(self._seat.receiver.fileno())
        if self._adopting:
            await asyncio.wait(self._adopting)
        await super().shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on a signal that somebody sent to this very process. Runs in the signal handler."""
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._wake.set)

    def _take(self) -> bool:
        """Adopt connections from the channel; return whether there may be more."""
        for _ in range(_TAKES_PER_TURN):
            try:
                connection, _handoff = self._seat.receiver.receive()
            except BlockingIOError:
                self._count()
                return False
            except OSError as error:  # no free descriptor number: the connection stays in the channel
                log.warning("worker %d cannot take connections: %s", self._seat.info.slot, error.strerror)
                self._loop.remove_reader(self._seat.receiver.fileno())
                self._loop.call_later(_NO_DESCRIPTOR_PAUSE_S, self._take_again)
                return False
            self._seat.row.add("received")
            task = self._loop.create_task(self._adopt(connection))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)
        self._count()
        return True

    def _take_again(self) -> None:
        if not self.should_exit:
            self._loop.add_reader(self._seat.receiver.fileno(), self._take)

    async def _adopt(self, connection: socket.socket) -> None:
        """Give *connection* to a new protocol, which closes it."""
        try:
            await self._loop.connect_accepted_socket(self._new_protocol, connection)
        except OSError:  # the client is gone already
            connection.close()

    def _new_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(
            config=self.config,  # type: ignore[call-arg]
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=self._loop,
        )
        return protocol

    def _count(self) -> None:
        self._seat.row.set("connections", len(self.server_state.connections) + len(self._adopting))

    def _obey(self) -> None:
        settings = self._seat.settings
        try:
            commands = self._seat.link.receive()
        except LinkClosedError:  # the supervisor is gone: finish what is here, then end
            self._loop.remove_reader(self._seat.link.fileno())
            commands = [{"do": "drain", "timeout": settings.graceful_timeout_s}]
        for command in commands:
            if command["do"] == "drain":
                self.config.timeout_graceful_shutdown = command["timeout"]
                self.should_exit = True
                self._wake.set()


class _Reported(Exception):
    """Carries what uvicorn logged about a failed start-up as the cause of an AppError."""


@contextlib.contextmanager
def _errors_of_startup() -> Iterator[list[str]]:
    """Collect what uvicorn would log as errors: the supervisor prints it once, not each worker."""
    errors: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(record.getMessage())

    logger, collect = logging.getLogger("uvicorn.error"), Collect(logging.ERROR)
    logger.addHandler(collect)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield errors
    finally:
        logger.removeHandler(collect)
        logger.propagate = propagate
