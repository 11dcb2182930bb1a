"""The table of slot states: every pair of state and event is either in it or said to be a bug."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import pytest

from limpet.fleet.lifecycle import CRASHES, LONGEST_BACKOFF_S, Action, Event, Life, State, backoff_s
from tools.docs.lifecycle_page import inserted


class World(NamedTuple):
    """A slot's state and its processes: None, "starting" or "ready"."""

    state: State
    in_charge: str | None
    successor: str | None


def life(state: State) -> Life:
    return Life(state=state)


def test_every_state_accepts_the_events_that_the_supervisor_can_see_in_it() -> None:
    """A pair that is missing would crash the supervisor, so each is either listed here or impossible."""
    possible = {
        State.STOPPED: {Event.START, Event.STOP},
        State.STARTING: {Event.ANNOUNCED, Event.DIED, Event.STOP},
        State.READY: {Event.DIED, Event.LEFT, Event.RENEW, Event.STOP},
        State.RENEWING: {Event.DIED, Event.LEFT, Event.SUCCESSOR_ANNOUNCED, Event.SUCCESSOR_DIED, Event.STOP},
        State.DRAINING: {Event.START, Event.ANNOUNCED, Event.LEFT, Event.DIED, Event.STOP},
        State.BACKOFF: {Event.RETRY_DUE, Event.RENEW, Event.STOP},
    }
    for state, event in itertools.product(State, Event):
        if event in possible[state]:
            life(state).happened(event, 0.0)
        else:
            with pytest.raises(RuntimeError, match=f"{state} cannot get the event `{event}`"):
                life(state).happened(event, 0.0)


def after(world: World, event: Event) -> World:
    """Return the *world* in which *event* has happened, and what the table wants has been done."""
    slot = life(world.state)
    action = slot.happened(event, 0.0)
    in_charge, successor = world.in_charge, world.successor
    match event:
        case Event.DIED:
            in_charge = None
        case Event.SUCCESSOR_DIED:
            successor = None
        case Event.ANNOUNCED:
            in_charge = "ready"
        case Event.SUCCESSOR_ANNOUNCED:
            successor = "ready"
    match action:
        case Action.SPAWN:
            assert in_charge is None, "two processes in charge"
            in_charge = "starting"
        case Action.REPLACE:
            in_charge = "starting"
        case Action.SPAWN_SUCCESSOR:
            assert successor is None, "two successors"
            successor = "starting"
        case Action.SWITCH | Action.PROMOTE | Action.RETIRE:
            assert successor is not None
            in_charge, successor = successor, None
        case Action.DRAIN:
            successor = None  # killed, and a predecessor from now on
    return World(slot.state, in_charge, successor)


def possible_events(world: World) -> set[Event]:
    """Return what can happen in *world*, by what processes there are and what the supervisor may want."""
    wishes = {
        State.STOPPED: {Event.START},
        State.DRAINING: {Event.START},
        State.BACKOFF: {Event.RETRY_DUE, Event.RENEW},
        State.READY: {Event.RENEW},
    }
    events = {Event.STOP} | wishes.get(world.state, set())
    if world.in_charge:
        events.add(Event.DIED)
    if world.in_charge == "starting":
        events.add(Event.ANNOUNCED)
    if world.in_charge == "ready":
        events.add(Event.LEFT)
    if world.successor:
        events.add(Event.SUCCESSOR_DIED)
    if world.successor == "starting":
        events.add(Event.SUCCESSOR_ANNOUNCED)
    return events


def test_whatever_happens_to_the_processes_is_in_the_table_and_makes_sense() -> None:
    """All worlds that can be reached are visited: in none the supervisor would crash, or lose track of a process."""
    seen, todo = set(), [World(State.STOPPED, None, None)]
    while todo:
        world = todo.pop()
        if world in seen:
            continue
        seen.add(world)
        assert (world.in_charge is None) == (world.state in (State.STOPPED, State.BACKOFF)), world
        assert not world.state.serves or world.in_charge == "ready", world
        assert world.successor == ("starting" if world.state is State.RENEWING else None), world
        todo += [after(world, event) for event in possible_events(world)]
    assert {world.state for world in seen} == set(State)


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


def test_diagram_in_the_docs_is_the_table() -> None:
    """`make docs` writes it: a diagram that was drawn would soon be wrong."""
    document = (Path(__file__).parents[3] / "docs" / "lifecycle.md").read_text()
    assert document == inserted(document)
    assert f"    {State.READY} --> {State.RENEWING}: {Event.RENEW}" in document


def test_crash_loop_begins_once_with_the_last_of_its_crashes() -> None:
    """The log says it once: not for a single crash, and not again with each further one."""
    life = Life(State.READY)
    began = [life.crashed(100.0 + second) for second in range(CRASHES + 2)]
    assert began == [False] * (CRASHES - 1) + [True, False, False]
    assert not Life(State.READY).crashed(100.0)
