"""What is said of a worker that has ended: an operator looks at the log first, and often at nothing else."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from limpet.config.settings import Settings
from limpet.fleet.lifecycle import Event
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.scoreboard import Scoreboard
from limpet.supervisor import watchdog
from limpet.supervisor.watchdog import Health
from tests.unit.stage import Stage


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
    assert fault(*seconds) == "has made no progress for 5 s"
    assert fault(seconds[0], seconds[-1]) is None  # nobody has looked in between


def test_time_in_which_nobody_could_run_is_no_ones_fault() -> None:
    """A container that was paused came back to dispatchers, starts and drains that were killed for the pause."""
    with Stage(key_timeout_s=5, start_timeout_s=60, graceful_timeout_s=30).start() as stage:
        watching = watchdog.Watchdog(stage.fleet, stage.rolling)
        dispatcher, slot = stage.fleet.dispatchers[0], stage.fleet.slots[0]
        assert dispatcher.child is not None
        row = stage.resources.board.dispatcher(dispatcher.child.row)
        watching.begin(stage.clock.now)
        row.set("busy_since_ns", int(stage.clock.now * 1e9))
        stage.processes.apply(slot, Event.RENEW)
        assert slot.successor is not None
        stage.clock.now += 600.0
        paused_s = watching.begin(stage.clock.now)
        stage.processes.put_off(paused_s)
        assert paused_s == 600.0
        assert watching.look_after(dispatcher, stage.clock.now) is None
        assert slot.successor.started_at == stage.clock.now
        for _ in range(25):
            stage.clock.now += 0.25
            watching.begin(stage.clock.now)
        assert "has made no progress" in (watching.look_after(dispatcher, stage.clock.now) or "")


def test_heart_that_could_not_beat_in_a_pause_is_not_missed() -> None:
    """After a pause all hearts are late at once, and all workers would be killed as hung."""
    board = Scoreboard.create()
    member = Member("worker", 0)
    member.life.happened(Event.START, 0.0)
    member.life.happened(Event.ANNOUNCED, 0.0)
    nobody = 1 << 30  # a pid that no process has: its CPU time never changes
    member.child = cast(Child, SimpleNamespace(pid=nobody, row=3, serial=1))
    health = Health(Settings(app="x:app", hang_timeout_s=30), board)
    board.worker(3).set("beat_ns", 100 * 10**9)
    for now in (100.0, 102.5, 104.0, 700.0, 701.0):  # paused for ten minutes
        health.begin_look(now, {1})
        assert health.fault(member, now) is None
    for now in range(702, 732):
        health.begin_look(now, {1})
        found = health.fault(member, now)
    assert found == "hangs: no heartbeat and no CPU time used for 30 s"


def test_next_try_of_a_start_is_put_off_by_a_pause() -> None:
    """What kept the first one from starting had no time to pass either."""
    with Stage() as stage:
        slot = stage.fleet.slots[0]
        stage.processes.apply(slot, Event.START)
        child = slot.starting()
        assert child is not None
        stage.die(slot, child, code=1)
        before = slot.life.retry_at
        assert before > stage.clock.now
        stage.processes.put_off(100.0)
        assert slot.life.retry_at == before + 100.0


def test_time_to_leave_the_channels_is_put_off_by_a_pause() -> None:
    """A successor that began to accept too early would read a channel together with the one before."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        stage.processes.apply(slot, Event.RENEW)
        stage.ready(slot)
        [old] = slot.predecessors
        old.leaves_by = before = stage.clock.now + 1.0
        assert slot.child is not None
        assert slot.child.leaves_by == 0.0
        stage.processes.put_off(100.0)
        assert (old.leaves_by, slot.child.leaves_by) == (before + 100.0, 0.0)


def test_deadlines_of_a_stop_are_put_off_by_a_pause() -> None:
    """Requests in flight get the graceful timeout, not what was left of it when the machine slept."""
    with Stage(graceful_timeout_s=30).start() as stage:
        stage.shutdown.begin(wait_for_connections=False)
        before, left_s = stage.shutdown.kill_at, stage.shutdown.left_s(0.0)
        [dispatcher] = stage.fleet.dispatchers
        assert dispatcher.child is not None
        its_own = dispatcher.child.kill_at
        stage.shutdown.put_off(100.0)
        stage.processes.put_off(100.0)
        assert stage.shutdown.left_s(100.0) == pytest.approx(left_s)
        assert (stage.shutdown.kill_at, dispatcher.child.kill_at) == (before + 100.0, its_own + 100.0)


def test_worker_that_is_too_large_at_once_is_said_once_and_not_renewed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its successor would be as large: every worker was renewed every 30 seconds, and all were cold."""
    used = 300 << 20
    monkeypatch.setattr(watchdog, "memory", lambda pid: used)
    with Stage(workers=1, max_memory_mib=200).start() as stage:
        watching, [slot] = watchdog.Watchdog(stage.fleet, stage.rolling), stage.fleet.slots
        for _ in range(8):
            stage.clock.now += 60.0
            watching.look_after(slot, stage.clock.now)
        assert caplog.text.count("more than `--max-memory 200`") == 1
        assert not stage.fleet.changes.involves(0)
        used = 460 << 20
        stage.clock.now += 60.0
        watching.look_after(slot, stage.clock.now)
        assert stage.fleet.changes.involves(0)


def test_workers_that_started_together_are_not_recycled_together() -> None:
    """All would be cold at the same moment."""
    board = Scoreboard.create()
    health = Health(Settings(app="x:app", max_requests=1000), board)
    due = []
    for serial in range(1, 9):
        child: Any = SimpleNamespace(serial=serial, pid=os.getpid())
        row = board.worker(serial)
        for count in range(800, 1001):
            row.set("requests", count)
            if health.recycle(child, row):
                due.append(count)
                break
    assert all(900 <= count <= 1000 for count in due)
    assert len(set(due)) == len(due)


def test_worker_is_recycled_with_the_request_that_the_setting_names() -> None:
    """An operator who sets 1000 reads in the log that it has served 1000."""
    board = Scoreboard.create()
    health = Health(Settings(app="x:app", max_requests=1000), board)
    child: Any = SimpleNamespace(pid=os.getpid(), serial=0)  # number 0 gets no fewer than the others
    row = board.worker(0)
    row.set("requests", 999)
    assert health.recycle(child, row) is None
    row.set("requests", 1000)
    assert health.recycle(child, row) == "it has served 1000 requests"
