"""`limpet.once`: something that runs in exactly one worker at a time.

Owns the names that this process holds, and their end. It does not know what runs: that is the body of a `with`. The
application calls `once`; a worker that begins to drain calls `leave` (current.py).

How it works: each name is a byte of the shared memory file (coordination/place.py), and holding the name is the
kernel's lock of this byte. Whoever waits tries again every _POLL_S.

1. The kernel alone says who holds a name. A worker that is killed has lost it before anybody can know that it is dead.
   One that is stopped still holds it, so nobody else runs; the watchdog kills it after `--hang-timeout`.
2. A name is given back only after the body has ended. A body that ignores its end keeps the name.
3. A worker that drains takes no name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Final

from limpet import current
from limpet.coordination import place
from limpet.routing.digests import blake2b

_POLL_S: Final = 0.05  # the longest time between the end of one body and the start of the next


class WorkerEnds(Exception):
    """This worker drains while a thread waits in `with limpet.once(name)`: the body must not run here."""


class Once(AbstractContextManager["threading.Event"], AbstractAsyncContextManager[None]):
    """Exactly one worker at a time is in the body of `with` or `async with`; all others wait before it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._byte = place.ONCE_LOCKS + int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) % place.RANGE

    def __repr__(self) -> str:
        return f"<once {self.name!r}{': held here' if self._byte in _held else ''}>"

    def __enter__(self) -> threading.Event:
        """Wait until this thread is the one. Return an event that is set when the body must end.

        Blocks until then. Raises WorkerEnds if this worker drains first.
        """
        ending = threading.Event()
        while not _take(self._byte, ending):
            if _leaving.wait(_POLL_S):
                raise WorkerEnds(f"this worker drains; `{self.name}` runs in another one")
        return ending

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _give_back(self._byte)

    async def __aenter__(self) -> None:
        """Wait until this task is the one. The task is cancelled when the worker drains."""
        task = asyncio.current_task()
        assert task is not None, "`async with` runs in a task"
        me = asyncio.get_running_loop(), task
        with _guard:
            _tasks.add(me)
        try:
            while not _take(self._byte, me):
                if _leaving.is_set():
                    task.cancel()
                await asyncio.sleep(_POLL_S)
        finally:
            with _guard:
                _tasks.discard(me)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _give_back(self._byte)


def once(name: str) -> Once:
    """Run the body of `async with limpet.once(name)` in exactly one worker at a time.

    All other workers wait before the body. When the worker ends, is killed or hangs, the body starts in another one. A
    task whose worker drains is cancelled. Threads use `with limpet.once(name) as ending`, and end the body when
    `ending.is_set()`; a thread that still waits when its worker drains gets `limpet.WorkerEnds`.
    """
    return Once(name)


_Task = tuple[asyncio.AbstractEventLoop, "asyncio.Task[object]"]
_guard = threading.Lock()
_held: dict[int, threading.Event | _Task] = {}  # by byte: whom to tell that the body must end
_tasks: set[_Task] = set()  # those that wait
_leaving = threading.Event()


def _take(byte: int, holder: threading.Event | _Task) -> bool:
    """Return whether *holder* has the name of *byte* now. Blocks never."""
    with _guard:
        if _leaving.is_set() or byte in _held or not place.here().try_lock(byte):
            return False
        _held[byte] = holder
        return True


def _give_back(byte: int) -> None:
    with _guard:
        if _held.pop(byte, None) is not None:  # a forked child holds nothing
            place.here().unlock(byte)


def leave() -> None:
    """Tell all bodies in this process to end, and take no more names. Any thread may call this."""
    _leaving.set()
    with _guard:
        told = [*_held.values(), *_tasks]
    for each in told:
        if isinstance(each, threading.Event):
            each.set()
        else:
            loop, task = each
            with contextlib.suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(task.cancel)


def _forget() -> None:
    global _guard, _leaving
    _guard, _leaving = threading.Lock(), threading.Event()
    _held.clear()
    _tasks.clear()


os.register_at_fork(after_in_child=_forget)
current.on_leave(leave)
