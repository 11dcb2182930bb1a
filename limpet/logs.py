"""How log lines look: one event a line, to stderr, the same from every process of a server.

Owns the format alone. Called once by each process at its start. Python loggers `limpet.*` and `uvicorn.*` end here;
an application's own logging set-up is left alone.
"""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Send the records of limpet and its server from *level* on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    for name in ("limpet", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("limpet").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel("DEBUG" if level.upper() == "DEBUG" else "WARNING")
