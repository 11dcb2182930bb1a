"""How log lines look: one event a line, to stderr, the same from every process of a server.

Owns the format alone, and how seldom a warning is repeated. Called once by each process at its start. Python loggers
`limpet.*` and `uvicorn.*` end here; an application's own logging set-up is left alone.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

_HOUR_S: Final = 3600.0


def configure(level: str) -> None:
    """Send the records of limpet and its server from *level* on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    for name in ("limpet", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("limpet").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):  # the latter's own level: with none it would trace every connection
        logging.getLogger(name).setLevel("DEBUG" if level.upper() == "DEBUG" else "WARNING")


def take_over(*names: str) -> None:
    """Let the loggers *names* write as limpet's do. Runs after the server whose they are has set them up."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers[:] = logging.getLogger("limpet").handlers
        logger.propagate = False


class Hourly:
    """Lets a warning through once an hour for each cause: what goes on for long must not fill the log."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def allows(self, cause: str, now: float) -> bool:
        """Return whether to warn of *cause*, and if so count that as done. *now* is monotonic, in seconds."""
        if now < self._next.get(cause, now):
            return False
        self._next[cause] = now + _HOUR_S
        return True
