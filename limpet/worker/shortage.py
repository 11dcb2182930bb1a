"""A worker without a free descriptor number: it logs that once an hour, and takes no connection for a moment.

Owns the pause and the log line. During the pause connections wait where they are, in the channel or in the backlog.
Without the pause, the event loop would wake again and again. The server adapters that take connections themselves call
this file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from limpet.errors import reason
from limpet.logs import warn_hourly

PAUSE_S: Final = 0.5  # before the next try
_HINT: Final = "`ulimit -n 65536` before the start, or `LimitNOFILE=65536` in a unit of systemd"


def say(error: OSError) -> None:
    """Warn that connections cannot be taken for *error*."""
    warn_hourly(
        "cannot_take_connections",
        "worker (pid %d) cannot take connections: %s (hint: %s)",
        os.getpid(),
        reason(error),
        _HINT,
    )


def pause(loop: asyncio.AbstractEventLoop, fd: int, error: OSError, again: Callable[[], object]) -> None:
    """Warn, stop reading *fd* on *loop*, and call *again* after the pause, which reads it again if it still should."""
    say(error)
    loop.remove_reader(fd)
    loop.call_later(PAUSE_S, again)
