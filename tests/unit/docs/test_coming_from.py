"""docs/coming-from.md names tests for what it claims: they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from limpet.config.settings import SETTINGS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "coming-from.md").read_text()
ROWS = 24  # that the two modules have
DEFECTS = 13


def names_in(path: Path) -> set[str]:
    """Return the names of the tests in the file *path*."""
    names = (node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return {name for name in names if name.startswith("test_")}


def test_tests_that_are_named_exist() -> None:
    """A claim whose test was renamed or removed is a claim that nobody checks."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(ROOT / path)]
    assert not missing


def test_every_row_names_a_test() -> None:
    """Each thing that the modules have, and each defect of theirs, is held against limpet."""
    defects, rows = (
        [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| there")]
        for table in PAGE.partition("## What was wrong there")[2].split("What the modules have")
    )
    assert (len(defects), len(rows)) == (DEFECTS, ROWS)
    assert not [line for line in defects + rows if "::test_" not in line]


def test_flags_that_are_recommended_exist() -> None:
    """The right column is what readers paste."""
    ours = {each.flag for each in SETTINGS} | {"--wait-for-connections"}
    right = [line.split("|")[2] for line in PAGE.partition("## What was wrong there")[0].splitlines() if "|" in line]
    assert not {flag for cell in right for flag in re.findall(r"--[a-z][\w-]+", cell)} - ours
