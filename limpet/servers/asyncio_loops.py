"""The event loop of workers whose servers run on asyncio behind a door (worker/listener_bridge.py).

Owns the choice of the loop, uvloop's way with limpet's listeners included, and the wait for the end. Called by
adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from limpet.config.settings import Settings
from limpet.worker import hooks, shortage
from limpet.worker.channel_listener import FdListener, SlotListener
from limpet.worker.listener_bridge import Door

_CHECK_S: Final = 0.05  # how often a worker that stops looks whether connections have ended


def run(settings: Settings, main: Coroutine[Any, Any, None]) -> None:
    """Run *main* on the loop of *settings*, and what the application wants done before and after it.

    Where PROXY headers say whose connections are, that is asyncio's: uvloop asks the kernel alone.
    """
    name = "asyncio" if settings.takes_headers else settings.loop
    with asyncio.Runner(loop_factory=factory(name)) as runner:
        runner.run(hooks.start())
        runner.run(main)
        runner.run(hooks.shutdown())


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop that `--loop` *name* means. Raises ImportError for uvloop where there is none."""
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise
        else:
            install()
            return uvloop.new_event_loop
    return asyncio.new_event_loop


async def told_to_stop(door: Door) -> None:
    """Return when *door* says that the server shall stop."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    door.on_stop(lambda: loop.call_soon_threadsafe(told.set))
    await told.wait()


async def all_ended(door: Door) -> None:
    """Return when *door* has no open connection, or no time is left."""
    while door.tally.open and door.left_s:
        await asyncio.sleep(_CHECK_S)


_TAKES_PER_TURN: Final = 32  # connections, so that those already here do not wait behind a storm


def install() -> None:
    """Make uvloop accept from limpet's listeners, if it is installed. Twice is no harm."""
    with contextlib.suppress(ImportError):
        import uvloop

        global _original
        if _original is None:
            _original = uvloop.Loop.create_server
            setattr(uvloop.Loop, "create_server", _create_server)  # noqa: B010 - not for mypy to see


_original: Any = None


async def _create_server(loop: Any, protocol_factory: Any, *arguments: Any, sock: Any = None, **options: Any) -> Any:
    if not isinstance(sock, FdListener | SlotListener):
        return await _original(loop, protocol_factory, *arguments, sock=sock, **options)
    names = ("ssl", "ssl_handshake_timeout", "ssl_shutdown_timeout")
    tls = {name: options[name] for name in names if options.get(name) is not None}
    server = _Server(loop, protocol_factory, sock, tls)
    if options.get("start_serving", True):
        await server.start_serving()
    return server


class _Server(asyncio.AbstractServer):
    """A server that accepts in Python."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, factory: Callable[..., Any], listener: socket.socket, tls: dict[str, Any]
    ) -> None:
        self._loop = loop
        self._factory = factory
        self._listener: socket.socket | None = listener
        self._tls = tls
        self._adopting: set[asyncio.Task[None]] = set()
        self._is_serving = False
        self._closed: asyncio.Future[None] = loop.create_future()

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listener, as long as it is open."""
        return () if self._listener is None else (self._listener,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Return whether it accepts."""
        return self._is_serving

    async def start_serving(self) -> None:
        """Begin to accept."""
        if self._listener is not None and not self._is_serving:
            self._is_serving = True
            self._listener.setblocking(False)
            self._listener.listen()
            self._loop.add_reader(self._listener.fileno(), self._take)

    async def serve_forever(self) -> None:
        """Accept until cancelled or closed."""
        await self.start_serving()
        try:
            await asyncio.shield(self._closed)
        finally:
            self.close()

    def close(self) -> None:
        """Stop accepting. Connections go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._is_serving = False
            self._loop.remove_reader(listener.fileno())
            listener.close()
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await asyncio.shield(self._closed)

    def _take(self) -> None:
        for _ in range(_TAKES_PER_TURN):
            if self._listener is None:
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                shortage.pause(self._loop, self._listener.fileno(), error, self._again)
                return
            task = self._loop.create_task(self._adopt(connection))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    def _again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._take)

    async def _adopt(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._factory, connection, **self._tls)
        except OSError:  # the client is gone already
            connection.close()
