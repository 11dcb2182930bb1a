"""What is said of a worker that has ended: an operator looks at the log first, and often at nothing else."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from limpet.config.settings import Settings
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.scoreboard import Scoreboard
from limpet.supervisor import watchdog
from limpet.supervisor.watchdog import Health


@pytest.mark.parametrize("is_by_memory", [True, False])
def test_kill_is_put_down_to_the_kernel_only_if_it_has_killed_for_memory(
    is_by_memory: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A SIGKILL that nobody sent is the commonest riddle, and the kernel's count is the only trace of the answer."""
    counts = iter([7, 8 if is_by_memory else 7])
    monkeypatch.setattr(watchdog, "memory_kills", lambda: next(counts))
    fleet: Any = SimpleNamespace(settings=Settings(app="x:app"), resources=SimpleNamespace(board=None))
    nothing: Any = SimpleNamespace()
    watching = watchdog.Watchdog(fleet, nothing)
    child: Any = SimpleNamespace(pid=4711, failure=None, how_it_ended=lambda: "was killed by SIGKILL")
    member = Member("worker", 2)
    with caplog.at_level(logging.ERROR, logger="limpet"):
        watching.crashed(member, child, now=1.0)
    assert ("out of memory" in member.last_end) is is_by_memory
    assert ("hint: `--max-memory`" in caplog.text) is is_by_memory
    assert "worker 2 (pid 4711) was killed by SIGKILL" in caplog.text


def test_terminator_hangs_that_does_not_end_its_turn_while_it_is_watched() -> None:
    """All of its connections end with it, so a pause of the supervisor's own must not be held against it."""
    board = Scoreboard.create()
    member = Member("terminator", 0)
    member.child = cast(Child, SimpleNamespace(pid=os.getpid(), row=3))

    def fault(*looks: float) -> str | None:
        health = Health(Settings(app="x:app", hang_timeout_s=5), board)
        for now in looks:
            health.begin_look(now, set())
            found = health.fault(member, now)
        return found

    seconds = [float(second) for second in range(100, 107)]
    assert fault(*seconds) is None
    board.terminator(3).set("busy_since_ns", 90_000_000_000)
    assert fault(*seconds[:5]) is None
    assert fault(*seconds) == "has not moved for 5 s"
    assert fault(seconds[0], seconds[-1]) is None  # nobody has looked in between
