"""Which worker this process is: what an application may ask of limpet.

Owns one name in each process. Imports nothing, since applications import it at their start.
"""

from __future__ import annotations

from typing import NamedTuple


class WorkerInfo(NamedTuple):
    """Which worker this is: its slot, its process, and how many workers the slot has had with it."""

    slot: int
    pid: int
    generation: int


_current: WorkerInfo | None = None


def current_worker() -> WorkerInfo:
    """Return which worker this process is.

    Raises RuntimeError in a process that is not a limpet worker: there the environment has no `LIMPET_SLOT` either.
    """
    if _current is None:
        raise RuntimeError("this process is not a limpet worker: start the application with `limpet run`")
    return _current


def become(info: WorkerInfo) -> None:
    """Make *info* what `current_worker` returns. Runs in a worker, before the application is imported."""
    global _current
    _current = info
