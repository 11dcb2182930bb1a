"""The event loop of workers whose servers run on asyncio behind a door (worker/listener_bridge.py).

Owns the choice of the loop, uvloop's way with limpet's listeners included, and the wait for the end. Called by
adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from limpet.config.settings import Settings
from limpet.servers import uvloop_listening
from limpet.worker import hooks
from limpet.worker.listener_bridge import Door

_CHECK_S: Final = 0.05  # how often a worker that stops looks whether connections have ended


def run(settings: Settings, main: Coroutine[Any, Any, None]) -> None:
    """Run *main* on the loop of *settings*, and what the application wants done before and after it.

    Where PROXY headers say whose connections are, that is asyncio's: uvloop asks the kernel alone.
    """
    name = "asyncio" if settings.takes_headers else settings.loop
    with asyncio.Runner(loop_factory=factory(name)) as runner:
        runner.run(hooks.start())
        runner.run(main)
        runner.run(hooks.shutdown())


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop that `--loop` *name* means. Raises ImportError for uvloop where there is none."""
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise
        else:
            uvloop_listening.install()
            return uvloop.new_event_loop
    return asyncio.new_event_loop


async def told_to_stop(door: Door) -> None:
    """Return when *door* says that the server shall stop."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    door.on_stop(lambda: loop.call_soon_threadsafe(told.set))
    await told.wait()


async def all_ended(door: Door) -> None:
    """Return when *door* has no open connection, or no time is left."""
    while door.tally.open and door.left_s:
        await asyncio.sleep(_CHECK_S)
