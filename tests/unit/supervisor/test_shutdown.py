"""How a server stops: in which order, and who is served before."""

from __future__ import annotations

from limpet.errors import LimpetError
from limpet.fleet.lifecycle import Event, State
from tests.unit.stage import Stage, state


def test_workers_are_told_only_after_the_dispatchers_have_ended() -> None:
    """What a dispatcher still hands over would find a worker that takes nothing more."""
    with Stage(workers=2, dispatchers=2).start() as stage:
        stage.shutdown.begin(wait_for_connections=False)
        assert stage.backend.is_closed
        assert [state(each) for each in stage.fleet.dispatchers] == [State.DRAINING] * 2
        assert [state(each) for each in stage.fleet.slots] == [State.READY] * 2
        for dispatcher in stage.fleet.dispatchers:
            assert dispatcher.child is not None
            stage.die(dispatcher, dispatcher.child, code=0)
        stage.shutdown.go_on()
        assert [state(each) for each in stage.fleet.slots] == [State.DRAINING] * 2
        stage.leave()
        assert stage.shutdown.is_over


def test_worker_that_is_starting_comes_up_first_where_connections_wait() -> None:
    """They were accepted, so they are served or answered."""
    with Stage(workers=1, dispatchers=0).start() as stage:
        slot = stage.fleet.slots[0]
        stage.resources.channels[0].waiting = 1
        assert slot.child is not None
        stage.die(slot, slot.child)
        stage.shutdown.begin(wait_for_connections=False)
        assert state(slot) == State.STARTING
        stage.ready(slot)
        stage.shutdown.go_on()
        assert state(slot) == State.DRAINING


def test_worker_that_ended_by_itself_is_replaced_for_those_who_wait() -> None:
    """A signal of the user's own may have ended it while the server stops."""
    with Stage(workers=1, dispatchers=0).start() as stage:
        slot = stage.fleet.slots[0]
        stage.shutdown.begin(wait_for_connections=False)
        stage.resources.channels[0].waiting = 1
        assert slot.child is not None
        stage.die(slot, slot.child, code=0)
        stage.shutdown.ended(slot)
        assert state(slot) == State.STARTING


def test_deadline_is_the_graceful_timeout_and_none_when_connections_may_take_their_time() -> None:
    """`limpet stop --wait-for-connections` means that."""
    with Stage(graceful_timeout_s=5).start() as stage:
        assert stage.shutdown.left_s(0.0) == 5
        stage.shutdown.begin(wait_for_connections=True)
        assert stage.shutdown.left_s(0.0) == stage.shutdown.kill_at == float("inf")


def test_server_that_never_came_to_serve_ends_with_the_reason() -> None:
    """The command line shows it, and its exit code says whose fault it was."""
    with Stage() as stage:
        for member in stage.fleet.members():
            stage.processes.apply(member, Event.START)
        error = LimpetError("no")
        stage.shutdown.fail(error)
        for member, child in list(stage.fleet.processes()):
            stage.processes.reap(member, child)
        assert stage.shutdown.is_over
        assert stage.shutdown.failure is error
        assert stage.shutdown.kill_at == 0.0


def test_stop_cancels_changes_that_wait() -> None:
    """A reload that began after the order to stop would start workers that nobody needs."""
    with Stage(workers=2).start() as stage:
        change = stage.rolling.request("reload", [0, 1], 1)
        stage.rolling.go_on()
        stage.shutdown.begin(wait_for_connections=False)
        assert (change.outcome, change.message) == ("failed", "the server is stopping")
        assert stage.fleet.changes.current is None
