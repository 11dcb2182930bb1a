"""The servers that a worker can run, what each of them can do, and the interface of an adapter.

An adapter is a module with `serve(app, seat)`: it starts the application, says `seat.ready()` last, takes connections
from `seat.receiver` while it serves, and from `seat.listeners` once it is told to accept; obeys the commands on
`seat.link` (and takes the end of that line as the command to drain, since the supervisor is gone then), counts in
`seat.row`, and returns when it has drained. It raises AppError when the application does not start. One file for each
server.

1. `received` and `connections` are what placement goes by, so every adapter that takes from `seat.receiver` keeps them.
   All others may stay 0 where the server does not show what they count; docs/servers.md says which.
2. What a server can do is written down in `KINDS` alone: backend.py refuses by it, docs and tests are held against it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from limpet.errors import AppError

if TYPE_CHECKING:
    from limpet.worker import Seat


@dataclass(frozen=True, slots=True)
class Kind:
    """What one server can do."""

    module: str  # of the adapter
    interface: str  # what it calls: "asgi" or "wsgi"
    takes: str  # the connections it can be given: "any", or "accepted" for those it accepts itself
    moves: bool  # hands a connection on when a later request on it belongs to another slot
    websocket: bool
    extra: str | None = None  # of limpet, that installs it


KINDS: Final[Mapping[str, Kind]] = {
    "uvicorn": Kind("limpet.servers.uvicorn", "asgi", "any", moves=True, websocket=True),
    "hypercorn": Kind("limpet.servers.hypercorn", "asgi", "any", moves=False, websocket=True, extra="hypercorn"),
    "granian": Kind("limpet.servers.granian", "asgi", "accepted", moves=False, websocket=True, extra="granian"),
    "gunicorn": Kind("limpet.servers.gunicorn", "wsgi", "any", moves=False, websocket=False, extra="gunicorn"),
}


def adapter(name: str) -> Callable[[Callable[..., Any], Seat], None]:
    """Return the `serve` function of the server *name*. Raises AppError if that server is not installed."""
    kind = KINDS[name]
    try:
        module = importlib.import_module(kind.module)
    except ImportError as error:
        if kind.extra is None or (error.name or "").partition(".")[0] != name:
            raise
        raise AppError(
            f"`--server {name}` needs the package `{name}`: {error}", hint=f"`pip install 'limpet[{kind.extra}]'`"
        ) from None
    serve: Callable[[Callable[..., Any], Seat], None] = module.serve
    return serve
