"""Processes that share what workers share, without a server: forks of the test's own process.

A fork is ready in a millisecond, so thousands of them can be killed at random instants.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from limpet.coordination import counters, place, seats
from limpet.coordination.stash import Stash, stash


@contextlib.contextmanager
def server(folder: Path, stash_bytes: int = 1 << 20) -> Iterator[Stash]:
    """Let this process and its forks share a place of their own, and return the stash."""
    kept = place.Kept.create(stash=str(folder / "stash"))
    before = place._here
    place._here = place.Place(kept.fd, kept.directory, kept.stash, stash_bytes)
    _begin_anew()
    try:
        yield stash
    finally:
        place._here = before
        _begin_anew()
        kept.close()


def _begin_anew() -> None:
    counters._forget()
    seats._forget()
    stash._forget()
    stash._folder = ""


class Cells:
    """Numbers that a fork tells its parent, each in one store."""

    def __init__(self, count: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * count)).cast("q")

    def __getitem__(self, at: int) -> int:
        return self._cells[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._cells[at] = value


def fork(body: Callable[[], None]) -> int:
    """Run *body* in a forked process, which then ends with code 0, or 1 after an exception. Return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:  # noqa: BLE001 - the process ends here
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)
    return pid


def kill(pid: int) -> None:
    """Kill a fork, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def join(pids: list[int]) -> None:
    """Wait until these forks have ended, and fail if one of them has."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * len(pids)


def stopped(pid: int) -> None:
    """Wait until a fork has stopped itself."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def payload(number: int, size: int) -> bytes:
    """Return a value of about *size* bytes that says in each part of it which one it is."""
    return struct.pack("<q", number) * max(1, size // 8)
