"""What `limpet top` computes before it draws."""

from __future__ import annotations

from typing import Any

from limpet.cli.top import Row, ahead, balance, bar, keys_in, rows, sparkline


def answer(uptime_s: float, *requests: int) -> dict[str, Any]:
    """Return figures of slots that have served so many requests."""
    fixed = {"connections": 1, "returns": 0, "queued": 0, "lag_ns": 2_000_000, "resident_bytes": 3 << 20}
    slots = [
        {"slot": n, "state": "ready", "pid": 70 + n, "figures": {**fixed, "requests": r, "cpu_s": r / 1000}}
        for n, r in enumerate(requests)
    ]
    return {"server": {"uptime_s": uptime_s}, "slots": slots}


def test_rates_are_differences_over_the_time_between() -> None:
    """A refresh that comes late must not look like load."""
    first, second = rows(answer(10.0, 100, 0), answer(12.0, 300, 10))
    assert (first.requests, second.requests) == (100.0, 5.0)
    assert (round(first.cpu, 6), first.lag_ms, first.mib) == (0.1, 2.0, 3.0)


def test_worker_that_was_replaced_and_slot_that_is_new_have_no_rate_below_zero() -> None:
    """CPU time begins anew with each worker."""
    found = rows(answer(10.0, 500), answer(11.0, 400, 7))
    assert [row.requests for row in found] == [0.0, 0.0]
    assert [row.requests for row in rows(None, answer(11.0, 400))] == [0.0]


def test_what_is_before_the_workers_has_a_line_each() -> None:
    """A terminator that is busy makes all of its connections slow, and no slot shows it."""

    def answer(uptime_s: float, pid: int, cpu_s: float) -> dict[str, Any]:
        process = {"name": "terminator 0", "state": "ready", "pid": pid, "cpu_s": cpu_s, "resident_bytes": 3 << 20}
        return {
            "server": {"uptime_s": uptime_s},
            "processes": [process | {"held": 2, "room": 5, "holds": "connections"}],
        }

    line = "terminator 0 ready, pid 7, cpu {}, 3 MiB, 2 of 5 connections"
    assert ahead(answer(10.0, 7, 1.0), answer(12.0, 7, 2.5)) == [line.format("75%")]
    assert ahead(answer(10.0, 6, 9.0), answer(12.0, 7, 2.5)) == [line.format("0%")]  # it is new
    assert ahead(None, answer(12.0, 7, 2.5)) == [line.format("0%")]


def test_lines_have_their_width_whatever_there_is_to_show() -> None:
    """A column that is too wide breaks the line at 80 columns."""
    for values in ([], [0.0], [1.0] * 3, [5.0] * 100):
        assert len(sparkline(values, 8, 5.0)) == 8
    assert sparkline([0.0, 5.0, 10.0], 3, 10.0) == " ▄█"
    assert [bar(value, 10.0, 4) for value in (0.0, 5.0, 10.0)] == ["····", "██··", "████"]
    assert bar(0.0, 0.0, 3) == "···"


def test_keys_that_come_together_are_told_apart() -> None:
    """Over a slow line several arrive at once; none may be lost, or taken for another."""
    assert keys_in("\x1b[Br\x1bOAq") == ["\x1b[B", "r", "\x1bOA", "q"]


def test_balance_is_of_those_that_serve() -> None:
    """A slot that is being replaced makes no imbalance."""

    def row(state: str, requests: float) -> Row:
        return Row(0, state, 1, 0, requests, 0, 0, 0, 0, 0)

    assert balance([row("ready", 10), row("ready", 30), row("starting", 0)]) == "busiest slot 1.50 x the mean"
    assert balance([row("ready", 30)]) == "balance -"
