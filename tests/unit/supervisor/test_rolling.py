"""Rolling changes carried out on a server of values."""

from __future__ import annotations

from limpet.errors import AppError
from limpet.fleet.changes import RELOAD
from limpet.fleet.lifecycle import State
from limpet.fleet.member import MOST_PREDECESSORS
from tests.unit.stage import Stage, state


def renew(stage: Stage, number: int) -> None:
    """Have the successor of slot *number* be ready, and the old worker end."""
    slot = stage.fleet.slots[number]
    stage.ready(slot)
    for old in list(slot.predecessors):
        stage.die(slot, old, code=0)


def test_reload_renews_one_slot_after_the_other_and_dispatchers_last() -> None:
    """Workers show that the new code starts before a dispatcher runs it."""
    with Stage(workers=3, dispatchers=1).start() as stage:
        change = stage.rolling.request(RELOAD, range(3), 1)
        for number in range(3):
            stage.rolling.go_on()
            assert [state(slot) == State.RENEWING for slot in stage.fleet.slots].index(True) == number
            assert state(stage.fleet.dispatchers[0]) == State.READY
            renew(stage, number)
        stage.rolling.go_on()
        [dispatcher] = stage.fleet.dispatchers
        assert state(dispatcher) == State.RENEWING
        assert change.outcome == ""
        stage.ready(dispatcher)
        stage.rolling.go_on()
        assert (change.outcome, change.renewed) == ("done", 3)


def test_no_more_than_the_surge_are_renewed_at_a_time() -> None:
    """Each needs memory for two workers."""
    with Stage(workers=4).start() as stage:
        stage.rolling.request(RELOAD, range(4), 2)
        stage.rolling.go_on()
        stage.rolling.go_on()
        assert sum(state(slot) == State.RENEWING for slot in stage.fleet.slots) == 2


def test_first_worker_that_fails_ends_the_reload_and_gives_up_the_others() -> None:
    """A mixture of versions is what nobody wants."""
    with Stage(workers=3).start() as stage:
        change = stage.rolling.request(RELOAD, range(3), 2)
        stage.rolling.go_on()
        first, second, third = stage.fleet.slots
        first.cause = AppError("no module")
        stage.rolling.failed(first)
        stage.rolling.go_on()
        assert (change.outcome, change.message) == ("failed", "no module")
        assert second.successor is not None
        assert second.successor.process.poll() is not None
        assert state(third) == State.READY


def test_slot_with_too_many_predecessors_waits() -> None:
    """Rows of the scoreboard are bounded, and so is memory."""
    with Stage(workers=1).start() as stage:
        [slot] = stage.fleet.slots
        for _ in range(MOST_PREDECESSORS):
            stage.rolling.request(RELOAD, [0], 1)
            stage.rolling.go_on()
            stage.ready(slot)
            for dispatcher in stage.fleet.dispatchers:
                stage.rolling.go_on()
                stage.ready(dispatcher)
                stage.rolling.go_on()
        assert len(slot.predecessors) == MOST_PREDECESSORS
        stage.rolling.request(RELOAD, [0], 1)
        stage.rolling.go_on()
        assert state(slot) == State.READY
        stage.die(slot, slot.predecessors[0], code=0)
        stage.rolling.go_on()
        assert state(slot) == State.RENEWING


def test_terminators_are_renewed_after_an_upgrade_alone() -> None:
    """Their connections would have to end with them."""
    with Stage(workers=1, terminators=1).start() as stage:
        stage.rolling.request(RELOAD, [0], 1)
        stage.rolling.go_on()
        renew(stage, 0)
        stage.rolling.go_on()
        stage.ready(stage.fleet.dispatchers[0])
        stage.rolling.go_on()
        [terminator] = stage.fleet.terminators
        assert state(terminator) == State.READY
        terminator.is_outdated = True
        stage.rolling.go_on()
        assert state(terminator) == State.RENEWING
