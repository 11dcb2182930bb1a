"""The picture in ARCHITECTURE.md, as tests: which package may import which, what is pure, what a file is called."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "limpet"
FILES = sorted(PACKAGE.rglob("*.py"))
ORDER = (
    ("errors", "version", "current"),
    ("protocol",),
    ("system",),
    ("logs", "events"),
    ("routing",),
    ("config",),
    ("ipc",),
    ("fronts",),
    ("net",),
    ("moving",),
    ("sessions",),
    ("coordination",),
    ("dispatch",),
    ("fleet",),
    ("worker",),
    ("operate",),
    ("supervisor",),
    ("embed",),
    ("integrations",),
    ("servers",),
    ("entry",),
    ("cli", "__main__"),
)
"""Packages and modules of `limpet`, from the floor up: each imports its own row's and those above it."""
ALIASES = ("admin", "child", "door", "hosted", "watch")
"""Names that a running older version starts, or that docs promise; nothing here imports them."""
PURE = (
    "config.bind",
    "config.fields",
    "config.learn_source",
    "dispatch.address_limit",
    "fleet.changes",
    "fleet.lifecycle",
    "ipc.baton",
    "ipc.figures",
    "ipc.news",
    "moving.codec",
    "operate.advice",
    "protocol",
    "routing",
)
"""Modules, and packages with all of theirs, that decide with values alone."""
ACTS = {
    "asyncio",
    "logging",
    "mmap",
    "multiprocessing",
    "select",
    "selectors",
    "signal",
    "socket",
    "socketserver",
    "ssl",
}
ACTS |= {"subprocess", "threading", "time"}
"""Modules of Python that no pure module reaches."""


def name_of(path: Path) -> str:
    """Return the dotted name of the module at *path*."""
    parts = ["limpet", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@cache
def imports(module: str) -> frozenset[str]:
    """Return what *module* imports anywhere in its file, also under TYPE_CHECKING: modules of limpet and of others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {each if each in MODULES else node.module for each in full}
    return frozenset(found)


def reached(module: str) -> set[str]:
    """Return all that *module* imports, directly or through modules of limpet."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for each in imports(todo.pop()) - found:
            found.add(each)
            todo += [each] if each in MODULES else []
    return found


def rank(module: str) -> int:
    """Return the row of *module* in the order."""
    name = module.split(".")[1]
    return next(row for row, names in enumerate(ORDER) if name in names)


LAID = [module for module in MODULES if module != "limpet" and module.split(".")[1] not in ALIASES]


@pytest.mark.parametrize("module", LAID)
def test_imports_go_down_the_order_of_packages(module: str) -> None:
    """Whoever changes a package then knows what can notice: nothing below it."""
    own = [each for each in imports(module) if each in MODULES]
    assert "limpet" not in own or module == "limpet.integrations.jupyter"  # that is an application, and uses the API
    assert [each for each in own if each != "limpet" and rank(each) > rank(module)] == []


@pytest.mark.parametrize("module", LAID)
def test_no_module_imports_itself_by_way_of_others(module: str) -> None:
    """Modules in a circle can only be read, tested and changed together."""
    assert module not in reached(module)


def test_nothing_imports_an_alias() -> None:
    """They are for older versions and for adapters of others."""
    aliases = {f"limpet.{name}" for name in ALIASES}
    assert not [module for module in LAID if imports(module) & aliases]


@pytest.mark.parametrize(
    "module", [name for name in MODULES if any(f"{name}.".startswith(f"limpet.{pure}.") for pure in PURE)]
)
def test_pure_module_reaches_nothing_that_acts(module: str) -> None:
    """What decides can be tested with values alone, and cannot block the dispatcher."""
    assert {each.partition(".")[0] for each in reached(module)} & ACTS == set()


def test_supervisor_never_imports_user_code() -> None:
    """A supervisor that imported the application would die with it and hold its old version for ever."""
    found = reached("limpet.supervisor.bootstrap")
    assert "limpet.routing.router" in found
    assert not [each for each in found if each.startswith(("limpet.worker", "limpet.servers", "limpet.entry"))]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_file_has_a_name_and_says_what_it_owns(path: Path) -> None:
    """A file for what has no place hides the flow; the docstring on top is the map for whoever opens one file."""
    assert path.stem not in {"utils", "helpers", "common", "base", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_page_of_the_architecture_names_the_packages_in_their_order() -> None:
    """The table is what a newcomer reads first; one that is wrong is worse than none."""
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    table = page[page.index("| package |") : page.index("## Three walks")]
    rows = [tuple(re.findall(r"`(\w+)/?`", row)) for row in re.findall(r"^\| (`.*?`/?) \|", table, re.MULTILINE)]
    assert rows == [tuple(name for name in names if name != "__main__") for names in ORDER]


def test_page_of_the_architecture_names_files_that_exist() -> None:
    """A walk whose stops have moved leads nowhere."""
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", page)
    places = (PACKAGE, PACKAGE.parent)
    there = {path.name for path in PACKAGE.parent.joinpath("tests").rglob("*.py")}
    missing = [name for name in named if name not in there and not any((place / name).exists() for place in places)]
    assert missing == []


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_files_that_a_file_names_exist(path: Path) -> None:
    """A docstring says where to go on reading; a file that has moved is a dead end."""
    users = {"app", "chat", "jupyter_server_config", "notebook", "page", "script", "select"}  # files of users
    named = re.findall(r"(?<![\w/.-])((?:[a-z_]+/)*[a-z_]+)\.py\b", path.read_text())
    places = (PACKAGE, PACKAGE.parent, path.parent)
    missing = [name for name in named if not any((place / f"{name}.py").exists() for place in places)]
    assert set(missing) <= users


def test_order_names_what_there_is() -> None:
    """A package that is in no row could import anything."""
    named = {name for names in ORDER for name in names} | set(ALIASES)
    there = {module.split(".")[1] for module in MODULES if module != "limpet"}
    assert there <= named
