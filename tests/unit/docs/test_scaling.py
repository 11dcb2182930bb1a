"""docs/scaling.md has the figures that its scripts have written down."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import capacity, spread

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "scaling.md").read_text()


def test_table_is_that_of_the_simulation() -> None:
    """A figure that nobody can make again is a claim."""
    found = json.loads((ROOT / "benchmarks" / "results" / "spread.json").read_text())
    assert spread.page(found["results"]) in PAGE
    assert found["workers"] == spread.WORKERS


def test_costs_of_a_connection_are_those_measured() -> None:
    """They are what readers plan with."""
    cost = json.loads((ROOT / "benchmarks" / "results" / "capacity.json").read_text())["per_connection"]
    assert capacity.renewed(PAGE, cost) == PAGE
    assert capacity.renewed(PAGE, {**cost, "dispatcher": {**cost["dispatcher"], "cpu_s": 0.0002}}) != PAGE


def test_nobody_moves_whose_machine_stays() -> None:
    """The simulation would show a table that moves more than the share."""
    for choose in (spread.nginx, spread.haproxy):
        seen = spread.result(choose, 3)
        assert seen["moved_to_an_old_machine"] == 0
        assert seen["machine_lost"]["moved_from_others"] == 0  # type: ignore[index]
