"""The figures in `limpet status`: what was counted stays counted when the process that counted it has gone."""

from __future__ import annotations

from limpet.fleet.past import Past
from limpet.ipc.scoreboard import DISPATCHER_CELLS, WORKER_CELLS, Scoreboard


def past_of(slots: int) -> Past:
    """Return the figures of *slots* slots in which nothing has ended yet."""
    past = Past()
    past.grow(slots)
    return past


def test_figures_of_dead_workers_are_kept_and_their_row_is_cleared() -> None:
    """A total that goes back makes every rate that a monitor computes from it wrong."""
    board, past = Scoreboard.create(), past_of(2)
    for requests in (3, 4):
        row = board.worker(5)
        row.add("requests", requests)
        row.set("connections", 9)
        past.add_worker(1, row)
        assert set(row.values().values()) == {0}
    assert past.slots[1]["requests"] == 7
    assert past.slots[0] == {}


def test_states_of_now_die_with_their_process() -> None:
    """Connections of a dead worker are closed, and nobody is pending in a dead dispatcher."""
    board, past = Scoreboard.create(), past_of(1)
    for name in WORKER_CELLS:
        board.worker(0).set(name, 1)
    for name in DISPATCHER_CELLS:
        board.dispatcher(0).set(name, 1)
    past.add_worker(0, board.worker(0))
    past.add_dispatcher(board, 0)
    kept = past.slots[0].keys() | past.dispatchers.keys()
    assert not {name for name in kept if name in ("connections", "copies", "pending") or name.endswith("since_ns")}
    assert {"requests", "received", "accepted", "handed", "refused_503"} <= kept


def test_what_a_dead_dispatcher_held_back_waits_no_more() -> None:
    """Else the queue of a slot would never look empty again."""
    board, past = Scoreboard.create(), past_of(3)
    for slot in range(3):
        board.waiting(1, slot).set("waiting", 8)
        board.waiting(0, slot).set("waiting", 1)
    past.add_dispatcher(board, 1)
    assert [board.waiting(1, slot)["waiting"] for slot in range(3)] == [0, 0, 0]
    assert [board.waiting(0, slot)["waiting"] for slot in range(3)] == [1, 1, 1]
