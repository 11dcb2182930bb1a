"""An application with a scheduler and a thread that run in one worker only; they note in `TEST_JOURNAL` that they do.

A line of the journal says what is noted, in which of the two, by which process and body, and when. The kernel puts the
lines in the order in which they were written, so they are a witness of who was in its body after whom. The bodies leave
a forked child and a program behind, as applications do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

import limpet
from tests import apps

BEAT_S = 0.002
CHILD_S = "60"

_journal = os.open(os.environ["TEST_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(what: str, name: str, body: int) -> None:
    os.write(_journal, f"{what} {name} {os.getpid()} {body} {time.monotonic_ns()}\n".encode())


def leave_children() -> None:
    """Fork a child that lives on, and start a program that does."""
    if os.fork() == 0:
        signal.alarm(int(CHILD_S))
        while True:
            signal.pause()
    subprocess.Popen(["sleep", CHILD_S])


async def scheduler() -> None:
    """Beat, in one worker at a time."""
    async with limpet.once("scheduler"):
        note("begin", "task", 0)
        leave_children()
        try:
            while True:
                note("beat", "task", 0)
                await asyncio.sleep(BEAT_S)
        finally:
            note("end", "task", 0)


def keeper() -> None:
    """Beat in a thread, one in all workers at a time."""
    with contextlib.suppress(limpet.WorkerEnds), limpet.once("keeper") as ending:
        note("begin", "thread", 1)
        while not ending.wait(BEAT_S):
            note("beat", "thread", 1)
        note("end", "thread", 1)


@limpet.on_start
async def start() -> None:
    global _task
    _task = asyncio.create_task(scheduler())
    threading.Thread(target=keeper).start()


_task: asyncio.Task[None] | None = None


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await apps.echo(scope, receive, send)
