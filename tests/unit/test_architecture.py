"""The picture in ARCHITECTURE.md, as tests: what a file may import, how long it may be, what it is called."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "limpet"
FILES = sorted(PACKAGE.rglob("*.py"))
PURE = [
    "advice",
    "baton",
    "bpf",
    "buckets",
    "client_hello",
    "cookie",
    "declare",
    "digests",
    "elements",
    "figures",
    "forwarded",
    "hashing",
    "head",
    "key",
    "learned",
    "lifecycle",
    "per_address",
    "proxy_protocol",
    "request",
    "roll",
    "router",
    "served",
]
IMPURE_MODULES = {"socket", "os", "signal", "time", "asyncio", "logging", "subprocess", "select", "selectors"}
IMPURE_MODULES |= {"threading"}


def imports(path: Path) -> set[str]:
    """Return the modules that *path* imports at its top level or anywhere else."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_nothing_that_acts(name: str) -> None:
    """What decides can be tested with values alone, and cannot block the dispatcher."""
    assert not {module.partition(".")[0] for module in imports(PACKAGE / f"{name}.py")} & IMPURE_MODULES


def test_supervisor_never_imports_user_code() -> None:
    """A supervisor that imported the application would die with it and hold its old version for ever."""
    reached, todo = set(), ["limpet.supervisor.bootstrap"]
    while todo:
        module = todo.pop()
        path = PACKAGE / f"{module.removeprefix('limpet.').replace('.', '/')}.py"
        if module in reached or not path.exists():
            continue
        reached.add(module)
        todo += [found for found in imports(path) if found.startswith("limpet.")]
    assert "limpet.routing.router" in reached
    assert not reached & {
        "limpet.worker.user_code",
        "limpet.worker",
        "limpet.entry.child",
        "limpet.servers.uvicorn.server",
    }


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_file_is_short_and_has_a_name(path: Path) -> None:
    """A file that outgrows a reader's memory, or collects what has no place, hides the flow."""
    assert len(path.read_text().splitlines()) <= 450
    assert path.stem not in {"utils", "helpers", "common", "base", "misc"}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_functions_are_short(path: Path) -> None:
    """More than 50 lines, docstring included, is more than one thought."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{node.name} in {path.name}"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_module_says_what_it_owns(path: Path) -> None:
    """The docstring on top is the map of the project for whoever opens one file."""
    assert ast.get_docstring(ast.parse(path.read_text()))
