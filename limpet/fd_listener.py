"""A slot's connections for servers that want a listening socket: one object whose `accept` returns the next.

Owns the two such objects, for the channel and for a listener of the slot, and their difference from real sockets. Only
for servers that call `accept` of the object; native code and uvloop go by the descriptor and must never get one of a
channel: they would wait for ever. Servers may close them; what they stand for is not touched by that.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from limpet.handoff import Receiver
from limpet.kernel import open_door


class FdListener(socket.socket):
    """The slot's channel as a listening TCP socket. Owns a duplicate of the channel's descriptor."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(fileno=os.dup(receiver.fileno()))
        self.setblocking(False)
        self._receiver = receiver
        self._name: Any = ("", 0)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection, now the caller's to close, and the address of its peer.

        Raises what `Receiver.receive` does, and like it leaves the connection where it is without a free descriptor
        number. Blocks never, whatever the time-out.
        """
        while True:
            connection, _ = self._receiver.receive()
            try:
                peer, self._name = connection.getpeername(), connection.getsockname()
            except OSError:  # the client is gone already
                connection.close()
                continue
            connection.setblocking(self.gettimeout() != 0)
            return connection, peer

    def getsockname(self) -> Any:
        """Return the address at which the last connection came in: the channel carries those of all binds."""
        return self._name

    def listen(self, backlog: int = 0) -> None:
        """Do nothing: the dispatcher listens."""

    def shutdown(self, how: int) -> None:
        """Do nothing: the channel is the slot's, and outlives this worker."""


class SlotListener(socket.socket):
    """A listener of the slot, of which this process has a copy. Owns a duplicate of its descriptor."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(fileno=os.dup(listener.fileno()))
        self.setblocking(False)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection as a listening socket does."""
        while True:
            try:
                connection, peer = super().accept()
            except ConnectionError:  # reset while it waited
                continue
            open_door(connection)  # it may have come through one that was closed behind it
            return connection, peer

    def shutdown(self, how: int) -> None:
        """Do nothing: that would end the listener for all processes."""
