"""What docs/hostile-inputs.md says of the cost of heavy inputs is what `make nasty` has measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "hostile-inputs.md").read_text()
FOUND = json.loads((ROOT / "benchmarks" / "results" / "nasty.json").read_text())


@pytest.fixture(name="nasty")
def _nasty(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/nasty.py, whose folder is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("nasty")


def test_table_is_what_was_measured(nasty: ModuleType) -> None:
    """A figure that nobody can make again is a claim."""
    assert nasty.block(FOUND) in PAGE
    assert nasty.renewed(PAGE, FOUND) == PAGE
    assert nasty.renewed(PAGE, {**FOUND, "rounds": 99}) != PAGE


def test_all_inputs_were_measured(nasty: ModuleType) -> None:
    """An input that is left out of the table may be the one that hurts."""
    assert list(FOUND["shapes"]) == list(nasty.shapes())
    assert len(FOUND["shapes"]) >= 20


def test_input_above_the_bound_is_named_on_the_page(nasty: ModuleType) -> None:
    """Whoever runs a server has to know which input costs it more than the bound says."""
    ratio = dict.fromkeys(nasty.LIMPETS, 9.9)
    shapes = {name: {**one, "ratio": ratio} if name == "250 headers" else one for name, one in FOUND["shapes"].items()}
    text = nasty.block({**FOUND, "shapes": shapes}).partition("\n| Input")[0]
    assert "250 headers" in text.partition("above it: ")[2]
