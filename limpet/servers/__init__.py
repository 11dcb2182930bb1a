"""The servers that a worker can run, and the interface of an adapter.

An adapter is a module with `serve(app, seat)`: it starts the application, says `seat.ready()` last, takes connections
from `seat.receiver` while it serves, and from `seat.listeners` once it is told to accept; obeys the commands on
`seat.link` (and takes the end of that line as the command to drain, since the supervisor is gone then), counts in
`seat.row`, and returns when it has drained. It raises AppError when the application does not start. One file per
server family.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from limpet.worker import Seat

ADAPTERS: Final[Mapping[str, str]] = {"uvicorn": "limpet.servers.uvicorn"}


def adapter(name: str) -> Callable[[Callable[..., Any], Seat], None]:
    """Return the `serve` function of the server *name*."""
    serve: Callable[[Callable[..., Any], Seat], None] = importlib.import_module(ADAPTERS[name]).serve
    return serve
