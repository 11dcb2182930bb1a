"""What follows each event of a member's life, with children that are values."""

from __future__ import annotations

import errno

import pytest

from limpet.fleet.lifecycle import Event, State
from limpet.ipc.orders import Accept, Drain, Workers
from limpet.supervisor.processes import HARD_STOP_S
from tests.unit.stage import Stage, state


def test_no_worker_takes_connections_before_all_are_ready() -> None:
    """A connection that one of two workers took would be served by a server that may never come to serve."""
    with Stage() as stage:
        for member in stage.fleet.members():
            stage.processes.apply(member, Event.START)
        stage.ready(stage.fleet.slots[0])
        assert Accept() not in stage.told(stage.fleet.slots[0])


def test_new_worker_accepts_only_when_the_old_one_has_left_the_channel() -> None:
    """Both would read the slot's channel, and a request could overtake the one before it."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        old = slot.child
        assert old is not None
        stage.processes.apply(slot, Event.RENEW)
        stage.ready(slot)
        assert slot.predecessors == [old]
        assert Drain(stage.fleet.settings.graceful_timeout_s, last=False, succeeded=True) in stage.resources.told(old)
        assert Accept() not in stage.told(slot)
        old.leaves_by = 0.0  # it has said so
        stage.processes.let_take(slot)
        assert stage.told(slot) == [Accept()]


def test_old_worker_that_hangs_keeps_its_successor_waiting_for_a_second_at_most() -> None:
    """It will never say that it has left, and clients wait in the channel."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        stage.processes.apply(slot, Event.RENEW)
        stage.ready(slot)
        stage.clock.now += 1.01
        stage.processes.let_take(slot)
        assert stage.told(slot).count(Accept()) == 1


def test_worker_that_does_not_drain_is_killed_after_its_time() -> None:
    """A reload would otherwise never end."""
    with Stage(graceful_timeout_s=7).start() as stage:
        slot = stage.fleet.slots[1]
        old = slot.child
        assert old is not None
        stage.processes.apply(slot, Event.RENEW)
        stage.ready(slot)
        assert old.kill_at == stage.clock.now + 7 + HARD_STOP_S


def test_no_room_for_a_process_counts_as_its_death() -> None:
    """The slot then waits for its next try as after any other failure, and the operator reads which limit it was."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        assert slot.child is not None
        stage.resources.refusal = OSError(errno.EAGAIN, "Resource temporarily unavailable")
        stage.die(slot, slot.child)
        assert state(slot) is State.BACKOFF
        assert slot.cause is not None
        assert "ulimit" in str(slot.cause.hint)
        assert ("start failed", "worker 0") in stage.events


def test_killed_worker_is_replaced_at_once_and_all_are_told() -> None:
    """Its clients wait in the channel; others must not pass connections to who is dead."""
    with Stage().start() as stage:
        slot, other = stage.fleet.slots
        dead = slot.child
        assert dead is not None
        stage.die(slot, dead)
        assert state(slot) is State.STARTING
        assert slot.child is not None
        assert slot.child is not dead
        told = [each for each in stage.told(other) if isinstance(each, Workers)][-1]
        assert told.rows[0] is None
        assert dead.serial not in told.alive
        assert ("crashed", "worker 0") in stage.events


def test_successor_that_dies_leaves_the_old_worker_in_charge() -> None:
    """A release that cannot start must cost nobody anything."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        old = slot.child
        stage.processes.apply(slot, Event.RENEW)
        assert slot.successor is not None
        stage.die(slot, slot.successor, code=1)
        assert (slot.child, state(slot)) == (old, State.READY)
        assert ("kept", "worker 0") in stage.events


def test_process_that_failed_is_killed_once_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The supervisor looks four times a second; the log is for people."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        assert slot.child is not None
        for _ in range(3):
            stage.processes.kill(slot, slot.child, "hangs")
        assert caplog.text.count("it is killed") == 1
        assert slot.child.process.poll() == -9


def test_successor_that_is_starting_is_killed_when_its_slot_stops() -> None:
    """It would be ready a moment later in a server that no longer is, and hold up the stop."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        stage.processes.apply(slot, Event.RENEW)
        successor = slot.successor
        assert successor is not None
        stage.processes.apply(slot, Event.STOP)
        assert successor.process.poll() == -9
        assert slot.successor is None
        assert successor in slot.predecessors
