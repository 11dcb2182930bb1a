"""What `make generations` calls grown: a script that could not fail would prove nothing."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.harness import HERE


@pytest.fixture(name="script")
def _script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/generations.py, whose folder is no package."""
    folder = HERE.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("generations", folder / "generations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generations", module)
    spec.loader.exec_module(module)
    return module


def point(pss_kib: int, descriptors: int) -> dict[str, Any]:
    """Return one point, with the same figures for each kind of process."""
    return {kind: {"pss_kib": pss_kib, "descriptors": descriptors} for kind in ("supervisor", "worker")}


@pytest.mark.parametrize(
    ("last", "grown"),
    [
        (point(15_000, 20), []),
        (point(15_400, 20), []),
        (point(17_000, 20), ["supervisor: 15000 KiB, 17000 KiB at the end", "worker: 15000 KiB, 17000 KiB at the end"]),
        (point(15_000, 21), ["supervisor: 20 descriptors, 21 at the end", "worker: 20 descriptors, 21 at the end"]),
    ],
)
def test_growth_of_memory_or_descriptors_is_named(script: ModuleType, last: dict[str, Any], grown: list[str]) -> None:
    """One descriptor in each generation is 500 after a month of deployments."""
    assert list(script.faults([point(15_000, 20), point(15_000, 30), last])) == grown
