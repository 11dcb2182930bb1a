"""The table of slot states: every pair of state and event is either in it or said to be a bug."""

from __future__ import annotations

import itertools

import pytest

from limpet.lifecycle import LONGEST_BACKOFF_S, Action, Event, Life, State, backoff_s


def life(state: State) -> Life:
    return Life(state=state)


def test_every_state_accepts_the_events_that_the_supervisor_can_see_in_it() -> None:
    """A pair that is missing would crash the supervisor, so each is either listed here or impossible."""
    possible = {
        State.STOPPED: {Event.START, Event.STOP},
        State.STARTING: {Event.ANNOUNCED, Event.DIED, Event.STOP},
        State.READY: {Event.DIED, Event.STOP},
        State.DRAINING: {Event.ANNOUNCED, Event.DIED, Event.STOP},
        State.BACKOFF: {Event.RETRY_DUE, Event.STOP},
    }
    for state, event in itertools.product(State, Event):
        if event in possible[state]:
            life(state).happened(event, 0.0)
        else:
            with pytest.raises(RuntimeError, match=f"{state} cannot see `{event}`"):
                life(state).happened(event, 0.0)


def test_worker_that_served_and_died_is_replaced_at_once() -> None:
    """Clients of the slot wait in the channel: a pause would be an outage."""
    slot = life(State.READY)
    assert slot.happened(Event.DIED, 0.0) is Action.SPAWN
    assert slot.state is State.STARTING


def test_worker_that_dies_before_ready_waits_longer_each_time() -> None:
    """An application that cannot start must not eat the machine."""
    slot, now, waits = Life(), 100.0, []
    slot.happened(Event.START, now)
    for _ in range(12):
        assert slot.happened(Event.DIED, now) is Action.RETRY_LATER
        waits.append(slot.retry_at - now)
        assert slot.happened(Event.RETRY_DUE, now) is Action.SPAWN
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == LONGEST_BACKOFF_S


def test_becoming_ready_forgets_earlier_deaths() -> None:
    """Back-off is for a start that fails now, not for a bad morning a month ago."""
    slot = Life(state=State.STARTING, deaths_before_ready=5)
    slot.happened(Event.ANNOUNCED, 0.0)
    slot.happened(Event.DIED, 0.0)
    slot.happened(Event.DIED, 7.0)
    assert slot.retry_at == 7.0 + backoff_s(1)


def test_each_spawn_is_a_new_generation() -> None:
    """Whoever keeps state beside a worker can tell two workers of one slot apart."""
    slot = Life()
    slot.happened(Event.START, 0.0)
    slot.happened(Event.ANNOUNCED, 0.0)
    slot.happened(Event.DIED, 0.0)
    assert slot.generation == 2


def test_stopping_a_worker_that_is_not_ready_kills_it() -> None:
    """It has no client: waiting for an import that hangs would only delay the operator."""
    slot = life(State.STARTING)
    assert slot.happened(Event.STOP, 0.0) is Action.KILL
    assert slot.happened(Event.DIED, 0.0) is Action.NOTHING
    assert slot.state is State.STOPPED


def test_backoff_of_many_deaths_does_not_overflow() -> None:
    """A slot that has failed for a year must still be tried."""
    assert backoff_s(10**6) == LONGEST_BACKOFF_S
