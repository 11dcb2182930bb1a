"""Sending the head of a response together with the first bytes of its body, and with what all heads have in common.

Owns these savings. uvicorn writes the head when the application gives it, and the body when that comes, which makes
two system calls and two segments of nearly every response; the second write was 10 % of a worker's CPU time. ASGI has
a server wait for the body before it sends the head. An application that lets time pass between the two, as event
streams do, must not notice: what is still held when the event loop's turn ends is sent then. uvicorn checks and writes
the date and the server's name for each response; here they are made once a second, and put in as bytes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

_JOINED_BYTES: Final = 16_384  # of body that is copied to join it; more is cheaper in a write of its own
_INTERIM: Final = b"HTTP/1.1 100"  # what comes before the head


class Turn:
    """The heads that are held in this turn of the event loop; one for all connections of a worker."""

    __slots__ = ("_loop", "fields", "held")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.fields = b""  # header lines of all responses, as they stand on the wire
        self.held: list[Corked] = []

    def begin(self) -> None:
        """Let all that is held be sent at the end of the turn."""
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        held, self.held = self.held, []
        for corked in held:
            if corked.held:
                corked.flush()


class Corked:
    """The responses' view of the transport. `write`, `close` and `is_closing` are all that uvicorn's cycles use."""

    __slots__ = ("_transport", "_turn", "awaits_head", "head", "held", "is_bare")

    def __init__(self, transport: asyncio.Transport, turn: Turn) -> None:
        self._transport = transport
        self._turn = turn
        self.held = b""
        self.head = b""  # the last one that was written
        self.awaits_head = False  # what is written next is the head of a response, which waits for what comes behind it
        self.is_bare = False  # and has no `fields` of the turn yet

    def write(self, data: bytes) -> None:
        """Send *data*; a head waits for what comes next, until the end of the loop's turn."""
        if self.awaits_head and not data.startswith(_INTERIM):
            self.awaits_head = False
            self.head = data
            turn = self._turn
            if self.is_bare:
                line = data.index(b"\n") + 1
                data = data[:line] + turn.fields + data[line:]
            self.held = data
            if not turn.held:
                turn.begin()
            turn.held.append(self)
        elif not self.held:
            self._transport.write(data)
        elif len(data) <= _JOINED_BYTES:
            held, self.held = self.held, b""
            self._transport.write(held + data)
        else:
            self.flush()
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection, after what was written."""
        if self.held:
            self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is being closed."""
        return self._transport.is_closing()

    def flush(self) -> None:
        """Send what is held, unless the connection has been lost meanwhile: uvloop would raise."""
        held, self.held = self.held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class _Sent:
    """A request's view of the transport when its response has been sent: by now the connection may be another's."""

    def is_closing(self) -> bool:
        """Return True: there is nothing more to say."""
        return True

    def close(self) -> None:
        """Do nothing: uvicorn closes the connection when a request fails, as its background task may much later."""


SENT: Final[Any] = _Sent()
