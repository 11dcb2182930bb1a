"""The facts about a server: who writes each, and what follows from them."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from limpet.fleet import fleet
from limpet.fleet.fleet import Fleet

PACKAGE = Path(fleet.__file__).parents[1]


def writers() -> dict[str, set[str]]:
    """Return which modules assign to each field of a fleet, or add to it, by what they call `fleet` or `_fleet`."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for target in _targets(node):
                if isinstance(target, ast.Attribute) and _is_fleet(target.value):
                    found.setdefault(target.attr, set()).add(path.stem)
    return found


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []


def _is_fleet(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("fleet", "_fleet")


def test_each_field_is_written_by_the_module_that_it_names() -> None:
    """Two writers of one fact overwrite each other's, and nobody finds out which of them was wrong."""
    lines = inspect.getsource(Fleet).splitlines()
    named = {match[1]: match[2] for line in lines if (match := re.match(r" +(\w+): .*  # (\w+):? ?.*", line))}
    named = {field: writer for field, writer in named.items() if (PACKAGE / "supervisor" / f"{writer}.py").exists()}
    assert {"is_serving", "is_stopping", "has_scaled", "settings"} <= named.keys()
    found = writers()
    found.get("slots", set()).discard("scaling")  # it adds to the list: `slots +=`
    assert {field: {writer} for field, writer in named.items() if field in found} == {
        field: modules for field, modules in found.items() if modules
    }
