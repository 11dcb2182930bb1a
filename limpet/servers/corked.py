"""Sending the head of a response together with the first bytes of its body.

Owns that one saving. uvicorn writes the head when the application gives it, and the body when that comes, which makes
two system calls and two segments of nearly every response; the second write was 10 % of a worker's CPU time. ASGI has
a server wait for the body before it sends the head. An application that lets time pass between the two, as event
streams do, must not notice: what is still held when the event loop's turn ends is sent then.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

_JOINED_BYTES: Final = 16_384  # of body that is copied to join it; more is cheaper in a write of its own


class Turn:
    """The heads that are held in this turn of the event loop; one for all connections of a worker."""

    __slots__ = ("_held", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._held: list[Corked] = []

    def add(self, corked: Corked) -> None:
        """Let *corked* send at the end of the turn what it holds then."""
        if not self._held:
            self._loop.call_soon(self._end)
        self._held.append(corked)

    def _end(self) -> None:
        held, self._held = self._held, []
        for corked in held:
            corked.flush()


class Corked:
    """A response's view of the transport. `write`, `close` and `is_closing` are all that uvicorn's cycles use."""

    __slots__ = ("_began", "_held", "_transport", "_turn")

    def __init__(self, transport: asyncio.Transport, turn: Turn) -> None:
        self._transport = transport
        self._turn = turn
        self._held = b""
        self._began = True

    def begin(self) -> None:
        """Let the next write wait for what comes behind it: it is the head of a response."""
        self._began = False

    def write(self, data: bytes) -> None:
        """Send *data*; what comes first waits for what comes next, until the end of the loop's turn."""
        if not self._began:
            self._began, self._held = True, data
            self._turn.add(self)
        elif not self._held:
            self._transport.write(data)
        elif len(data) <= _JOINED_BYTES:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        else:
            self.flush()
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection, after what was written."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is being closed."""
        return self._transport.is_closing()

    def flush(self) -> None:
        """Send what is held, unless the connection has been lost meanwhile: uvloop would raise."""
        if self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(held)


class _Sent:
    """A request's view of the transport when its response has been sent: by now the connection may be another's."""

    def is_closing(self) -> bool:
        """Return True: there is nothing more to say."""
        return True

    def close(self) -> None:
        """Do nothing: uvicorn closes the connection when a request fails, as its background task may much later."""


SENT: Final[Any] = _Sent()
