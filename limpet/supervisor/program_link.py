"""The supervisor as the child of a program that called `limpet.listen`: its line to that program.

Owns the messages between the two; embed/handle.py is the program's side. The server is the same as with `limpet run`,
except for this line. When the line closes, the program has ended.

How it works: `write` puts the settings and the number of the line's descriptor into a memory file, whose descriptor is
the argument of `python -m limpet.entry.hosted`. `News` is what the supervisor says to the program, `Stop` what the
program says to it.

1. The program is told that the server serves exactly when clients can connect.
2. A program that has ended needs no server: its end is an order to stop gracefully.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
from dataclasses import dataclass
from typing import Final, Protocol

from limpet.config.settings import Settings
from limpet.errors import LimpetError
from limpet.ipc.codec import Codec
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.ipc.news import Failed
from limpet.system import descriptors, memfile

log = logging.getLogger("limpet")


def write(settings: Settings, line_fd: int) -> int:
    """Return the descriptor of a memory file for `limpet.entry.hosted`.

    The caller passes it on and closes it. Runs in the program.
    """
    told = json.dumps({"settings": settings.to_json(), "line": line_fd})
    return descriptors.above_standard_streams(memfile.create("limpet-program", told.encode()))


@dataclass(frozen=True, slots=True)
class Serving:
    """Clients can connect."""

    urls: list[str]
    control: str  # the path of the control socket


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the server."""

    wait_for_connections: bool
    at_once: bool = False  # end what is still under way


News = Serving | Failed
NEWS: Final = Codec[News]("news", {"serving": Serving, "failed": Failed})
ORDERS: Final = Codec[Stop]("do", {"stop": Stop})


class _Stopper(Protocol):
    """Starts to stop the server."""

    def __call__(self, *, wait_for_connections: bool) -> None: ...


class Program:
    """The program that started this server, as the supervisor sees it."""

    def __init__(self, line: Link) -> None:
        self._line = line

    def watch(self, selector: selectors.BaseSelector, stop: _Stopper) -> None:
        """Call *stop* when the program asks for it, and when the program has ended."""
        selector.register(self._line, selectors.EVENT_READ, lambda _: self._hear(selector, stop))

    def serving(self, urls: list[str], control: str) -> None:
        """Tell the program that clients can connect to *urls*."""
        self._line.send(NEWS.pack(Serving(urls, control)))

    def failed(self, error: LimpetError) -> None:
        """Tell the program why the server could not start to serve."""
        self._line.send(NEWS.pack(Failed(error.message, error.hint, error.exit_code)))

    def _hear(self, selector: selectors.BaseSelector, stop: _Stopper) -> None:
        try:
            arrived = self._line.receive()
        except LinkClosedError:
            selector.unregister(self._line)
            log.warning("the program that started this server has ended", extra={"event": "program_ended"})
            stop(wait_for_connections=False)
            return
        for order in filter(None, map(ORDERS.unpack, arrived)):
            stop(wait_for_connections=order.wait_for_connections)
            if order.at_once:
                os.kill(os.getpid(), signal.SIGTERM)  # a second signal to stop means: at once
