"""What an application wants to be done at the start and at the end of its worker, whatever its server is.

Owns the two lists of functions and the order in which they are called. Applications fill them when they are imported
(`limpet.on_start`, `limpet.on_shutdown`); the adapters of servers with an event loop call them on that loop, around the
lifespan (servers/lifespan.py, servers/asyncio_loops.py), for all others worker/seat.py does.

1. A worker is ready after the last `on_start`. One that fails is a failed start-up.
2. `on_shutdown` is called when the last request has been served or given up, in the opposite order. One that fails
   is logged and keeps none of the others from its work. How long they may take altogether is the supervisor's
   business: it ends a worker some time after the graceful timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from limpet.errors import AppError

Hook = TypeVar("Hook", bound=Callable[[], Any])
log = logging.getLogger("limpet.worker")

_starts: Final[list[Callable[[], Any]]] = []
_shutdowns: Final[list[Callable[[], Any]]] = []


def on_start(hook: Hook) -> Hook:
    """Have *hook*, a function or coroutine function without parameters, called before its worker is ready.

    On servers of ASGI it runs on the event loop of the requests, before the lifespan. In other processes than workers
    nothing happens. Works as a decorator.
    """
    _starts.append(hook)
    return hook


def on_shutdown(hook: Hook) -> Hook:
    """Have *hook*, a function or coroutine function without parameters, called when its worker has drained.

    The worker ends when it has returned: it may take its time, up to the graceful timeout. Works as a decorator.
    """
    _shutdowns.append(hook)
    return hook


async def start() -> None:
    """Call what is to be called first. Raises AppError when one of them fails."""
    for hook in _starts:
        try:
            await _call(hook)
        except Exception as error:
            raise AppError(
                f"`{_name(hook)}`, called at the start of the worker, raised {type(error).__name__}: {error}"
            ) from error


async def shutdown() -> None:
    """Call what is to be called last."""
    for hook in reversed(_shutdowns):
        try:
            await _call(hook)
        except Exception:
            log.exception("`%s`, called at the end of the worker, failed", _name(hook))


@contextlib.contextmanager
def around_worker() -> Iterator[None]:
    """Call both sides for a worker whose server has no event loop; coroutines get one of their own."""
    if not _starts and not _shutdowns:
        yield
        return
    with asyncio.Runner() as runner:
        runner.run(start())
        yield
        runner.run(shutdown())


async def _call(hook: Callable[[], Any]) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result


def _name(hook: Callable[[], Any]) -> str:
    return f"{hook.__module__}:{getattr(hook, '__qualname__', type(hook).__name__)}"
