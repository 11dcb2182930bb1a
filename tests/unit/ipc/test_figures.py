"""Figures: histograms, units, and what health is made from."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from limpet.ipc import figures
from limpet.ipc.figures import BOUNDS_NS
from limpet.ipc.scoreboard import Scoreboard
from limpet.operate.admin import metrics
from limpet.operate.admin.app import why_not_ready
from tests.harness import HERE


def test_histogram_counts_each_value_once_and_cumulates() -> None:
    """Quantiles are computed from these: a value in two cells, or none, moves all of them."""
    row = Scoreboard.create().worker(0)
    for value in (0, 1, BOUNDS_NS[0], BOUNDS_NS[0] + 1, 10 * BOUNDS_NS[-1]):
        row.observe("handoff_0", value)
    counts, total_s = figures.cumulative("handoff", row.values())
    assert [count for _, count in counts][:2] == [3, 4]
    assert counts[-2:] == [(BOUNDS_NS[-1] / 1e9, 4), (float("inf"), 5)]
    assert total_s == (1 + 2 * BOUNDS_NS[0] + 1 + 10 * BOUNDS_NS[-1]) / 1e9


def test_unit_of_a_figure_is_in_its_name() -> None:
    """Monitors compute with base units."""
    assert figures.unit("lag_ns") == ("lag", "seconds", 1e-9)
    assert figures.unit("resident_bytes") == ("resident", "bytes", 1)
    assert figures.unit("requests") == ("requests", "", 1)


def test_page_of_metrics_is_up_to_date() -> None:
    """docs/metrics.md is made by `make docs`."""
    assert (HERE.parent / "docs" / "metrics.md").read_text() == metrics.page()


def test_names_are_unique_and_by_the_conventions() -> None:
    """Of two metrics of one name a scraper takes neither."""
    names = [family.name for family in metrics.FAMILIES]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.endswith(("_total", "_count", "_sum", "_bucket", "_ns", "_s"))]


def figures_of(*states: str, serving: int = 1, stopping: int = 0, slots: int = 2) -> dict[str, Any]:
    """Return what `why_not_ready` looks at, for slots in these *states*."""
    return {
        "server": {"serving": serving, "stopping": stopping, "slots": slots},
        "slots": [{"slot": number, "state": state} for number, state in enumerate(states)],
    }


def test_slot_whose_worker_is_being_replaced_keeps_the_server_ready() -> None:
    """Its clients wait a second; a balancer that took the machine out would cost everybody's sessions."""
    assert why_not_ready(figures_of("ready", "starting")) == []
    assert why_not_ready(figures_of("draining", "ready")) == []


def test_slot_that_gets_no_worker_makes_it_not_ready() -> None:
    """Its clients would wait for nothing."""
    assert why_not_ready(figures_of("ready", "backoff")) == ["slot 1 has no worker: backoff"]


def test_slot_that_scaling_left_out_does_not_count() -> None:
    """Nobody is sent there."""
    assert why_not_ready(figures_of("ready", "stopped", slots=1)) == []


def test_server_that_starts_or_stops_is_not_ready() -> None:
    """Whatever its slots are."""
    assert why_not_ready(figures_of("ready", serving=0)) == ["the server is starting"]
    assert why_not_ready(figures_of("ready", stopping=1)) == ["the server is stopping"]


def test_supervisor_does_not_import_the_monitoring_library() -> None:
    """It is an extra, and slow to import."""
    code = (
        "import limpet.supervisor.bootstrap, limpet.operate.admin.serving, sys;"
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
