"""The adapter for hypercorn: its protocol serves connections from the slot's channel or from its listeners.

Owns the event loop of a worker that runs hypercorn: its start, its orders and its end. hypercorn's own server only
takes listening sockets, of which uvloop ignores all but the descriptor; so connections are accepted or received here
and each is given to hypercorn's `TCPServer`, which serves one. That works on both loops and with both backends.

1. A connection counts as the worker's from the moment at which it is taken until its `TCPServer` has ended.
2. READY is said when the channel is being read and signal handlers are in place, not before.
3. It cannot move connections. Where keys are per request each response ends its connection, and HTTP/2 is not spoken.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

import hypercorn
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext

from limpet.protocol.proxy_protocol import Origin
from limpet.servers.asgi import framed
from limpet.servers.asyncio_worker import Worker
from limpet.servers.lifespan import Lifespan
from limpet.servers.uvicorn.listening import Listening
from limpet.worker import shortage
from limpet.worker.seat import Seat

_TAKES_PER_TURN: Final = 32  # connections, so that those already here do not wait behind a storm
_IDLE_S: Final = 1.0  # how long a draining worker leaves idle connections open: longer than a round trip
_CHECK_S: Final = 0.05  # how often a draining worker looks whether connections have ended
log = logging.getLogger("limpet.worker")


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails."""
    if seat.settings.loop == "trio":
        from limpet.servers.hypercorn import on_trio  # only now: trio is no part of hypercorn

        on_trio.serve(app, seat, _config(seat), _plain)
        return
    with asyncio.Runner(loop_factory=_loop_factory(seat.settings.loop)) as runner:
        runner.run(_Server(app, seat).run())


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError:
            if loop == "uvloop":
                raise
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def _config(seat: Seat) -> hypercorn.Config:
    settings = seat.settings
    config = hypercorn.Config()
    config.errorlog = log  # in limpet's form, to stderr
    config.root_path = settings.root_path
    config.keep_alive_timeout = settings.keep_alive_timeout_s
    config.h11_max_incomplete_size = settings.max_head_bytes
    return config


class _Connection(TCPServer):
    """One connection. It ends with its client, where hypercorn's own waits for the keep-alive timeout."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def _plain(base: Any) -> Any:
    """Return *base*, a class of connections, speaking HTTP/1.1 alone: on HTTP/2 one carries requests of many keys."""

    class Plain(base):  # type: ignore[misc]
        async def _read_data(self) -> None:
            self.protocol.protocol._check_protocol = _changes_nothing
            await super()._read_data()

    return Plain


async def _changes_nothing(event: object) -> None:
    """Leave the protocol as it is."""


class _Server(Worker):
    """A worker's connections."""

    def __init__(self, app: Callable[..., Any], seat: Seat) -> None:
        super().__init__(seat, Lifespan((app, seat.settings.app)))
        self._config = _config(seat)
        self._is_draining = False
        is_per_request = seat.home.router.chain.needs_head
        self._connection_class = _plain(_Connection) if is_per_request else _Connection
        self._app = ASGIWrapper(
            framed(app, seat, self._lifespan.states[0], lambda: is_per_request or self._is_draining)
        )
        self._context = WorkerContext(None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening = Listening(
            seat.listeners, seat.settings.backlog, self._tasks, self._new_accepted, self._adopt_accepted
        )

    async def prepare(self) -> None:
        """Prepare the listeners, and read the slot's channel."""
        await self._listening.prepare()
        self._loop.add_reader(self._seat.receiver.fileno(), self._take)

    def accept(self) -> None:
        """Accept from the listeners."""
        self._listening.open()

    def close_doors(self) -> None:
        """Let no more clients connect."""
        self._listening.close_door()

    async def drain(self) -> None:
        """Take what waits, let idle clients speak once more, finish what is in flight."""
        self._is_draining = True
        began = self._loop.time()
        await self._listening.leave(take_rest=True)
        while self._take():
            pass
        self._loop.remove_reader(self._seat.receiver.fileno())
        left_s = float("inf") if self._timeout_s is None else self._timeout_s
        while self._tasks and self._loop.time() < began + min(_IDLE_S, left_s):
            await asyncio.sleep(_CHECK_S)
        await self._context.terminated.set()  # idle connections end
        if self._tasks:
            wait_s = None if self._timeout_s is None else max(0.0, began + self._timeout_s - self._loop.time())
            await asyncio.wait(self._tasks, timeout=wait_s)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _take(self) -> bool:
        """Adopt connections from the channel; return whether there may be more."""
        for _ in range(_TAKES_PER_TURN):
            try:
                connection, handoff = self._seat.receiver.receive()
            except BlockingIOError:
                return False
            except OSError as error:  # no free descriptor number
                shortage.pause(self._loop, self._seat.receiver.fileno(), error, self._take_again)
                return False
            self._adopt_accepted(connection.whole(), handoff.origin)
        return True

    def _take_again(self) -> None:
        if not self._is_draining:
            self._loop.add_reader(self._seat.receiver.fileno(), self._take)

    def _adopt_accepted(self, connection: socket.socket, origin: Origin | None = None) -> None:
        self._seat.row.add("received")
        self._begin(self._adopt(connection, origin))

    async def _adopt(self, connection: socket.socket, origin: Origin | None) -> None:
        def new_protocol() -> _Streams:
            return _Streams(self._loop, functools.partial(self._serve, origin=origin))

        try:
            _, protocol = await self._loop.connect_accepted_socket(new_protocol, connection)
        except OSError:  # the client is gone already
            connection.close()
            return
        await protocol.serve()

    def _new_accepted(self) -> asyncio.Protocol:
        """Return the protocol of a connection that the event loop has accepted from a listener."""
        self._seat.row.add("received")
        protocol = self._new_protocol()
        self._begin(protocol.serve())
        return protocol

    def _new_protocol(self) -> _Streams:
        return _Streams(self._loop, self._serve)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, origin: Origin | None = None
    ) -> None:
        if origin is not None:
            writer.get_extra_info = _Far(origin, writer).get_extra_info  # type: ignore[method-assign]
        await self._connection_class(
            self._app, self._loop, self._config, self._context, self._lifespan.states[0], reader, writer
        )

    def _begin(self, serving: Any) -> None:
        self._seat.row.add("connections")
        task = self._loop.create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._seat.row.add("connections", -1)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection failed", exc_info=error, extra={"event": "connection_failed"})


class _Far:
    """What hypercorn asks a connection for to know its client, where a PROXY header says who that is."""

    def __init__(self, origin: Origin, writer: asyncio.StreamWriter) -> None:
        self._origin = origin
        self._near = writer.get_extra_info
        self.getsockname = self._near("socket").getsockname
        self.family = self._near("socket").family if origin.client else socket.AF_UNIX

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return this object as the socket."""
        return self if name == "socket" else self._near(name, default)

    def getpeername(self) -> Any:
        """Return the client's address."""
        return self._origin.client


class _Streams(asyncio.StreamReaderProtocol):
    """The streams of a connection, once it is made."""

    transport: asyncio.BaseTransport | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, serve: Callable[..., Any]) -> None:
        self._reader = asyncio.StreamReader(loop=loop)
        super().__init__(self._reader, loop=loop)
        self._made: asyncio.Future[asyncio.BaseTransport] = loop.create_future()
        self._its_loop = loop
        self._serve = serve

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let `serve` begin."""
        super().connection_made(transport)
        self.transport = transport
        self._made.set_result(transport)

    async def serve(self) -> None:
        """Serve the connection until it ends."""
        transport: Any = await self._made
        await self._serve(self._reader, asyncio.StreamWriter(transport, self, self._reader, self._its_loop))
