"""The adapter for programs that bring their own server: APP is called, and serves on `limpet.listener()`.

Owns the call and how the program is told to stop. Knows nothing of its server, so it cannot make responses end their
connections.

1. A program that handles SIGTERM gets it once who waits has been accepted, and ends in its own way. One that does not
   is left alone until its connections have ended, and then ended by SystemExit in its main thread.
2. A coroutine function runs on asyncio.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from limpet.errors import AppError
from limpet.servers import asyncio_loops
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat
from limpet.worker.user_code import takes

_CHECK_S: Final = 0.05  # how often it looks whether connections have ended


def fits(app: object) -> bool:
    """Return whether *app* can be called without arguments."""
    return takes(app, 0, is_async=False) or takes(app, 0, is_async=True)


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Call *app* and return when it does."""
    if not seat.settings.takes_headers:  # of which uvloop would make nothing: without this it is refused by the door
        asyncio_loops.install()
    door = Door(seat)
    program = _Program(door)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, program.signalled)
    door.on_stop(program.stop)
    result = app()
    if inspect.iscoroutine(result):
        asyncio.run(result)
    if not door.is_ready:
        raise AppError(
            f"`{seat.settings.app}` returned before it accepted anybody",
            hint="it has to serve on `limpet.listener()` until it is told to stop",
        )


class _Program:
    """The running program, as the door sees it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._is_over = False

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """End the program when its connections have ended, or begin to drain: the program has no handler of its own."""
        if self._is_over:
            raise SystemExit(0)
        self._door.signalled(number, frame)

    def stop(self) -> None:
        """Tell the program to stop. Runs in the door's thread."""
        pause = threading.Event()
        while signal.getsignal(signal.SIGTERM) == self.signalled and self._door.tally.open and self._door.left_s:
            pause.wait(_CHECK_S)
        self._is_over = True
        os.kill(os.getpid(), signal.SIGTERM)
