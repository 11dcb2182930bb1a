"""What an application wants to run when its worker starts and when it ends, whatever its server is.

Owns the two lists of functions and the order in which they are called. Applications fill the lists when they are
imported (`limpet.on_start`, `limpet.on_shutdown`). Adapters of servers with an event loop call the functions on that
loop, around the lifespan (servers/lifespan.py, servers/asyncio_loops.py). For all other servers entry/worker.py calls
them.

1. A worker is ready after the last `on_start`. If one of them fails, the start has failed.
2. `on_shutdown` functions run in reverse order, after the last request was served or given up. If one fails, the
   failure is logged and the others still run. The supervisor bounds their total time: it kills a worker some time after
   the graceful timeout.
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
    """Call *hook*, a function or coroutine function without parameters, before the worker is ready.

    On ASGI servers it runs on the event loop of the requests, before the lifespan. In processes that are not workers it
    never runs. Works as a decorator.
    """
    _starts.append(hook)
    return hook


def on_shutdown(hook: Hook) -> Hook:
    """Call *hook*, a function or coroutine function without parameters, when the worker has drained.

    The worker ends after *hook* returns, which may take up to the graceful timeout. Works as a decorator.
    """
    _shutdowns.append(hook)
    return hook


async def start() -> None:
    """Call the `on_start` functions. Raises AppError if one of them fails."""
    for hook in _starts:
        try:
            await _call(hook)
        except Exception as error:
            raise AppError(
                f"`{_name(hook)}`, called at the start of the worker, raised {type(error).__name__}: {error}"
            ) from error


async def shutdown() -> None:
    """Call the `on_shutdown` functions, in reverse order."""
    for hook in reversed(_shutdowns):
        try:
            await _call(hook)
        except Exception:
            log.exception("`%s`, called at the end of the worker, failed", _name(hook), extra={"event": "hook_failed"})


@contextlib.contextmanager
def around_worker() -> Iterator[None]:
    """Call the functions of both lists for a worker whose server has no event loop.

    Coroutines get their own event loop.
    """
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
