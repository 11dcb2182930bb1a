"""The servers that a worker can run, what each of them can do, and the interface of an adapter.

An adapter is a function `serve(app, seat)`, for limpet's own servers of a module named in `KINDS`. It starts the
application, says `seat.ready()` last, takes connections from `seat.receiver` while it serves, and from `seat.listeners`
once it is told to accept; obeys the orders on `seat.link` (and takes the end of that line as the order to drain,
since the supervisor is gone then), counts in `seat.row`, and returns when it has drained. It raises AppError when the
application does not start. One file for each server. `limpet.worker.listener_bridge.Door` does all of that for a server
that accepts from a socket it is given: docs/own-server.md shows an adapter of ten lines.

1. `received` and `connections` are what placement goes by, so every adapter that takes from `seat.receiver` keeps them.
   All others may stay 0 where the server does not show what they count; docs/servers.md says which.
2. What a server can do is written down in `KINDS` alone: net/backend.py refuses by it, docs and tests are held against
   it.
3. An adapter's `prepare(settings)`, if it has one, is called before the application is imported.
4. Whether an application of the server's own kind fits is said by the adapter's `fits(app)`, before anything starts.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from limpet.config.server_kinds import KINDS
from limpet.config.settings import Settings
from limpet.errors import AppError


def told(settings: Settings) -> Settings:
    """Return *settings* with what `--server-config` says of the worker. Runs the user's code.

    Raises AppError. What does not go together then is for config/conflicts.py to say.
    """
    if settings.server_config is None:
        return settings
    found: Settings = module(settings.server).told(settings)
    return found


def module(name: str) -> ModuleType:
    """Return the module of limpet's adapter for *name*, one of KINDS. Raises AppError if it is not installed."""
    found = KINDS[name]
    try:
        return importlib.import_module(found.module)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if found.extra is None or missing in ("", "limpet"):
            raise
        raise AppError(
            f"`--server {name}` needs the package `{missing}`: {error}", hint=f"`pip install 'limpet[{found.extra}]'`"
        ) from None
