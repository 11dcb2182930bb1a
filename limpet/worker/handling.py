"""How the user's handler of one connection ends: `async def handle(...)` of the adapters for asyncio, anyio and trio.

Owns what is logged about it. The exception ends only that connection. The adapter closes the connection and counts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

log = logging.getLogger("limpet.worker")


@contextlib.contextmanager
def handling(*gone: type[BaseException]) -> Iterator[None]:
    """Run a handler, and log its exception. Exceptions in *gone* mean that the client has gone."""
    try:
        yield
    except gone:
        log.debug("a client is gone", extra={"event": "client_gone"})
    except Exception:
        log.exception("the handler of a connection failed", extra={"event": "handler_failed"})
