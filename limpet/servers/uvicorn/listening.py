"""A worker that accepts: its slot's listeners on the event loop, while this worker is the one that reads them.

Owns when and how connections are accepted on the kernel backend. server.py makes the protocols for them. The supervisor
keeps the listeners; this process closes its copies and never shuts one down.

1. The event loop calls listen() again, so it must get limpet's backlog: asyncio's own 100 would cut the queue.
2. The event loop gets duplicates, which it closes. If no other worker will accept the connections that still wait, this
   file accepts them.
3. Without a free descriptor number, uvloop (libuv) closes connections; asyncio leaves them in the queue. So uvloop
   accepts only while many numbers are free. With few, this file accepts, which costs more for each connection, and with
   none it waits.
4. A server of asyncio that is closed drops connections that it accepted in the same turn of the loop. So it stops
   accepting one turn earlier.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence, Sized
from typing import Any, Final
from weakref import ref

from limpet.net.reuseport_group import close_behind, open_door
from limpet.worker import shortage

_SPARE: Final = 512  # descriptor numbers: what a burst may take that the loop accepts in one go, and an application
_TAKES_PER_TURN: Final = 32  # connections, so that those already here do not wait behind a storm


class Listening:
    """The listeners of one worker. Owns this process's copies of them."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        backlog: int,
        connections: Sized,
        new_protocol: Callable[[], Any],
        adopt: Callable[[socket.socket], None],
        *,
        by_loop: bool = True,
    ) -> None:
        """*connections* are all that the worker has; *new_protocol* makes the protocol of one that the loop accepts,
        with a `transport`, *adopt* takes over one that is accepted here: every one without *by_loop*."""
        self._listeners = listeners
        self._backlog = backlog
        self._connections = connections
        self._new_protocol = new_protocol
        self._adopt = adopt
        self._servers: list[tuple[asyncio.Server, int]] = []
        self._many = sys.maxsize if by_loop else 0  # connections with which the loop may not accept any more
        self._opening: asyncio.Task[None] | None = None
        self._is_open = False
        self._latest: deque[ref[Any]] = deque(maxlen=backlog)  # protocols of those that the loop has accepted

    async def prepare(self) -> None:
        """Get all ready but accept nobody."""
        self._loop = asyncio.get_running_loop()
        if self._many and not isinstance(self._loop, asyncio.SelectorEventLoop):
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._many = soft - len(os.listdir("/proc/self/fd")) - _SPARE
        for listener in self._listeners:
            duplicate = listener.dup()
            server = await self._loop.create_server(
                self._accepted, sock=duplicate, backlog=self._backlog, start_serving=False
            )
            self._servers.append((server, duplicate.fileno()))

    def open(self) -> None:
        """Begin to accept: the supervisor listens."""
        self._is_open = True
        self._opening = self._loop.create_task(self._open())

    def close_door(self) -> None:
        """Let no new client in."""
        for listener in self._listeners:
            if listener.fileno() >= 0:  # else this worker has left it already
                close_behind(listener)

    async def leave(self, *, take_rest: bool) -> None:
        """Give up the listeners. With *take_rest*, adopt the connections that wait in them first.

        Without it a successor takes them. There may be none, for example if a service manager signals all processes.
        """
        self._is_open = False
        if self._opening is not None:
            await self._opening
        for _, fd in self._servers:
            self._loop.remove_reader(fd)
        await asyncio.sleep(0)  # rule 4
        self._close_servers()
        await asyncio.sleep(0)  # what asyncio has accepted gets its protocol in one turn, and its transport in the next
        self._let_in()
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            for _ in range(
                self._backlog if take_rest else 0
            ):  # a bound: while the server lives, others may come as fast as these go
                if not self._accept(listener):
                    break
            listener.close()

    async def _open(self) -> None:
        if self._many <= 0:
            self._accept_here()
        for server, _ in list(self._servers):
            await server.start_serving()

    def _let_in(self) -> None:
        """Let packets reach those whom the loop has accepted: the door may have been closed behind some of them."""
        for transport in (protocol.transport for latest in self._latest if (protocol := latest()) is not None):
            if transport is not None and not transport.is_closing():
                with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as accepted:
                    open_door(accepted)

    def _close_servers(self) -> None:
        while self._servers:
            self._servers.pop()[0].close()

    def _accepted(self) -> asyncio.Protocol:
        """Return the protocol for a connection that the loop has accepted."""
        if len(self._connections) >= self._many and self._servers:
            self._loop.call_soon(self._accept_here)
        protocol: asyncio.Protocol = self._new_protocol()
        self._latest.append(ref(protocol))
        return protocol

    def _accept_here(self) -> None:
        """Accept in place of the loop from now on: rule 3."""
        self._close_servers()
        for listener in self._listeners:
            self._again(listener)

    def _take(self, listener: socket.socket) -> None:
        for _ in range(_TAKES_PER_TURN):
            if not self._accept(listener):
                return

    def _accept(self, listener: socket.socket) -> bool:
        """Adopt the next connection that waits behind *listener*; return whether there may be more."""
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return False
        except ConnectionError:  # reset while it waited
            return True
        except OSError as error:
            shortage.pause(self._loop, listener.fileno(), error, functools.partial(self._again, listener))
            return False
        connection.setblocking(False)
        open_door(connection)  # it may have come through one that was closed behind it
        self._adopt(connection)
        return True

    def _again(self, listener: socket.socket) -> None:
        if self._is_open:
            self._loop.add_reader(listener.fileno(), self._take, listener)
