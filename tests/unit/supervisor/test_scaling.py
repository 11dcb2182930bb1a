"""The number of slots changes: in which order, and what is told to whom."""

from __future__ import annotations

import pytest

from limpet.errors import ControlError, ListenError
from limpet.fleet.lifecycle import State
from limpet.ipc.orders import Workers
from tests.unit.stage import Stage, state


def test_nobody_is_sent_to_new_slots_before_all_of_them_are_ready() -> None:
    """A client that was sent to a slot without a worker would wait for it, though its old home still serves."""
    with Stage(workers=2).start() as stage:
        stage.scaling.request(4)
        stage.ready(stage.fleet.slots[2])
        stage.scaling.go_on()
        assert stage.fleet.router.slots == 2
        stage.ready(stage.fleet.slots[3])
        stage.scaling.go_on()
        assert stage.fleet.router.slots == 4
        assert stage.fleet.settings.workers == stage.resources.settings.workers == 4
        assert stage.fleet.has_scaled
        assert not stage.fleet.is_scaling
        told = stage.told(stage.fleet.dispatchers[0])[-1]
        assert isinstance(told, Workers)
        assert told.slots == 4


def test_fewer_slots_leave_the_table_before_their_workers_drain() -> None:
    """A client that was sent there while its worker drains would be cut short."""
    with Stage(workers=4).start() as stage:
        change = stage.scaling.request(2)
        assert stage.fleet.router.slots == 2
        assert [state(slot) for slot in stage.fleet.slots[2:]] == [State.DRAINING] * 2
        told = stage.told(stage.fleet.dispatchers[0])[-1]
        assert isinstance(told, Workers)
        assert told.slots == 2
        stage.leave()
        stage.scaling.go_on()
        assert change.outcome == "done"


def test_worker_starts_again_for_a_connection_that_waits_in_a_slot_left_out() -> None:
    """It was routed with the old table, a moment before all had the new one."""
    with Stage(workers=3).start() as stage:
        stage.scaling.request(2)
        stage.leave()
        stage.scaling.go_on()
        stage.resources.channels[2].waiting = 1
        stage.scaling.go_on()
        left_out = stage.fleet.slots[2]
        assert state(left_out) == State.STARTING
        stage.ready(left_out)
        stage.resources.channels[2].waiting = 0
        stage.scaling.go_on()
        assert state(left_out) == State.DRAINING


def test_new_worker_that_cannot_start_ends_the_change_and_moves_nobody() -> None:
    """Half of the new slots would be worse than none."""
    with Stage(workers=2).start() as stage:
        change = stage.scaling.request(4)
        new = stage.fleet.slots[2]
        assert new.child is not None
        stage.die(new, new.child, code=1)
        stage.scaling.go_on()
        assert (change.outcome, stage.fleet.router.slots) == ("failed", 2)
        assert state(stage.fleet.slots[3]) == State.DRAINING
        assert not stage.fleet.is_scaling


def test_backend_without_room_ends_the_change() -> None:
    """The operator reads why, and can try again."""
    with Stage(workers=2).start() as stage:
        stage.backend.refusal = ListenError("no room")
        change = stage.scaling.request(3)
        assert (change.outcome, change.message) == ("failed", "no room")
        stage.backend.refusal = None
        assert stage.scaling.request(3).outcome == ""


@pytest.mark.parametrize("slots", [0, 257, -1, "3", None, 2.0, True])
def test_what_is_no_number_of_workers_is_refused(slots: object) -> None:
    """It would be stored, and be the end of the server at the next look."""
    with Stage(workers=2).start() as stage, pytest.raises(ControlError):
        stage.scaling.request(slots)


def test_one_change_of_the_number_at_a_time() -> None:
    """The second would take slots away from under the first."""
    with Stage(workers=2).start() as stage:
        stage.scaling.request(3)
        with pytest.raises(ControlError):
            stage.scaling.request(4)
