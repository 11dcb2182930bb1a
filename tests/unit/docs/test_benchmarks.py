"""The page of the benchmarks, its pictures and the README's table are those of the results, and hide nothing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("bench-*.json"))


@pytest.fixture(name="page")
def _page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/page.py, whose folder is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("page")


def run(**parts: Any) -> dict[str, Any]:
    """Return the results of a run of these parts."""
    machine = {"cpus": 2, "cpu": "a processor", "python": "3.11.7", "kernel": "6.1.0-x"}
    about = {"workers": 2, "commit": "abc", "day": "2026-01-01", "minutes": 12.0, "versions": ["nginx 1"]}
    return {"run": about | {"machine": machine}, "parts": parts}


def part(failed: dict[str, str] | None = None, rounds: int = 5, **us: float) -> dict[str, Any]:
    """Return the results of a part in which the systems need *us* in each of some rounds."""
    others = {"p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0, "bytes": 9000, "rss_mb": 20, "s": 1.0, "cpu_s": 0.5}
    each = {name.replace("_", " "): others | {"us": value, "answered": 1000} for name, value in us.items()}
    return {"rounds": [each] * rounds, "failed": failed or {}, "rate": 1000}


@pytest.fixture(name="results", scope="module")
def _results() -> list[dict[str, Any]]:
    """The results that are in the repository."""
    return [json.loads(path.read_text()) for path in RESULTS]


def test_page_is_that_of_the_results(page: ModuleType, results: list[dict[str, Any]]) -> None:
    """A figure that nobody can make again is a claim."""
    assert page.page(results) == (DOCS / "benchmarks.md").read_text()


def test_pictures_are_those_of_the_results(page: ModuleType, results: list[dict[str, Any]]) -> None:
    """What is looked at first is what is believed."""
    for name, drawn in page.pictures(results):
        ElementTree.fromstring(drawn)
        assert drawn == (DOCS / "images" / f"benchmarks-{name}.svg").read_text()


def test_figures_of_the_readme_are_those_of_the_results(page: ModuleType, results: list[dict[str, Any]]) -> None:
    """They are what people quote."""
    readme = (ROOT / "README.md").read_text()
    found = page.NUMBERS.search(readme)
    assert found is not None
    assert found[0] == page.readme(results)


def test_target_says_whether_it_is_reached(page: ModuleType) -> None:
    """Readers see what was promised, and do not have to compare."""
    shown = page.page([run(mixed=part(limpet_dispatcher=80, nginx=100), single=part(limpet_dispatcher=60, nginx=100))])
    assert "| 0.85 | 0.80, reached |" in shown
    assert "| 0.55 | 0.60, **not reached** |" in shown


def test_losses_come_before_everything_else(page: ModuleType) -> None:
    """Who chooses has to know them."""
    shown = page.page([run(mixed=part(limpet_dispatcher=120, nginx=100, haproxy=130))])
    losses = shown.partition("## Where limpet loses")[2].partition("\n## ")[0]
    assert "nginx" in losses
    assert "1.20" in losses
    assert "HAProxy" not in losses
    assert shown.index("## Where limpet loses") < shown.index("## What limpet is held to")


def test_system_that_failed_is_named_with_its_error(page: ModuleType) -> None:
    """A row that is silently missing looks as if there had been nothing to lose."""
    shown = page.page([run(mixed=part({"nginx": "TimeoutError: 0 of 2 workers"}, limpet_dispatcher=80))])
    assert "not measured: nginx failed" in shown
    assert "- 2 workers, mixed: nginx failed: `TimeoutError: 0 of 2 workers`" in shown


def test_short_run_is_said_to_be_one(page: ModuleType) -> None:
    """Two rounds on a busy machine are an example, no evidence: what people quote has nothing of them."""
    whole = run(**{name: part(uvicorn=1, limpet_kernel=1) for name in page.PARTS})
    few = run(**{name: part(rounds=2, uvicorn=1, limpet_kernel=1) for name in page.PARTS})
    assert not page.is_short(whole)
    assert page.is_short(few)
    assert page.is_short(run(mixed=part(limpet_dispatcher=1, nginx=1)))
    assert "A short run" in page.page([few])
    assert "|" not in page.readme([few])
    assert "|" in page.readme([whole])
